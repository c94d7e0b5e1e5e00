"""What a server keeps and sends is limited by bytes, not by count alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from onnx_nets import conv_net
from service_rig import Rig

from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.service import models
from rlprune.v1 import plans_pb2

DEFAULT_LIMIT = 4 * 2**20
"""Bytes that a gRPC client takes unless told otherwise."""


def test_a_page_of_long_plans_ends_before_a_client_would_refuse_it(rig: Rig) -> None:
    plan = rig.client.plan(conv_net(), device="macs", budget_ratio=0.5)
    for _ in range(5):
        rig.store.put_plan(replace(plan, note="x" * 900_000))
    request = plans_pb2.ListPlansRequest(page_size=1000)
    page = rig.channel.call("PlanService/ListPlans", request, plans_pb2.ListPlansResponse)
    assert page.next_page_token and page.ByteSize() < DEFAULT_LIMIT
    assert len({record.plan_id for record in rig.client.plans()}) == 6


def test_a_plan_longer_than_a_page_has_one_of_its_own(rig: Rig) -> None:
    plan = rig.client.plan(conv_net(), device="macs", budget_ratio=0.5)
    for _ in range(2):
        rig.store.put_plan(replace(plan, note="x" * 3_000_000))
    assert len(list(rig.client.plans())) == 3


def test_traces_are_kept_by_bytes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    skeletons = models.Graphs(rig.store)
    one, other = (strip(trace_onnx(conv_net((8 * n, 8))).model) for n in (1, 2))
    kept = skeletons.trace(one)
    assert skeletons.trace(one) is kept
    monkeypatch.setattr(models, "MAX_KEPT_BYTES", 150_000)  # one small graph, not two
    skeletons.trace(other)
    assert skeletons.trace(one) is not kept
