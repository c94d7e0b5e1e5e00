"""`train`: from recorded models and the store to an artifact that plans."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from learnable import learnable_task
from synthetic import evaluations_of

from rlprune.errors import InputError, NotFoundError
from rlprune.graph.types import FloatArray
from rlprune.latency.types import Measurement, ModelSubject
from rlprune.mdp.dynamics import PruningDynamics
from rlprune.planning import latency_model
from rlprune.policy import get_policy
from rlprune.recording.model_dir import save_model_dir
from rlprune.schemes import Space
from rlprune.store import Store, open_store
from rlprune.training import train
from rlprune.training.run import load_models, training_tasks

DEVICE = "board-1"


def record(folder: Path, seed: int) -> Space:
    """A recorded model, its evaluations those of a bent objective."""
    task = learnable_task(seed, (1, 1))
    assert task.objective is not None
    rng = np.random.default_rng(seed)
    keeps = task.space.settings_at(rng.integers(0, task.option_count, (80, task.site_count)))
    evaluations = evaluations_of(keeps, task.objective.loss(keeps))
    save_model_dir(folder / f"net{seed}", task.graph, task.profiles, evaluations)
    return task.space


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    for seed in (1, 2, 3):
        record(folder, seed)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(f"sqlite:///{tmp_path / 'store.sqlite'}")) as opened:
        yield opened


def report(store: Store, space: Space, per_unit: float) -> None:
    """Reports everything missing, from a device on which the first group's units cost most."""
    store.put_graph(space.graph, b"skeleton")
    measurements = []
    for subject in latency_model(store, DEVICE).missing(space):
        if isinstance(subject, ModelSubject):
            ms = 0.1 + per_unit * subject.settings[0] + 0.001 * sum(subject.settings)
        else:
            ms = 0.01 + (per_unit if subject.in_width == 3 else 0.001) * subject.out_width
        samples = ((ms,) * 3,) * 3
        measurements.append(Measurement(DEVICE, subject, samples, samples))
    store.add_measurements(measurements)


def rewards(store: Store, recorded: Path) -> FloatArray:
    """Returns of 16 episodes of the first model on the device, by fixed actions [16]."""
    tasks, _ = training_tasks(load_models([recorded]), store=store, devices=[DEVICE])
    task = next(t.task for t in tasks if t.task.tables.device == DEVICE)
    dynamics = PruningDynamics(task)
    dynamics.reset([np.random.default_rng(seed) for seed in range(16)])
    rng = np.random.default_rng(0)
    steps = [dynamics.step(rng.uniform(-1, 1, (16, 1)))[1] for _ in range(task.site_count)]
    return np.sum(steps, axis=0)


def test_what_devices_report_changes_the_reward(store: Store, tmp_path: Path) -> None:
    space = record(tmp_path / "models", 1)
    report(store, space, per_unit=0.0)
    before = rewards(store, tmp_path / "models")
    widths = tuple(int(width) for width in space.graph.widths)
    dear = [
        ModelSubject(space.graph.fingerprint, (int(keep), *widths[1:]))
        for keep in space.settings[0]
    ]
    samples = [((0.1 + 0.2 * s.settings[0],) * 3,) * 3 for s in dear]
    store.add_measurements(
        [Measurement(DEVICE, s, ms, ms) for s, ms in zip(dear, samples, strict=True)]
    )
    assert np.abs(rewards(store, tmp_path / "models") - before).max() > 0.05


def test_models_a_device_has_not_measured_are_left_out_by_name(
    store: Store, recorded: Path
) -> None:
    models = load_models([recorded])
    report(store, models["net1"].space, per_unit=0.01)
    tasks, skipped = training_tasks(models, store=store, devices=[DEVICE])
    assert [t.model for t in tasks if t.task.tables.device == DEVICE] == ["net1"]
    assert skipped == (f"net2 on {DEVICE}", f"net3 on {DEVICE}")
    assert len([t for t in tasks if t.task.tables.device == "macs"]) == 3


def test_a_device_that_measured_nothing_is_refused(store: Store, recorded: Path) -> None:
    with pytest.raises(NotFoundError, match=r"'toaster'.*macs"):
        training_tasks(load_models([recorded]), store=store, devices=["toaster"])


def test_bad_requests_are_refused_before_anything_starts(
    store: Store, recorded: Path, tmp_path: Path
) -> None:
    out = tmp_path / "policy"
    with pytest.raises(InputError, match="no recorded models"):
        train([tmp_path], out=out, store=store)
    with pytest.raises(InputError, match=r"at least two recorded.*found: net1; record"):
        train([recorded / "net1"], out=out, store=store)
    with pytest.raises(InputError, match="'net9'"):
        train([recorded], out=out, store=store, validation=["net9"])
    with pytest.raises(InputError, match="leave some"):
        train([recorded], out=out, store=store, validation=["net1", "net2", "net3"])
    with pytest.raises(InputError, match="two recorded models"):
        train([recorded, recorded], out=out, store=store)
    assert not out.exists()


def test_training_leaves_an_artifact_that_plans(
    store: Store, recorded: Path, tmp_path: Path, ray_cluster: None
) -> None:
    said: list[tuple[int, int]] = []
    summary = train(
        [recorded],
        out=tmp_path / "policy",
        store=store,
        validation=["net3"],
        agents=2,
        steps=512,
        rounds=2,
        on_progress=lambda what, done, total: said.append((done, total)),
    )
    assert said == [(0, 2), (1, 2), (2, 2)]
    assert summary.train_models == ("net1", "net2")
    assert summary.validation_models == ("net3",)
    assert {agent["action"] for agent in summary.agents} == {"correction"}
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {
        "policy.json",
        "policy.safetensors",
    }
    provenance = json.loads((tmp_path / "policy" / "policy.json").read_text())["provenance"]
    assert provenance["trained_on"] == ["net1", "net2"]
    policy = get_policy(str(tmp_path / "policy"))
    assert policy.name == summary.policy
    task = learnable_task(100)
    budget = np.array([0.6, 0.8]) * task.tables.upper_ms(task.space.unpruned[None])
    assert (task.tables.upper_ms(policy.plan(task, budget)) <= budget).all()


def test_imagined_devices_differ_from_each_other_and_not_from_themselves(
    store: Store, recorded: Path
) -> None:
    models = load_models([recorded])
    tasks, _ = training_tasks(models, store=store, devices=[], synthetic=2)
    again, _ = training_tasks(models, store=store, devices=[], synthetic=2)
    tables = {(t.model, t.task.tables.device): t.task.tables.operators.flat_ms for t in tasks}
    assert len(tables) == 9
    for named in again:
        assert np.array_equal(
            named.task.tables.operators.flat_ms, tables[named.model, named.task.tables.device]
        )
    share = [tables["net1", f"synthetic-{seed}"] / tables["net1", "macs"].sum() for seed in (0, 1)]
    assert not np.allclose(share[0] / share[0].sum(), share[1] / share[1].sum(), rtol=0.1)
