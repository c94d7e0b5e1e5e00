"""`quantize`: write a model in int8, as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlprune.cli.apply import moved_json
from rlprune.cli.calibration import (
    Calibration,
    JudgedBy,
    Pixels,
    Sounds,
    calibration_data,
    calibration_path,
)
from rlprune.cli.inputs import InputValues
from rlprune.cli.models import Model, load_trace
from rlprune.cli.shared import (
    InputShapes,
    Json,
    KeepFloat,
    check_output,
    print_json,
    print_line,
    say,
)

if TYPE_CHECKING:
    from rlprune.sensitivity.correct import Correction


def quantize(
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="INT8.onnx", show_default=False)
    ],
    calibration: Calibration = None,
    judged_by: JudgedBy = None,
    pixels: Pixels = None,
    sounds: Sounds = None,
    keep_float: KeepFloat = None,
    input_shape: InputShapes = None,
    input_value: InputValues = None,
    as_json: Json = False,
) -> None:
    """Write a model in int8, as it is: for ONNX Runtime and OpenVINO.

    Scales are taken from your inputs, or from made-up ones, and it is told how far the answers
    moved. For a pruned network that was fine-tuned, or one that is not to be pruned at all; `apply`
    quantises what it prunes.
    """
    import rlprune
    from rlprune.files import write_atomic
    from rlprune.surgery.encode import encode

    source = calibration_data(calibration, judged_by, pixels, sounds)
    check_output(output, model, calibration_path(calibration))
    traced = load_trace(model, input_shape, input_value)
    for note in traced.notes:
        say(f"note: {note}")
    results: list[Correction] = []
    made = rlprune.quantize(
        traced, calibration=source, keep_float=keep_float or (), on_result=results.append
    )
    write_atomic(output, encode(made))
    found = results[0]
    size, before = output.stat().st_size, model.stat().st_size
    if as_json:
        moved = moved_json(found.quantised)
        print_json({"output": str(output), "bytes": size, "moved_after_quantisation": moved})
    else:
        print_line(f"{output}: {size / before:.1%} of the bytes of {model}")
        for line in found.told():
            print_line(line)
    if found.warning:
        say(f"warning: {found.warning}")
