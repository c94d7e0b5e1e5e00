"""`apply` and `measure`: what is done with model files on this machine."""

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
from rlprune.cli.frame import (
    InputShapes,
    Json,
    RuntimeName,
    Threads,
    check_output,
    parse_input_shapes,
    print_json,
    print_line,
    print_table,
    progress,
    say,
)
from rlprune.cli.inputs import InputValues, parse_input_values

if TYPE_CHECKING:
    import onnx

    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.plans import PruningPlan
    from rlprune.sensitivity.correct import Correction

Model = Annotated[Path, typer.Argument(metavar="MODEL.onnx", show_default=False)]


def load_trace(
    path: Path, input_shapes: list[str] | None, input_values: list[str] | None = None
) -> OnnxTrace:
    """The traced model of a file; every refusal names the file."""
    from rlprune.graph.from_onnx import trace_onnx
    from rlprune.graph.load import load_onnx

    values = parse_input_values(input_values)
    model = load_onnx(path)
    shapes = parse_input_shapes(input_shapes, model)
    return trace_onnx(model, input_shapes=shapes, input_values=values)


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
    from rlprune.surgery.encode import encode

    source = calibration_data(calibration, judged_by, pixels, sounds)
    check_output(output, plan, model, calibration_path(calibration))
    made = PruningPlan.load(plan)
    traced = load_trace(model, input_shape, input_value)
    for note in traced.notes:
        say(f"note: {note}")
    graph = traced.graph
    results: list[Correction] = []
    pruned = rlprune.apply(made, traced, calibration=source, on_result=results.append)
    del traced  # its copy of the weights, or three models would be in memory at once
    write_atomic(output, encode(pruned))
    figures = {
        "output": str(output),
        "bytes": output.stat().st_size,
        "macs": int(graph.macs(made.keeps)),
        "macs_ratio": int(graph.macs(made.keeps)) / max(int(graph.macs(graph.widths)), 1),
        "params": int(graph.params(made.keeps)),
        "params_ratio": int(graph.params(made.keeps)) / max(int(graph.params(graph.widths)), 1),
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
    moved = found.moved
    return {
        "reconstructed_from": found.inputs,
        "moved": None if moved is None else {**asdict(moved), "much": moved.much},
        "expected_divergence": plan.expected_divergence,
        "note": found.note,
    }


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


def measure(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL.onnx...", show_default=False)],
    runtime: RuntimeName = "ort",
    threads: Threads = 1,
    input_shape: InputShapes = None,
    input_value: InputValues = None,
    as_json: Json = False,
) -> None:
    """Measure models on this machine in one table.

    Every model runs in turns with the first one, so their ratio holds though the machine drifts.
    A ratio's interval is where another such measurement would come out, 90 %.
    """
    import numpy as np

    from rlprune.graph.given import with_input_values
    from rlprune.graph.load import load_onnx
    from rlprune.latency.device import local_device_key, model_batch
    from rlprune.latency.measure import MeasureConfig, measure
    from rlprune.latency.types import ModelSubject
    from rlprune.runtime import get_runtime

    executing = get_runtime(runtime)
    values = parse_input_values(input_value)
    loaded = [
        _with_shapes(with_input_values(load_onnx(path), values or {}), path, input_shape)
        for path in models
    ]
    device = local_device_key(executing, thread_count=threads, batch=model_batch(loaded[0]))
    with progress() as on_progress:
        measured = measure(
            # Files need not be traceable to be measured; nothing of this is stored.
            [(ModelSubject(str(path), ()), one) for path, one in zip(models, loaded, strict=True)],
            device=device,
            runtime=executing,
            control=loaded[0] if len(loaded) > 1 else None,
            config=MeasureConfig(thread_count=threads, sample_count=10),
            on_progress=lambda done, total: on_progress("measuring", done, total),
        )
    rows: list[dict[str, Any]] = [
        {
            "model": str(path),
            "latency_ms": one.latency_ms,
            # The first in turns with itself tells how far two equal models come out apart.
            "ratio_to_first": one.control_ratio if place else 1.0,
            "ratio_interval": one.ratio_interval if place else (1.0, 1.0),
            "wall_ms": float(np.median([np.median(session) for session in one.wall_ms]))
            if one.wall_ms
            else float("nan"),
            "status": one.status,
            "reason": one.reason,
        }
        for place, (path, one) in enumerate(zip(models, measured, strict=True))
    ]
    clock = "thread CPU time" if threads == 1 else "wall time"
    if as_json:
        print_json({"device": device, "clock": clock, "models": rows})
    else:
        print_table(
            ("model", "status", "ms", "ratio to first", "90 % within", "wall ms"),
            [
                (
                    str(row["model"]),
                    f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"]),
                    f"{row['latency_ms']:.3f}",
                    f"{row['ratio_to_first']:.3f}",
                    f"{row['ratio_interval'][0]:.3f} .. {row['ratio_interval'][1]:.3f}",
                    f"{row['wall_ms']:.3f}",
                )
                for row in rows
            ],
            left=2,
        )
        print_line(f"{device}; ms is {clock}, the mean over the middle half of fresh sessions")
        if any(row["status"] == "unstable" for row in rows):
            print_line(
                "unstable: the sessions differ by more than they should, mostly because the "
                "machine was busy; the interval says how much a ratio is worth"
            )
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        say(f"error: {len(failed)} of {len(rows)} models could not be measured")
        raise typer.Exit(1)


def _with_shapes(
    model: onnx.ModelProto, path: Path, input_shapes: list[str] | None
) -> onnx.ModelProto:
    """`model` with its open input extents filled in; a batch left open is 1.

    Raises:
        ModelError: an open extent is not given.
    """
    from rlprune.errors import ModelError

    shapes = parse_input_shapes(input_shapes, model) or {}
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in weights:
            continue
        dims = value.type.tensor_type.shape.dim
        shape = shapes.get(value.name, (1, *(dim.dim_value for dim in list(dims)[1:])))
        if len(shape) != len(dims) or min(shape, default=1) < 1:
            raise ModelError(
                f"{path}: input {value.name!r} has open extents or another rank than given; "
                f"give --input-shape {value.name}=1x..."
            )
        for dim, extent in zip(dims, shape, strict=True):
            if dim.dim_value > 0 and dim.dim_value != extent and value.name in shapes:
                raise ModelError(
                    f"{path}: input {value.name!r} has a fixed extent {dim.dim_value}, not {extent}"
                )
            if not dim.dim_value:
                dim.dim_value = extent
    return model
