"""PlanService: from a question to a plan, or to the jobs that must be done first.

Everything is checked and computed before the first write, so a refused call changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from rlprune.constraints import BoundConstraints, bind
from rlprune.device_keys import canonical_key
from rlprune.errors import InputError, MeasurementError, PolicyError
from rlprune.files import digest
from rlprune.graph.types import PruningGraph
from rlprune.latency.device import check_batch, preferred_multiple
from rlprune.latency.types import MACS_DEVICE, Arithmetic, Subject
from rlprune.planning import PlanRequest, task_for
from rlprune.planning.answers import answered
from rlprune.planning.effort import DEFAULT_EFFORT, EFFORTS
from rlprune.planning.proposals import Round
from rlprune.planning.request import SEARCH
from rlprune.planning.tables import Recent, can_tell, missing_for
from rlprune.plans import PruningPlan
from rlprune.policy import POLICY_NAMES, REMOVED_POLICIES, Policy, get_policy
from rlprune.schemes import Space, space_of
from rlprune.sensitivity.energy import shape_profiles, with_predictions
from rlprune.sensitivity.types import GroupProfiles
from rlprune.service.models import Graphs
from rlprune.service.plan_messages import (
    asked_from,
    check_plan,
    plan_from,
    plan_to,
    record_to,
    request_from,
)
from rlprune.service.profile_messages import check_levels, profiles_from
from rlprune.service.search_messages import round_from
from rlprune.store import Store
from rlprune.store.encoding import check_fingerprint, check_request_id, subject_key
from rlprune.store.jobs import JobQueue
from rlprune.store.records import Asked, Job, PlanRecord
from rlprune.v1 import plans_pb2

Bound = tuple[BoundConstraints, Space, GroupProfiles]

MAX_PROFILES = 64
"""Profiles kept as callers sent them, a few 100 kB each at most."""


class PlanService:
    """The rpcs of `rlprune.v1.PlanService` over one store; called from many threads."""

    def __init__(
        self,
        store: Store,
        jobs: JobQueue,
        graphs: Graphs,
        policies: Mapping[str, Policy] | None = None,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._graphs = graphs
        self._own = dict(policies or {})
        self._bound: Recent[Bound] = Recent(MAX_PROFILES)
        # The others are read from files of the package, which do not change while it runs.
        self._policy = lru_cache(maxsize=None)(get_policy)

    def create_plan(self, request: plans_pb2.CreatePlanRequest) -> plans_pb2.CreatePlanResponse:
        """See plans.proto."""
        content = b""
        if request.request_id:
            check_request_id(request.request_id)
        if request.request_id and not request.provisional:
            content = request.SerializeToString(deterministic=True)
            plan_id = self._store.plan_of_request(request.request_id, content)
            if plan_id is not None:
                record = self._store.plan_record(plan_id)
                return _kept_answer(record, measured=self._measured(record.plan.device))
        policy = self._policy_of(request)
        asked = request_from(request)
        graph, brought = self._graph_of(request)
        device = asked.device or ""
        if device != MACS_DEVICE:
            self._store.last_seen_sec(device)  # refuses unknown ones
        bound, space, profiles = self._bound.get(
            (
                *(graph.fingerprint, device, asked.precision),
                *(asked.constraints, asked.schemes, _digest(request)),
            ),
            lambda: _bound_profiles(request, asked, graph),
        )
        search = round_from(request, space)
        plan = self._plan(asked, space, profiles, policy, bound, search)
        missing, first = self._missing(space, device, asked.arithmetic, needed=plan is None)
        measured = plan is not None and self._measured(device)
        # All is well: now it is written, in one transaction.
        if plan is None or request.provisional:
            queued = self._queue(device, missing, graph, brought)
            made = _answer(plan, [job.job_id for job in queued], measured=measured)
            made.awaited_job_count = sum(not first.isdisjoint(job.subjects) for job in queued)
            return made
        record = self._jobs.put_plan(
            plan,
            missing,
            request_id=request.request_id,
            content=content,
            graph=brought,
            asked=Asked(request=asked.to_json()),
        )
        return _kept_answer(record, measured=measured)

    def put_plan(self, request: plans_pb2.PutPlanRequest) -> plans_pb2.StoredPlan:
        """See plans.proto."""
        check_request_id(request.request_id)
        content = request.SerializeToString(deterministic=True)
        plan_id = self._store.plan_of_request(request.request_id, content)
        if plan_id is not None:
            return record_to(self._store.plan_record(plan_id))
        asked = asked_from(request)
        plan = plan_from(request.plan)
        fingerprint = check_fingerprint(plan.fingerprint, field="plan.fingerprint")
        check_plan(plan, self._graphs.graph(fingerprint))
        if plan.device != MACS_DEVICE:
            self._store.last_seen_sec(plan.device)  # refuses unknown ones
        plan_id = self._store.put_plan(
            plan, request_id=request.request_id, content=content, asked=asked
        )
        return record_to(self._store.plan_record(plan_id))

    def get_plan(self, request: plans_pb2.GetPlanRequest) -> plans_pb2.StoredPlan:
        """See plans.proto."""
        return record_to(self._store.plan_record(request.plan_id))

    def list_plans(self, request: plans_pb2.ListPlansRequest) -> plans_pb2.ListPlansResponse:
        """See plans.proto."""
        records, token = self._store.plans(
            page_size=request.page_size,
            page_token=request.page_token,
            device=canonical_key(request.device),
        )
        return plans_pb2.ListPlansResponse(
            plans=[record_to(record) for record in records], next_page_token=token
        )

    def _policy_of(self, request: plans_pb2.CreatePlanRequest) -> Policy:
        name = request.policy or SEARCH
        if name in self._own:
            return self._own[name]
        if name not in POLICY_NAMES and name not in REMOVED_POLICIES:
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
            brought = self._graphs.trace(request.skeleton)
            return brought[0], brought
        if which == "fingerprint":
            return self._graphs.graph(check_fingerprint(request.fingerprint)), None
        raise InputError("give a skeleton, or the fingerprint of one sent before", field="skeleton")

    def _plan(
        self,
        asked: PlanRequest,
        space: Space,
        profiles: GroupProfiles,
        policy: Policy,
        bound: BoundConstraints,
        search: Round | None,
    ) -> PruningPlan | None:
        """The plan; None where nothing has been measured that latencies could be predicted from."""
        device = asked.device or ""
        check_batch(device, space.graph.input_shapes)
        own = asked.arithmetic
        if not can_tell(self._store, device, own):
            return None
        task = task_for(space, profiles, self._store, device, own)
        [budget] = asked.budgets
        return answered(
            *(task, asked, budget, asked.unit),
            policy=policy,
            bound=bound,
            store=self._store,
            search=search,
        )

    def _queue(
        self,
        device: str,
        missing: Sequence[Subject],
        graph: PruningGraph,
        brought: tuple[PruningGraph, bytes] | None,
    ) -> list[Job]:
        """The open jobs of what is missing, and keeps the graph; writes nothing where nothing is
        new."""
        if missing:
            return self._jobs.enqueue(device, missing, fingerprint=graph.fingerprint, graph=brought)
        if brought is not None:
            self._store.put_graph(*brought)
        return []

    def _missing(
        self, space: Space, device: str, arithmetic: Arithmetic, *, needed: bool
    ) -> tuple[list[Subject], set[Subject]]:
        """What the device has still to measure for these options and can, and what of it a
        plan waits for; that comes first.

        Raises:
            MeasurementError: it is `needed` for a plan, and the device cannot measure it.
        """
        if device == MACS_DEVICE:
            return [], set()
        missing = missing_for(space, self._store, device, arithmetic)
        few = missing_for(space, self._store, device, arithmetic, EFFORTS[DEFAULT_EFFORT].few)
        missing = tuple(dict.fromkeys((*few, *missing)))
        hopeless = self._jobs.unmeasurable(device) if missing else {}
        left = [subject for subject in missing if subject_key(subject) not in hopeless]
        if needed and not left:
            reason = next(iter(hopeless.values()), "every measurement so far failed")
            raise MeasurementError(
                f"device {device!r} cannot measure what this model needs: {reason}", field="device"
            )
        return left, set(few)

    def _measured(self, device: str) -> bool:
        return device != MACS_DEVICE and self._store.sample_count(device) > 0


def _digest(request: plans_pb2.CreatePlanRequest) -> str:
    """Of the profiles that were sent."""
    sent = request.profiles if request.HasField("profiles") else None
    return "" if sent is None else digest(sent.SerializeToString(deterministic=True))


def _bound_profiles(
    request: plans_pb2.CreatePlanRequest, asked: PlanRequest, graph: PruningGraph
) -> Bound:
    """The constraints on this graph, the options that they leave, and profiles of these; all that
    does not depend on budget and measurements."""
    multiple = preferred_multiple(asked.device or "", asked.precision)
    how = {"device": asked.device or "", "precision": asked.precision}
    bound = bind(graph, asked.constraints, round_to=multiple, **how)
    if request.HasField("profiles"):
        profiles, space = profiles_from(request.profiles, graph, asked.schemes)
        check_levels(space, bound)
    else:
        space = space_of(graph, bound, asked.schemes)
        profiles = shape_profiles(space)
    return bound, space, with_predictions(profiles, space)


def _answer(
    plan: PruningPlan | None,
    pending_job_ids: Sequence[str],
    plan_id: str = "",
    *,
    measured: bool,
) -> plans_pb2.CreatePlanResponse:
    return plans_pb2.CreatePlanResponse(
        plan=None if plan is None else plan_to(plan),
        plan_id=plan_id,
        pending_job_count=len(pending_job_ids),
        pending_job_ids=pending_job_ids,
        measured=measured,
    )


def _kept_answer(record: PlanRecord, *, measured: bool) -> plans_pb2.CreatePlanResponse:
    return _answer(record.plan, record.pending_job_ids, record.plan_id, measured=measured)
