"""Planning on this machine: measure what is missing, plan, keep the plan in the local store."""

from __future__ import annotations

import logging
import math
import os
from typing import TYPE_CHECKING

from rlprune.device_keys import canonical_key
from rlprune.errors import InputError, MissingExtraError, NotFoundError, RlpruneError
from rlprune.graph.types import IntArray, PruningGraph
from rlprune.latency.device import check_batch, preferred_multiple, threads_of, with_threads
from rlprune.latency.multiples import measured_multiple, multiple_probes
from rlprune.latency.types import (
    IN_F32,
    INT8,
    MACS_DEVICE,
    Arithmetic,
    Measurement,
    ModelSubject,
)
from rlprune.planning.answers import answered
from rlprune.planning.beside import measure_beside
from rlprune.planning.measuring import Machine, measure_here, measure_missing
from rlprune.planning.planner import Question
from rlprune.planning.profiles import OnProgress
from rlprune.planning.proposals import Round
from rlprune.planning.request import PlanRequest, Unit
from rlprune.planning.tables import can_tell, latency_model, nothing_measured, task_for
from rlprune.plans import PruningPlan
from rlprune.runtime import check_precision
from rlprune.schemes import Space
from rlprune.sensitivity.types import GroupProfiles
from rlprune.solver.task import PruningTask

if TYPE_CHECKING:
    import onnx

    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.policy import Policy
    from rlprune.runtime import Runtime
    from rlprune.store import Store

LOG = logging.getLogger("rlprune.planning")


class LocalPlanner:
    """Plans in this process, by what the local store knows and what is measured now.

    With no device, a runtime's name or this machine's own key, what the model needs is measured
    where the store does not have it. For one question after the other.
    """

    default_timeout_sec = math.inf

    def __init__(self, store: Store | None = None) -> None:
        """`store` None: the local one, opened when it is first needed."""
        self._given = store
        self._policy: Policy | None = None
        self._runtime: Runtime | None = None
        self._ready: Question | None = None
        """The question for which everything was measured."""

    @property
    def _store(self) -> Store:
        if self._given is None:
            from rlprune.store import open_store

            self._given = open_store()
        return self._given

    def resolve(self, request: PlanRequest, graph: PruningGraph) -> str:
        """See `Planner`."""
        from rlprune.policy import get_policy

        self._policy = get_policy(request.policy)
        device, self._runtime = which_device(request.device, graph, request.threads)
        if request.certify and self._runtime is None:
            raise InputError(
                f"device {device!r} is not this machine, so nothing can be certified here; ask the "
                "server that its worker reports to (--server)",
                field="device",
            )
        if self._runtime is not None:
            check_precision(self._runtime, request.precision)
        return device

    def round_to(self, request: PlanRequest, device: str) -> int:
        """See `Planner`. In int8 a few operators are measured for it, the first time."""
        guess = preferred_multiple(device, request.precision)
        if request.precision != INT8 or device == MACS_DEVICE:
            return guess
        store, runtime = self._store, self._runtime
        found = measured_multiple(store.measurements(device), INT8)
        if found is None and runtime is not None and request.wait:
            from rlprune.latency.collect import measure_subjects
            from rlprune.latency.measure import MeasureConfig

            tried = {one.subject for one in store.measurements(device)}
            measured = measure_subjects(
                [spec for spec in multiple_probes(INT8) if spec not in tried],
                model_of=_no_model,
                device=device,
                runtime=runtime,
                config=MeasureConfig(thread_count=threads_of(device)),
            )
            store.add_measurements(measured)
            found = measured_multiple(store.measurements(device), INT8)
        return guess if found is None else found

    def answer(
        self, question: Question, budget: float, unit: Unit, search: Round | None = None
    ) -> PruningPlan:
        """See `Planner`."""
        store, request, bound = self._store, question.request, question.bound
        assert self._policy is not None, "resolve comes first"
        if question is not self._ready:
            self._measure_missing(question)
            self._ready = question
        task = task_for(
            question.space, question.profiles, store, question.device, request.arithmetic
        )
        return answered(
            *(task, request, budget, unit),
            policy=self._policy,
            bound=bound,
            store=store,
            search=search,
        )

    def measure(self, question: Question, keeps: IntArray) -> Measurement:
        """See `Planner`."""
        from rlprune.planning.fresh import measure_fresh

        assert self._runtime is not None, "resolve refuses other devices"
        found = measure_fresh(
            question.trace,
            question.subject(keeps),
            device=question.device,
            runtime=self._runtime.name,
        )
        self._store.add_measurements([found])
        return found

    def put(self, question: Question, plan: PruningPlan) -> None:
        """See `Planner`. The graph is in the store where anything was measured of it."""
        from rlprune.store.records import Asked

        asked = Asked(question.model_name, question.request.to_json())
        try:
            self._store.put_plan(plan, asked=asked)
        except RlpruneError as error:
            LOG.warning("the plan is not kept in the local store: %s", error)

    def _measure_missing(self, question: Question) -> None:
        store, device, runtime = self._store, question.device, self._runtime
        trace, own = question.trace, question.request.arithmetic
        if runtime is not None and not question.request.wait:
            check_batch(device, question.graph.input_shapes)
            if not can_tell(store, device, own):
                of = "" if own == IN_F32 else f" in {own.precision}"
                raise NotFoundError(
                    f"nothing is measured of {device!r}{of} yet; plan without wait=False "
                    "(--no-wait)",
                    field="device",
                )
            return
        if runtime is None:
            check_measured(trace.graph, store, device, own)
            return
        measure_missing(
            *(trace, question.space, Machine(store, device, runtime), own),
            few=question.few,
            deadline=question.deadline,
            on_progress=question.on_progress,
        )
        if not question.out_of_time and question.request.effort != "instant":
            measure_beside(trace, store, device, runtime, own)

    def learn(self, question: Question, keeps: IntArray) -> None:
        """See `Planner`."""
        store, device, runtime = self._store, question.device, self._runtime
        if runtime is None or not question.request.wait or question.out_of_time:
            return
        from rlprune.latency.model import CALIBRATION_COUNT

        subject = question.subject(keeps)
        model = latency_model(store, device, question.request.arithmetic)
        tried = model.attempts.get(question.graph.fingerprint, {})
        if len(tried) < CALIBRATION_COUNT and subject.settings not in tried:
            measure_here([subject], question.trace, Machine(store, device, runtime))


def which_device(
    device: str | None, graph: PruningGraph, threads: int | None = None
) -> tuple[str, Runtime | None]:
    """The key that is meant, and the runtime to measure with where that is this machine.

    Args:
        device: a key, `macs`, or a runtime's name for this machine; None for this machine and ort.
            Of this machine's keys the one of one thread is meant where it does not name more.
        threads: the key of so many threads is meant.

    Raises:
        InputError: `threads` of a device that has none to choose, or more than there are cores.
        MissingExtraError: a runtime of this machine is meant that is not installed.
    """
    from rlprune.latency.device import batch_of, local_device_key
    from rlprune.runtime import RUNTIMES, get_runtime

    device = None if device is None else canonical_key(device)

    # A key begins with its runtime's name; the bare name stands for this machine.
    named = (device or "ort").partition("-")[0]
    if threads is not None and device not in (None, named if named in RUNTIMES else None):
        device = with_threads(str(device), threads)
    if device == MACS_DEVICE or (device is not None and named not in RUNTIMES):
        return device, None
    try:
        runtime = get_runtime(named)
    except MissingExtraError:
        if device in (None, named):
            raise
        return str(device), None
    bare = device in (None, named)
    count = (threads or 1) if bare else threads_of(str(device))
    cores = os.cpu_count() or 1
    if bare and count > cores:
        raise InputError(f"this machine has {cores} cores, not {count}", field="threads")
    own = local_device_key(runtime, thread_count=count, batch=batch_of(graph.input_shapes))
    return (own, runtime) if bare or device == own else (str(device), None)


def device_task(
    trace: OnnxTrace,
    space: Space,
    profiles: GroupProfiles,
    store: Store,
    device: str,
    runtime: Runtime | None,
    *,
    arithmetic: Arithmetic = IN_F32,
    on_progress: OnProgress | None = None,
) -> PruningTask:
    """The planning task of a traced model on a device as `which_device` names it.

    With a `runtime` that is this machine, and what the store does not have is measured now.

    Raises:
        NotFoundError: another device, that has not measured what this model needs.
    """
    if runtime is not None:
        measure_missing(
            *(trace, space, Machine(store, device, runtime), arithmetic), on_progress=on_progress
        )
    else:
        check_measured(trace.graph, store, device, arithmetic)
    return task_for(space, profiles, store, device, arithmetic)


def _no_model(subject: ModelSubject) -> onnx.ModelProto:
    raise AssertionError("only operators are measured")


def check_measured(
    graph: PruningGraph, store: Store, device: str, arithmetic: Arithmetic = IN_F32
) -> None:
    """Refuses a device that nothing is known of.

    Raises:
        NotFoundError: the store has never heard of it, or its latencies cannot be told from
            anything; not for `macs`.
    """
    if device == MACS_DEVICE:
        return
    check_batch(device, graph.input_shapes)
    store.device(device)
    if not can_tell(store, device, arithmetic):
        raise nothing_measured(store, device, arithmetic)
