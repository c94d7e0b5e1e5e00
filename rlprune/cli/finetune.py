"""`finetune`: the pruned module, trained until it is worth using."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

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
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE.npz", show_default=False, help="Images `x`, classes `y` to train on."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT_DIR", show_default=False)],
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
    batch_size: Annotated[int, typer.Option(min=2)] = 128,
    optimizer: Annotated[str, typer.Option(metavar="sgd|adamw")] = "sgd",
    learning_rate: Annotated[
        float | None,
        typer.Option(help="At its height; by default 0.05, with adamw 0.001.", show_default=False),
    ] = None,
    weight_decay: float = 5e-4,
    warmup: Annotated[
        float, typer.Option(min=0, max=1, help="Share (0-1) of the steps of rising rate.")
    ] = 0.1,
    label_smoothing: Annotated[float, typer.Option(min=0, max=1)] = 0.0,
    distill: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share (0-1) of the loss that the unpruned module teaches."
        ),
    ] = 0.5,
    temperature: Annotated[float, typer.Option(help="Of distillation.")] = 4.0,
    augment: Annotated[str, typer.Option(metavar="none|flip|crop-flip")] = "none",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Cut a torch module as planned, fine-tune it, write its weights and ONNX file.

    An interrupted run goes on from its checkpoint in OUT_DIR when the same command is given again.
    """
    from rlprune.finetuning.run import CHECKPOINT_NAME, finetune, load_module
    from rlprune.plans import PruningPlan

    made = PruningPlan.load(plan)
    checkpoint = output / CHECKPOINT_NAME

    def kept() -> str:
        return f"{checkpoint} is kept, the same command goes on" if checkpoint.exists() else ""

    with stoppable(kept), progress() as on_progress:
        loaded = load_module(module, weights, seed=seed)
        from rlprune.finetuning.loop import TrainConfig

        if learning_rate is None:
            learning_rate = 1e-3 if optimizer == "adamw" else 0.05
        config = TrainConfig(
            epoch_count=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_ratio=warmup,
            weight_decay=weight_decay,
            optimizer=optimizer,  # type: ignore[arg-type]  # refused there, in one line
            label_smoothing=label_smoothing,
            distill_weight=distill,
            distill_temperature=temperature,
            seed=seed,
        )
        report = finetune(
            loaded,
            made,
            data,
            out=output,
            validation=validation,
            config=config,
            augment=augment,
            on_progress=on_progress,
            on_line=say,
        )
    if as_json:
        print_json({**json.loads(report.to_json()), "directory": str(output)})
        return
    scores = {"unpruned": report.unpruned, "pruned": report.cut, "fine-tuned": report.tuned}
    print_table(
        ("module", "accuracy", "loss"),
        [(name, f"{one.accuracy:.2%}", f"{one.loss:.4f}") for name, one in scores.items()],
    )
    chosen = "no epoch" if report.chosen_epoch is None else f"epoch {report.chosen_epoch}"
    print_line(
        f"{output}: {chosen} of {len(report.epochs)}, chosen on the same "
        f"{report.validation_count} images; {report.seconds:.0f} s"
    )
