"""What a model directory promises: it comes back as it was, or is refused in one line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import evaluations_of, random_task

from rlprune.errors import InputError, MissingExtraError
from rlprune.recording.evaluations import Evaluations, load_evaluations
from rlprune.recording.model_dir import load_model_dir, save_model_dir
from rlprune.solver.task import PruningTask


def some_evaluations(task: PruningTask, rows: int = 3) -> Evaluations:
    keeps = np.arange(rows * task.site_count, dtype=np.int64).reshape(rows, task.site_count)
    return replace(
        evaluations_of(keeps, np.linspace(0.1, 0.5, rows)),
        source=np.array(["uniform", "knapsack", "policy:learned/0123abcd"])[:rows],
        device=np.array(["", "macs", "board-1"])[:rows],
        budget=np.array([np.nan, 3.5, 1.25])[:rows],
        batch=np.array([0, 0, 1])[:rows],
        about={"seed": "7", "licence": "Apache-2.0 ©"},
    )


@pytest.mark.parametrize("folds", [0, 3])
@pytest.mark.parametrize("rows", [0, 3])
def test_directory_comes_back_as_it_was(tmp_path: Path, folds: int, rows: int) -> None:
    task = random_task(0, folds=folds)
    evaluations = some_evaluations(task, rows)
    save_model_dir(tmp_path / "m", task.graph, task.profiles, evaluations)
    again = load_model_dir(tmp_path / "m")
    assert again.graph == task.graph
    assert np.array_equal(again.profiles.levels, task.profiles.levels)
    for name in ("energy_loss", "measured_loss"):
        one, other = getattr(again.profiles, name), getattr(task.profiles, name)
        assert (one is None) == (other is None)
        assert one is None or np.array_equal(one, other)
    assert again.evaluations is not None
    for name in (field.name for field in fields(Evaluations)):
        one, other = getattr(again.evaluations, name), getattr(evaluations, name)
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert np.allclose(again.evaluations.increase, evaluations.loss - 0.3)


def test_any_reader_of_parquet_finds_rows_and_where_they_are_from(tmp_path: Path) -> None:
    task = random_task(0)
    save_model_dir(tmp_path, task.graph, task.profiles, some_evaluations(task))
    table = pq.read_table(tmp_path / "evaluations.parquet")
    rows = table.select(["source", "device", "budget", "batch"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("uniform", None, None, 0),
        ("knapsack", "macs", 3.5, 0),
        ("policy:learned/0123abcd", "board-1", 1.25, 1),
    ]
    assert table.schema.field("keeps").type.value_type == pa.int32()
    assert table.schema.metadata[b"fingerprint"].decode() == task.graph.fingerprint
    assert float(table.schema.metadata[b"base_loss"]) == 0.3
    assert table.schema.metadata[b"licence"].decode() == "Apache-2.0 ©"


def test_a_thousand_evaluations_are_kept_in_few_kilobytes(tmp_path: Path) -> None:
    task = random_task(0)
    rng = np.random.default_rng(0)
    keeps = task.space.settings_at(rng.integers(0, task.option_count, (1000, task.site_count)))
    found = evaluations_of(keeps, rng.random(1000), rng.integers(0, 1000, 1000) / 1000)
    save_model_dir(tmp_path, task.graph, task.profiles, found)
    assert (tmp_path / "evaluations.parquet").stat().st_size < 40_000


def test_evaluations_may_be_missing(tmp_path: Path) -> None:
    task = random_task(0)
    save_model_dir(tmp_path, task.graph, task.profiles, some_evaluations(task))
    save_model_dir(tmp_path, task.graph, task.profiles, None)
    assert load_model_dir(tmp_path).evaluations is None


def test_what_is_of_another_graph_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    task = random_task(0)
    with pytest.raises(ValueError, match="profiles are of graph"):
        save_model_dir(tmp_path / "m", task.graph, replace(task.profiles, fingerprint="x"), None)
    assert not (tmp_path / "m").exists()
    longer = evaluations_of(np.ones((2, task.site_count + 1), dtype=np.int64), np.zeros(2))
    with pytest.raises(ValueError, match="keeps have shape"):
        save_model_dir(tmp_path / "m", task.graph, task.profiles, longer)
    assert not any((tmp_path / "m").iterdir())


@pytest.mark.parametrize("victim", ["graph.json", "profiles.npz", "evaluations.parquet"])
def test_half_a_file_is_refused(tmp_path: Path, victim: str) -> None:
    task = random_task(0)
    save_model_dir(tmp_path, task.graph, task.profiles, some_evaluations(task))
    whole = (tmp_path / victim).read_bytes()
    (tmp_path / victim).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"(record|trace) the model again"):
        load_model_dir(tmp_path)


def test_damaged_evaluations_are_refused_or_were_not_touched(tmp_path: Path) -> None:
    task = random_task(0)
    evaluations = some_evaluations(task)
    save_model_dir(tmp_path, task.graph, task.profiles, evaluations)
    path = tmp_path / "evaluations.parquet"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            found = load_evaluations(path, task.graph)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
        else:  # a bit that says nothing, or of a text
            assert np.array_equal(found.keeps, evaluations.keeps)
            assert np.array_equal(found.loss, evaluations.loss)
    assert refused > 50


def test_evaluations_of_another_model_or_program_are_refused(tmp_path: Path) -> None:
    task, other = random_task(0), random_task(1)
    path = tmp_path / "evaluations.parquet"
    save_model_dir(tmp_path, task.graph, task.profiles, some_evaluations(task))
    with pytest.raises(InputError, match=r"of graph .*, beside graph"):
        load_evaluations(path, other.graph)
    table = pq.read_table(path)
    metadata = table.schema.metadata
    for foreign, why in (
        (table.replace_schema_metadata({}), "its format is None"),
        (table.replace_schema_metadata({**metadata, b"format": b"x/9"}), "its format is 'x/9'"),
        (
            table.replace_schema_metadata({**metadata, b"format": b"rlprune.recording/2"}),
            "recording/2",  # of another objective
        ),
        (table.drop_columns(["loss"]), "loss"),
        (table.drop_columns(["divergence"]), "divergence"),
        (table.set_column(0, "keeps", pa.array([[1], [1, 2], [1]])), "plans of other than"),
        (table.set_column(1, "loss", pa.array(["a", "b", "c"])), "a"),
    ):
        pq.write_table(foreign, path)
        with pytest.raises(InputError, match=why):
            load_evaluations(path, task.graph)


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = random_task(0)
    save_model_dir(tmp_path, task.graph, task.profiles, some_evaluations(task))
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"rlprune\[train\]"):
        load_model_dir(tmp_path)


def test_planning_never_loads_pyarrow() -> None:
    report = "import sys, rlprune.planning, rlprune.training; print('pyarrow' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    task = random_task(0)
    save_model_dir(tmp_path, task.graph, task.profiles, None)
    np.savez(tmp_path / "profiles.npz", levels=np.array([{"run": "code"}], dtype=object))
    with pytest.raises(InputError, match="record the model again"):
        load_model_dir(tmp_path)


def test_rows_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="accuracy"):
        replace(some_evaluations(random_task(0)), accuracy=np.zeros(2))
