"""PlanService: from a question to a plan, or to the jobs that must be done first.

Everything is checked and computed before the first write, so a refused call changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from rlprune.constraints import BoundConstraints, bind
from rlprune.errors import BudgetError, InputError, MeasurementError, PolicyError
from rlprune.graph.types import PruningGraph
from rlprune.latency.device import check_batch, preferred_multiple
from rlprune.latency.types import MACS_DEVICE
from rlprune.planning import (
    check_budget,
    check_count,
    constrained_levels,
    latency_model,
    make_plan,
    task_for,
    with_reasons,
)
from rlprune.plans import PruningPlan
from rlprune.policy import POLICY_NAMES, Policy, get_policy
from rlprune.sensitivity.energy import shape_profiles
from rlprune.sensitivity.types import GroupProfiles
from rlprune.service.models import Skeletons
from rlprune.service.plan_messages import (
    check_levels,
    constraints_from,
    plan_to,
    profiles_from,
    record_to,
)
from rlprune.store import Store
from rlprune.store.encoding import Subject, check_fingerprint, check_request_id, subject_key
from rlprune.store.jobs import JobQueue
from rlprune.store.records import PlanRecord
from rlprune.v1 import plans_pb2


class PlanService:
    """The rpcs of `rlprune.v1.PlanService` over one store; called from many threads."""

    def __init__(
        self,
        store: Store,
        jobs: JobQueue,
        skeletons: Skeletons,
        policies: Mapping[str, Policy] | None = None,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._skeletons = skeletons
        self._own = dict(policies or {})
        # The others are read from files of the package, which do not change while it runs.
        self._policy = lru_cache(maxsize=None)(get_policy)

    def create_plan(self, request: plans_pb2.CreatePlanRequest) -> plans_pb2.CreatePlanResponse:
        """See plans.proto."""
        content = request.SerializeToString(deterministic=True)
        if request.request_id:
            check_request_id(request.request_id)
            plan_id = self._store.plan_of_request(request.request_id, content)
            if plan_id is not None:
                return _answer(self._store.plan_record(plan_id))
        policy = self._policy_of(request)
        check_count(request.candidates, calibrated=True)  # or not: that is the client's
        _check_budget(request)
        constraints = constraints_from(request)
        graph, brought = self._graph_of(request)
        device = request.device
        if device != MACS_DEVICE:
            self._store.last_seen_sec(device)  # refuses unknown ones
        bound = bind(graph, constraints, round_to=preferred_multiple(device))
        profiles = _profiles_of(request, graph, bound)
        plan = self._plan(request, graph, profiles, policy, bound)
        missing = self._missing(graph, profiles, device, needed=plan is None)
        # All is well: now it is written, in one transaction.
        if plan is None:
            queued = self._jobs.enqueue(
                device, missing, fingerprint=graph.fingerprint, graph=brought
            )
            return _not_yet([job.job_id for job in queued])
        return _answer(
            self._jobs.put_plan(
                plan, missing, request_id=request.request_id, content=content, graph=brought
            )
        )

    def get_plan(self, request: plans_pb2.GetPlanRequest) -> plans_pb2.StoredPlan:
        """See plans.proto."""
        return record_to(self._store.plan_record(request.plan_id))

    def list_plans(self, request: plans_pb2.ListPlansRequest) -> plans_pb2.ListPlansResponse:
        """See plans.proto."""
        records, token = self._store.plans(
            page_size=request.page_size, page_token=request.page_token, device=request.device
        )
        return plans_pb2.ListPlansResponse(
            plans=[record_to(record) for record in records], next_page_token=token
        )

    def _policy_of(self, request: plans_pb2.CreatePlanRequest) -> Policy:
        name = request.policy or "learned"
        if name in self._own:
            return self._own[name]
        if name not in POLICY_NAMES:
            # Never handed on: get_policy would read a path of the server's.
            known = ", ".join(dict.fromkeys((*POLICY_NAMES, *self._own)))
            raise PolicyError(
                f"no policy {name[:80]!r} on this server; give {known}", field="policy"
            )
        return self._policy(name)

    def _graph_of(
        self, request: plans_pb2.CreatePlanRequest
    ) -> tuple[PruningGraph, tuple[PruningGraph, bytes] | None]:
        """The graph in question, and the same with its skeleton where the request brought one."""
        which = request.WhichOneof("model")
        if which == "skeleton":
            brought = self._skeletons.trace(request.skeleton)
            return brought[0], brought
        if which == "fingerprint":
            return self._store.graph(check_fingerprint(request.fingerprint)), None
        raise InputError("give a skeleton, or the fingerprint of one sent before", field="skeleton")

    def _plan(
        self,
        request: plans_pb2.CreatePlanRequest,
        graph: PruningGraph,
        profiles: GroupProfiles,
        policy: Policy,
        constraints: BoundConstraints,
    ) -> PruningPlan | None:
        """The plan; None where nothing has been measured that latencies could be predicted from."""
        device = request.device
        check_batch(device, graph.input_shapes)
        if device != MACS_DEVICE and self._store.sample_count(device) == 0:
            return None
        task = task_for(graph, profiles, self._store, device)
        budget_ms = request.budget_ms
        if request.WhichOneof("budget") == "budget_ratio":
            budget_ms = request.budget_ratio * task.base_ms
        made = make_plan(
            task,
            policy,
            budget_ms,
            device=device,
            constraints=constraints,
            guard=not request.unguarded,
            candidate_count=request.candidates,
        )
        return with_reasons(made, task, constraints, self._store)

    def _missing(
        self, graph: PruningGraph, profiles: GroupProfiles, device: str, *, needed: bool
    ) -> list[Subject]:
        """What the device has still to measure for this graph and can.

        Raises:
            MeasurementError: it is `needed` for a plan, and the device cannot measure it.
        """
        if device == MACS_DEVICE:
            return []
        model = latency_model(self._store, device)
        missing = list(model.missing(graph, profiles.levels, profiles.level_count))
        hopeless = self._jobs.unmeasurable(device) if missing else {}
        left = [subject for subject in missing if subject_key(subject) not in hopeless]
        if needed and not left:
            reason = next(iter(hopeless.values()), "every measurement so far failed")
            raise MeasurementError(
                f"device {device!r} cannot measure what this model needs: {reason}", field="device"
            )
        return left


def _check_budget(request: plans_pb2.CreatePlanRequest) -> None:
    which = request.WhichOneof("budget")
    if which is None:
        raise BudgetError("give budget_ms or budget_ratio", field="budget_ms")
    check_budget(getattr(request, which), which)


def _profiles_of(
    request: plans_pb2.CreatePlanRequest, graph: PruningGraph, bound: BoundConstraints
) -> GroupProfiles:
    if not request.HasField("profiles"):
        return shape_profiles(graph, *constrained_levels(graph, bound))
    profiles = profiles_from(request.profiles, graph)
    check_levels(profiles, graph, bound)
    return profiles


def _answer(record: PlanRecord) -> plans_pb2.CreatePlanResponse:
    return plans_pb2.CreatePlanResponse(
        plan=plan_to(record.plan),
        plan_id=record.plan_id,
        pending_job_count=len(record.pending_job_ids),
        pending_job_ids=record.pending_job_ids,
        measured=record.plan.device != MACS_DEVICE,
    )


def _not_yet(pending_job_ids: list[str]) -> plans_pb2.CreatePlanResponse:
    return plans_pb2.CreatePlanResponse(
        pending_job_count=len(pending_job_ids), pending_job_ids=pending_job_ids
    )
