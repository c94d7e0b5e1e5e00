"""A server can be given policies of its own; callers name them, and name no paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from topologies import TOPOLOGIES

from rlprune.errors import PolicyError
from rlprune.graph.from_torch import trace_torch
from rlprune.policy import DEFAULT_ARTIFACT, get_policy
from rlprune.service.client import Client
from rlprune.service.server import start


def test_a_policy_given_to_the_server_plans_by_its_name(tmp_path: Path) -> None:
    trace = trace_torch(*TOPOLOGIES["resnet_b"]()).onnx
    store = str(tmp_path / "s.sqlite")
    server = start("127.0.0.1:0", store, policies={"mine": DEFAULT_ARTIFACT})
    try:
        with Client(server.address) as client:
            plan = client.plan(trace, device="macs", budget_ratio=0.7, policy="mine", guard=False)
            assert plan.policy == get_policy("learned").name
            with pytest.raises(PolicyError, match="mine"):
                client.plan(trace, device="macs", budget_ratio=0.7, policy=str(tmp_path))
            with pytest.raises(PolicyError, match="no longer there; give 'knapsack'"):
                client.plan(trace, device="macs", budget_ratio=0.7, policy="corrected")
    finally:
        server.stop(0.5)


def test_a_server_given_a_policy_that_is_none_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(PolicyError):
        start("127.0.0.1:0", str(tmp_path / "s.sqlite"), policies={"mine": tmp_path / "none"})
    assert not (tmp_path / "s.sqlite").exists()
