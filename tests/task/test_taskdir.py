"""What a model directory promises: it comes back as it was, or is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import random_task

from rlprune.errors import InputError
from rlprune.task.taskdir import Evaluations, load_model_dir, save_model_dir


def some_evaluations(group_count: int, rows: int = 3) -> Evaluations:
    return Evaluations(
        keeps=np.arange(rows * group_count, dtype=np.int64).reshape(rows, group_count),
        loss=np.linspace(0.4, 0.8, rows),
        loss_se=np.full(rows, 0.01),
        accuracy=np.linspace(0.9, 0.7, rows),
        base_loss=0.3,
        source=np.array(["random", "knapsack", "a rather long name"][:rows]),
    )


@pytest.mark.parametrize("folds", [0, 3])
def test_directory_comes_back_as_it_was(tmp_path: Path, folds: int) -> None:
    task = random_task(0, folds=folds)
    evaluations = some_evaluations(task.group_count)
    save_model_dir(tmp_path / "m", task.graph, task.profiles, evaluations)
    again = load_model_dir(tmp_path / "m")
    assert again.graph == task.graph
    assert np.array_equal(again.profiles.levels, task.profiles.levels)
    for name in ("energy_loss", "measured_loss"):
        one, other = getattr(again.profiles, name), getattr(task.profiles, name)
        assert (one is None) == (other is None)
        assert one is None or np.array_equal(one, other)
    assert again.evaluations is not None
    assert np.array_equal(again.evaluations.keeps, evaluations.keeps)
    assert list(again.evaluations.source) == list(evaluations.source)
    assert np.allclose(again.evaluations.increase, evaluations.loss - 0.3)


def test_evaluations_may_be_missing(tmp_path: Path) -> None:
    task = random_task(0)
    save_model_dir(tmp_path, task.graph, task.profiles, some_evaluations(task.group_count))
    save_model_dir(tmp_path, task.graph, task.profiles, None)
    assert load_model_dir(tmp_path).evaluations is None


def test_profiles_of_another_graph_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    task = random_task(0)
    with pytest.raises(ValueError, match="profiles are of graph"):
        save_model_dir(tmp_path / "m", task.graph, replace(task.profiles, fingerprint="x"), None)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("victim", ["graph.json", "profiles.npz", "evaluations.npz"])
def test_damage_is_refused(tmp_path: Path, victim: str) -> None:
    task = random_task(0)
    save_model_dir(tmp_path, task.graph, task.profiles, some_evaluations(task.group_count))
    whole = (tmp_path / victim).read_bytes()
    (tmp_path / victim).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError):
        load_model_dir(tmp_path)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    task = random_task(0)
    save_model_dir(tmp_path, task.graph, task.profiles, None)
    np.savez(tmp_path / "evaluations.npz", keeps=np.array([{"run": "code"}], dtype=object))
    with pytest.raises(InputError, match="record the model again"):
        load_model_dir(tmp_path)


def test_rows_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="accuracy"):
        replace(some_evaluations(4), accuracy=np.zeros(2))
