"""Modules as they are given: wrapped, half, frozen, hooked, called in odd ways; what is refused."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from topologies import TOPOLOGIES
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations
from torch_nets import TRANSFORMERS, EncoderLayers, built
from torch_parts import Head, conv_bn, randomise

import rlprune
from rlprune.errors import InputError, ModelError
from rlprune.graph.from_torch import TorchTrace, trace_torch
from rlprune.surgery.torch import prune_torch
from rlprune.surgery.torch_attention import PrunedMultiheadAttention

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def halves(trace: TorchTrace) -> nn.Module:
    return prune_torch(trace, np.maximum(1, trace.graph.widths // 2))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = conv_bn(3, 16), conv_bn(16, 24), Head(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.mix(self.stem(x)))
        return result


def small_net() -> nn.Module:
    torch.manual_seed(0)
    module = Small()
    randomise(module)
    return module.eval()


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled])
def test_wrapper_is_taken_off_and_the_module_in_it_pruned(wrap: Any) -> None:
    module = small_net()
    small = halves(trace_torch(wrap(module), IMAGE))
    assert type(small) is Small
    assert small.state_dict().keys() == module.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_module_of_another_precision_is_cut_as_its_float32_twin_and_keeps_it(
    dtype: torch.dtype,
) -> None:
    module = small_net().to(dtype)
    image = IMAGE.to(dtype)
    trace = trace_torch(module, image)
    small = halves(trace)
    assert {p.dtype for p in small.parameters()} == {dtype}
    twin = trace_torch(copy.deepcopy(module).float(), IMAGE)
    assert twin.graph.fingerprint == trace.graph.fingerprint
    expected = halves(twin)(IMAGE)
    torch.testing.assert_close(small(image).float(), expected, rtol=0.05, atol=0.05)


def test_channels_last_module_stays_channels_last() -> None:
    module = small_net().to(memory_format=torch.channels_last)
    small = halves(trace_torch(module, IMAGE.to(memory_format=torch.channels_last)))
    weight = small.get_parameter("mix.0.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def snapshot(module: nn.Module) -> tuple[Any, ...]:
    parts = list(module.modules())
    return (
        {key: value.clone() for key, value in module.state_dict().items()},
        [parameter.requires_grad for parameter in module.parameters()],
        [parameter.grad for parameter in module.parameters()],
        [part.training for part in parts],
        [list(part._forward_hooks.values()) for part in parts],
        [list(part._forward_pre_hooks.values()) for part in parts],
        [type(part) for part in parts],
        [sorted(vars(part)) for part in parts],
    )


def test_frozen_hooked_module_in_train_mode_is_left_as_it_was_and_trains_when_cut() -> None:
    module = small_net().train()
    module.get_submodule("head").eval()
    module.get_submodule("stem").requires_grad_(False)
    calls: list[str] = []
    module.register_forward_hook(lambda *_: calls.append("forward"))
    module.get_submodule("mix").register_forward_pre_hook(lambda *_: calls.append("pre"))
    before = snapshot(module)
    state = torch.get_rng_state()
    small = halves(trace_torch(module, IMAGE))
    after = snapshot(module)
    assert torch.equal(torch.get_rng_state(), state) and not calls
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:] == before[1:]
    assert small.training and not small.get_submodule("head").training
    frozen = [n for n, p in small.named_parameters() if not p.requires_grad]
    assert frozen == ["stem.0.weight", "stem.1.weight", "stem.1.bias"]
    gradients: list[Tensor] = []
    small.register_forward_hook(lambda *_: calls.append("new"))
    small.get_parameter("mix.0.weight").register_hook(gradients.append)
    optimizer = torch.optim.SGD([p for p in small.parameters() if p.requires_grad], lr=0.1)
    weight = small.get_parameter("mix.0.weight").clone()
    small(IMAGE.expand(2, -1, -1, -1)).square().mean().backward()
    optimizer.step()
    assert calls == ["new"] and gradients[0].shape == weight.shape
    assert not torch.equal(small.get_parameter("mix.0.weight"), weight)


@dataclass
class Answer:
    logits: Tensor
    features: Tensor


class Pair(NamedTuple):
    logits: Tensor
    feature_sum: Tensor


class Odd(nn.Module):
    """Called with keywords, lists and flags; answers with what it is asked to."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.answer = answer
        self.note = {"made": ["by", "hand"], "at": object}
        self.stem, self.other, self.head = conv_bn(3, 16), conv_bn(3, 8), Head(16, 4)

    def forward(self, *images: Tensor, extra: Tensor | None = None, scale: float = 1.0) -> Any:
        x = self.stem(images[0]) * scale
        if extra is not None:
            x = torch.cat((self.other(extra), x[:, 8:]), 1) + x
        logits, feature = self.head(x), x.mean((1, 2, 3))
        kinds = {
            "dict": {"logits": logits, "more": [feature]},
            "tuple": (logits, (feature, None)),
            "named": Pair(logits, feature),
            "dataclass": Answer(logits, feature),
        }
        return kinds[self.answer]


@pytest.mark.parametrize("answer", ["dict", "tuple", "named", "dataclass"])
def test_outputs_of_any_form_come_back_in_that_form(answer: str) -> None:
    torch.manual_seed(0)
    module = Odd(answer).eval()
    trace = trace_torch(module, (IMAGE,))
    result = halves(trace)(IMAGE)
    assert type(result) is type(module(IMAGE))


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other, self.head = conv_bn(3, 16), conv_bn(3, 16), Head(16, 4)

    def forward(self, x: Tensor, *, pair: dict[str, Tensor] | None = None, gain: int = 1) -> Tensor:
        y = self.stem(x) * gain
        if pair is not None:
            y = y + self.other(pair["left"]) * pair["right"].mean()
        result: Tensor = self.head(y)
        return result


def test_example_inputs_may_be_keywords_with_tensors_deep_inside() -> None:
    torch.manual_seed(0)
    module = Keywords().eval()
    inputs = {"x": IMAGE, "pair": {"left": IMAGE + 1, "right": IMAGE}, "gain": 2}
    trace = rlprune.trace(module, inputs)
    assert len(trace.graph.input_shapes) == 3
    small = halves(trace)
    assert type(small) is Keywords and small.get_parameter("stem.0.weight").shape[0] == 8
    assert small(**inputs).shape == (1, 4)


def test_example_inputs_without_a_tensor_are_refused() -> None:
    with pytest.raises(InputError, match="hold no tensor"):
        trace_torch(small_net(), {"x": 3})


def test_module_without_values_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match=r"no values in 'stem\.0\.weight'.*materialise"):
        trace_torch(small_net().to("meta"), IMAGE)


def test_weights_that_an_old_hook_computes_are_refused() -> None:
    module = small_net()
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(module.get_submodule("stem.0"))
    with pytest.raises(ModelError, match=r"'stem\.0' \(WeightNorm\); remove it first"):
        trace_torch(module, IMAGE)


def test_parametrized_layer_is_held_whole_and_named() -> None:
    module = small_net()
    parametrizations.weight_norm(module.get_submodule("mix.0"))
    trace = trace_torch(module, IMAGE)
    assert not trace.graph.groups  # stem feeds it, and head reads it
    small = halves(trace)
    torch.testing.assert_close(small(IMAGE), module(IMAGE))
    assert any("computed kernel" in held.reason for held in trace.graph.held)


def test_synchronised_batchnorm_is_cut() -> None:
    module = nn.SyncBatchNorm.convert_sync_batchnorm(small_net())
    small = halves(trace_torch(module, IMAGE))
    norm = small.get_submodule("mix.1")
    assert isinstance(norm, nn.SyncBatchNorm) and norm.num_features == 12


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = conv_bn(3, 16), Head(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.mean() > 0:
            x = x * 2
        result: Tensor = self.head(x)
        return result


def test_branch_on_computed_values_is_refused_naming_the_line() -> None:
    with pytest.raises(ModelError, match=r"test_torch_given\.py line \d+.*torch\.where") as refusal:
        trace_torch(Branching().eval(), IMAGE)
    assert "\n" not in str(refusal.value)


class Routed(nn.Module):
    """Channels in an order that a buffer holds; a shared layer; a functional depthwise one."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = conv_bn(3, 16), conv_bn(16, 16)
        self.register_buffer("order", torch.randperm(16))
        self.depth = nn.Parameter(torch.randn(16, 1, 3, 3))
        self.head = Head(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.stem(x)[:, self.order])
        x = F.conv2d(self.shared(x), self.depth, padding=1, groups=self.depth.shape[0])
        result: Tensor = self.head(x)
        return result


def test_index_buffers_shrink_and_load_where_other_channels_survive() -> None:
    torch.manual_seed(0)
    module = Routed().eval()
    randomise(module)
    trace = trace_torch(module, IMAGE)
    keeps = np.maximum(1, trace.graph.widths * 5 // 8)
    small = prune_torch(trace, keeps)
    assert small.get_buffer("order").numel() == small.get_parameter("depth").shape[0] < 16
    torch.manual_seed(0)
    other = Routed().eval()  # the same order, other weights
    again = prune_torch(trace_torch(other, IMAGE), keeps)
    again.load_state_dict(small.state_dict(), strict=True)
    torch.testing.assert_close(again(IMAGE), small(IMAGE))


@pytest.mark.parametrize("name", ["resnet_a", "vit_packed", "vit_separate", "mobilenet_v2"])
def test_only_parts_whose_code_must_change_lose_their_class(name: str) -> None:
    module, inputs = {**TOPOLOGIES, **TRANSFORMERS}[name]()
    small = halves(trace_torch(module, inputs))
    assert type(small) is type(module)
    changed = [path for path, part in small.named_modules() if isinstance(part, fx.GraphModule)]
    # timm's attention takes the size of what its heads give from the stream, which is wider now.
    expected = ["encoders.0.attention", "encoders.1.attention"] if name == "vit_packed" else []
    assert changed == expected
    assert [path for path, _ in small.named_modules()] == [p for p, _ in module.named_modules()]


@pytest.mark.parametrize("name", ["vit_packed", "vit_separate", "vit_torch", "vit_torch_unpacked"])
def test_attributes_of_attention_follow(name: str) -> None:
    module, inputs = TRANSFORMERS[name]()
    small = halves(trace_torch(module, inputs))
    heads = [p for p in small.modules() if hasattr(p, "num_heads")]
    assert [part.num_heads for part in heads] == [2, 2]
    assert all(part.head_dim == 6 for part in heads)
    if name == "vit_separate":
        assert {part.all_head_dim for part in heads} == {12}


def test_rewritten_attention_still_drops_out_when_trained() -> None:
    for name in ("vit_packed", "vit_separate"):
        module, inputs = TRANSFORMERS[name]()
        part = halves(trace_torch(module, inputs)).get_submodule("encoders.0.attention").train()
        x = torch.randn(2, 5, 24)
        torch.manual_seed(0)
        first, second = part(x), part(x)
        assert not torch.equal(first, second)
        assert torch.equal(part.eval()(x), part(x))


@pytest.mark.parametrize("need_weights", [False, True])
def test_pruned_attention_is_torchs_where_heads_fill_the_width(need_weights: bool) -> None:
    """Masks, added keys and batches as torch's own has them."""
    for options in ({}, {"batch_first": True}, {"add_bias_kv": True, "add_zero_attn": True}):
        torch.manual_seed(0)
        theirs = nn.MultiheadAttention(24, 4, **options).eval()  # type: ignore[arg-type]
        ours = copy.deepcopy(theirs)
        PrunedMultiheadAttention.convert(ours, 6)
        x = torch.randn(3, 3, 24)
        causal = torch.triu(torch.ones(3, 3, dtype=torch.bool), 1)
        padding = torch.tensor([[False, False, True]] * 3)
        for mask in (None, causal, torch.zeros(3, 3).masked_fill(causal, float("-inf"))):
            for hidden in (None, padding):
                if hidden is not None and mask is not None and mask.dtype != torch.bool:
                    hidden = torch.zeros(3, 3).masked_fill(padding, float("-inf"))
                for key in (x, torch.randn(3, 3, 24)):
                    given = {"key_padding_mask": hidden, "attn_mask": mask}
                    got = ours(x, key, key, need_weights=need_weights, **given)
                    expected = theirs(x, key, key, need_weights=need_weights, **given)
                    torch.testing.assert_close(got, expected, equal_nan=True)
        flat = torch.randn(5, 24)
        torch.testing.assert_close(ours(flat, flat, flat), theirs(flat, flat, flat))


def test_torchs_encoder_agrees_with_itself_on_and_off_its_fused_path() -> None:
    module, inputs = built(lambda: EncoderLayers(count=2), 2, 7, 10)
    padding = torch.arange(7)[None, :] >= torch.tensor([[7], [5]])
    small = halves(trace_torch(module, inputs))
    with torch.no_grad():
        fused = small(inputs[0], padding)
    plain = small(inputs[0].requires_grad_(True), padding)
    torch.testing.assert_close(plain, fused)


def test_encoder_of_which_only_mlps_are_cut_keeps_torchs_attention() -> None:
    module, inputs = TRANSFORMERS["encoder"]()
    trace = trace_torch(module, inputs)
    widths = trace.graph.widths
    small = prune_torch(trace, np.where(widths > 4, widths // 2, widths))
    kinds = {type(p) for p in small.modules() if isinstance(p, nn.MultiheadAttention)}
    assert kinds == {nn.MultiheadAttention}
    with torch.no_grad():
        fused = small(*inputs)
    torch.testing.assert_close(small(inputs[0].requires_grad_(True)), fused)


def test_larger_batches_run_where_code_was_rewritten() -> None:
    for name in ("resnet_a", "vit_packed", "channel_slice"):
        module, inputs = {**TOPOLOGIES, **TRANSFORMERS}[name]()
        small = halves(trace_torch(module, inputs))
        rows = torch.cat([inputs[0], torch.randn_like(inputs[0])])
        expected = torch.cat([small(row[None]) for row in rows])
        torch.testing.assert_close(small(rows), expected, rtol=1e-4, atol=1e-4)
