"""Measures on this machine what plans of a network need, and keeps it in a store."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from rlprune.constraints import bind
from rlprune.latency.device import batch_of, local_device_key, preferred_multiple, threads_of
from rlprune.latency.types import Arithmetic, Subject
from rlprune.planning.beside import measure_beside
from rlprune.planning.profiles import OnProgress
from rlprune.planning.request import PlanRequest
from rlprune.planning.tables import latency_model
from rlprune.schemes import Space, space_of

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.latency.measure import Progress
    from rlprune.runtime import Runtime
    from rlprune.store import Store

MEASURE_ROUNDS = 4
"""How often what came out unstable is made up for before planning with what there is."""
MEASURE_PART = 48
"""Subjects measured in turns, and lost if the program is interrupted."""
HURRIED_PART = 8
"""The same where measuring has to end in time."""


class Machine(NamedTuple):
    """This machine as a device, and where what is measured on it is kept."""

    store: Store
    device: str
    runtime: Runtime


def measure_for_plans(
    trace: OnnxTrace,
    store: Store,
    runtime: Runtime,
    *,
    threads: int = 1,
    on_progress: OnProgress | None = None,
) -> str:
    """Measures all that makes latencies of a network's plans certain, which plans need not wait for
    then; returns this machine's key. What is measured already is not measured again."""
    batch = batch_of(trace.graph.input_shapes)
    device = local_device_key(runtime, thread_count=threads, batch=batch)
    request = PlanRequest.of(device=device, budget_ratio=1.0).with_schemes(device, measured=True)
    multiple = preferred_multiple(device)
    bound = bind(trace.graph, request.constraints, round_to=multiple, device=device)
    space, own = space_of(trace.graph, bound, request.schemes), request.arithmetic
    here = Machine(store, device, runtime)
    measure_missing(trace, space, here, own, on_progress=on_progress)
    measure_beside(trace, store, device, runtime, own)
    return device


def measure_missing(
    trace: OnnxTrace,
    space: Space,
    here: Machine,
    arithmetic: Arithmetic,
    *,
    few: int | None = None,
    deadline: float = math.inf,
    on_progress: OnProgress | None = None,
) -> None:
    """Measures until the latency model has what it wants, or time is up; every part is kept once
    it is done."""
    from rlprune.graph.skeleton import strip

    store, device = here.store, here.device
    done = 0
    for _ in range(MEASURE_ROUNDS if few is None else 1):
        missing = latency_model(store, device, arithmetic).missing(space, few)
        if not missing:
            return
        if done == 0:
            store.put_graph(trace.graph, strip(trace.model))
        total = done + len(missing)
        size = MEASURE_PART if math.isinf(deadline) else HURRIED_PART
        for start in range(0, len(missing), size):
            if time.monotonic() >= deadline:
                return
            part = missing[start : start + size]

            def tell(
                now: int, of: int, done: int = done, size: int = len(part), total: int = total
            ) -> None:
                if on_progress is not None:
                    on_progress("measuring this machine", done + size * now // of, total)

            measure_here(part, trace, here, tell)
            done += len(part)


def measure_here(
    subjects: Sequence[Subject],
    trace: OnnxTrace,
    here: Machine,
    on_progress: Progress | None = None,
) -> None:
    """Measures on this machine, and keeps it."""
    from rlprune.latency.collect import measure_subjects, trace_models
    from rlprune.latency.measure import MeasureConfig

    measured = measure_subjects(
        subjects,
        model_of=trace_models(trace),
        device=here.device,
        runtime=here.runtime,
        config=MeasureConfig(thread_count=threads_of(here.device)),
        on_progress=on_progress,
    )
    here.store.add_measurements(measured)
