"""Kernel shapes and blocks in torch modules: the cut module is the cut ONNX file, and is usable."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnx_oracle as oracle
import pytest
import torch
import torch.nn.functional as F
from topologies import TOPOLOGIES
from torch import Tensor, fx, nn
from torch_nets import TRANSFORMERS, Built
from torch_parts import Head, builder, conv_bn, randomise

from rlprune.errors import ModelError
from rlprune.graph.from_torch import TorchTrace, trace_torch
from rlprune.graph.types import IntArray
from rlprune.schemes import Space, carry_out, removal_of, whole_space
from rlprune.surgery.torch import cut_torch

ALL = ("channel", "shape", "block")


class Residual(nn.Module):
    def __init__(self, *body: nn.Module, act: bool = True) -> None:
        super().__init__()
        self.body, self.act = nn.Sequential(*body), nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += x
        return cast(Tensor, self.act(y))


class Bottleneck(nn.Module):
    """As torchvision writes it."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, 1, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return cast(Tensor, self.relu(out))


def basic() -> nn.Module:
    def block() -> nn.Module:
        return Residual(conv_bn(16, 24), conv_bn(24, 16, act=False))

    return nn.Sequential(conv_bn(3, 16), block(), block(), block(), Head(16))


def bottleneck() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16), *(Bottleneck(16, 8) for _ in range(3)), Head(16))


def inverted() -> nn.Module:
    def block(kernel: int) -> nn.Module:
        middle = conv_bn(32, 32, kernel, groups=32)
        return Residual(conv_bn(16, 32, 1), middle, conv_bn(32, 16, 1, act=False), act=False)

    return nn.Sequential(conv_bn(3, 16, stride=2), block(3), block(5), block(7), Head(16))


def activation_outside() -> nn.Module:
    """A writing activation behind each block; without the block it meets another one's output."""

    def block() -> nn.Module:
        return Residual(conv_bn(16, 16), conv_bn(16, 16, act=False), act=False)

    layers = [layer for _ in range(3) for layer in (block(), nn.ReLU(inplace=True))]
    return nn.Sequential(conv_bn(3, 16), *layers, Head(16))


class Kinds(nn.Module):
    """Strided, dilated, `same`, grouped and long kernels, one padded unevenly and by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.strided, self.dilated = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 12, 3, 1, 2, 2)
        self.same = nn.Conv2d(12, 12, (4, 5), padding="same")
        self.grouped = nn.Conv2d(12, 12, 3, 1, 1, groups=3)
        self.pad, self.bare = nn.ZeroPad2d((0, 1, 1, 1)), nn.Conv2d(12, 16, 3)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.dilated(F.relu(self.strided(x))))
        x = F.relu(self.grouped(F.relu(self.same(x))))
        return cast(Tensor, self.head(F.relu(self.bare(self.pad(x)))))


class Follows(nn.Conv2d):
    """TensorFlow's SAME, from the extents of the kernel that the layer has."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for axis in (3, 2):
            kernel, stride = self.kernel_size[axis - 2], self.stride[axis - 2]
            count = x.shape[axis]
            total = max((-(-count // stride) - 1) * stride + kernel - count, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


def follows() -> nn.Module:
    layers = [Follows(3, 8, 3), nn.ReLU(), Follows(8, 8, 3, 2), nn.ReLU(), Follows(8, 12, 5)]
    return nn.Sequential(*layers, nn.ReLU(), Head(12))


class Signal(nn.Module):
    def __init__(self, kind: type[nn.Conv1d] | type[nn.Conv3d], side: int) -> None:
        super().__init__()
        self.a, self.b = kind(2, 12, 5, 2, 2), kind(12, 16, 3, padding=1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        return cast(Tensor, self.fc(x.flatten(2).mean(2)))


class Encoders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.embed, self.layers = nn.Linear(8, 16), nn.TransformerEncoder(layer, 3)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.layers(self.embed(x)).mean(1)))


NETS: dict[str, Callable[[], Built]] = {
    "basic": builder(basic),
    "bottleneck": builder(bottleneck),
    "inverted": builder(inverted),
    "activation_outside": builder(activation_outside),
    "kinds": builder(Kinds),
    "follows": builder(follows),
    "1d": builder(lambda: Signal(nn.Conv1d, 1), lambda: (torch.randn(1, 2, 40),)),
    "3d": builder(lambda: Signal(nn.Conv3d, 3), lambda: (torch.randn(1, 2, 8, 8, 8),)),
    "encoders": builder(Encoders, lambda: (torch.randn(1, 6, 8),)),
    **{name: TRANSFORMERS[name] for name in ("vit_packed", "swin", "encoder_norm_first")},
    **{name: TOPOLOGIES[name] for name in ("resnet_a", "preact")},
}
SEEDS = range(3)
EVERY = pytest.mark.parametrize("name", list(NETS))


def drawn(space: Space, seed: int) -> IntArray:
    """The choice of some option at about two sites of three."""
    rng = np.random.default_rng(seed)
    whole = rng.random(len(space.sites)) < 0.35
    return np.where(whole, space.unpruned, rng.integers(space.option_count))


def cut(trace: TorchTrace, settings: IntArray) -> nn.Module:
    return cut_torch(trace, removal_of(trace.onnx, settings, ALL))


def answers(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    with torch.no_grad():
        return module(*inputs)


@EVERY
def test_cut_module_answers_as_the_cut_file_and_costs_what_the_plan_says(name: str) -> None:
    module, inputs = NETS[name]()
    trace = trace_torch(module, inputs)
    space = whole_space(trace.graph, ALL)
    assert len(space.sites) > len(trace.graph.groups)
    for seed in SEEDS:
        choice = drawn(space, seed)
        settings = space.settings_at(choice)
        small = cut(trace, settings)
        file = carry_out(trace.onnx, settings, ALL)
        [expected] = oracle.run(file, [one.numpy() for one in inputs])
        assert oracle.relative_error([expected], [answers(small, inputs).numpy()]) < 1e-4
        again = trace_torch(small, inputs)
        assert again.graph.macs(again.graph.widths) == space.macs(choice)
        whole = {tensor.name for tensor in trace.onnx.model.graph.initializer}
        left = {tensor.name: list(tensor.dims) for tensor in file.graph.initializer}
        held = {key: list(value.shape) for key, value in small.state_dict().items()}
        shared = whole & module.state_dict().keys()
        assert {key: held[key] for key in shared & held.keys()} == {
            key: left[key] for key in shared & left.keys()
        }


@EVERY
def test_cut_module_trains_and_is_copied_and_saved(name: str) -> None:
    module, inputs = NETS[name]()
    trace = trace_torch(module.train(), inputs)
    space = whole_space(trace.graph, ALL)
    small = cut(trace, space.settings_at(drawn(space, 1)))
    assert all(part.training for part in small.modules())
    batch = torch.cat([inputs[0], -inputs[0]])
    before = {key: value.clone() for key, value in small.state_dict().items()}
    optimizer = torch.optim.SGD(small.parameters(), 0.01)
    cast(Tensor, small(batch)).square().sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    moved = [key for key, value in small.named_parameters() if (value != before[key]).any()]
    assert len(moved) > len(list(small.parameters())) // 2
    small.eval()
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    for twin in (copy.deepcopy(small), torch.load(file, weights_only=False)):
        torch.testing.assert_close(answers(twin, inputs), answers(small, inputs))


@EVERY
def test_state_loads_into_the_plan_applied_to_other_weights_and_computes_the_same(
    name: str,
) -> None:
    module, inputs = NETS[name]()
    trace = trace_torch(module, inputs)
    space = whole_space(trace.graph, ALL)
    other = copy.deepcopy(module)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn_like(parameter))
    for seed in SEEDS:
        settings = space.settings_at(drawn(space, seed))
        small = cut(trace, settings)
        again = cut(trace_torch(other, inputs), settings)
        again.load_state_dict(small.state_dict(), strict=True)
        torch.testing.assert_close(answers(again, inputs), answers(small, inputs))


def only(trace: TorchTrace, scheme: str, option: int = 0) -> IntArray:
    """Every site of one scheme at one option, all else whole."""
    space = whole_space(trace.graph, ALL)
    chosen = [one.scheme == scheme for one in space.sites]
    return space.settings_at(np.where(chosen, option, space.unpruned))


def test_module_of_which_nothing_is_left_is_an_identity_and_its_parameters_are_gone() -> None:
    module, inputs = NETS["bottleneck"]()
    trace = trace_torch(module, inputs)
    small = cast(nn.Sequential, cut(trace, only(trace, "block")))
    assert [type(part) for part in small][1:4] == [Bottleneck, nn.Identity, nn.Identity]
    kept = {key for key in module.state_dict() if key.split(".")[0] in ("0", "1", "4")}
    assert small.state_dict().keys() == kept


def test_half_of_a_block_that_is_left_keeps_its_names() -> None:
    module, inputs = NETS["encoders"]()
    trace = trace_torch(module, inputs)
    space = whole_space(trace.graph, ALL)
    choice = space.unpruned.copy()
    last = max(index for index, site in enumerate(space.sites) if site.scheme == "block")
    choice[last] = 0  # the MLP of the last layer
    small = cut(trace, space.settings_at(choice))
    gone = module.state_dict().keys() - small.state_dict().keys()
    assert {key.rpartition(".")[0] for key in gone} == {
        "layers.layers.2.linear1",
        "layers.layers.2.linear2",
    }
    assert isinstance(small.get_submodule("layers.layers.2"), fx.GraphModule)
    assert type(small.get_submodule("layers.layers.1")) is nn.TransformerEncoderLayer
    padded = torch.tensor([[False] * 4 + [True] * 2])
    mixed = small.get_submodule("layers")(torch.randn(1, 6, 16), src_key_padding_mask=padded)
    assert mixed.shape == (1, 6, 16)


def test_even_borders_stay_an_attribute_and_chosen_taps_are_state() -> None:
    module, inputs = NETS["kinds"]()
    trace = trace_torch(module, inputs)
    one = cut(trace, only(trace, "shape"))
    dilated = one.get_submodule("dilated")
    assert isinstance(dilated, nn.Conv2d) and type(dilated) is nn.Conv2d
    assert (dilated.kernel_size, dilated.padding) == ((1, 1), (0, 0))
    assert dilated.padding_mode == "zeros" and not dilated._buffers
    space = whole_space(trace.graph, ALL)
    choice = space.unpruned.copy()
    [place] = [i for i, s in enumerate(space.sites) if s.scheme == "shape" and "dilated" in s.name]
    choice[place] = space.sites[place].values.index(202)
    two = cut(trace, space.settings_at(choice)).get_submodule("dilated")
    border = two.get_buffer("zero_border").tolist()
    assert sorted(border[::2]) == sorted(border[1::2]) == [0, 2]


def test_cut_kernels_are_exported_by_torch_export_and_cut_again() -> None:
    module, inputs = NETS["basic"]()
    trace = trace_torch(module, inputs)
    space = whole_space(trace.graph, ALL)
    small = cut(trace, space.settings_at(drawn(space, 2)))
    program = torch.export.export(small, inputs)
    torch.testing.assert_close(answers(program.module(), inputs), answers(small, inputs))
    again = trace_torch(small, inputs)
    space = whole_space(again.graph, ALL)
    settings = space.settings_at(drawn(space, 3))
    smaller = cut(again, settings)
    [expected] = oracle.run(carry_out(again.onnx, settings, ALL), [inputs[0].numpy()])
    assert oracle.relative_error([expected], [answers(smaller, inputs).numpy()]) < 1e-4


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.weight = conv_bn(3, 8), nn.Parameter(torch.randn(8, 8, 3, 3))
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(F.relu(F.conv2d(self.stem(x), self.weight, padding=1))))


def test_kernel_that_code_reads_by_itself_is_refused_by_name() -> None:
    trace = trace_torch(builder(Functional)()[0], torch.randn(1, 3, 8, 8))
    with pytest.raises(ModelError, match=r"'weight' cannot be cut.*hold"):
        cut(trace, only(trace, "shape"))


class Twice(nn.Module):
    """One block applied again: what goes once must stay for the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_bn(3, 8), Head(8)
        self.block = Residual(conv_bn(8, 8), conv_bn(8, 8, act=False))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.block(self.block(self.block(self.stem(x))))))


def test_block_that_is_used_again_is_refused_by_name() -> None:
    torch.manual_seed(0)
    module = Twice()
    randomise(module)
    trace = trace_torch(module.eval(), torch.randn(1, 3, 8, 8))
    space = whole_space(trace.graph, ALL)
    [*_, last] = [index for index, site in enumerate(space.sites) if site.scheme == "block"]
    choice = space.unpruned.copy()
    choice[last] = 0
    with pytest.raises(ModelError, match=f"block {space.sites[last].name!r} cannot be left out"):
        cut(trace, space.settings_at(choice))
