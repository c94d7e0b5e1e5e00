"""The training loop that recovers a pruned module's accuracy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.digits import NetSpec, Splits, build, digits
from rlprune.finetuning.augment import shifted
from rlprune.finetuning.checkpoint import EpochRecord
from rlprune.finetuning.loop import TrainConfig, fit
from rlprune.finetuning.scoring import reestimate, score
from rlprune.graph.from_torch import trace_torch
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.surgery.torch import prune_torch


@pytest.fixture(scope="module")
def splits() -> Splits:
    return digits()


def first(images: CalibrationSet, count: int) -> CalibrationSet:
    return CalibrationSet.single(images.x[:count], images.y[:count])


def test_training_learns_reports_each_epoch_and_repeats_itself(splits: Splits) -> None:
    config = TrainConfig(epoch_count=3, batch_size=16, learning_rate=0.1, seed=3)
    states = []
    for _ in range(2):
        module = build(NetSpec("residual", 8, 1))
        heard: list[EpochRecord] = []
        history = fit(
            module, first(splits.train, 320), config, augment=shifted, on_epoch=heard.append
        )
        assert heard == history and [record.epoch for record in history] == [1, 2, 3]
        assert history[-1].loss < 0.8 * history[0].loss
        assert not module.training
        states.append(module.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])


def test_a_pruned_module_wins_back_accuracy(splits: Splits) -> None:
    module = build(NetSpec("residual", 8, 1))
    few = first(splits.train, 480)
    fit(module, few, TrainConfig(epoch_count=4, batch_size=16, learning_rate=0.1))
    trace = trace_torch(module, torch.from_numpy(few.x[:1]))
    small = prune_torch(trace, np.maximum(1, trace.graph.widths // 2))
    before = score(small, splits.calibration)
    fit(small, few, TrainConfig(epoch_count=2, batch_size=16))
    after = score(small, splits.calibration)
    assert after.loss < before.loss and after.accuracy > before.accuracy


def test_reestimated_statistics_are_those_of_the_images(splits: Splits) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    norm = module.get_submodule("1")
    assert isinstance(norm, torch.nn.BatchNorm2d) and norm.running_mean is not None
    module.eval()
    reestimate(module, first(splits.train, 256))
    with torch.no_grad():
        seen = module.get_submodule("0")(torch.from_numpy(splits.train.x[:256]))
    assert torch.allclose(norm.running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert norm.momentum == 0.1 and not norm.training


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32(splits: Splits) -> None:
    """What the loss is given and what is learnt stay float32, and it learns as much."""
    images, seen, given = first(splits.train, 320), set(), set()

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        given.add(outputs.dtype)
        return torch.nn.functional.cross_entropy(outputs, targets)

    losses = {}
    for mixed in (False, True):
        module = build(NetSpec("residual", 8, 1))
        if mixed:
            for part in module.modules():
                if isinstance(part, torch.nn.Conv2d):
                    part.register_forward_hook(lambda *args: seen.add(args[2].dtype))
        config = TrainConfig(
            epoch_count=3, batch_size=16, learning_rate=0.1, mixed_precision=mixed, seed=3
        )
        losses[mixed] = fit(module, images, config, loss=loss)[-1].loss
        assert {one.dtype for one in module.parameters()} == {torch.float32}
    assert seen == {torch.bfloat16} and given == {torch.float32}
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.15)


def test_frozen_parameters_do_not_move(splits: Splits) -> None:
    module = build(NetSpec("plain", 8, 1))
    frozen = next(module.parameters())
    frozen.requires_grad_(False)
    before = frozen.clone()
    fit(module, first(splits.train, 32), TrainConfig(epoch_count=1, batch_size=16))
    assert torch.equal(frozen, before)


def test_shifting_moves_images_by_whole_pixels() -> None:
    x = torch.zeros(64, 1, 9, 9)
    x[:, 0, 4, 4] = 1.0
    moved = shifted(x, torch.Generator().manual_seed(0), pixels=2)
    assert moved.shape == x.shape and torch.equal(moved.sum((1, 2, 3)), torch.ones(64))
    places = {tuple(place[1:]) for place in moved.squeeze(1).nonzero().tolist()}
    assert len(places) > 15 and all(2 <= i <= 6 and 2 <= j <= 6 for i, j in places)
