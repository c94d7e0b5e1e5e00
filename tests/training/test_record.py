"""Recording plans of a model: resumable, without leaks, the same with and without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibrated import own_images, traced

from rlprune.errors import ConflictError, InputError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.latency.macs import macs_tables
from rlprune.profile.calibration import Calibration
from rlprune.profile.energy import energy_profiles
from rlprune.profile.types import keep_levels
from rlprune.task.task import PruningTask
from rlprune.task.taskdir import Evaluations, RecordedModel, load_model_dir
from rlprune.training.propose import MIX, PlanProposer
from rlprune.training.record import RecordConfig, record_model


@pytest.fixture(scope="module")
def trace() -> OnnxTrace:
    return traced("resnet_b")


@pytest.fixture(scope="module")
def images(trace: OnnxTrace) -> tuple[Calibration, Calibration]:
    return own_images(trace, 48, seed=1), own_images(trace, 48, seed=2)


CONFIG = RecordConfig(evaluation_count=20, batch_size=6, seed=3)


@pytest.fixture(scope="module")
def recorded(
    trace: OnnxTrace,
    images: tuple[Calibration, Calibration],
    tmp_path_factory: pytest.TempPathFactory,
) -> RecordedModel:
    folder = tmp_path_factory.mktemp("whole")
    return record_model(folder, trace, *images, config=CONFIG)


def _same(one: RecordedModel, other: RecordedModel) -> None:
    assert one.evaluations is not None and other.evaluations is not None
    np.testing.assert_array_equal(one.evaluations.keeps, other.evaluations.keeps)
    np.testing.assert_array_equal(one.evaluations.source, other.evaluations.source)
    np.testing.assert_allclose(one.evaluations.loss, other.evaluations.loss, rtol=1e-6)
    assert one.profiles.measured_loss is not None and other.profiles.measured_loss is not None
    np.testing.assert_allclose(
        one.profiles.measured_loss, other.profiles.measured_loss, rtol=1e-6, atol=1e-9
    )


def test_a_recording_holds_profile_and_plans_on_images_of_their_own(
    trace: OnnxTrace, recorded: RecordedModel
) -> None:
    evaluations = recorded.evaluations
    assert evaluations is not None and len(evaluations.keeps) == 20
    assert recorded.graph.fingerprint == trace.graph.fingerprint
    assert recorded.profiles.profiled and recorded.profiles.image_count == 48
    assert recorded.profiles.base_loss != evaluations.base_loss
    assert len({tuple(keeps) for keeps in evaluations.keeps}) == 20
    levels = recorded.profiles.levels
    assert all(
        keep in levels[group] for keeps in evaluations.keeps for group, keep in enumerate(keeps)
    )
    assert set(evaluations.source) <= set(MIX) and "mutation" in evaluations.source


class Killed(BaseException):
    """As KeyboardInterrupt, which pytest would take for itself."""


@pytest.mark.parametrize("stage", ["profile", "evaluations"])
def test_a_killed_recording_goes_on_and_ends_as_one_that_was_not(
    trace: OnnxTrace,
    images: tuple[Calibration, Calibration],
    recorded: RecordedModel,
    tmp_path: Path,
    stage: str,
) -> None:
    done: list[tuple[str, int]] = []

    def kill(at: str, count: int, total: int) -> None:
        if at == stage and count == 9:
            raise Killed

    with pytest.raises(Killed):
        record_model(tmp_path, trace, *images, config=CONFIG, on_progress=kill)
    resumed = record_model(
        tmp_path,
        trace,
        *images,
        config=CONFIG,
        on_progress=lambda at, count, total: done.append((at, count)),
    )

    _same(resumed, recorded)
    # The profile is kept after every evaluation, plans after every batch of six.
    assert done[0] == (("profile", 10) if stage == "profile" else ("evaluations", 7))
    _same(load_model_dir(tmp_path), recorded)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "evaluations.npz",
        "graph.json",
        "profiles.npz",
        "recording.json",
    ]


def test_a_finished_recording_is_only_extended(
    trace: OnnxTrace, images: tuple[Calibration, Calibration], tmp_path: Path
) -> None:
    few = RecordConfig(evaluation_count=6, batch_size=6, seed=3)
    first = record_model(tmp_path, trace, *images, config=few)
    asked: list[str] = []
    again = record_model(
        tmp_path, trace, *images, config=few, on_progress=lambda at, *_: asked.append(at)
    )
    _same(first, again)
    assert not asked


def test_another_recordings_directory_is_refused(
    trace: OnnxTrace, images: tuple[Calibration, Calibration], tmp_path: Path
) -> None:
    config = RecordConfig(evaluation_count=1)
    record_model(tmp_path, trace, *images, config=config)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for others, seed in ((images[::-1], 0), (images, 1)):
        with pytest.raises(ConflictError, match="another directory"):
            record_model(tmp_path, trace, *others, config=RecordConfig(seed=seed))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_profile_and_objective_may_not_share_an_image(
    trace: OnnxTrace, images: tuple[Calibration, Calibration], tmp_path: Path
) -> None:
    mixed = Calibration(
        np.concatenate([images[1].x, images[0].x[:1]]), np.append(images[1].y, images[0].y[:1])
    )
    with pytest.raises(InputError, match="1 images are in both"):
        record_model(tmp_path / "new", trace, images[0], mixed)
    assert not (tmp_path / "new").exists()


def test_ray_workers_record_the_same(
    trace: OnnxTrace,
    images: tuple[Calibration, Calibration],
    recorded: RecordedModel,
    tmp_path: Path,
) -> None:
    _same(record_model(tmp_path, trace, *images, config=replace(CONFIG, worker_count=2)), recorded)


def test_proposals_are_new_and_run_out(trace: OnnxTrace) -> None:
    levels, level_count = keep_levels(trace.graph, round_to=16)
    tables = macs_tables(trace.graph, levels, level_count)
    task = PruningTask(trace.graph, tables, energy_profiles(trace, levels, level_count))
    possible = int(np.prod(level_count)) - 1
    nothing = Evaluations(
        keeps=np.zeros((0, len(levels)), np.int64),
        loss=np.zeros(0),
        loss_se=np.zeros(0),
        accuracy=np.zeros(0),
        base_loss=0.1,
        source=np.zeros(0, np.str_),
    )
    found = PlanProposer(task, nothing).propose(possible + 10, np.random.default_rng(0))
    plans = {tuple(keeps) for keeps, _ in found}
    assert 0 < len(plans) == len(found) <= possible
    assert tuple(trace.graph.widths) not in plans
