"""The unpruned network in other precisions, beside which a plan stands.

Nobody should prune for what int8 gives for nothing, so where it is known what the network as it is
takes in f32 and in int8, a plan says so. The two are compared by a measurement that has both in
turns; without one, by what each precision's own measurements say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rlprune.errors import RlpruneError
from rlprune.latency.device import threads_of
from rlprune.latency.types import F32, INT8, MACS_DEVICE, Arithmetic, ModelSubject
from rlprune.planning.tables import has_precision, latency_model
from rlprune.plans import PruningPlan, Unpruned
from rlprune.schemes import unpruned_settings, whole_space

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.graph.types import PruningGraph
    from rlprune.runtime import Runtime
    from rlprune.store import Store

CHEAP_PARAMS = 30_000_000
"""Networks of more are not quantised for a plan in f32."""
SESSION_COUNT = 6
"""Of the comparison: it is for the reader, and mostly of a factor of two."""


def with_unpruned(plan: PruningPlan, graph: PruningGraph, store: Store) -> PruningPlan:
    """`plan` with what is known of the network as it is, and a remark where that in int8 is
    faster than the plan in f32."""
    if plan.device == MACS_DEVICE:
        return plan
    found = {plan.precision: plan.base_latency_ms}
    keep_float = plan.constraints.keep_float
    own = Arithmetic.of(plan.precision, keep_float)
    for precision in (F32, INT8):
        other = Arithmetic.of(precision, keep_float if precision == INT8 else ())
        if precision not in found:
            known = _relative(graph, store, plan.device, own, other)
            if known is not None:
                found[precision] = known * plan.base_latency_ms
    if len(found) < 2:
        return plan
    plan = replace(
        plan, unpruned=tuple(Unpruned(name, found[name]) for name in sorted(found, key=_order))
    )
    plain = found.get(INT8)
    if plan.precision != F32 or plain is None or plain >= plan.predicted_latency_ms:
        return plan
    why = (
        f"the unpruned network in int8 takes {plain:.4g} ms, less than this plan: "
        "`rlprune quantize MODEL.onnx -o INT8.onnx`, or plan with --precision int8"
    )
    return replace(plan, note="; ".join(part for part in (plan.note, why) if part))


def _order(precision: str) -> tuple[bool, bool, str]:
    return precision != F32, precision == INT8, precision


def _relative(
    graph: PruningGraph, store: Store, device: str, own: Arithmetic, other: Arithmetic
) -> float | None:
    """Unpruned latency in `other` over that in `own`; None where it is not known."""
    if F32 in (own.precision, other.precision):
        quantised = other if own.precision == F32 else own
        if not has_precision(store, device, quantised.precision):
            return None
        ratio = latency_model(store, device, quantised).over_f32.get(graph.fingerprint)
        if ratio is not None:
            return ratio if quantised is other else 1.0 / ratio
    if not has_precision(store, device, other.precision):
        return None
    models = [latency_model(store, device, one) for one in (own, other)]
    if not all(model.knows(graph) for model in models):
        return None
    space = whole_space(graph)
    first, second = (model.compile(space).base_ms for model in models)
    return second / first


def _subject(graph: PruningGraph, arithmetic: Arithmetic) -> ModelSubject:
    """The network as it is."""
    settings = tuple(int(value) for value in unpruned_settings(graph))
    return ModelSubject(
        graph.fingerprint,
        settings,
        precision=arithmetic.precision,
        keep_float=arithmetic.keep_float,
    )


def measure_beside(
    trace: OnnxTrace, store: Store, device: str, runtime: Runtime, arithmetic: Arithmetic
) -> None:
    """Measures the network in a plan's arithmetic, or in int8, beside itself in f32, unless
    that was tried; it takes about a second. What fails is kept as failed, and says nothing. Larger
    networks take longer, and are left out unless the plan itself is not in f32."""
    from rlprune.graph.skeleton import strip
    from rlprune.latency.collect import trace_models
    from rlprune.latency.measure import MeasureConfig, measure

    plain = arithmetic.precision == F32
    if plain and int(trace.graph.params(trace.graph.widths)) > CHEAP_PARAMS:
        return
    wanted = Arithmetic(INT8) if plain else arithmetic
    subject = _subject(trace.graph, wanted)
    if runtime.refusal(wanted.precision) or any(
        one.subject == subject and dict(one.conditions).get("control") == F32
        for one in store.measurements(device)
    ):
        return
    model_of = trace_models(trace)
    try:
        quantised = model_of(subject)
    except RlpruneError:  # nothing that stands in the way of a plan
        return
    store.put_graph(trace.graph, strip(trace.model))
    store.add_measurements(
        measure(
            [(subject, quantised)],
            device=device,
            runtime=runtime,
            control=model_of(ModelSubject(trace.graph.fingerprint, ())),
            control_precision=F32,
            config=MeasureConfig(
                thread_count=threads_of(device), session_count=SESSION_COUNT, extra_session_count=0
            ),
        )
    )
