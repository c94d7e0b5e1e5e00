"""What the store keeps is what the user was given; earlier clients and servers go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from onnx_nets import conv_net
from service_rig import BOARD, Rig, macs_cost

from rlprune.constraints import Constraints
from rlprune.errors import (
    ConflictError,
    InputError,
    NotFoundError,
    NotServedError,
    PlanError,
    RlpruneError,
)
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.plans import Certificate, PruningPlan
from rlprune.service import remote
from rlprune.service.client import Client
from rlprune.service.plan_messages import plan_to
from rlprune.service.plans import PlanService
from rlprune.service.server import start
from rlprune.v1 import plans_pb2, types_pb2

NET = conv_net()
TRACE = trace_onnx(NET)
SKELETON = strip(TRACE.model)


def create(rig: Rig, **fields: Any) -> plans_pb2.CreatePlanResponse:
    asked = plans_pb2.CreatePlanRequest(
        **{"skeleton": SKELETON, "device": "macs", "policy": "knapsack", **fields}
    )
    return rig.channel.call("PlanService/CreatePlan", asked, plans_pb2.CreatePlanResponse)


def put(rig: Rig, plan: PruningPlan, **fields: Any) -> plans_pb2.StoredPlan:
    request = plans_pb2.PutPlanRequest(
        **{"plan": plan_to(plan), "request_id": "p1", "model_name": "net.onnx", **fields}
    )
    return rig.channel.call("PlanService/PutPlan", request, plans_pb2.StoredPlan)


@pytest.fixture
def plan(rig: Rig) -> PruningPlan:
    made = rig.client.plan(NET, device="macs", budget_ratio=0.5, policy="knapsack")
    assert len(list(rig.client.plans())) == 1
    return made


def test_a_provisional_plan_is_not_kept_and_its_graph_is(rig: Rig) -> None:
    made = create(rig, budget_ratio=0.5, provisional=True, request_id="r1")
    assert made.HasField("plan") and made.plan_id == ""
    assert list(rig.client.plans()) == []
    again = create(rig, fingerprint=TRACE.graph.fingerprint, budget_ratio=0.5, provisional=True)
    assert again == made
    kept = create(rig, budget_ratio=0.5, request_id="r1")
    assert kept.plan == made.plan and kept.plan_id


def test_a_provisional_plan_queues_what_is_missing(rig: Rig) -> None:
    rig.device.register_device(BOARD, {})
    first = create(rig, device=BOARD, budget_ratio=0.5, provisional=True)
    assert first.pending_job_count and not first.HasField("plan")
    while rig.do_jobs(macs_cost(TRACE.graph)):
        pass
    wider = strip(conv_net((24, 48)))
    second = create(rig, skeleton=wider, device=BOARD, budget_ratio=0.5, provisional=True)
    assert second.HasField("plan") and second.pending_job_count and not second.plan_id


def test_the_same_put_is_kept_once_and_another_under_its_id_is_refused(
    rig: Rig, plan: PruningPlan
) -> None:
    first = put(rig, plan)
    before = rig.dump()
    assert put(rig, plan) == first and first.model_name == "net.onnx"
    with pytest.raises(ConflictError):
        put(rig, plan, model_name="other.onnx")
    assert rig.dump() == before


ROUND = Certificate(True, 1.0, (1.0, 1.0), ())
REFUSED: dict[str, tuple[Callable[[PruningPlan], PruningPlan], dict[str, Any], type[RlpruneError]]]
REFUSED = {
    "unknown graph": (lambda p: replace(p, fingerprint="ab" * 32), {}, NotFoundError),
    "no graph": (lambda p: replace(p, fingerprint="x"), {}, InputError),
    "unknown device": (lambda p: replace(p, device="board-9"), {}, NotFoundError),
    "other groups": (lambda p: replace(p, groups=p.groups[:1]), {}, PlanError),
    "keeps too many": (
        lambda p: replace(p, groups=(replace(p.groups[0], keep=10**6), *p.groups[1:])),
        {},
        PlanError,
    ),
    "infinite": (lambda p: replace(p, predicted_latency_ms=float("inf")), {}, PlanError),
    "nan interval": (
        lambda p: replace(p, predicted_interval_ms=(0.0, float("nan"))),
        {},
        PlanError,
    ),
    "no budget": (lambda p: replace(p, budget_ms=0.0), {}, PlanError),
    "negative": (lambda p: replace(p, macs=-1), {}, PlanError),
    "endless note": (lambda p: replace(p, note="x" * 5000), {}, PlanError),
    "empty certificate": (lambda p: replace(p, certificate=ROUND), {}, PlanError),
    "long name": (lambda p: p, {"model_name": "x" * 201}, InputError),
    "control": (lambda p: p, {"model_name": "a\nb"}, InputError),
    "no JSON": (lambda p: p, {"request": "{"}, InputError),
    "no object": (lambda p: p, {"request": "[]"}, InputError),
    "long request": (lambda p: p, {"request": '"' + "x" * 70_000 + '"'}, InputError),
    "no id": (lambda p: p, {"request_id": ""}, InputError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_put_changes_nothing(rig: Rig, plan: PruningPlan, case: str) -> None:
    spoil, fields, kind = REFUSED[case]
    before = rig.dump()
    with pytest.raises(kind) as refusal:
        put(rig, spoil(plan), **fields)
    assert refusal.value.field
    assert rig.dump() == before


def test_the_skeleton_is_sent_once_and_only_where_the_model_is_not_known(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    own = PlanService.create_plan

    def watch(
        self: PlanService, asked: plans_pb2.CreatePlanRequest
    ) -> plans_pb2.CreatePlanResponse:
        sent.append(asked.WhichOneof("model") or "")
        return own(self, asked)

    monkeypatch.setattr(PlanService, "create_plan", watch)
    sent_model = remote.SentModel(TRACE)
    assert sent_model.skeleton is sent_model.skeleton
    server = start("127.0.0.1:0", rig.store)
    try:
        with Client(server.address) as client:
            client.plan(NET, device="macs", budget_ratio=[0.8, 0.5])
            client.plan(NET, device="macs", budget_ratio=0.4)
    finally:
        server.stop(0.5)
    assert sent[:2] == ["fingerprint", "skeleton"] and set(sent[2:]) == {"fingerprint"}


def test_a_measurement_is_asked_for_by_fingerprint_first(rig: Rig) -> None:
    rig.device.register_device(BOARD, {})
    with rig.working(macs_cost(TRACE.graph)):
        [first] = rig.client.measure(NET, TRACE.graph.widths, BOARD)
        [second] = rig.client.measure(NET, TRACE.graph.widths, BOARD)
    assert first.subject == second.subject and first.latency_ms == second.latency_ms
    assert rig.store.skeleton(TRACE.graph.fingerprint)


def test_constraints_of_earlier_clients_count_and_whole_ones_come_before_them(rig: Rig) -> None:
    flat = create(rig, budget_ratio=0.5, policy="uniform", round_to=4, hold=["conv1.weight"])
    assert flat.plan_id and flat.plan.groups[0].keep == 16
    whole = types_pb2.Constraints(round_to=4, hold=["conv1.weight"])
    same = create(rig, budget_ratio=0.5, policy="uniform", constraints=whole)
    assert same.plan == flat.plan
    both = create(rig, budget_ratio=0.5, policy="uniform", constraints=whole, round_to=16)
    assert both.plan == flat.plan
    kept = [record.plan.constraints for record in rig.client.plans()]
    assert kept == [Constraints(4, 1, 0.0, ("conv1.weight",), ())] * 3


@pytest.fixture
def old(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server of 0.6.1, as far as clients can tell."""
    own = PlanService.create_plan

    def create_plan(
        self: PlanService, asked: plans_pb2.CreatePlanRequest
    ) -> plans_pb2.CreatePlanResponse:
        known = plans_pb2.CreatePlanRequest()
        known.CopyFrom(asked)
        for field in ("provisional", "constraints", "max_params"):
            known.ClearField(field)  # type: ignore[arg-type]
        known.profiles.ClearField("initial_loss")
        known.profiles.ClearField("initial_score")
        return own(self, known)

    def put_plan(self: PlanService, asked: object) -> object:
        raise NotServedError("Method not found!")

    monkeypatch.setattr(PlanService, "create_plan", create_plan)
    monkeypatch.setattr(PlanService, "put_plan", put_plan)
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def test_a_server_of_an_earlier_version_is_still_asked(old: Rig) -> None:
    plan = old.client.plan(NET, device="macs", budget_ratio=0.5, round_to=4, hold="conv1.weight")
    assert plan.constraints == Constraints(4, 1, 0.0, ("conv1.weight",), ())
    (kept,) = old.client.plans()
    assert kept.plan == plan and kept.model_name == ""


def test_what_an_earlier_server_does_not_know_is_refused_not_ignored(old: Rig) -> None:
    with pytest.raises(InputError, match="knows no max_params") as refusal:
        old.client.plan(NET, device="macs", budget_ratio=0.5, max_params=100)
    assert refusal.value.field == "max_params"


def test_a_call_that_is_not_served_has_a_class_of_its_own(rig: Rig) -> None:
    with pytest.raises(NotServedError, match="another version"):
        rig.channel.call("PlanService/Forget", plans_pb2.GetPlanRequest(), plans_pb2.StoredPlan)
