"""`plan`: how to prune a network so that it meets a latency budget."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
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
from rlprune.cli.inputs import InputValues
from rlprune.cli.models import load_trace
from rlprune.cli.service import TlsCa, connect
from rlprune.cli.shared import (
    INFEASIBLE,
    Hold,
    InputShapes,
    Json,
    KeepFloat,
    MinKeep,
    MinKeepRatio,
    Pin,
    Precision,
    RoundTo,
    SchemeNames,
    check_output,
    parse_shape,
    print_json,
    progress,
    say,
    stoppable,
)

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.graph.from_torch import TorchTrace
    from rlprune.planning.request import PlanRequest
    from rlprune.plans import PruningPlan
    from rlprune.progress import OnProgress


def plan(
    model: Annotated[Path | None, typer.Argument(metavar="MODEL.onnx", show_default=False)] = None,
    budget_ms: Annotated[
        list[float] | None,
        typer.Option(
            metavar="MS", help="Latency the pruned model must not exceed; repeat for several plans."
        ),
    ] = None,
    budget_ratio: Annotated[
        list[float] | None,
        typer.Option(
            metavar="SHARE", help="The same as a share (0-1) of the unpruned latency; repeatable."
        ),
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
            help="search: plans are evaluated (--effort). By sensitivity alone: learned, knapsack, "
            "global, uniform (one ratio, filled up), uniform-plain, a trained policy's directory.",
        ),
    ] = "search",
    calibration: Calibration = None,
    judged_by: JudgedBy = None,
    pixels: Pixels = None,
    sounds: Sounds = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PLAN.json|FOLDER",
            help="Write the plan; for several budgets, into a folder, a file each.",
        ),
    ] = None,
    input_shape: InputShapes = None,
    input_value: InputValues = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="Threads the runtime computes on, 1 if left out; of a device key, the same "
            "device's key of so many threads.",
        ),
    ] = None,
    round_to: RoundTo = None,
    min_keep: MinKeep = 1,
    min_keep_ratio: MinKeepRatio = 0.0,
    hold: Hold = None,
    pin: Pin = None,
    schemes: SchemeNames = None,
    precision: Precision = "f32",
    keep_float: KeepFloat = None,
    certify: Annotated[
        bool,
        typer.Option("--certify", help="Measure the plan on the device; correct it if it misses."),
    ] = False,
    effort: Annotated[
        str | None,
        typer.Option(
            metavar="instant|quick|thorough",
            show_default=False,
            help="How much the search does: one pass of the network; some 45 plans evaluated as "
            "well (by default), or some 240. On made-up inputs without --calibration.",
        ),
    ] = None,
    max_params: Annotated[
        int | None,
        typer.Option(metavar="N", help="At most N parameters as well: a budget of memory."),
    ] = None,
    guard: Annotated[
        bool,
        typer.Option(
            "--guard/--no-guard",
            help="Give the knapsack's plan where a learned policy's gain on unseen models is not "
            "clearly above zero; --no-guard for the policy's own all the same.",
        ),
    ] = True,
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
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait",
            help="Measure what the device needs first; --no-wait for a plan by what is known now.",
        ),
    ] = True,
    timeout_sec: Annotated[
        float | None,
        typer.Option(
            metavar="SEC",
            show_default=False,
            help="How long measuring may take: 600 s with --server, as long as it takes here.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find how to prune a network so that it meets a latency budget.

    Without --device and --server it is for this machine, and what the model needs is measured the
    first time, for each number of threads by itself. Exit code 3 where no plan meets the budget;
    no file is written for it then.
    """
    if bool(budget_ms) == bool(budget_ratio):
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
    _check_source(model, at_init, module)
    source = calibration_data(calibration, judged_by, pixels, sounds)
    from rlprune.planning import LocalPlanner, Planner, PlanRequest, make_plans
    from rlprune.planning.effort import USUAL_SHARE, cost_text
    from rlprune.planning.rounds import effort_of

    several = len(budget_ms or budget_ratio or ()) > 1
    request = PlanRequest.of(
        budget_ms=budget_ms or None,
        budget_ratio=budget_ratio or None,
        device=device,
        policy=policy,
        round_to=round_to,
        min_keep=min_keep,
        min_keep_ratio=min_keep_ratio,
        hold=hold or (),
        schemes=schemes or (),
        precision=precision,
        keep_float=keep_float or (),
        pin=pin or (),
        guard=guard,
        effort=effort,
        certify=certify,
        max_params=max_params,
        at_init=(score or "synflow") if at_init else None,
        threads=threads,
        wait=wait,
        timeout_sec=timeout_sec,
    )
    outputs = _outputs(output, request)
    _check_outputs(output, outputs, model, calibration_path(calibration), Path(policy))
    traced: OnnxTrace | TorchTrace
    if model is not None:
        name, traced = model.name, load_trace(model, input_shape, input_value)
        for note in traced.notes:
            say(f"note: {note}")
    else:
        assert module is not None
        name, traced = module, _untrained(module, input_shape, calibration)
    with ExitStack() as open_until_done:
        open_until_done.enter_context(stoppable(_kept))
        on_progress = open_until_done.enter_context(progress())
        searched = effort_of(request, source)
        if searched is not None:
            share = max(request.budgets) if request.unit == "ratio" else USUAL_SHARE
            on_progress = _after(cost_text(searched, traced.graph, share), on_progress)
        planner: Planner = LocalPlanner()
        if server is not None:
            planner = open_until_done.enter_context(connect(server, tls_ca)).planner()
        made = make_plans(
            planner, traced, request, calibration=source, model_name=name, on_progress=on_progress
        )
    if as_json:
        plain = [json.loads(one.to_json()) for one in made]
        print_json(plain if several else plain[0])
    else:
        from rlprune.cli.plan_tables import print_plan
        from rlprune.reports.plan import plan_report

        for one in made:
            print_plan(plan_report(one, traced.graph))
    _write(made, outputs)


def _outputs(output: Path | None, request: PlanRequest) -> list[Path | None]:
    """Where each plan goes: to the file, or for several budgets into the folder, under the budget's
    name."""
    if output is None or len(request.budgets) == 1:
        return [output] * len(request.budgets)
    ending = "ms" if request.unit == "ms" else ""
    names = [f"{budget:.12g}{ending}.json" for budget in request.budgets]
    if len(set(names)) < len(names):
        raise typer.BadParameter("one is given twice", param_hint=f"--budget-{request.unit}")
    return [output / name for name in names]


def _check_outputs(output: Path | None, outputs: list[Path | None], *inputs: Path | None) -> None:
    """`check_output` of every file that may be written; the folder of several is made if it is not
    there."""
    if output is None or outputs == [output]:
        check_output(output, *inputs)
        return
    if output.exists() and not output.is_dir():
        raise typer.BadParameter(
            f"{output} is a file; several plans go into a folder", param_hint="--output"
        )
    if not output.exists():
        check_output(output, *inputs)
        return
    for path in outputs:
        check_output(path, *inputs)


def _write(made: list[PruningPlan], outputs: list[Path | None]) -> None:
    """Writes the plans that are within their budgets; exit code 3 where one is not."""
    for plan, path in zip(made, outputs, strict=True):
        if plan.feasible and path is not None:
            if len(made) > 1:
                path.parent.mkdir(exist_ok=True)
            plan.save(path)
    missed = [one for one in zip(made, outputs, strict=True) if not one[0].feasible]
    for plan, path in missed:
        kept_back = f"; {path} was not written" if path is not None else ""
        say(f"infeasible: {plan.note}{kept_back}")
    if missed:
        raise typer.Exit(INFEASIBLE)


def _check_threads_here(threads: int | None, device: str | None, server: str | None) -> None:
    """Refuses more threads than this machine has cores."""
    from rlprune.runtime import RUNTIMES

    cores = os.cpu_count() or 1
    here = server is None and (device or "ort") in RUNTIMES
    if here and threads is not None and threads > cores:
        raise typer.BadParameter(
            f"this machine has {cores} cores, not {threads}", param_hint="--threads"
        )


def _after(cost: str, on_progress: OnProgress) -> OnProgress:
    """Says what a search costs before its first plan is evaluated."""
    from rlprune.planning.effort import EVALUATING

    told = False

    def tell(what: str, done: int, total: int) -> None:
        nonlocal told
        if what == EVALUATING and not told:
            say(cost)
            told = True
        on_progress(what, done, total)

    return tell


def _kept() -> str:
    return "latencies measured so far are kept, the same command goes on"


def _check_source(model: Path | None, at_init: bool, module: str | None) -> None:
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


def _untrained(module: str, input_shape: list[str] | None, calibration: str | None) -> TorchTrace:
    """The trace of a module that is not trained yet."""
    from rlprune.finetuning.user_code import load_module

    made = load_module(module)
    import torch

    from rlprune.graph.from_torch import trace_torch
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
    return trace_torch(made, torch.zeros(shape))
