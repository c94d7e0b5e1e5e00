"""CIFAR-10 and pretrained networks from the measuring pack (`shared/data`)."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.fit import fit_inputs

REPOSITORY = Path(__file__).resolve().parents[2]


def shared_folder(given: str | None = None) -> Path:
    """Where the measuring pack is: as given, by RLPRUNE_SHARED, or beside the repository."""
    return Path(given or os.environ.get("RLPRUNE_SHARED") or REPOSITORY.parent / "shared")


def shared_data(given: str | None = None) -> Path:
    """The pack's data.

    Raises:
        SystemExit: it is not there; the message is one line.
    """
    data = shared_folder(given) / "data"
    if not (data / "cifar10" / "splits.npz").is_file():
        raise SystemExit(f"no measuring pack in {data.parent} (data/cifar10); give --shared DIR")
    return data


class CifarPack:
    """Networks and images of the pack."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sys.path.insert(0, str(folder))  # its loader imports its models
        self._pack = _module(folder / "load_pack.py")
        self.splits = dict(np.load(folder / "cifar10" / "splits.npz"))
        self._sheets: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}

    def network(self, name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
        """The module in eval mode and its sidecar."""
        module, sidecar = self._pack.model(name)
        return module, sidecar

    def traced(self, name: str) -> OnnxTrace:
        """The network as an ordinary export has it: BatchNorm folded, batch open."""
        module, _ = self.network(name)
        return trace_onnx(exported(module))

    def pixels(self, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """All images [N, 32, 32, 3] and labels [N] of `train` or `test`; decoded once."""
        if split not in self._sheets:
            self._sheets[split] = self._pack.images("cifar10", split)
        return self._sheets[split]

    def images(self, name: str, index: NDArray[np.integer], model: OnnxTrace) -> CalibrationSet:
        """Test images of these indices, preprocessed as the network `name` takes them."""
        pixels, labels = self.pixels("test")
        _, sidecar = self.network(name)
        x = self._pack.preprocess(pixels[index], sidecar).numpy()
        return fit_inputs({"x": x}, labels[index].astype(np.int64), model)


def exported(module: torch.nn.Module, shape: tuple[int, ...] = (1, 3, 32, 32)) -> bytes:
    """ONNX bytes by the older exporter, which folds BatchNorm."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(shape),),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
        )
    return buffer.getvalue()


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
