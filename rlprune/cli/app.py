"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from rlprune.cli import (
    apply,
    explain_latency,
    finetune,
    measure,
    plan,
    quantize,
    service,
    trace,
    training,
)
from rlprune.cli.shared import Commands

app = typer.Typer(
    name="rlprune",
    help="Model + device + milliseconds -> pruning plan.",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes around help and usage errors cost 0.2 s and break lines
)
app.command("trace")(trace.trace)
app.command("plan")(plan.plan)
app.command("apply")(apply.apply)
app.command("quantize")(quantize.quantize)
app.command("finetune")(finetune.finetune)
app.command("measure")(measure.measure)
app.command("explain-latency")(explain_latency.explain_latency)
app.command("record")(training.record)
app.command("train")(training.train)
app.command("serve")(service.serve)
app.command("work")(service.work)
app.command("devices")(service.devices)


def _print_version(wanted: bool) -> None:
    if wanted:
        from rlprune import __version__

        typer.echo(f"rlprune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass
