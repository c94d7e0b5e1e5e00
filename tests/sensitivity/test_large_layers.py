"""A hurried pass tells of large layers what the whole covariance does, from less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import rlprune
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray
from rlprune.runtime import get_runtime
from rlprune.schemes import Space, whole_space
from rlprune.sensitivity import layers, moments
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.large_layers import LargeLayer, WideLayer
from rlprune.sensitivity.one_pass import OnePass

SIZE = (3, 12, 12)


def traced() -> OnnxTrace:
    """Kernels of several taps, and a large layer without."""
    torch.manual_seed(0)
    width = 32
    module = nn.Sequential(
        *(nn.Conv2d(3, width, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(width, 4 * width, 1), nn.ReLU()),
        *(nn.Conv2d(4 * width, width, 1), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 8)),
    )
    return rlprune.trace(module.eval(), torch.zeros(1, *SIZE)).onnx


def images() -> CalibrationSet:
    """Smooth in space, as pictures are."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((48, 3, 6, 6)).repeat(2, 2).repeat(2, 3)
    noise = 0.3 * rng.standard_normal((48, *SIZE))
    return CalibrationSet.single((coarse + noise).astype(np.float32))


def curves(
    trace: OnnxTrace, space: Space, monkeypatch: pytest.MonkeyPatch
) -> tuple[FloatArray, FloatArray, list[str]]:
    """By the whole covariance, and hurried; the large kernels."""
    data, runtime = images(), get_runtime()
    exact = OnePass.of(trace, space, data, runtime).curve(space)
    monkeypatch.setattr(moments, "LARGE", 100)
    monkeypatch.setattr(layers, "MANY", 100)
    found = OnePass.of(trace, space, data, runtime, hurried=True)
    large = [one.tensor for one in found.layers if isinstance(one, LargeLayer)]
    return exact, found.curve(space), large


def test_told_from_less_losses_are_about_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = traced()
    space = whole_space(trace.graph, ("channel", "shape"))
    exact, hurried, large = curves(trace, space, monkeypatch)
    assert len(large) == 2, "of the layers with kernels, those that read 32 channels"
    for scheme in ("channel", "shape"):
        own = [place for place, site in enumerate(space.sites) if site.scheme == scheme]
        one, other = exact[own], hurried[own]
        both = (one > 1e-3) & (other > 1e-3)
        apart = np.log(other[both] / one[both])
        assert both.sum() > 20
        assert np.corrcoef(np.log(one[both]), np.log(other[both]))[0, 1] > 0.9
        assert abs(apart.mean()) < 0.35 and apart.std() < 0.5


def test_a_network_of_small_layers_is_told_the_same() -> None:
    trace = traced()
    space = whole_space(trace.graph, ("channel", "shape"))
    data, runtime = images(), get_runtime()
    found = OnePass.of(trace, space, data, runtime, hurried=True)
    exact = OnePass.of(trace, space, data, runtime)
    assert not any(isinstance(one, LargeLayer) for one in found.layers)
    assert (found.curve(space) == exact.curve(space)).all()


@pytest.mark.parametrize("outputs", [5, 300], ids=["all outputs", "sums of outputs"])
def test_of_fewer_rows_than_inputs_products_of_rows_tell_the_same(outputs: int) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((40, 6)) @ rng.standard_normal((6, 1100))).astype(np.float32)
    rows += 0.5 * rng.standard_normal(rows.shape).astype(np.float32) + 2.0
    site = layers.LayerSite(
        outputs=("y",),
        tensor="w",
        places=(),
        shift="own",
        weight=rng.standard_normal((outputs, 1100)),
        shape=(outputs, 1100),
        axes=(0, 1),
        read=(np.zeros(1100, dtype=np.int64), np.arange(1100)),
        made=(np.zeros(outputs, dtype=np.int64), np.arange(outputs)),
    )
    seen = moments.Seen.nothing(1, 1100)
    seen.add(0, rows)
    whole, wide = layers.layer_of(site, seen), WideLayer.of(site, rows)
    order, counts = rng.permutation(1100), np.array([900, 0, 1, 30, 500, 1100])
    by_inputs = whole.lost_in_order(order, counts)
    np.testing.assert_allclose(wide.lost_in_order(order, counts), by_inputs, atol=2e-3)
    assert by_inputs[1] == 1.0 and by_inputs[-1] < 1e-3 < 0.1 < by_inputs[3]
    stay = np.isin(np.arange(1100), order[:500])
    assert wide.lost(stay) == pytest.approx(by_inputs[4], abs=2e-3)
