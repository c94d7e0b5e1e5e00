"""The demo's networks and digits: prunable throughout, and split by seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.digits import KINDS, NetSpec, build, digits
from rlprune.errors import InputError
from rlprune.graph.from_torch import trace_torch
from rlprune.surgery.torch import prune_torch


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_net_is_prunable_throughout(kind: str) -> None:
    module = build(NetSpec(kind, 16, 2))
    inputs = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    trace = trace_torch(module, inputs)
    assert trace.graph.prunable_macs_ratio() > 0.95
    small = prune_torch(trace, np.maximum(8, trace.graph.widths // 16 * 8))
    assert small(inputs).shape == (1, 10)


def test_digits_are_split_into_disjoint_images_by_seed() -> None:
    splits = digits()
    parts = (splits.train, splits.calibration, splits.report)
    assert [len(part) for part in parts] == [900, 450, 447]
    assert splits.shape == (1, 3, 32, 32)
    again, other = digits(), digits(seed=1)
    assert (again.report.x == splits.report.x).all()
    assert (other.report.y != splits.report.y[: len(other.report)]).any()
    for part in parts:
        assert np.bincount(part.y, minlength=10).min() > 25


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="no net of kind 'magic'"):
        build(NetSpec("magic", 8, 1))
