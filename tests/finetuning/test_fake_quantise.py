"""In training a layer computes what its int8 file will, and afterwards it is itself again."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.overrides import _get_current_function_mode

from rlprune.finetuning.batches import Batch
from rlprune.finetuning.fake_quantise import fake_quantised, rounded_input, rounded_weight
from rlprune.finetuning.loop import TrainConfig, fit
from rlprune.graph.from_torch import trace_torch
from rlprune.precision import quantised
from rlprune.runtime import get_runtime
from rlprune.sensitivity.batching import open_batch
from rlprune.sensitivity.calibration import CalibrationSet

LAYERS = {
    "conv": (lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1), (6, 9, 9)),
    "grouped": (lambda: nn.Conv2d(6, 12, 3, padding=1, groups=3, bias=False), (6, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (6, 9, 9)),
    "conv1d": (lambda: nn.Conv1d(6, 10, 5), (6, 20)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3, stride=2), (6, 5, 5)),
    "linear": (lambda: nn.Linear(24, 10), (24,)),
}


def file_of(module: nn.Module, x: torch.Tensor) -> onnx.ModelProto:
    """Its int8 file, scales from `x`."""
    model = open_batch(trace_torch(module, x[:1]).onnx.model)
    return quantised(model, [{model.graph.input[0].name: one[None].numpy()} for one in x])


def answers(model: onnx.ModelProto, x: torch.Tensor) -> torch.Tensor:
    with closing(get_runtime().load(model.SerializeToString())) as session:
        return torch.from_numpy(np.array(session.run({model.graph.input[0].name: x.numpy()})[0]))


def step_of(model: onnx.ModelProto, tensor: str) -> float:
    """Of the quantiser's scale for a tensor."""
    values = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    return max(
        float(values[node.input[1]].max())
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and tensor in node.input[0]
    )


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_answers_as_its_int8_file_does(kind: str) -> None:
    """To one step of the answer's own rounding, which is not imitated; scales differ by channel."""
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer = make().eval()
    shape_of_ones = [1] * (layer.weight.dim() - 1)
    x = torch.randn(16, *shape) + 0.5
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-1, 1, len(layer.weight)).view(-1, *shape_of_ones))
        wanted = answers(model := file_of(layer, x), x)
        exact = layer(x)
        with fake_quantised(layer, [Batch(x, None, 16)]):
            found = layer(x)
    step = step_of(model, model.graph.output[0].name)
    found = found.clamp(wanted.min(), wanted.max())  # the file clips to the range of exact answers
    assert float((found - wanted).abs().max()) <= 1.001 * step
    # Most of what is left is that rounding: evenly spread over a step, a quarter of it on average.
    assert float((found - wanted).abs().mean()) < 0.3 * step
    assert float((found - exact).abs().max()) > 0.001 * step


def test_weights_and_inputs_are_what_the_file_holds() -> None:
    """BatchNorm is folded into the file's weights; the module's are rounded without."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)
    module = nn.Sequential(conv, norm).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.1, -2.0, 1.0, 30.0, 0.5]))
        norm.running_var.copy_(torch.rand(5) + 0.1)  # type: ignore[union-attr]
    x = torch.randn(8, 3, 6, 6)
    model = file_of(module, x)
    values = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    [held] = [one for one in values.values() if one.dtype == np.int8 and one.shape == (5, 3, 3, 3)]
    with torch.no_grad():
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()  # type: ignore[operator]
        own = rounded_weight(conv.weight) * factor.view(-1, 1, 1, 1)
        scale = (conv.weight * factor.view(-1, 1, 1, 1)).abs().amax((1, 2, 3)) / 127
    steps = (own / scale.view(-1, 1, 1, 1)).numpy()
    assert np.abs(steps - held).max() < 1.001 and np.mean(np.abs(steps - held) > 0.5) < 0.01
    grid = rounded_input(x, float(x.min()), float(x.max()))
    step = float(x.max() - x.min()) / 255
    assert len(grid.unique()) <= 256 and float((grid - x).abs().max()) <= 0.51 * step


def test_gradients_pass_but_for_what_is_clipped() -> None:
    weight = torch.randn(4, 3, requires_grad=True)
    rounded_weight(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(4, 3))  # type: ignore[arg-type]
    x = torch.tensor([-3.0, -1.0, 0.2, 1.9, 2.5], requires_grad=True)
    held = rounded_input(x, -1.0, 2.0)
    held.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert held.detach()[[0, 4]].tolist() == pytest.approx([-1.0, 2.0], abs=0.01)
    assert torch.equal(rounded_input(torch.zeros(3), 0.0, 0.0), torch.zeros(3))
    assert torch.equal(rounded_weight(torch.zeros(2, 3)), torch.zeros(2, 3))


class Joined(nn.Module):
    """A sum, a concatenation, a BatchNorm that no convolution takes in, and means."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.last = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        one = self.first(x).relu()
        two = self.second(one)
        two += one
        both = self.norm(torch.cat([two * scale, one], 1)).relu()
        out: torch.Tensor = self.last(nn.functional.adaptive_avg_pool2d(both, 1).flatten(1) + 0.5)
        return out


def test_what_joins_layers_is_rounded_as_in_the_file() -> None:
    torch.manual_seed(0)
    module, x = Joined().eval(), torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        module.norm.weight.copy_(torch.logspace(-1.5, 0.5, 16))
        module.norm.running_var.copy_(torch.linspace(0.1, 3, 16))  # type: ignore[union-attr]
        exact = module(x)
        moved = answers(file_of(module, x), x) - exact
        with fake_quantised(module, [Batch(x, None, 64)]):
            found = module(x) - exact
            assert not torch.equal(module.norm.weight, module.norm.parametrizations.weight.original)  # type: ignore[union-attr, arg-type]
        assert torch.equal(module(x), exact)
    assert float(torch.corrcoef(torch.stack([moved.flatten(), found.flatten()]))[0, 1]) > 0.7


def test_an_error_in_the_forward_pass_leaves_nothing_behind() -> None:
    module, x = Joined(), torch.randn(4, 3, 8, 8)
    with fake_quantised(module, [Batch(x, None, 4)]), pytest.raises(RuntimeError):
        module(torch.randn(4, 2, 8, 8))
    assert _get_current_function_mode() is None


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )


def test_trained_so_it_is_the_users_module_again_with_other_weights() -> None:
    """Also after an error; BatchNorm's statistics stand still meanwhile."""
    module, x = net(), torch.randn(32, 1, 8, 8)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    kinds = [type(part) for part in module.modules()]
    images = CalibrationSet.single(x.numpy(), np.arange(32) % 10)
    with fake_quantised(module, [Batch(x, None, 32)]):
        fit(module, images, TrainConfig(epoch_count=1, batch_size=8))
    after = module.state_dict()
    assert list(after) == list(before) and [type(part) for part in module.modules()] == kinds
    assert not any(part._forward_pre_hooks for part in module.modules())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"}
    assert isinstance(module[0].weight, nn.Parameter)
    with pytest.raises(KeyboardInterrupt), fake_quantised(module, [Batch(x, None, 32)]):
        raise KeyboardInterrupt
    assert list(module.state_dict()) == list(before)


def test_layers_kept_in_float_and_computed_weights_are_left_alone() -> None:
    module, x = net().eval(), torch.randn(4, 1, 8, 8)
    nn.utils.parametrizations.weight_norm(module[4])
    with torch.no_grad():
        exact = module(x)
        with fake_quantised(module, [Batch(x, None, 4)], keep_float={"0", "4"}):
            assert torch.equal(module(x), exact)
        with fake_quantised(module, [Batch(x, None, 4)], keep_float={"0"}):
            assert not torch.equal(module(x), exact)
        assert torch.equal(module(x), exact)
    assert nn.utils.parametrize.is_parametrized(module[4])
