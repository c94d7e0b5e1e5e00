"""`plan`: how many channels each group may keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlprune.cli.calibration import (
    Calibration,
    JudgedBy,
    Pixels,
    Sounds,
    calibration_data,
    calibration_path,
)
from rlprune.cli.fleet import TlsCa, connect
from rlprune.cli.frame import (
    INFEASIBLE,
    Hold,
    InputShapes,
    Json,
    MinKeep,
    MinKeepRatio,
    Pin,
    RoundTo,
    Threads,
    check_output,
    parse_shape,
    print_json,
    print_line,
    print_table,
    progress,
    say,
    stoppable,
)
from rlprune.cli.inputs import InputValues
from rlprune.cli.models import load_trace

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.graph.types import PruningGraph
    from rlprune.plans import PlanFigures, PruningPlan
    from rlprune.sensitivity.initial import InitialScores


def plan(
    model: Annotated[Path | None, typer.Argument(metavar="MODEL.onnx", show_default=False)] = None,
    budget_ms: Annotated[
        float | None, typer.Option(help="Latency the pruned model must not exceed.")
    ] = None,
    budget_ratio: Annotated[
        float | None, typer.Option(help="The same as a share (0-1) of the unpruned latency.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="KEY|RUNTIME|macs",
            help="Device key; or ort, openvino, mnn on this machine, ort if left out. With macs, "
            "budgets are millions of MACs.",
        ),
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ask a server, not this machine.")
    ] = None,
    tls_ca: TlsCa = None,
    policy: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            help="learned, corrected, knapsack, global, uniform (one ratio, filled up), "
            "uniform-plain, or a trained policy's directory.",
        ),
    ] = "learned",
    calibration: Calibration = None,
    judged_by: JudgedBy = None,
    pixels: Pixels = None,
    sounds: Sounds = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PLAN.json", help="Write the plan.")
    ] = None,
    input_shape: InputShapes = None,
    input_value: InputValues = None,
    threads: Threads = 1,
    round_to: RoundTo = None,
    min_keep: MinKeep = 1,
    min_keep_ratio: MinKeepRatio = 0.0,
    hold: Hold = None,
    pin: Pin = None,
    certify: Annotated[
        bool,
        typer.Option("--certify", help="Measure the plan on the device; correct it if it misses."),
    ] = False,
    candidates: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            show_default=False,
            help="Let K plans race on half of the calibration images and take the best; 64 cost "
            "about as much as 8 full evaluations and are the default from 500 images on; 0 for "
            "none.",
        ),
    ] = None,
    max_params: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="At most N parameters as well: a budget of memory. Not with --server."
        ),
    ] = None,
    no_guard: Annotated[
        bool,
        typer.Option(
            "--no-guard",
            help="Take a learned policy's plan though its gain on unseen models is not clearly "
            "above zero.",
        ),
    ] = False,
    at_init: Annotated[
        bool,
        typer.Option(
            "--at-init", help="Plan a network that is not trained yet: --module, no MODEL.onnx."
        ),
    ] = False,
    module: Annotated[
        str | None,
        typer.Option(
            metavar="PACKAGE.MODULE:FACTORY",
            help="With --at-init: called without arguments it returns the torch module. This runs "
            "that code, found as from this folder.",
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            metavar="synflow|snip|grasp",
            show_default=False,
            help="With --at-init: what says how much a layer matters, synflow if left out; snip "
            "and grasp look at the calibration images.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Plan how many channels each group keeps.

    Without --device and --server it is for this machine, and what the model needs is measured the
    first time, for each number of threads by itself. Exit code 3 where no plan meets the budget;
    nothing is written then.
    """
    if (budget_ms is None) == (budget_ratio is None):
        raise typer.BadParameter("give one of --budget-ms and --budget-ratio")
    if server is not None and device is None:
        raise typer.BadParameter(
            f"which? `rlprune devices --server {server}`", param_hint="--device"
        )
    if server is None and tls_ca is not None:
        raise typer.BadParameter("goes with --server", param_hint="--tls-ca")
    if score is not None and not at_init:
        raise typer.BadParameter("goes with --at-init", param_hint="--score")
    _check_threads_here(threads, device, server)
    if server is not None and max_params is not None:
        raise typer.BadParameter("is kept on this machine only", param_hint="--max-params")
    _check_source(model, at_init, module, server)
    source = calibration_data(calibration, judged_by, pixels, sounds)
    check_output(output, model, calibration_path(calibration), Path(policy))
    from rlprune.constraints import Constraints

    constraints = Constraints(
        round_to, min_keep, min_keep_ratio, tuple(hold or ()), tuple(pin or ())
    )
    initial = None
    if model is not None:
        traced = load_trace(model, input_shape, input_value)
        for note in traced.notes:
            say(f"note: {note}")
    else:
        assert module is not None
        traced, initial = _untrained(module, input_shape, score or "synflow", calibration)
        source = None  # seen by the score
    if threads > 1:
        device = _key_of_threads(device or "ort", traced, threads)
    with stoppable(_kept), progress() as on_progress:
        if server is None or device is None:
            from rlprune.planning import plan_model

            made = plan_model(
                traced,
                budget_ms=budget_ms,
                budget_ratio=budget_ratio,
                device=device,
                policy=policy,
                calibration=source,
                constraints=constraints,
                certify=certify,
                guard=not no_guard,
                candidates=candidates,
                max_params=max_params,
                initial=initial,
                on_progress=on_progress,
            )
        else:
            with connect(server, tls_ca) as client:
                made = client.plan(
                    traced,
                    device=device,
                    budget_ms=budget_ms,
                    budget_ratio=budget_ratio,
                    policy=policy,
                    calibration=source,
                    round_to=round_to,
                    min_keep=min_keep,
                    min_keep_ratio=min_keep_ratio,
                    hold=constraints.hold,
                    pin=constraints.pin,
                    certify=certify,
                    guard=not no_guard,
                    candidates=candidates,
                    on_progress=on_progress,
                )
    if as_json:
        print_json(json.loads(made.to_json()))
    else:
        _print_plan(made, traced.graph)
    if not made.feasible:
        kept_back = f"; {output} was not written" if output is not None else ""
        say(f"infeasible: {made.note}{kept_back}")
        raise typer.Exit(INFEASIBLE)
    if output is not None:
        made.save(output)


def _check_threads_here(threads: int, device: str | None, server: str | None) -> None:
    """Refuses a number of threads for a device that names its own."""
    from rlprune.runtime import RUNTIMES

    if threads > 1 and (server is not None or (device or "ort") not in RUNTIMES):
        raise typer.BadParameter(
            "goes with a runtime of this machine; a device key names its threads",
            param_hint="--threads",
        )


def _key_of_threads(runtime: str, traced: OnnxTrace, threads: int) -> str:
    """This machine's key of a runtime on so many threads."""
    from rlprune.latency.device import batch_of, local_device_key
    from rlprune.runtime import get_runtime

    batch = batch_of(traced.graph.input_shapes)
    return local_device_key(get_runtime(runtime), thread_count=threads, batch=batch)


def _kept() -> str:
    return "latencies measured so far are kept, the same command goes on"


def _check_source(
    model: Path | None, at_init: bool, module: str | None, server: str | None
) -> None:
    """Refuses a network given in no way, in two, or in one that does not go with the rest."""
    if not at_init:
        if model is None:
            raise typer.BadParameter("give MODEL.onnx, or --at-init with --module")
        if module is not None:
            raise typer.BadParameter(
                "goes with --at-init; a trained network is planned from its ONNX file",
                param_hint="--module",
            )
        return
    if model is not None or module is None:
        raise typer.BadParameter(
            "plans an untrained torch module: give --module, and no MODEL.onnx",
            param_hint="--at-init",
        )
    if server is not None:
        raise typer.BadParameter(
            "plans on this machine; leave --server out", param_hint="--at-init"
        )


def _untrained(
    module: str, input_shape: list[str] | None, score: str, calibration: str | None
) -> tuple[OnnxTrace, InitialScores]:
    """A module's trace and what its units are worth before training."""
    from rlprune.finetuning.run import load_module

    made = load_module(module)
    import torch

    from rlprune.graph.from_torch import trace_torch
    from rlprune.sensitivity.at_init import score_units
    from rlprune.sensitivity.fit import read_images

    if input_shape:
        if len(input_shape) > 1:
            raise typer.BadParameter(
                "a module is traced with one input", param_hint="--input-shape"
            )
        shape = parse_shape(input_shape[0].rpartition("=")[2])
    elif calibration is not None:
        shape = (1, *read_images(calibration)[0].shape[1:])
    else:
        raise typer.BadParameter(
            "what does the module take? e.g. 1x3x32x32", param_hint="--input-shape"
        )
    traced = trace_torch(made, torch.zeros(shape))
    return traced.onnx, score_units(traced, score, calibration)


def _print_plan(plan: PruningPlan, graph: PruningGraph) -> None:
    from rlprune.latency.types import MACS_DEVICE
    from rlprune.sensitivity.correct import MUCH_DIVERGENCE

    unit = "M MACs" if plan.device == MACS_DEVICE else "ms"
    print_line(f"graph {plan.fingerprint[:12]}   device {plan.device}   policy {plan.policy}")
    columns = ["group", "width", "keep"]
    rows = [[entry.name, str(entry.width), str(entry.keep)] for entry in plan.groups]
    reference = plan.reference
    if reference is not None and reference.keeps != tuple(plan.keeps):
        columns.append("knapsack")
        rows = [[*row, str(keep)] for row, keep in zip(rows, reference.keeps, strict=True)]
    left = 1
    if any(entry.constraint for entry in plan.groups):
        left = 2
        columns.insert(1, "constraint")
        rows = [
            [row[0], entry.constraint, *row[1:]]
            for row, entry in zip(rows, plan.groups, strict=True)
        ]
    print_table(columns, rows, left=left)
    if plan.candidates:
        most = max(one.image_count for one in plan.candidates)
        finalists = [one for one in plan.candidates if one.image_count == most]
        print_table(
            ("candidate", unit, "images", "divergence", "difference +-", "loss", "+-", "chosen"),
            [
                (
                    one.policy,
                    f"{one.predicted_latency_ms:.4g}",
                    str(one.image_count),
                    *(
                        "" if value is None else f"{value:.4f}"
                        for value in (one.divergence, one.gain_se, one.loss, one.loss_se)
                    ),
                    "yes" if one.chosen else "",
                )
                for one in finalists
            ],
        )
        if len(finalists) < len(plan.candidates):
            print_line(f"{len(plan.candidates) - len(finalists)} others were worse on fewer images")
    low, high = plan.predicted_interval_ms
    print_line(
        f"budget     {plan.budget_ms:.4g} {unit} of {plan.base_latency_ms:.4g} unpruned; "
        f"the smallest plan takes {plan.least_latency_ms:.4g}"
    )
    macs, params = int(graph.macs(graph.widths)), int(graph.params(graph.widths))
    print_line(f"unpruned   {macs / 1e6:.4g} M MACs, {params:,} parameters")
    counted = plan.device == MACS_DEVICE  # exactly, so that there is nothing to be uncertain of
    within = "" if counted else f"; 90 % within {low:.4g} .. {high:.4g} {unit}"
    print_line(f"{'counted  ' if counted else 'predicted'}  {_figures(plan, unit)}{within}")
    certificate = plan.certificate
    if certificate is not None:
        low, high = certificate.measured_interval_ms
        print_line(
            f"measured   {certificate.measured_latency_ms:.4g} {unit}; 90 % within {low:.4g} .. "
            f"{high:.4g} {unit}"
        )
    if plan.expected_divergence is not None:
        how = "" if plan.profiled else "guessed from the weights, roughly; "
        print_line(
            f"expected   once applied, answers {plan.expected_divergence:.2g} nats from the "
            f"original's ({how}0: the same, {MUCH_DIVERGENCE:g}: far)"
        )
        if not plan.profiled:
            print_line(f"better     {_remedy(graph)}")
    if reference is not None:
        print_line(f"knapsack   {_figures(reference, unit)}")
    if plan.note:
        print_line(f"note       {plan.note}")


def _remedy(graph: PruningGraph) -> str:
    """How sensitivity, predicted from weights so far, is measured, and what that costs."""
    from rlprune.planning.profiles import made_up_profile_sec

    cost_sec = made_up_profile_sec(graph)
    cost = f"{max(cost_sec, 1):.0f} s" if cost_sec < 100 else f"{cost_sec / 60:.0f} min"
    return (
        "with --calibration FILE sensitivity is measured on inputs of yours, with --calibration "
        f"made-up on made-up ones (about {cost} of CPU)"
    )


def _figures(figures: PruningPlan | PlanFigures, unit: str) -> str:
    macs = f"{figures.macs / 1e6:.4g} M MACs, {figures.params:,} parameters"
    return macs if unit == "M MACs" else f"{figures.predicted_latency_ms:.4g} {unit}, {macs}"
