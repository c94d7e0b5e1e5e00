"""The demo's networks and digits: prunable throughout, and split by seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.digits import KINDS, NetSpec, build, cluttered, digits, train_net
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


def test_cluttered_digits_are_of_other_handwriting_in_every_part_and_replay_by_seed() -> None:
    splits, again = cluttered(counts=(40, 30, 20)), cluttered(counts=(40, 30, 20))
    parts = (splits.train, splits.calibration, splits.report)
    assert [one.x.shape for one in parts] == [(count, 3, 24, 24) for count in (40, 30, 20)]
    assert splits.shape == (1, 3, 24, 24)
    assert (again.report.x == splits.report.x).all()
    assert (again.report.labels == splits.report.labels).all()
    other = cluttered(seed=1, counts=(40, 30, 20))
    assert not np.allclose(other.report.x, splits.report.x)
    brightness = splits.train.x.reshape(40, -1).max(1)
    assert (brightness > 1.0).all()  # a digit is on every canvas


def test_a_net_is_trained_at_half_the_size_and_then_at_the_whole() -> None:
    images = cluttered(counts=(64, 8, 8)).train
    spec = NetSpec("residual", 8, 1)
    module = train_net(spec, images, coarse=1, fine=1)
    assert not module.training
    before, after = build(spec).state_dict(), module.state_dict()
    assert any((before[name] != after[name]).any() for name in before)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match="no net of kind 'magic'"):
        build(NetSpec("magic", 8, 1))
