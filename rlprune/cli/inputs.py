"""`--input-value`: graph inputs that are given one value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import typer

InputValues = Annotated[
    list[str] | None,
    typer.Option(
        "--input-value",
        metavar="NAME=VALUE",
        help="Give a graph input one value for good, such as sr=16000, or several: sizes=3,4. It "
        "becomes a constant of the model that is analysed and of what is written, and a branch "
        "that it decides is followed; once per input.",
    ),
]

_WORDS = {"true": True, "false": False}


def parse_input_values(values: Sequence[str] | None) -> dict[str, list[int | float | bool]] | None:
    """`NAME=VALUE` or `NAME=V1,V2` as numbers by input name."""
    if not values:
        return None
    found: dict[str, list[int | float | bool]] = {}
    for value in values:
        name, sign, numbers = value.rpartition("=")
        if not sign or not name:
            raise typer.BadParameter(
                f"{value!r} is no NAME=VALUE, such as sr=16000", param_hint="--input-value"
            )
        if name in found:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint="--input-value")
        found[name] = [_number(part.strip(), value) for part in numbers.split(",")]
    return found


def _number(text: str, whole: str) -> int | float | bool:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        # An int of a thousand digits takes long to read, and no input holds it.
        if re.fullmatch(r"[+-]?\d{1,20}", text):
            return int(text)
        return float(text)
    except ValueError:
        raise typer.BadParameter(
            f"{whole!r}: {text!r} is no number, true or false", param_hint="--input-value"
        ) from None
