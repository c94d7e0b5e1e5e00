"""SynFlow, SNIP and GraSP: what they must be worth, by hand or by their own laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rlprune
from rlprune.errors import InputError, ModelError
from rlprune.graph.torch_call import Call
from rlprune.surgery.torch_saliency import initial_scores, weight_saliency

X = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)
Y = np.arange(24, dtype=np.int64) % 4


def chain() -> nn.Module:
    """Convolution, BatchNorm, pooling, dropout, flatten and a classifier."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(96, 4),
    )  # fmt: skip


def call() -> Call:
    return Call.of(torch.zeros(1, 3, 8, 8))


class Residual(nn.Module):
    """A stream of 16 channels and a branch that a zero scale closes before training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 8, 3, padding=1)
        self.outer = nn.Conv2d(8, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        nn.init.zeros_(self.norm.weight)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.norm(self.outer(self.inner(x).relu()))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def test_synflow_is_conserved_from_layer_to_layer_and_through_every_unit() -> None:
    worth = weight_saliency(chain(), call(), "synflow")
    first, second, last = (worth[f"{layer}.weight"] for layer in (0, 4, 10))
    total = first.sum()
    torch.testing.assert_close(torch.stack([second.sum(), last.sum()]), total.expand(2))
    torch.testing.assert_close(first.sum((1, 2, 3)), second.sum((0, 2, 3)))
    torch.testing.assert_close(second.sum((1, 2, 3)), last.reshape(4, 24, 4).sum((0, 2)))


def test_a_unit_with_zero_weights_is_worth_nothing() -> None:
    module = chain()
    with torch.no_grad():
        module[0].weight[5] = 0.0
    trace = rlprune.trace(module, torch.zeros(1, 3, 8, 8))
    for score in ("synflow", "snip", "grasp"):
        images = () if score == "synflow" else (X, Y)
        first, second = initial_scores(trace, score, *images)
        assert np.flatnonzero(first == 0.0).tolist() == [5], score
        assert (second > 0.0).all(), score


def test_a_unit_is_worth_the_weights_that_make_it_and_those_that_read_it() -> None:
    trace = rlprune.trace(chain(), torch.zeros(1, 3, 8, 8))
    worth = weight_saliency(trace.module, trace.call, "snip", (X, Y))
    scores = initial_scores(trace, "snip", X, Y)
    made = worth["0.weight"].sum((1, 2, 3))
    read = worth["4.weight"].sum((0, 2, 3))
    np.testing.assert_allclose(scores[0], made + read, rtol=1e-5)
    made = worth["4.weight"].sum((1, 2, 3))
    read = worth["10.weight"].reshape(4, 24, 4).sum((0, 2))  # Flatten repeats a channel four times
    np.testing.assert_allclose(scores[1], made + read, rtol=1e-5)


def quadratic() -> tuple[nn.Module, Call]:
    """A linear map of two inputs to two logits, where the scores can be written down."""
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 3.0]]))
    return module, Call.of(torch.zeros(1, 2))


def test_snip_and_grasp_are_those_of_their_papers_on_a_linear_map() -> None:
    module, own_call = quadratic()
    x = np.array([[1.0, 2.0], [-1.0, 0.5]], np.float32)
    y = np.array([0, 1])

    def loss(weight: Tensor, temperature: float) -> Tensor:
        logits = torch.from_numpy(x) @ weight.T / temperature
        return nn.functional.cross_entropy(logits, torch.from_numpy(y))

    weight = module.weight.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(weight, 1.0), weight)
    found = weight_saliency(module, own_call, "snip", (x, y))["weight"]
    torch.testing.assert_close(found, (weight * gradient).abs().detach())

    (gradient,) = torch.autograd.grad(loss(weight, 200.0), weight)
    hessian = torch.autograd.functional.hessian(lambda w: loss(w, 200.0), weight.detach())
    product = torch.einsum("ijkl,kl->ij", hessian, gradient)
    found = weight_saliency(module, own_call, "grasp", (x, y))["weight"]
    torch.testing.assert_close(found, (weight * product).abs().detach(), rtol=1e-4, atol=0.0)


def test_a_branch_closed_by_a_zero_scale_is_worth_what_it_will_be_once_open() -> None:
    trace = rlprune.trace(Residual(), torch.zeros(1, 3, 8, 8))
    for score in ("synflow", "snip", "grasp"):
        images = () if score == "synflow" else (X, Y)
        assert all((units > 0.0).all() for units in initial_scores(trace, score, *images)), score


def test_the_module_and_the_callers_random_numbers_are_left_alone() -> None:
    module = chain()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for score in ("synflow", "snip", "grasp"):
        weight_saliency(module, call(), score, None if score == "synflow" else (X, Y))
    assert torch.equal(torch.rand(1), expected)
    assert module.training and all(p.grad is None for p in module.parameters())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_what_cannot_be_scored_is_refused_in_one_line() -> None:
    trace = rlprune.trace(chain(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="no score 'taylor'; give synflow, snip, grasp"):
        initial_scores(trace, "taylor")
    with pytest.raises(InputError, match="snip is taken of images: give calibration"):
        initial_scores(trace, "snip")
    with pytest.raises(InputError, match="synflow looks at no images: leave calibration out"):
        initial_scores(trace, "synflow", X, Y)
    with pytest.raises(InputError, match=r"x is \[24, 3, 4, 8\], the module was traced with"):
        initial_scores(trace, "snip", X[:, :, :4], Y)
    with pytest.raises(ModelError, match="does not answer with logits"):
        initial_scores(trace, "snip", X, Y + 4)
    broken = chain()
    with torch.no_grad():
        broken[0].weight.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"synflow of module Sequential is not finite"):
        weight_saliency(broken, call(), "synflow")
