"""The whole way on this machine: profile, measure what is missing, plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from rlprune.constraints import Constraints, bind
from rlprune.errors import BudgetError, InputError, MissingExtraError, NotFoundError
from rlprune.graph.types import IntArray, PruningGraph
from rlprune.latency.device import check_batch, preferred_multiple, threads_of
from rlprune.latency.types import MACS_DEVICE, Measurement
from rlprune.planning.candidates import check_count, chooser, default_count
from rlprune.planning.make import check_budget, check_params, make_plan
from rlprune.planning.profiles import (
    OnProgress,
    constrained_levels,
    named,
    profile_model,
    read_calibration,
)
from rlprune.planning.reasons import with_reasons
from rlprune.planning.tables import latency_model, nothing_measured, task_for
from rlprune.plans import PruningPlan
from rlprune.sensitivity.initial import InitialScores, initial_profiles
from rlprune.sensitivity.types import GroupProfiles
from rlprune.solver.task import PruningTask

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.runtime import Runtime
    from rlprune.sensitivity.calibration import CalibrationSet
    from rlprune.sensitivity.sources import CalibrationSource
    from rlprune.store import Store

MEASURE_ROUNDS = 4
"""How often what came out unstable is made up for before planning with what there is."""
MEASURE_PART = 48
"""Subjects measured in turns, and lost if the program is interrupted."""


def plan_model(
    trace: OnnxTrace,
    *,
    budget_ms: float | None = None,
    budget_ratio: float | None = None,
    device: str | None = None,
    policy: str = "learned",
    calibration: CalibrationSource | None = None,
    constraints: Constraints | None = None,
    certify: bool = False,
    guard: bool = True,
    candidates: int | None = None,
    max_params: int | None = None,
    initial: InitialScores | None = None,
    store: Store | None = None,
    on_progress: OnProgress | None = None,
) -> PruningPlan:
    """Plans a traced model in this process.

    With no `device`, a runtime's name or this machine's own key, what the model needs is measured
    now where the local store does not have it. Whatever was given is checked before the first
    measurement. With `certify` the plan is measured here, and corrected where it misses
    (`planning.certify`). With `candidates` (None: `candidates.default_count`), so many plans are
    evaluated on half of the calibration images, those that the profile is not measured on
    (`planning.candidates`). With `max_params` the plan has at most so many parameters as well
    (`task.sized`). With `initial` the network is not trained: these scores stand in for losses.

    Raises:
        BudgetError: not exactly one budget, or not a positive, finite one.
        InputError: constraints that the model cannot meet.
        CalibrationError, PolicyError: the file or directory is refused.
        NotFoundError: another device that has not reported what this model needs.
        MissingExtraError: something must be measured, and no runtime is installed.
    """
    from rlprune.policy import get_policy
    from rlprune.store import open_store

    if budget_ms is not None and budget_ratio is None:
        check_budget(budget_ms)
    elif budget_ratio is not None and budget_ms is None:
        check_budget(budget_ratio, "budget_ratio")
    else:
        raise BudgetError("give either budget_ms or budget_ratio", field="budget_ms")
    if initial is not None and candidates:
        raise InputError(
            "candidates are judged by their losses, and an untrained network has none to tell them "
            "apart; leave candidates out",
            field="candidates",
        )
    check_count(candidates or 0, calibrated=calibration is not None)
    check_params(max_params)
    if max_params is not None and candidates:
        raise InputError(
            "candidates are proposed by latency alone; leave max_params or candidates out",
            field="max_params",
        )
    chosen = get_policy(policy)
    device, runtime = which_device(device, trace.graph)
    if certify and device == MACS_DEVICE:
        raise InputError("MACs are counted, not measured; leave certify out", field="certify")
    if certify and runtime is None:
        raise InputError(
            f"device {device!r} is not this machine, so nothing can be certified here; ask the "
            "server that its worker reports to (--server)",
            field="device",
        )
    images = read_calibration(trace, calibration)
    if candidates is None:
        racing = initial is None and max_params is None
        candidates = default_count(images, policy=policy, guard=guard) if racing else 0
    bound = bind(trace.graph, constraints or Constraints(), round_to=preferred_multiple(device))
    levels, level_count = constrained_levels(trace.graph, bound)
    profile_images, pick = split_calibration(trace, images, candidates, on_progress)
    if initial is not None:
        profiles = initial_profiles(trace.graph, initial, levels, level_count)
    else:
        profiles = profile_model(
            trace, levels, level_count, profile_images, on_progress=on_progress
        )
    store = open_store() if store is None else store
    task = device_task(trace, profiles, store, device, runtime, on_progress=on_progress)

    def ask(budget_ms: float) -> PruningPlan:
        task = task_for(trace.graph, profiles, store, device)
        made = with_reasons(
            make_plan(
                task,
                chosen,
                budget_ms,
                device=device,
                constraints=bound,
                guard=guard,
                candidate_count=candidates,
                max_params=max_params,
            ),
            task,
            bound,
            store,
        )
        return pick(made)

    if budget_ratio is not None:
        budget_ms = budget_ratio * task.base_ms
    assert budget_ms is not None
    made = ask(budget_ms)
    too_large = max_params is not None and made.params > max_params
    if not certify or runtime is None or too_large:
        return made
    from rlprune.planning.certify import MAX_ROUNDS, certify_plan
    from rlprune.planning.fresh import measure_fresh

    tell = named(on_progress, "certifying")
    rounds = 0

    def measured(keeps: IntArray) -> Measurement:
        nonlocal rounds
        if tell is not None:
            tell(rounds, MAX_ROUNDS)
        rounds += 1
        found = measure_fresh(trace, keeps, device=device, runtime=runtime.name)
        store.add_measurements([found])
        return found

    certified = certify_plan(ask, measured, made)
    if max_params is not None and certified.params > max_params:
        why = f"{certified.note}; {certified.params:,} parameters, of which {max_params:,} may stay"
        return replace(certified, feasible=False, note=why)
    return certified


def split_calibration(
    trace: OnnxTrace,
    images: CalibrationSet | None,
    candidates: int,
    on_progress: OnProgress | None = None,
) -> tuple[CalibrationSet | None, Callable[[PruningPlan], PruningPlan]]:
    """What to profile on, and how a plan with candidates is chosen from.

    Without candidates all images are profiled on, and plans stay as they are made. With them the
    images are halved.

    Raises:
        CalibrationError: they are too few to halve.
    """
    if not candidates or images is None:
        return images, lambda plan: plan
    for_profile, for_choice = images.halves()
    tell = named(on_progress, "evaluating candidates")
    return for_profile, chooser(trace, for_choice.shuffled(), on_progress=tell)


def which_device(device: str | None, graph: PruningGraph) -> tuple[str, Runtime | None]:
    """The key that is meant, and the runtime to measure with where that is this machine.

    Args:
        device: a key, `macs`, or a runtime's name for this machine; None for this machine and ort.
            Of this machine's keys the one of one thread is meant where it does not name more.

    Raises:
        MissingExtraError: a runtime of this machine is meant that is not installed.
    """
    if device == MACS_DEVICE:
        return device, None
    from rlprune.latency.device import batch_of, local_device_key
    from rlprune.runtime import RUNTIMES, get_runtime

    # A key begins with its runtime's name; the bare name stands for this machine.
    named = (device or "ort").partition("-")[0]
    if device is not None and named not in RUNTIMES:
        return device, None
    try:
        runtime = get_runtime(named)
    except MissingExtraError:
        if device in (None, named):
            raise
        return str(device), None
    own = local_device_key(
        runtime, thread_count=threads_of(device or ""), batch=batch_of(graph.input_shapes)
    )
    return (own, runtime) if device in (None, named, own) else (str(device), None)


def device_task(
    trace: OnnxTrace,
    profiles: GroupProfiles,
    store: Store,
    device: str,
    runtime: Runtime | None,
    *,
    on_progress: OnProgress | None = None,
) -> PruningTask:
    """The planning task of a traced model on a device as `which_device` names it.

    With a `runtime` that is this machine, and what the store does not have is measured now.

    Raises:
        NotFoundError: another device, that has not measured what this model needs.
    """
    if runtime is not None:
        _measure_missing(trace, profiles, store, device, runtime, on_progress)
    else:
        check_measured(trace.graph, store, device)
    return task_for(trace.graph, profiles, store, device)


def check_measured(graph: PruningGraph, store: Store, device: str) -> None:
    """Refuses a device that has not reported what plans of this graph need.

    Raises:
        NotFoundError: unknown, or nothing measured of this model; not for `macs`.
    """
    if device == MACS_DEVICE:
        return
    check_batch(device, graph.input_shapes)
    if store.generation(device) == 0:
        raise nothing_measured(store, device)
    if graph.fingerprint not in latency_model(store, device).attempts:
        raise NotFoundError(
            f"device {device!r} has not measured this model; ask the server that its worker "
            "reports to (--server)",
            field="device",
        )


def _measure_missing(
    trace: OnnxTrace,
    profiles: GroupProfiles,
    store: Store,
    device: str,
    runtime: Runtime,
    on_progress: OnProgress | None,
) -> None:
    """Measures until the latency model has what it wants; every part is kept once it is done."""
    from rlprune.graph.skeleton import strip
    from rlprune.latency.collect import measure_subjects, trace_models
    from rlprune.latency.measure import MeasureConfig

    config = MeasureConfig(thread_count=threads_of(device))
    done = 0
    for _ in range(MEASURE_ROUNDS):
        missing = latency_model(store, device).missing(
            trace.graph, profiles.levels, profiles.level_count
        )
        if not missing:
            return
        if done == 0:
            store.put_graph(trace.graph, strip(trace.model))
        total = done + len(missing)
        for start in range(0, len(missing), MEASURE_PART):
            part = missing[start : start + MEASURE_PART]

            def tell(
                now: int, of: int, done: int = done, size: int = len(part), total: int = total
            ) -> None:
                if on_progress is not None:
                    on_progress("measuring this machine", done + size * now // of, total)

            measured = measure_subjects(
                part,
                model_of=trace_models(trace),
                device=device,
                runtime=runtime,
                config=config,
                on_progress=tell,
            )
            store.add_measurements(measured)
            done += len(part)
