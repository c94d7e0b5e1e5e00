"""What every command shares: how errors leave, how results are printed, how progress is shown."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from rlprune.errors import InputError, RlpruneError

if TYPE_CHECKING:
    import onnx
    from rich.console import Console

    from rlprune.planning import OnProgress

INFEASIBLE = 3
"""Exit code where no plan meets the budget."""

PIPE_WIDTH = 160
"""Columns of a table that is not printed on a terminal, so that nothing is cut off at 80."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of tables.")]
RuntimeName = Annotated[
    str, typer.Option("--runtime", metavar="NAME", help="What runs the models: ort, openvino, mnn.")
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="[NAME=]1x3x224x224",
        help="Shape of an input whose extents the file leaves open; once per input.",
    ),
]


def _check_threads(count: int) -> int:
    cores = os.cpu_count() or 1
    if count > cores:
        raise typer.BadParameter(f"this machine has {cores} cores, not {count}")
    return count


Threads = Annotated[
    int,
    typer.Option(
        "--threads", min=1, callback=_check_threads, help="Threads the runtime computes on."
    ),
]

Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of everything that is drawn.")]
RoundTo = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default=False,
        help="Keep counts are multiples of this, or the full width; by default of what the device "
        "likes.",
    ),
]
MinKeep = Annotated[int, typer.Option(min=1, help="No group keeps fewer.")]
MinKeepRatio = Annotated[
    float, typer.Option(min=0, max=1, help="No group keeps a smaller share (0-1).")
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="f32|bf16|int8",
        help="What the network computes in: bf16 with openvino, int8 with ort and openvino.",
    ),
]
KeepFloat = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="With int8: layers that stay in float, as --hold names them; repeatable.",
    ),
]
SchemeNames = Annotated[
    list[str] | None,
    typer.Option(
        "--schemes",
        metavar="NAME[,NAME]",
        show_default=False,
        help="What may be done to the network: channels, shapes (of kernels), blocks (left out).",
    ),
]
Hold = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Leave layers as they are, by names of layers, nodes, weights or groups; may be "
        "repeated.",
    ),
]
Pin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB", help="The channels of these layers keep one ratio; may be repeated."
    ),
]


class Commands(TyperGroup):
    """The commands, with every refusal told in one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RlpruneError as error:
            reason = str(error)
        except BrokenPipeError:
            raise  # the reader of a pipe went away; typer ends quietly
        except MemoryError:
            reason = "this needs more memory than there is; try a smaller model or fewer images"
        except RecursionError:
            reason = "a file is nested too deeply to be read"
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        say(f"error: {' '.join(reason.split())}")
        raise typer.Exit(1)


def say(line: str) -> None:
    """One line on stderr."""
    print(line, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON value on stdout; NaN, which JSON has not, as null."""
    print(json.dumps(_plain(value), indent=2, allow_nan=False), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", left: int = 1
) -> None:
    """A table on stdout; the first `left` columns are text, the others numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # names with [brackets] are no markup
    console().print(table)


def print_line(text: str) -> None:
    """One line on stdout."""
    from rich.text import Text

    console().print(Text(text), soft_wrap=True)


def console(*, stderr: bool = False) -> Console:
    """A console of now's stdout or stderr."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False)


@contextmanager
def progress() -> Iterator[OnProgress]:
    """Shows what is being done, on stderr: bars on a terminal, else a plain line per tenth."""
    if not sys.stderr.isatty():
        last: dict[str, int] = {}

        def print_tenths(what: str, done: int, total: int) -> None:
            tenth = 10 * done // max(total, 1)
            if last.get(what) != tenth:
                last[what] = tenth
                say(f"{what}: {done} of {total}")

        yield print_tenths
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def move_bar(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield move_bar


@contextmanager
def stoppable(kept: Callable[[], str]) -> Iterator[None]:
    """Ends the command with 130 after Ctrl+C, and says what is `kept` of its work, if anything."""
    try:
        yield
    except KeyboardInterrupt:
        say("; ".join(part for part in ("stopped", kept()) if part))
        raise typer.Exit(130) from None


def check_output(path: Path | None, *inputs: Path | None) -> None:
    """Refuses an --output that could not be written, or would replace one of the files that are
    read, before any work is done for it.

    Args:
        path: to be written; None where nothing is.
        inputs: what is read: plans, calibration files, folders of images, models with the files
            that hold their external data.

    Raises:
        InputError: its folder is missing, or it is a folder itself, or one of `inputs` or within
            one.
    """
    if path is None:
        return
    for given in inputs if path.exists() else ():
        if given is not None and _reads(given, path):
            raise InputError(f"{path} is read by this command; write to another file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"no folder {path.parent} to write {path.name} to; make it first")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file's name")


def _reads(given: Path, path: Path) -> bool:
    """Whether a command that is given a file or a folder reads what is at `path`, which exists."""
    if given.is_dir():
        return path.resolve().is_relative_to(given.resolve())
    if not given.is_file():
        return False
    if path.samefile(given):
        return True
    from rlprune.graph.load import files_read

    return any(one.exists() and path.samefile(one) for one in files_read(given))


def check_name(name: str) -> str:
    """`name`, if it can be a folder's within another.

    Raises:
        InputError: empty, or a path.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise InputError(f"{name!r} is no name for a folder; give --name without slashes")
    return name


def parse_input_shapes(
    values: Sequence[str] | None, model: onnx.ModelProto
) -> dict[str, tuple[int, ...]] | None:
    """`NAME=1x3x224x224`, or without a name for a model of one input, as shapes by input name."""
    if not values:
        return None
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in weights]
    shapes: dict[str, tuple[int, ...]] = {}
    for value in values:
        name, _, extents = value.rpartition("=")
        if not name:
            if len(inputs) != 1:
                raise typer.BadParameter(
                    f"{value!r} names no input, and the model has {len(inputs)}: "
                    f"{', '.join(inputs)}; give NAME={value}",
                    param_hint="--input-shape",
                )
            name = inputs[0]
        if name in shapes:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint="--input-shape")
        if name not in inputs:
            raise typer.BadParameter(
                f"the model has no input {name!r}; it has: {', '.join(inputs)}",
                param_hint="--input-shape",
            )
        shapes[name] = parse_shape(extents)
    return shapes


def parse_shape(extents: str) -> tuple[int, ...]:
    """`1x3x224x224` as integers."""
    try:
        shape = tuple(int(extent) for extent in extents.split("x"))
    except ValueError:
        shape = (0,)
    if min(shape) < 1:
        raise typer.BadParameter(
            f"{extents!r} is no shape; write positive extents like 1x3x224x224",
            param_hint="--input-shape",
        )
    return shape
