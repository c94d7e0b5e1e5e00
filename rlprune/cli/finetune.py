"""`finetune`: the pruned module, trained until it is worth using."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rlprune.cli.shared import (
    Json,
    Seed,
    print_json,
    print_line,
    print_table,
    progress,
    say,
    stoppable,
)
from rlprune.errors import InputError


def finetune(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.json", show_default=False)],
    module: Annotated[
        str,
        typer.Option(
            metavar="PACKAGE.MODULE:FACTORY",
            show_default=False,
            help="Called without arguments it returns the unpruned torch module. This runs that "
            "code, found as from this folder.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT_DIR", show_default=False)],
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Images `x`, classes `y` to train on."),
    ] = None,
    loader: Annotated[
        str | None,
        typer.Option(
            metavar="PACKAGE.MODULE:FACTORY",
            help="In place of --data. Called without arguments it returns a loader of (inputs, "
            "targets), or a pair (training, validation) of them.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.safetensors",
            help="Of the unpruned module; those the factory leaves in it if left out.",
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Chooses the epoch; a tenth of --data if left out."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch_size: Annotated[
        int | None,
        typer.Option(min=2, help="By default 128; a loader's own.", show_default=False),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="PACKAGE.MODULE:NAME",
            help="Function of outputs and targets that returns what is minimised, a scalar tensor; "
            "cross-entropy if left out.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="PACKAGE.MODULE:NAME",
            help="Function of outputs and targets that chooses the epoch, the mean over a batch, "
            "higher is better; accuracy if left out, with --loss the lower loss.",
        ),
    ] = None,
    optimizer: Annotated[str, typer.Option(metavar="sgd|adamw")] = "sgd",
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="At its height; by default 0.02 for up to 100 steps to 0.05 from 1,200 on, with "
            "adamw a fiftieth.",
            show_default=False,
        ),
    ] = None,
    weight_decay: float = 5e-4,
    warmup: Annotated[
        float, typer.Option(min=0, max=1, help="Share (0-1) of the steps of rising rate.")
    ] = 0.1,
    label_smoothing: Annotated[float, typer.Option(min=0, max=1)] = 0.0,
    distill: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share (0-1) of the loss that the unpruned module teaches; by default 0.5, with "
            "--loss and no --distill-loss 0, as for a plan made --at-init.",
            show_default=False,
        ),
    ] = None,
    distill_loss: Annotated[
        str | None,
        typer.Option(
            metavar="logits|PACKAGE.MODULE:NAME",
            help="How outputs are compared with the unpruned module's: as logits, or by a function "
            "of both that returns a scalar tensor.",
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Of distillation.")] = 16.0,
    augment: Annotated[str, typer.Option(metavar="none|flip|crop-flip")] = "none",
    torch_device: Annotated[
        str,
        typer.Option(
            metavar="auto|cpu|cuda", help="Where to train; auto is CUDA where there is some."
        ),
    ] = "auto",
    mixed_precision: Annotated[
        bool,
        typer.Option(
            "--mixed-precision",
            help="Compute in bfloat16, keep weights in float32: about a fifth faster where the "
            "processor has bfloat16; slower for depthwise convolutions on a CPU.",
        ),
    ] = False,
    quantisation_aware: Annotated[
        str,
        typer.Option(
            metavar="auto|never|always",
            help="Of an int8 plan: train on with int8's rounding; auto where quantising loses more "
            "than half a point.",
        ),
    ] = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Cut a torch module as planned, fine-tune it, write its weights and ONNX file.

    The ONNX file of a plan for int8 is quantised; a float one stands beside it.

    An interrupted run goes on from its checkpoint in OUT_DIR when the same command is given again.
    """
    from rlprune.finetuning.run import CHECKPOINT_NAME, finetune, usual_distill_weight
    from rlprune.finetuning.user_code import load_function, load_module
    from rlprune.plans import PruningPlan

    if (data is None) == (loader is None):
        raise typer.BadParameter("give --data or --loader, one of them", param_hint="--data")
    made = PruningPlan.load(plan)
    checkpoint = output / CHECKPOINT_NAME

    def kept() -> str:
        return f"{checkpoint} is kept, the same command goes on" if checkpoint.exists() else ""

    with stoppable(kept), progress() as on_progress:
        loaded = load_module(module, weights, seed=seed)
        train, held = (
            (data, validation)
            if loader is None
            else _loaders(loader, {"--validation": validation, "--batch-size": batch_size})
        )
        functions: dict[str, Any] = {
            name: given if given in (None, "logits") else load_function(given, name)
            for name, given in (("loss", loss), ("metric", metric), ("distill_loss", distill_loss))
        }
        from rlprune.finetuning.loop import TrainConfig

        if distill is None:
            own_loss = loss is not None and distill_loss is None
            distill = usual_distill_weight(made, own_loss=own_loss)
        config = TrainConfig(
            epoch_count=epochs,
            batch_size=batch_size or 128,
            learning_rate=learning_rate,
            warmup_ratio=warmup,
            weight_decay=weight_decay,
            optimizer=optimizer,  # type: ignore[arg-type]  # refused there, in one line
            label_smoothing=label_smoothing,
            distill_weight=distill,
            distill_temperature=temperature,
            mixed_precision=mixed_precision,
            seed=seed,
        )
        report = finetune(
            loaded,
            made,
            train,  # type: ignore[arg-type]  # one of both is given
            out=output,
            validation=held,
            config=config,
            augment=augment,
            **functions,
            torch_device=torch_device,
            quantisation_aware=quantisation_aware,
            on_progress=on_progress,
            on_line=say,
        )
    if as_json:
        print_json({**json.loads(report.to_json()), "directory": str(output)})
        return
    scores = {"unpruned": report.unpruned, "pruned": report.cut, "fine-tuned": report.tuned}
    if report.quantisation is not None:
        scores["fine-tuned, in int8"] = report.quantisation.score
    digits = ".2%" if report.judged_by == "accuracy" else ".4f"
    if report.judged_by == "loss":
        print_table(("module", "loss"), [(name, f"{one.loss:.4f}") for name, one in scores.items()])
    else:
        print_table(
            ("module", report.judged_by, "loss"),
            [(name, f"{one.accuracy:{digits}}", f"{one.loss:.4f}") for name, one in scores.items()],
        )
    chosen = "no epoch" if report.chosen_epoch is None else f"epoch {report.chosen_epoch}"
    how = f"chosen on the same {report.validation_count} samples"
    if not report.validation_count:
        how = "the last one, scored on the training data"
    print_line(f"{output}: {chosen} of {len(report.epochs)}, {how}; {report.seconds:.0f} s")


def _loaders(source: str, beside: Mapping[str, object]) -> tuple[Any, Any]:
    """The user's loaders; refuses options that mean nothing beside them."""
    from rlprune.finetuning.user_code import load_loaders

    for option, given in beside.items():
        if given is not None:
            raise InputError(f"{option} goes with --data; the loader decides that")
    return load_loaders(source)
