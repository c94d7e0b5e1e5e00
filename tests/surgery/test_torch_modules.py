"""Modules as people write them: frozen, shared, fresh, odd; and those that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from topologies import TOPOLOGIES, ResNetA
from torch import Tensor, nn
from torch_parts import randomise

from rlprune.errors import ModelError, PlanError
from rlprune.graph.from_torch import trace_torch
from rlprune.surgery.torch import prune_torch

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def halved(module: nn.Module, image: Tensor = IMAGE) -> nn.Module:
    trace = trace_torch(module, image)
    return prune_torch(trace, np.maximum(1, trace.graph.widths // 2))


def test_frozen_parameters_are_cut_and_stay_frozen() -> None:
    module, inputs = TOPOLOGIES["resnet_a"]()
    module.requires_grad_(False)
    next(module.parameters()).requires_grad_(True)
    trace = trace_torch(module, inputs)
    small = prune_torch(trace, trace.graph.widths // 2)
    assert len(trace.graph.groups) == 7
    assert [p.requires_grad for p in small.parameters()] == [True] + [False] * (
        len(list(small.parameters())) - 1
    )


def test_module_in_train_mode_comes_back_in_train_mode() -> None:
    module, inputs = TOPOLOGIES["resnet_b"]()
    module.train()
    module.get_submodule("stem").eval()
    statistics = module.get_buffer("stem.1.running_mean").clone()
    small = halved(module, inputs[0])
    assert module.training and small.training
    assert not small.get_submodule("stem").training
    assert torch.equal(module.get_buffer("stem.1.running_mean"), statistics)


def test_fresh_net_with_equal_batchnorms_has_the_groups_of_a_trained_one() -> None:
    torch.manual_seed(0)
    fresh = ResNetA().eval()
    trained, inputs = TOPOLOGIES["resnet_a"]()
    assert trace_torch(fresh, inputs).graph == trace_torch(trained, inputs).graph


def test_attributes_follow_the_weights() -> None:
    small = halved(*(lambda built: (built[0], built[1][0]))(TOPOLOGIES["mobilenet_v2"]()))
    for part in small.modules():
        if isinstance(part, nn.Conv2d):
            assert part.weight.shape[:2] == (part.out_channels, part.in_channels // part.groups)
        elif isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_mean.shape == (part.num_features,)
        elif isinstance(part, nn.Linear):
            assert part.weight.shape == (part.out_features, part.in_features)


class Shared(nn.Module):
    """One convolution and its BatchNorm applied twice; a weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
        self.right.weight = self.left.weight
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.norm(self.conv(x)))
        x = F.relu(self.norm(self.conv(x)))
        result: Tensor = self.fc((self.left(x) + self.right(x).sigmoid()).mean((2, 3)))
        return result


def test_shared_weights_are_cut_once_and_stay_shared() -> None:
    torch.manual_seed(0)
    module = Shared().eval()
    randomise(module)
    small = halved(module)
    left, right = small.get_submodule("left"), small.get_submodule("right")
    assert isinstance(left, nn.Conv2d) and left.weight is right.weight
    assert left.weight.shape == (4, 8, 1, 1)
    assert small.get_parameter("conv.weight").shape[:2] == (8, 8)


class Tokens(nn.Module):
    """A Linear on three axes (its weight is exported transposed), raw parameters, hidden buffer."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.scale = nn.Parameter(torch.rand(16, 1, 1) + 0.5)
        self.register_buffer("offset", torch.rand(16, 1, 1), persistent=False)
        self.mix = nn.Linear(16, 24)
        self.act = nn.PReLU(24)
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) * self.scale + self.offset
        x = self.mix(x.flatten(2).transpose(1, 2)).relu()
        result: Tensor = self.fc(self.act(x.transpose(1, 2)).mean(2))
        return result


def test_transposed_weights_raw_parameters_and_hidden_buffers_are_cut() -> None:
    torch.manual_seed(0)
    small = halved(Tokens().eval())
    shapes = {name: tuple(p.shape) for name, p in small.named_parameters()}
    assert shapes["scale"] == (8, 1, 1) and shapes["mix.weight"] == (12, 8)
    assert small.get_buffer("offset").shape == (8, 1, 1)


def test_keeps_that_do_not_fit_are_refused() -> None:
    trace = trace_torch(*TOPOLOGIES["resnet_b"]())
    for keeps in (trace.graph.widths[1:], trace.graph.widths + 1, trace.graph.widths * 0):
        with pytest.raises(PlanError, match="keeps"):
            prune_torch(trace, keeps)


class Moody(nn.Module):
    """Widths written into code that torch.fx cannot follow: it counts with numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).view(-1, int(np.prod((8, 36))))
        if isinstance(x, Tensor):
            result: Tensor = self.fc(x)
            return result
        raise TypeError("this wants a tensor")


def test_widths_in_code_that_cannot_be_followed_are_refused_not_guessed() -> None:
    with pytest.raises(ModelError, match=r"torch\.fx cannot trace it") as refusal:
        halved(Moody().eval())
    assert "\n" not in str(refusal.value)


class Picked(nn.Module):
    """Channels picked by a list of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)[:, [1, 0, 3, 2, 5, 4, 7, 6]]
        result: Tensor = self.fc(self.mix(x).mean((2, 3)))
        return result


def test_a_list_of_channels_in_code_is_rewritten() -> None:
    small = halved(Picked().eval())
    assert small.get_parameter("mix.weight").shape[:2] == (4, 4)


class Secret(nn.Module):
    """A width hidden in a plain tensor, which is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.plain = torch.rand(8, 1, 1) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc((self.conv(x) * self.plain).mean((2, 3)))
        return result


def test_a_plain_tensor_of_channel_width_is_refused_in_silence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ModelError, match=r"Secret cannot be cut.*register 'plain' as a buffer"):
        halved(Secret().eval())
    assert capfd.readouterr() == ("", "")


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no weather today\nsecond line")


def test_module_that_does_not_run_is_refused_in_one_line() -> None:
    with pytest.raises(
        ModelError, match="Broken does not run on the example inputs: no weather"
    ) as refusal:
        trace_torch(Broken(), IMAGE)
    assert "\n" not in str(refusal.value)
