"""Numbers that no file of this project holds are refused, whatever they would do to a float."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_onnx import small_onnx

import rlprune
from rlprune.errors import PlanError, PolicyError, RlpruneError
from rlprune.files import read_npz, write_npz
from rlprune.plans import PruningPlan
from rlprune.policy.artifact import PolicyArtifact

ODD = ("1e400", "-1e400", "NaN", "1" + "0" * 400, "1" + "0" * 5000, "-1", "null", "[]", "{}", '"x"')


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value the numbers are."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def replaced(text: str, path: tuple[Any, ...], odd: str) -> str:
    data = json.loads(text)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = "ODD"
    return json.dumps(data).replace('"ODD"', odd)


def test_a_plan_with_an_odd_number_is_refused_in_one_line() -> None:
    trace = rlprune.trace(small_onnx())
    plan = rlprune.plan(trace, budget_ratio=0.5, device="macs")
    text = plan.to_json()
    found = list(places(json.loads(text)))
    assert len(found) > 10
    for path in found:
        for odd in ODD:
            try:
                loaded = PruningPlan.from_json(replaced(text, path, odd))
                loaded.check(trace.graph)
                assert np.isfinite(loaded.budget_ms)
            except RlpruneError as error:
                assert isinstance(error, PlanError) and "\n" not in str(error)
                assert len(str(error)) < 500


def test_a_policy_with_an_odd_number_is_refused_in_one_line(tmp_path: Path) -> None:
    source = Path(rlprune.__file__).parent / "policy"
    described = next(iter(sorted(source.rglob("policy.json"))))
    text = described.read_text()
    for tensors in described.parent.glob("*.safetensors"):
        (tmp_path / tensors.name).write_bytes(tensors.read_bytes())
    for path in places(json.loads(text)):
        for odd in ODD:
            (tmp_path / described.name).write_text(replaced(text, path, odd))
            try:
                PolicyArtifact.load(tmp_path)
            except PolicyError as error:
                assert "\n" not in str(error)


def test_a_damaged_npz_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "kept.npz"
    write_npz(path, {"a": np.arange(64.0), "b": np.array(3)})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=int(rng.integers(1, 6))):
            data[place] = int(rng.integers(256))
        path.write_bytes(data[: int(rng.integers(1, len(data)))] if rng.random() < 0.3 else data)
        try:
            read_npz(path)
        except (OSError, ValueError) as error:
            assert "\n" not in str(error)
    np.save(tmp_path / "kept.npy", np.arange(3))
    with pytest.raises(ValueError, match="damaged"):
        read_npz(tmp_path / "kept.npy")
