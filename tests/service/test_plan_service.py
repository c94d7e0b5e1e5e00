"""Planning over a real channel: what is asked, answered, refused, and kept."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_nets import conv_net
from service_rig import BOARD, Rig, macs_cost, messages
from synthetic import channel_space

from rlprune.constraints import Constraints, bind
from rlprune.errors import (
    BudgetError,
    ConflictError,
    InputError,
    MeasurementError,
    ModelError,
    NotFoundError,
    PolicyError,
    RlpruneError,
    UnavailableError,
)
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.latency.types import Measurement
from rlprune.sensitivity.energy import energy_profiles
from rlprune.service.models import MAX_SKELETON_BYTES
from rlprune.service.profile_messages import profiles_from, profiles_to
from rlprune.v1 import plans_pb2, types_pb2

NET = conv_net()
TRACE = trace_onnx(NET)
SKELETON = strip(TRACE.model)
SPACE = channel_space(TRACE.graph)
LEVELS = SPACE.settings
PROFILES = energy_profiles(TRACE, SPACE)


def request(**changes: object) -> plans_pb2.CreatePlanRequest:
    fields: dict[str, object] = {
        "skeleton": SKELETON,
        "device": "macs",
        "budget_ratio": 0.5,
        "policy": "knapsack",
    }
    return plans_pb2.CreatePlanRequest(**{**fields, **changes})  # type: ignore[arg-type]


def create(rig: Rig, asked: plans_pb2.CreatePlanRequest) -> plans_pb2.CreatePlanResponse:
    return rig.channel.call("PlanService/CreatePlan", asked, plans_pb2.CreatePlanResponse)


def test_a_plan_is_what_the_same_question_in_process_gets(rig: Rig) -> None:
    from rlprune.planning import make_plan, task_for
    from rlprune.policy import get_policy

    asked = {"device": "macs", "policy": "knapsack", "round_to": 8}
    plan = rig.client.plan(NET, budget_ratio=0.6, **asked)  # type: ignore[arg-type]
    task = task_for(SPACE, PROFILES, rig.store, "macs")
    bound = bind(TRACE.graph, Constraints(round_to=8), round_to=1)
    own = make_plan(
        task, get_policy("knapsack"), 0.6 * task.base_ms, device="macs", constraints=bound
    )
    assert plan == own
    plan.check(TRACE.graph)
    assert plan.feasible and plan.predicted_latency_ms <= plan.budget_ms


def test_constraints_cross_the_wire_and_are_kept_with_the_plan(rig: Rig) -> None:
    stated = {"round_to": 4, "min_keep_ratio": 0.25, "pin": "conv*"}
    asked = {"device": "macs", "budget_ratio": 0.5, "policy": "knapsack"}
    plan = rig.client.plan(NET, **asked, **stated)  # type: ignore[arg-type]
    assert plan.constraints == Constraints(4, 1, 0.25, (), ("conv*",))
    first, second = plan.groups
    assert (first.keep / 16, first.keep % 4) == (second.keep / 32, 0) and first.keep < 16
    assert first.constraint == second.constraint == "pinned by 'conv*'"
    (kept,) = rig.client.plans()
    assert kept.plan == plan
    # Without profiles the server makes the levels; the plan keeps to the same.
    bare = create(rig, request(round_to=4, hold=["conv1.weight"], policy="uniform")).plan
    assert [entry.keep for entry in bare.groups] == [16, 32]
    assert not bare.feasible and bare.groups[0].constraint == "held by 'conv1.weight'"


def test_a_model_may_be_a_path_bytes_or_a_trace(rig: Rig, tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "net.onnx"
    path.write_bytes(NET.SerializeToString())
    asked = {"device": "macs", "budget_ratio": 0.5, "policy": "uniform"}
    plans = [
        rig.client.plan(model, **asked)  # type: ignore[arg-type]
        for model in (NET, path, str(path), path.read_bytes(), TRACE)
    ]
    assert plans.count(plans[0]) == len(plans)


def test_plans_are_kept_and_listed_in_pages(rig: Rig) -> None:
    ratios = [0.3, 0.5, 0.7]
    ids = [create(rig, request(budget_ratio=ratio)).plan_id for ratio in ratios]
    assert len(set(ids)) == 3
    listed = list(rig.client.plans())
    assert [record.plan_id for record in listed] == ids[::-1]
    assert rig.client.get_plan(ids[0]) == listed[-1].plan
    page = rig.channel.call(
        "PlanService/ListPlans",
        plans_pb2.ListPlansRequest(page_size=2),
        plans_pb2.ListPlansResponse,
    )
    assert len(page.plans) == 2 and page.next_page_token
    assert list(rig.client.plans(device=BOARD)) == []
    with pytest.raises(NotFoundError):
        rig.client.get_plan("nope")


def test_the_second_question_about_a_model_sends_its_fingerprint_only(rig: Rig) -> None:
    first = create(rig, request())
    second = create(rig, request(fingerprint=TRACE.graph.fingerprint))
    assert second.plan == first.plan and second.plan_id != first.plan_id


def test_a_plan_that_waits_for_measurements_is_told_again_with_its_jobs(rig: Rig) -> None:
    rig.device.register_device(BOARD, {})
    cost = macs_cost(TRACE.graph)
    with rig.working(cost):
        rig.client.plan(NET, device=BOARD, budget_ratio=0.7, policy="knapsack")
    wider = strip(conv_net((24, 48)))  # planned for at once, and not yet measured
    asked = request(skeleton=wider, device=BOARD, request_id="r1")
    before = rig.dump()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlprune.store.jobs.job_of_row", lambda row: 1 / 0)
        with pytest.raises(RlpruneError):
            create(rig, asked)
    assert rig.dump() == before, "no plan without its jobs"
    first = create(rig, asked)
    assert first.plan_id and first.pending_job_count == len(first.pending_job_ids) > 0
    assert create(rig, asked) == first
    while rig.do_jobs(cost):
        pass
    assert create(rig, asked) == first, "also when they are done"


def test_the_same_request_id_gets_the_same_plan_and_other_content_is_refused(rig: Rig) -> None:
    first = create(rig, request(request_id="r1"))
    before = rig.dump()
    assert create(rig, request(request_id="r1")) == first
    with pytest.raises(ConflictError) as refusal:
        create(rig, request(request_id="r1", budget_ratio=0.6))
    assert refusal.value.field == "request_id"
    assert rig.dump() == before


def test_without_weights_or_data_the_plan_says_so(rig: Rig) -> None:
    bare = create(rig, request()).plan
    profiled = create(rig, request(profiles=profiles_to(PROFILES))).plan
    assert not bare.profiled and "from shapes" in bare.note
    assert bare.expected_divergence > 0.0
    assert not profiled.profiled and "weights and shapes" in profiled.note


def test_an_infeasible_budget_is_an_answer_with_the_least_latency(rig: Rig) -> None:
    plan = rig.client.plan(NET, device="macs", budget_ms=1e-6, policy="knapsack")
    assert not plan.feasible
    assert 0 < plan.least_latency_ms == plan.predicted_latency_ms < plan.base_latency_ms


def test_weights_never_reach_the_store(rig: Rig) -> None:
    create(rig, request())
    stored = rig.store.skeleton(TRACE.graph.fingerprint)
    weights = {tensor.name: tensor.raw_data for tensor in NET.graph.initializer}
    assert not any(raw in stored for raw in weights.values())
    # A file marked as a skeleton that still holds its weights is stripped by the server.
    marked = trace_onnx(conv_net((24, 48))).model
    marked.metadata_props.add(key="rlprune.skeleton", value="1")
    create(rig, request(skeleton=marked.SerializeToString()))
    other = trace_onnx(conv_net((24, 48))).graph.fingerprint
    assert len(rig.store.skeleton(other)) < len(marked.SerializeToString()) / 4


def broken_profiles(**changes: object) -> types_pb2.GroupProfiles:
    message = profiles_to(PROFILES)
    for name, value in changes.items():
        message.ClearField(name)  # type: ignore[arg-type]
        if isinstance(value, types_pb2.Matrix):
            getattr(message, name).CopyFrom(value)
        elif isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def matrix(values: object) -> types_pb2.Matrix:
    array = np.asarray(values, dtype=np.float64)
    return types_pb2.Matrix(
        row_count=array.shape[0], column_count=array.shape[1], values=array.ravel().tolist()
    )


WITH_NAN = np.where(LEVELS[0, 0] == LEVELS, np.nan, 0.5)
FULL_FILE = NET.SerializeToString()

REFUSED: list[tuple[str, dict[str, object], type[RlpruneError], str]] = [
    ("nan", {"budget_ms": float("nan")}, BudgetError, "budget_ms"),
    ("infinite", {"budget_ms": float("inf")}, BudgetError, "budget_ms"),
    ("negative", {"budget_ms": -1.0}, BudgetError, "budget_ms"),
    ("zero ratio", {"budget_ratio": 0.0}, BudgetError, "budget_ratio"),
    ("ratio above 1", {"budget_ratio": 1.5}, BudgetError, "budget_ratio"),
    ("nan ratio", {"budget_ratio": float("nan")}, BudgetError, "budget_ratio"),
    ("unknown device", {"device": "board-9"}, NotFoundError, "device"),
    ("no device", {"device": ""}, NotFoundError, "device"),
    ("unknown policy", {"policy": "best"}, PolicyError, "policy"),
    ("path as policy", {"policy": "/etc"}, PolicyError, "policy"),
    ("round_to", {"round_to": -8}, InputError, "round_to"),
    ("request_id", {"request_id": "../../x"}, InputError, "request_id"),
    ("no model", {"skeleton": b""}, ModelError, "skeleton"),
    ("no ONNX", {"skeleton": b"hello"}, ModelError, "skeleton"),
    ("cut short", {"skeleton": SKELETON[:-20]}, ModelError, "skeleton"),
    ("weights inside", {"skeleton": FULL_FILE}, ModelError, "skeleton"),
    ("too large", {"skeleton": bytes(MAX_SKELETON_BYTES + 1)}, ModelError, "skeleton"),
    ("unknown fingerprint", {"fingerprint": "ab" * 32}, NotFoundError, "fingerprint"),
    ("no fingerprint", {"fingerprint": "xyz"}, InputError, "fingerprint"),
    (
        "profiles of another",
        {"profiles": broken_profiles(fingerprint="ab" * 32)},
        InputError,
        "profiles.fingerprint",
    ),
    (
        "nan in profiles",
        {"profiles": broken_profiles(energy_loss=matrix(WITH_NAN))},
        InputError,
        "profiles.energy_loss",
    ),
    (
        "energy above 1",
        {"profiles": broken_profiles(energy_loss=matrix(LEVELS))},
        InputError,
        "profiles.energy_loss",
    ),
    (
        "shape of a fold",
        {"profiles": broken_profiles(measured_loss=[matrix([[1.0]])])},
        InputError,
        "profiles.measured_loss[0]",
    ),
    (
        "levels descend",
        {"profiles": broken_profiles(levels=matrix(LEVELS[:, ::-1]))},
        InputError,
        "profiles.levels",
    ),
    (
        "levels of half units",
        {"profiles": broken_profiles(levels=matrix(LEVELS / 16))},
        InputError,
        "profiles.levels",
    ),
    (
        "level_count",
        {"profiles": broken_profiles(level_count=[99, 99])},
        InputError,
        "profiles.level_count",
    ),
    *(
        (
            f"profiles without {field}",
            {"profiles": profiles_to(PROFILES), field: value},
            InputError,
            field,
        )
        for field, value in (
            ("round_to", 16),
            ("min_keep", 16),
            ("min_keep_ratio", 0.9),
            ("hold", ["conv1"]),
            ("pin", ["conv*"]),
        )
    ),
    ("min_keep", {"min_keep": -1}, InputError, "min_keep"),
    ("min_keep_ratio", {"min_keep_ratio": float("nan")}, InputError, "min_keep_ratio"),
    ("hold", {"hold": ["no_such_layer"]}, InputError, "hold"),
    ("empty hold", {"hold": [""]}, InputError, "hold"),
    ("many holds", {"hold": ["*"] * 300}, InputError, "hold"),
    ("pin", {"pin": ["no_such_layer"]}, InputError, "pin"),
    ("pin of what is held", {"pin": ["fc*"]}, InputError, "pin"),
]


@pytest.mark.parametrize(
    ("changes", "kind", "field"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_refused_call_names_the_field_and_changes_nothing(
    rig: Rig, changes: dict[str, object], kind: type[RlpruneError], field: str
) -> None:
    rig.store.register_device(BOARD)
    before = rig.dump()
    with pytest.raises(kind) as refusal:
        create(rig, request(**changes))
    assert refusal.value.field == field
    assert rig.dump() == before


def test_a_call_without_budget_or_model_is_refused(rig: Rig) -> None:
    for asked, kind in (
        (
            plans_pb2.CreatePlanRequest(skeleton=SKELETON, device="macs", policy="uniform"),
            BudgetError,
        ),
        (plans_pb2.CreatePlanRequest(device="macs", budget_ms=1.0, policy="uniform"), InputError),
    ):
        with pytest.raises(kind):
            create(rig, asked)


def test_an_unknown_device_is_told_the_known_ones(rig: Rig) -> None:
    rig.store.register_device(BOARD)
    with pytest.raises(NotFoundError, match=f"board-9.*{BOARD}, macs"):
        rig.client.plan(NET, device="board-9", budget_ms=1.0, policy="knapsack")


def test_the_client_refuses_a_bad_budget_before_it_calls(rig: Rig) -> None:
    for budget in ({}, {"budget_ms": 1.0, "budget_ratio": 0.5}, {"budget_ms": float("nan")}):
        with pytest.raises(BudgetError):
            rig.client.plan(NET, device="macs", **budget)


def test_profiles_survive_the_wire() -> None:
    import dataclasses

    folds = np.random.default_rng(0).uniform(0, 3, (4, *LEVELS.shape))
    for profiles in (
        PROFILES,
        dataclasses.replace(PROFILES, energy_loss=None),
        dataclasses.replace(PROFILES, measured_loss=folds, base_loss=0.25, image_count=512),
    ):
        back, space = profiles_from(profiles_to(profiles), TRACE.graph, ("channel",))
        assert space == SPACE
        np.testing.assert_equal(dataclasses.asdict(back), dataclasses.asdict(profiles))


def test_a_device_that_measured_nothing_gets_jobs_and_then_a_plan(rig: Rig) -> None:
    rig.device.register_device(BOARD, {"runtime": "made up"})
    asked = request(device=BOARD, budget_ratio=0.8, request_id="r1")
    first = create(rig, asked)
    assert not first.HasField("plan") and not first.measured and first.plan_id == ""
    assert first.pending_job_count == len(first.pending_job_ids) > 0
    again = create(rig, asked)  # a repeated question queues nothing twice
    assert again.pending_job_ids == first.pending_job_ids
    with pytest.raises(UnavailableError, match="jobs wait"):
        rig.client.plan(NET, device=BOARD, budget_ms=1.0, policy="uniform", wait=False)
    with pytest.raises(UnavailableError, match="rlprune work"):
        rig.client.plan(NET, device=BOARD, budget_ms=1.0, policy="uniform", timeout_sec=0.3)
    while rig.do_jobs(macs_cost(TRACE.graph)):
        second = create(rig, request(device=BOARD, budget_ratio=0.8))
    assert second.measured and second.pending_job_count == 0
    assert second.plan.feasible and second.plan.device == BOARD
    assert rig.client.plan(NET, device=BOARD, budget_ratio=0.8, policy="knapsack").feasible


def test_a_device_that_can_run_nothing_is_an_error_and_not_an_endless_wait(rig: Rig) -> None:
    rig.device.register_device(BOARD, {})
    asked = request(device=BOARD, budget_ratio=0.8)
    with pytest.raises(MeasurementError, match=r"no kernel|failed"):
        for _ in range(200):
            create(rig, asked)
            while (job := rig.device.lease("worker", BOARD)) is not None:
                failed = [
                    Measurement(BOARD, subject, (), (), status="failed", reason="no kernel")
                    for subject in job.left
                ]
                rig.device.report(job.lease_id, job.lease_id, messages(failed), done=True)


def test_a_call_whose_answer_was_lost_is_repeated_and_counts_once(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporal's fault: the write happened, but the caller saw the server fail."""
    from pathlib import Path

    from rlprune.service.plans import PlanService

    lost = []
    answer = PlanService.put_plan

    def lose_first(self: PlanService, asked: plans_pb2.PutPlanRequest) -> plans_pb2.StoredPlan:
        found = answer(self, asked)
        if not lost:
            lost.append(found.plan_id)
            raise UnavailableError("the answer was lost")
        return found

    monkeypatch.setattr(PlanService, "put_plan", lose_first)
    rig = Rig(Path(str(tmp_path)))
    plan = rig.client.plan(NET, device="macs", budget_ratio=0.5, policy="knapsack")
    (kept,) = rig.client.plans()
    assert kept.plan == plan and [kept.plan_id] == lost
    rig.close()
