"""Recording plans of a model: resumable, without leaks, the same with and without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calibrated import own_images, traced
from synthetic import channel_space

from rlprune.errors import ConflictError, InputError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.latency.tables import LatencyTables
from rlprune.policy import get_policy
from rlprune.recording.model_dir import RecordedModel, load_model_dir
from rlprune.recording.record import RecordConfig, record_model
from rlprune.runtime import get_runtime
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.evaluate import Evaluator
from rlprune.training.synthetic_devices import synthetic_tables


@pytest.fixture(scope="module")
def trace() -> OnnxTrace:
    return traced("resnet_b")


@pytest.fixture(scope="module")
def images(trace: OnnxTrace) -> tuple[CalibrationSet, CalibrationSet]:
    return own_images(trace, 48, seed=1), own_images(trace, 48, seed=2)


@pytest.fixture(scope="module")
def tables(trace: OnnxTrace) -> list[LatencyTables]:
    """Of two devices on which plans are worth different things."""
    return [synthetic_tables(channel_space(trace.graph), seed) for seed in (0, 1)]


CONFIG = RecordConfig(evaluation_count=30, batch_size=10, seed=3)


@pytest.fixture(scope="module")
def recorded(
    trace: OnnxTrace,
    images: tuple[CalibrationSet, CalibrationSet],
    tables: list[LatencyTables],
    tmp_path_factory: pytest.TempPathFactory,
) -> RecordedModel:
    folder = tmp_path_factory.mktemp("whole")
    return record_model(
        folder, trace, *images, config=CONFIG, tables=tables, policy=get_policy("learned")
    )


def _same(one: RecordedModel, other: RecordedModel) -> None:
    assert one.evaluations is not None and other.evaluations is not None
    np.testing.assert_array_equal(one.evaluations.keeps, other.evaluations.keeps)
    for name in ("source", "device", "budget", "batch"):
        np.testing.assert_array_equal(
            getattr(one.evaluations, name), getattr(other.evaluations, name), err_msg=name
        )
    for name in ("loss", "divergence"):
        found, wanted = (getattr(part.evaluations, name) for part in (one, other))
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9, err_msg=name)
    assert one.profiles.measured_loss is not None and other.profiles.measured_loss is not None
    np.testing.assert_allclose(
        one.profiles.measured_loss, other.profiles.measured_loss, rtol=1e-6, atol=1e-9
    )


def test_a_recording_holds_profile_and_plans_on_images_of_their_own(
    trace: OnnxTrace, recorded: RecordedModel
) -> None:
    evaluations = recorded.evaluations
    assert evaluations is not None and len(evaluations.keeps) == 30
    assert recorded.graph.fingerprint == trace.graph.fingerprint
    assert recorded.profiles.profiled and recorded.profiles.image_count == 48
    assert recorded.profiles.base_loss != evaluations.base_loss
    assert len({tuple(keeps) for keeps in evaluations.keeps}) == 30
    levels = recorded.profiles.levels
    assert all(
        keep in levels[group] for keeps in evaluations.keeps for group, keep in enumerate(keeps)
    )
    assert evaluations.about["objective_images"] == "48" and evaluations.about["seed"] == "3"
    assert "onnxruntime" in evaluations.about["versions"]


def test_what_is_recorded_is_what_an_evaluator_finds_on_those_images(
    trace: OnnxTrace, images: tuple[CalibrationSet, CalibrationSet], recorded: RecordedModel
) -> None:
    found = recorded.evaluations
    assert found is not None and recorded.profiles.measured_loss is not None
    profile, objective = (Evaluator(trace, part, runtime=get_runtime()) for part in images)
    for row in (0, 17):
        evaluation = objective.evaluate(found.keeps[row])
        assert found.loss[row] == pytest.approx(evaluation.loss, rel=1e-6)
        assert found.loss_se[row] == pytest.approx(evaluation.loss_se, rel=1e-6)
        assert found.divergence[row] == pytest.approx(evaluation.divergence, rel=1e-6)
        assert found.accuracy[row] == evaluation.accuracy
    keeps = trace.graph.widths
    keeps[0] = recorded.profiles.levels[0, 0]
    alone = profile.evaluate(keeps).fold_divergences
    np.testing.assert_allclose(recorded.profiles.measured_loss[:, 0, 0], alone, rtol=1e-6)


def test_rows_say_who_proposed_a_plan_and_for_what(
    recorded: RecordedModel, tables: list[LatencyTables]
) -> None:
    found = recorded.evaluations
    assert found is not None
    policy = f"policy:{get_policy('learned').name}"
    assert {"knapsack", policy, "evolution"} <= set(found.source)
    assert set(found.batch) == {0, 1, 2}
    assert {one.device for one in tables} <= set(found.device) <= {"", *(t.device for t in tables)}
    budgeted = np.isfinite(found.budget)
    assert set(found.source[budgeted]) == {"knapsack", policy, "random"} & set(found.source)
    for one in tables:
        own = budgeted & (found.device == one.device)
        assert (
            own.any()
            and (
                one.upper_ms(recorded.space.choice_of(found.keeps[own])) <= found.budget[own] + 1e-9
            ).all()
        )


class Killed(BaseException):
    """As KeyboardInterrupt, which pytest would take for itself."""


@pytest.mark.parametrize("stage", ["profile", "evaluations"])
def test_a_killed_recording_goes_on_and_ends_as_one_that_was_not(
    trace: OnnxTrace,
    images: tuple[CalibrationSet, CalibrationSet],
    tables: list[LatencyTables],
    recorded: RecordedModel,
    tmp_path: Path,
    stage: str,
) -> None:
    done: list[tuple[str, int]] = []
    policy = get_policy("learned")

    def kill(at: str, count: int, total: int) -> None:
        if at == stage and count == 11:
            raise Killed

    with pytest.raises(Killed):
        record_model(
            tmp_path,
            trace,
            *images,
            config=CONFIG,
            tables=tables,
            policy=policy,
            on_progress=kill,
        )
    resumed = record_model(
        tmp_path,
        trace,
        *images,
        config=CONFIG,
        tables=tables,
        policy=policy,
        on_progress=lambda at, count, total: done.append((at, count)),
    )

    _same(resumed, recorded)
    assert done[0] == (stage, 11)  # all but the running batch of ten was kept
    _same(load_model_dir(tmp_path), recorded)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "evaluations.parquet",
        "graph.json",
        "profiles.npz",
    ]


def test_a_finished_recording_is_only_extended(
    trace: OnnxTrace, images: tuple[CalibrationSet, CalibrationSet], tmp_path: Path
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
    trace: OnnxTrace, images: tuple[CalibrationSet, CalibrationSet], tmp_path: Path
) -> None:
    config = RecordConfig(evaluation_count=1)
    record_model(tmp_path, trace, *images, config=config)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for others, seed in ((images[::-1], 0), (images, 1)):
        with pytest.raises(ConflictError, match="another directory"):
            record_model(tmp_path, trace, *others, config=RecordConfig(seed=seed))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_model_directory_made_otherwise_is_not_taken_for_a_recording(
    trace: OnnxTrace, images: tuple[CalibrationSet, CalibrationSet], tmp_path: Path
) -> None:
    record_model(tmp_path, trace, *images, config=RecordConfig(evaluation_count=1))
    (tmp_path / "evaluations.parquet").unlink()
    with pytest.raises(ConflictError, match="into another directory"):
        record_model(tmp_path, trace, *images, config=RecordConfig(evaluation_count=1))
    assert not (tmp_path / "evaluations.parquet").exists()


def test_profile_and_objective_may_not_share_an_image(
    trace: OnnxTrace, images: tuple[CalibrationSet, CalibrationSet], tmp_path: Path
) -> None:
    mixed = CalibrationSet.single(
        np.concatenate([images[1].x, images[0].x[:1]]), np.append(images[1].y, images[0].y[:1])
    )
    with pytest.raises(InputError, match="1 images are in both"):
        record_model(tmp_path / "new", trace, images[0], mixed)
    assert not (tmp_path / "new").exists()


def test_ray_workers_record_the_same(
    trace: OnnxTrace,
    images: tuple[CalibrationSet, CalibrationSet],
    tables: list[LatencyTables],
    recorded: RecordedModel,
    tmp_path: Path,
) -> None:
    config = replace(CONFIG, worker_count=2)
    policy = get_policy("learned")
    _same(
        record_model(tmp_path, trace, *images, config=config, tables=tables, policy=policy),
        recorded,
    )
