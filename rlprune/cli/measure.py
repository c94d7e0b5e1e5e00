"""`measure`: how long models take on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlprune.cli.inputs import InputValues, parse_input_values
from rlprune.cli.models import load_trace
from rlprune.cli.shared import (
    InputShapes,
    Json,
    RuntimeName,
    Threads,
    parse_input_shapes,
    print_json,
    print_line,
    print_table,
    progress,
    say,
)

if TYPE_CHECKING:
    import onnx

    from rlprune.latency.types import Measurement


def measure(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL.onnx...", show_default=False)],
    runtime: RuntimeName = "ort",
    threads: Threads = 1,
    isolated: Annotated[
        bool,
        typer.Option(
            "--isolated",
            help="Each in a process of its own that it may crash, with made-up weights: as a "
            "worker measures.",
        ),
    ] = False,
    for_plans: Annotated[
        bool,
        typer.Option(
            "--for-plans",
            help="Measure what makes latencies of a model's plans certain, and keep it: plans made "
            "here then need not measure.",
        ),
    ] = False,
    input_shape: InputShapes = None,
    input_value: InputValues = None,
    as_json: Json = False,
) -> None:
    """Measure models on this machine in one table.

    Every model runs in turns with the first one, so their ratio holds though the machine drifts.
    A ratio's interval is where another such measurement would come out, 90 %. Isolated models run
    one after the other: their ratios are of their milliseconds alone.
    """
    import numpy as np

    if for_plans:
        _for_plans(models, runtime, threads, input_shape, input_value, as_json=as_json)
        return
    if isolated:
        from rlprune.device.isolated import measure_isolated

        traces = [load_trace(path, input_shape, input_value) for path in models]
        measured = measure_isolated(traces, runtime=runtime, thread_count=threads)
    else:
        measured = _interleaved(models, runtime, threads, input_shape, input_value)
    device, first = measured[0].device, measured[0].latency_ms
    unknown = (float("nan"), float("nan"))
    rows: list[dict[str, Any]] = [
        {
            "model": str(path),
            "latency_ms": one.latency_ms,
            # The first in turns with itself tells how far two equal models come out apart.
            "ratio_to_first": 1.0
            if not place
            else one.latency_ms / first
            if isolated
            else one.control_ratio,
            "ratio_interval": (1.0, 1.0)
            if not place
            else unknown
            if isolated
            else one.ratio_interval,
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
        print_line(f"{device}; ms is {clock}, the interquartile mean over fresh sessions")
        if any(row["status"] == "unstable" for row in rows):
            print_line(
                "unstable: the sessions differ by more than they should, mostly because the "
                "machine was busy; the interval says how much a ratio is worth"
            )
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        say(f"error: {len(failed)} of {len(rows)} models could not be measured")
        raise typer.Exit(1)


def _for_plans(
    models: list[Path],
    runtime: str,
    threads: int,
    input_shape: list[str] | None,
    input_value: list[str] | None,
    *,
    as_json: bool,
) -> None:
    """Every model's plans, one model after the other."""
    from rlprune.planning.measuring import measure_for_plans
    from rlprune.runtime import get_runtime
    from rlprune.store import open_store

    store, rows = open_store(), []
    for path in models:
        trace = load_trace(path, input_shape, input_value)
        with progress() as on_progress:
            device = measure_for_plans(
                trace, store, get_runtime(runtime), threads=threads, on_progress=on_progress
            )
        count = store.sample_count(device)
        rows.append({"model": str(path), "device": device, "measurement_count": count})
        if not as_json:
            print_line(f"{path}: measured; {count} measurements are kept of {device}")
    if as_json:
        print_json({"models": rows})


def _interleaved(
    models: list[Path],
    runtime: str,
    threads: int,
    input_shape: list[str] | None,
    input_value: list[str] | None,
) -> list[Measurement]:
    """The models in this process, each in turns with the first."""
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
        return measure(
            # Files need not be traceable to be measured; nothing of this is stored.
            [(ModelSubject(str(path), ()), one) for path, one in zip(models, loaded, strict=True)],
            device=device,
            runtime=executing,
            control=loaded[0] if len(loaded) > 1 else None,
            config=MeasureConfig(thread_count=threads, sample_count=10),
            on_progress=lambda done, total: on_progress("measuring", done, total),
        )


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
