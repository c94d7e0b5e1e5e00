"""Small pruning graphs written by hand, and a device that is a formula."""

from __future__ import annotations

import numpy as np

from rlprune.graph.types import FloatArray, Group, IntArray, Operator, PruningGraph, Width
from rlprune.latency.operators import spec_at
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec

DEVICE = "ort-1.test.t1.b1"
CANARY_MS = 0.1
CALL_MS = 0.01


def conv(
    name: str, source: int, in_width: Width, out_width: Width, extent: int, kernel: int = 3
) -> Operator:
    return Operator(
        name,
        "conv",
        "",
        (source,),
        in_width,
        out_width,
        (extent, extent),
        (extent, extent),
        (kernel, kernel),
        (1, 1),
        (kernel // 2,) * 4,
        (1, 1),
    )


def plain(kind: str, variant: str, sources: tuple[int, ...], width: Width, extent: int) -> Operator:
    name = f"{kind}{sources}"
    return Operator(name, kind, variant, sources, width, width, (extent, extent), (extent, extent))


def residual_graph(extent: int = 16, fingerprint: str = "r" * 64) -> PruningGraph:
    """A stem, two residual blocks, the second wider by a padded shortcut, a classifier."""
    stream, inner, second = (Width(0, ((g, 1),)) for g in (0, 1, 3))
    wide = Width(0, ((0, 1), (2, 1)))
    ops = [
        conv("stem", -1, Width(3), stream, extent),
        plain("activation", "relu", (0,), stream, extent),
        conv("a1", 1, stream, inner, extent),
        plain("activation", "relu", (2,), inner, extent),
        conv("a2", 3, inner, stream, extent),
        plain("add", "", (4, 1), stream, extent),
        conv("b1", 5, stream, second, extent),
        plain("activation", "relu", (6,), second, extent),
        conv("b2", 7, second, wide, extent),
        Operator("pad", "pad", "", (5,), stream, wide, (extent, extent), (extent, extent)),
        plain("add", "", (8, 9), wide, extent),
        Operator("pool", "global_pool", "average", (10,), wide, wide, (extent, extent), ()),
        Operator("fc", "linear", "", (11,), wide, Width(10), (), ()),
    ]
    groups = (
        Group("stem", 32, ()),
        Group("a1", 64, ()),
        Group("b2", 32, ()),
        Group("b1", 48, ()),
    )
    return PruningGraph(fingerprint, groups, tuple(ops), ((1, 3, extent, extent),))


def law_ms(spec: OperatorSpec) -> float:
    """What an operator costs alone on the formula device."""
    op = Operator(
        "",
        spec.kind,
        spec.variant,
        (),
        Width(),
        Width(),
        spec.in_spatial,
        spec.out_spatial,
        spec.kernel,
        groups=spec.groups,
    )
    ins, outs = np.array([spec.in_width]), np.array([spec.out_width])
    moved = spec.in_width * np.prod(spec.in_spatial) + spec.out_width * np.prod(spec.out_spatial)
    return 0.002 + float(op.macs_at(ins, outs)[0]) / 3e7 + float(moved) / 2e6


def model_ms(graph: PruningGraph, keeps: IntArray, factors: dict[str, float]) -> FloatArray:
    """What a whole model costs on it for keeps [N, G]: factors per kind, 1 where not named."""
    total = np.full(len(keeps), CALL_MS)
    for op in graph.operators:
        ins, outs = op.in_width.at(keeps), op.out_width.at(keeps)
        total += factors.get(op.kind, 1.0) * np.array(
            [law_ms(spec_at(op, int(i), int(o))) for i, o in zip(ins, outs, strict=True)]
        )
    return total


def operator_measurement(spec: OperatorSpec, ms: float, *, slow: float = 1.0) -> Measurement:
    """As the estimator would report it, on a day when everything takes `slow` times as long."""
    own, canary = (ms * slow,) * 3, (CANARY_MS * slow,) * 4
    return Measurement(
        DEVICE,
        spec,
        (own, own),
        (own, own),
        (canary, canary),
        (canary, canary),
        conditions=(("control", "canary"),),
    )


def plan_measurement(
    graph: PruningGraph, keeps: IntArray, ms: float, base_ms: float, *, status: str = "ok"
) -> Measurement:
    own, control = (ms,) * 3, (base_ms,) * 4
    return Measurement(
        DEVICE,
        ModelSubject(graph.fingerprint, tuple(int(keep) for keep in keeps)),
        (own, own),
        (own, own),
        (control, control),
        (control, control),
        status=status,
        conditions=(("control", "given"),),
    )
