"""`explain-latency`: where the milliseconds of a model are, and which of them a plan saves."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlprune.cli.inputs import InputValues
from rlprune.cli.models import Model, load_trace
from rlprune.cli.service import StoreUrl
from rlprune.cli.shared import InputShapes, Json, print_json, print_line, print_table, progress

if TYPE_CHECKING:
    from rlprune.planning.breakdown import LatencyBreakdown, OperatorLatency, WholeLatency


def explain_latency(
    model: Model,
    plan: Annotated[Path | None, typer.Argument(metavar="[PLAN.json]", show_default=False)] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="KEY|RUNTIME|macs",
            help="Device key; or ort, openvino, mnn on this machine. If left out the plan's, "
            "without a plan this machine's ort.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="f32|bf16|int8",
            show_default=False,
            help="What the model computes in; the plan's if left out, without a plan f32.",
        ),
    ] = None,
    store: StoreUrl = None,
    top: Annotated[int, typer.Option(min=1, help="Operators listed; the rest is summed.")] = 20,
    input_shape: InputShapes = None,
    input_value: InputValues = None,
    as_json: Json = False,
) -> None:
    """Show where the milliseconds of a model are, and which of them a plan saves.

    From the store's measurements; on this machine, what the model needs is measured the first
    time. `--json` has every operator.
    """
    from dataclasses import asdict

    from rlprune.planning.breakdown import explain_latency
    from rlprune.plans import PruningPlan
    from rlprune.store import open_store

    made = None if plan is None else PruningPlan.load(plan)
    traced = load_trace(model, input_shape, input_value)
    with closing(open_store(store)) as opened, progress() as on_progress:
        found = explain_latency(
            traced,
            made,
            device=device,
            precision=precision,
            store=opened,
            on_progress=on_progress,
        )
    if as_json:
        print_json(asdict(found))
    else:
        _print_breakdown(found, top)


def _print_breakdown(found: LatencyBreakdown, top: int) -> None:
    from rlprune.latency.types import MACS_DEVICE

    unit = "M MACs" if found.device == MACS_DEVICE else "ms"
    planned = found.after is not None
    now = found.before if found.after is None else found.after
    whole_ms = max(now.predicted_ms, 1e-12)

    def figures(before_ms: float, after_ms: float) -> list[str]:
        share = f"{after_ms / whole_ms:.1%}"
        if not planned:
            return [f"{after_ms:.4f}", share]
        return [f"{before_ms:.4f} -> {after_ms:.4f}", share, f"{before_ms - after_ms:.4f}"]

    columns = [unit, "share", *(["saved"] if planned else [])]
    precision = "" if found.precision == "f32" else f" in {found.precision}"
    print_line(f"graph {found.fingerprint[:12]}   device {found.device}{precision}")
    dearest = sorted(found.operators, key=lambda op: op.ms[1], reverse=True)
    present = [op for op in dearest if not op.left_out]
    rows = [
        [op.name, _form(op), _arrow(op.in_width), _arrow(op.out_width), *figures(*op.ms)]
        for op in present[:top]
    ]
    rest = present[top:]
    if rest:
        rows.append([f"{len(rest)} more", "", "", "", *figures(*_sum(rest))])
    blocks: dict[str, list[OperatorLatency]] = {}
    for op in found.operators:
        if op.left_out:
            blocks.setdefault(op.site, []).append(op)
    for name, own in blocks.items():
        rows.append([name, f"{len(own)} operators left out", "", "", *figures(*_sum(own))])
    overhead = found.overhead_ms
    rows.append(["overhead of the call", "", "", "", *figures(overhead, overhead)])
    rows.append(["all", "", "", "", *figures(found.before.predicted_ms, now.predicted_ms)])
    print_table(["operator", "kind", "in", "out", *columns], rows, left=2)
    kinds: dict[str, list[OperatorLatency]] = {}
    for op in dearest:
        kinds.setdefault(_kind(op), []).append(op)
    print_table(
        ["kind", "operators", *columns],
        [
            [kind, str(len(own)), *figures(*_sum(own))]
            for kind, own in sorted(kinds.items(), key=lambda item: _sum(item[1])[1], reverse=True)
        ],
    )
    print_line(f"unpruned   {_whole(found.before, unit)}")
    if found.after is not None:
        print_line(f"plan       {_whole(found.after, unit)}")
    step = found.next_step
    if step is not None:
        print_line(
            f"next step  {step.group}: {step.option} saves {step.saved_ms:.4g} {unit}, the most "
            "for what its weights say it loses"
        )
    if any(op.fusable for op in found.operators):
        print_line(
            "+          may be fused into the operator before it; its ms is what it adds there"
        )


def _form(op: OperatorLatency) -> str:
    return f"{_kind(op)} {op.option}" if op.option else _kind(op)


def _kind(op: OperatorLatency) -> str:
    return op.kind + "+" if op.fusable else op.kind


def _arrow(widths: tuple[int, int]) -> str:
    before, after = widths
    return f"{before} -> {after}" if before != after else str(before)


def _sum(operators: Sequence[OperatorLatency]) -> tuple[float, float]:
    return sum(op.ms[0] for op in operators), sum(op.ms[1] for op in operators)


def _whole(whole: WholeLatency, unit: str) -> str:
    text = _value("predicted", whole.predicted_ms, whole.predicted_interval_ms, unit)
    if whole.measured_ms is None or whole.measured_interval_ms is None:
        return f"{text}; not measured" if unit == "ms" else text
    measured = _value("measured", whole.measured_ms, whole.measured_interval_ms, unit)
    apart = whole.predicted_ms / whole.measured_ms - 1.0
    return f"{text}; {measured}; {apart:+.1%} apart"


def _value(name: str, ms: float, interval: tuple[float, float], unit: str) -> str:
    return f"{name} {ms:.4g} {unit} (90 % {interval[0]:.4g} .. {interval[1]:.4g})"
