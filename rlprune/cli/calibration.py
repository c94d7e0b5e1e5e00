"""The options that say what a model is calibrated with; `plan`, `apply` and others share them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rlprune.profile.sources import CalibrationData

Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.npz|made-up|none",
        help="Inputs as the model takes them, an array for each by name (`x` where there is one), "
        "labels `y` if there are any; or made-up ones.",
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


def calibration_data(
    calibration: str | None, judged_by: list[str] | None = None
) -> CalibrationData | None:
    """What the options say; None where nothing is given.

    Raises:
        BadParameter: outputs without anything to judge by them.
    """
    from rlprune.profile.sources import CalibrationData

    if calibration is None:
        if judged_by:
            raise typer.BadParameter("goes with --calibration", param_hint="--judged-by")
        return None
    return CalibrationData(calibration, outputs=tuple(judged_by or ()))


def calibration_path(calibration: str | None) -> Path | None:
    """The file that is read, if it is one."""
    from rlprune.profile.sources import MADE_UP, NONE

    return None if calibration in (None, MADE_UP, NONE) else Path(str(calibration))
