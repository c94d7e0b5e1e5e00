"""`apply`: write the model as its plan wants it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlprune.cli.calibration import (
    Calibration,
    JudgedBy,
    Pixels,
    Sounds,
    calibration_data,
    calibration_path,
)
from rlprune.cli.inputs import InputValues
from rlprune.cli.models import Model, load_trace
from rlprune.cli.shared import (
    InputShapes,
    Json,
    KeepFloat,
    check_output,
    print_json,
    print_line,
    say,
)

if TYPE_CHECKING:
    from rlprune.plans import PruningPlan
    from rlprune.sensitivity.correct import Correction, Moved


def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.json", show_default=False)],
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PRUNED.onnx", show_default=False)
    ],
    calibration: Calibration = None,
    judged_by: JudgedBy = None,
    pixels: Pixels = None,
    sounds: Sounds = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="f32|bf16|int8",
            show_default=False,
            help="What is written: int8 is quantised, on your inputs or made-up ones; the plan's "
            "if left out.",
        ),
    ] = None,
    keep_float: KeepFloat = None,
    input_shape: InputShapes = None,
    input_value: InputValues = None,
    as_json: Json = False,
) -> None:
    """Write the model as the plan wants it.

    Of every group the channels stay that the weights which make and read them give the most energy;
    the layers that read what was cut are reconstructed from those that stay, on your inputs or on
    made-up ones, and it is told how far the answers moved. With --calibration none it is only cut.
    """
    import rlprune
    from rlprune.files import write_atomic
    from rlprune.plans import PruningPlan
    from rlprune.schemes import costs
    from rlprune.surgery.encode import encode

    source = calibration_data(calibration, judged_by, pixels, sounds)
    check_output(output, plan, model, calibration_path(calibration))
    made = PruningPlan.load(plan)
    traced = load_trace(model, input_shape, input_value)
    for note in traced.notes:
        say(f"note: {note}")
    graph = traced.graph
    results: list[Correction] = []
    pruned = rlprune.apply(
        made,
        traced,
        calibration=source,
        precision=precision,
        keep_float=keep_float,
        on_result=results.append,
    )
    del traced  # its copy of the weights, or three models would be in memory at once
    write_atomic(output, encode(pruned))
    macs, params = costs(graph, made.keeps, made.schemes)
    figures = {
        "output": str(output),
        "bytes": output.stat().st_size,
        "macs": macs,
        "macs_ratio": macs / max(int(graph.macs(graph.widths)), 1),
        "params": params,
        "params_ratio": params / max(int(graph.params(graph.widths)), 1),
        **_correction(results[0], made),
    }
    if as_json:
        print_json(figures)
    else:
        print_line(
            f"{output}: {figures['macs_ratio']:.1%} of the MACs, "
            f"{figures['params_ratio']:.1%} of the parameters of {model}"
        )
        for line in _told(results[0], made, calibration_path(calibration) is not None):
            print_line(line)
    if results[0].warning:
        say(f"warning: {results[0].warning}")


def _correction(found: Correction, plan: PruningPlan) -> dict[str, Any]:
    """For --json: what was done beyond cutting, and how far the answers moved."""
    return {
        "reconstructed_from": found.inputs,
        "moved": moved_json(found.moved),
        "moved_after_quantisation": moved_json(found.quantised),
        "expected_divergence": plan.expected_divergence,
        "note": found.note,
    }


def moved_json(moved: Moved | None) -> dict[str, Any] | None:
    """For --json: how far answers moved."""
    return None if moved is None else {**asdict(moved), "much": moved.much}


def _told(found: Correction, plan: PruningPlan, given: bool) -> list[str]:
    lines = found.told()
    if found.moved is not None and plan.expected_divergence is not None:
        guess = "measured" if plan.profiled else "predicted from the weights, roughly"
        lines.append(f"expected by the plan: divergence {plan.expected_divergence:.3g} ({guess})")
    if found.inputs and not given:
        lines.append(
            "no data was given: with --calibration FILE (100 of your inputs do, no labels needed) "
            "the model comes out better"
        )
    return lines
