"""`rlprune train`, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_run import record
from typer.testing import CliRunner

from rlprune.cli.app import app
from rlprune.policy import get_policy


def test_train_writes_a_policy_and_says_which_agent_won(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for seed in (1, 2):
        record(tmp_path / "tasks", seed)
    policy = tmp_path / "policy"
    options = ["--tasks", str(tmp_path / "tasks"), "--agents", "1", "--steps", "256", "--json"]
    result = CliRunner().invoke(app, ["train", *options, "-o", str(policy)])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["policy"] == get_policy(str(policy)).name
    assert len(summary["agents"]) == 1 and summary["agents"][0]["alive"]
    assert "training 1 agent" in result.stderr
