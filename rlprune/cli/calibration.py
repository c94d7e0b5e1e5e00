"""The options that say what a model is calibrated with; `plan`, `apply` and others share them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rlprune.sensitivity.inputs import Reading
    from rlprune.sensitivity.sources import CalibrationData

Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|FOLDER|made-up|none",
        help="Inputs as the model takes them: an .npz with an array for each by name (`x` where "
        "there is one) and labels `y` if there are any, an .npy, a folder of images or .wav files; "
        "or made-up ones.",
    ),
]
JudgedBy = Annotated[
    list[str] | None,
    typer.Option(
        "--judged-by",
        metavar="OUTPUT[=logits|values|sigmoid]",
        help="The output, of several, by which it is judged how far answers move, and what it "
        "holds where that cannot be told; repeatable. All if left out.",
    ),
]


Pixels = Annotated[
    str | None,
    typer.Option(
        "--pixels",
        metavar="KEY=VALUE,...",
        help="How a folder of images is read: mean=0.485/0.456/0.406, std=0.229/0.224/0.225 (of "
        "pixels 0..1), layout=nhwc, size=224x224, channels=1, raw=1 for bytes.",
    ),
]
Sounds = Annotated[
    str | None,
    typer.Option(
        "--sounds",
        metavar="KEY=VALUE,...",
        help="How a folder of .wav files is read: rate=16000, length=16000.",
    ),
]


def calibration_data(
    calibration: str | None,
    judged_by: list[str] | None = None,
    pixels: str | None = None,
    sounds: str | None = None,
) -> CalibrationData | None:
    """What the options say; None where nothing is given.

    Raises:
        BadParameter: options without anything to read, or of other words.
    """
    from rlprune.sensitivity.sources import CalibrationData

    if calibration is None:
        for value, hint in ((judged_by, "--judged-by"), (pixels, "--pixels"), (sounds, "--sounds")):
            if value:
                raise typer.BadParameter("goes with --calibration", param_hint=hint)
        return None
    return CalibrationData(
        calibration, outputs=tuple(judged_by or ()), reading=_reading(pixels, sounds)
    )


def _reading(pixels: str | None, sounds: str | None) -> Reading:
    from rlprune.sensitivity.inputs import Reading

    def numbers(text: str) -> tuple[float, ...]:
        return tuple(float(part) for part in text.split("/"))

    def layout(text: str) -> str:
        if text not in ("nchw", "nhwc"):
            raise ValueError(text)
        return text

    def size(text: str) -> tuple[int, int]:
        height, width = (int(part) for part in text.split("x"))
        return height, width

    readers: dict[str, dict[str, Callable[[str], Any]]] = {
        "--pixels": {
            "mean": numbers,
            "std": numbers,
            "layout": layout,
            "size": size,
            "channels": int,
            "raw": lambda text: text == "1",
        },
        "--sounds": {"rate": int, "length": int},
    }
    found: dict[str, Any] = {}
    for hint, text in (("--pixels", pixels), ("--sounds", sounds)):
        for pair in (text or "").split(",") if text else ():
            key, _, value = pair.partition("=")
            if key not in readers[hint]:
                raise typer.BadParameter(
                    f"no {key!r}; there are {', '.join(readers[hint])}", param_hint=hint
                )
            try:
                found[key] = readers[hint][key](value)
            except ValueError as error:
                raise typer.BadParameter(f"{pair!r} is no value", param_hint=hint) from error
    return Reading(**found)


def calibration_path(calibration: str | None) -> Path | None:
    """The file that is read, if it is one."""
    from rlprune.sensitivity.sources import MADE_UP, NONE

    return None if calibration in (None, MADE_UP, NONE) else Path(str(calibration))
