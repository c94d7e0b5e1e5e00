"""MNN on the CPU, set up so that its time can be measured.

A model is converted in this process by the wheel's own converter module. The command `mnnconvert`
must never be run: it installs packages and uploads a usage log.
Converter and interpreter print what they do, and their reasons for refusing are found nowhere else,
so standard output and error are caught while they work.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx

from rlprune.errors import MeasurementError, one_line
from rlprune.runtime.base import Array, with_closed_extents
from rlprune.runtime.prepared import Prepared


@contextmanager
def _caught_output() -> Iterator[IO[bytes]]:
    """A file that the process's output, also that of native code, goes to while this lasts."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        kept = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield file
        finally:
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)


with _caught_output():
    import _tools as converter
    import MNN


class MnnSession:
    """A `Session` of MNN."""

    def __init__(self, interpreter: Any, output_names: list[str], thread_count: int) -> None:
        options = {"backend": "CPU", "precision": "high", "numThread": thread_count}
        self._session = interpreter.createSession(options)
        self._interpreter = interpreter
        self._inputs: dict[str, Any] = interpreter.getSessionInputAll(self._session)
        outputs = interpreter.getSessionOutputAll(self._session)  # ordered by name
        self._outputs = [(outputs[name], _host_copy(outputs[name])) for name in output_names]
        self._fed: dict[str, tuple[Array, Any]] = {}
        self.input_names = list(self._inputs)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        try:
            for name, array in feeds.items():
                fed = self._fed.get(name)
                if fed is None or fed[0] is not array:
                    fed = self._fed[name] = (array, self._host_input(name, array))
                # Copied in every run: MNN lays inputs out anew, and uses their memory for others.
                self._inputs[name].copyFrom(fed[1])
            code = self._interpreter.runSession(self._session)
            for output, host in self._outputs:
                output.copyToHostTensor(host)
            # What it gives is memory of its own that dies with the session.
            found = [np.array(host.getNumpyData()) for _, host in self._outputs]
        except Exception as error:  # it raises bare Exceptions
            raise MeasurementError(f"MNN failed: {one_line(error)}") from error
        if code != 0:
            raise MeasurementError(f"MNN failed with code {code}")
        return found

    def _host_input(self, name: str, array: Array) -> Any:
        # MNN copies whatever it is given, also beyond the end.
        wanted = tuple(self._inputs[name].getShape())
        if array.shape != wanted:
            raise ValueError(f"input {name!r} is of shape {wanted}, not {array.shape}")
        return _host_tensor(array)

    def close(self) -> None:
        self._inputs.clear()
        self._outputs.clear()
        self._fed.clear()
        del self._session, self._interpreter


class MnnRuntime:
    """The `Runtime` of the installed MNN, CPU backend only."""

    name = "mnn"
    version: str = MNN.version()

    def __init__(self) -> None:
        self._converted = Prepared()

    def refusal(self, precision: str) -> str:
        # Of a QDQ file the converter (3.6.1) aborts the process or writes what cannot be resized;
        # its own tool crashed, then wrote a file that was not quantised.
        if precision == "f32":
            return ""
        return f"MNN is measured in f32 only, not in {precision}; take ort or openvino"

    def load(self, model: bytes, *, thread_count: int = 1, precision: str = "f32") -> MnnSession:
        if refusal := self.refusal(precision):
            raise MeasurementError(refusal)
        with tempfile.TemporaryDirectory(prefix="rlprune-mnn-") as folder:
            path = Path(folder) / "model.mnn"
            path.write_bytes(self._converted.get(model, lambda: _convert(model, Path(folder))))
            with _caught_output() as printed:
                try:
                    names = [
                        value.name for value in onnx.load_model_from_string(model).graph.output
                    ]
                    return MnnSession(MNN.Interpreter(str(path)), names, thread_count)
                except Exception as error:  # it raises bare Exceptions
                    reason = _told(printed) or one_line(error)
                    raise MeasurementError(f"MNN refuses the model: {reason}") from error


def _host_tensor(array: Array) -> Any:
    if np.issubdtype(array.dtype, np.floating):  # it computes in float32 whatever the file says
        array, kind = array.astype(np.float32, copy=False), MNN.Halide_Type_Float
    else:  # it knows no integers of 64 bits
        array, kind = array.astype(np.int32), MNN.Halide_Type_Int
    values = np.ascontiguousarray(array)
    return MNN.Tensor(array.shape, kind, values, MNN.Tensor_DimensionType_Caffe)


def _host_copy(tensor: Any) -> Any:
    whole = tensor.getDataType() == MNN.Halide_Type_Int
    return _host_tensor(np.zeros(tensor.getShape(), dtype=np.int32 if whole else np.float32))


def _convert(model: bytes, folder: Path) -> bytes:
    source, target = folder / "model.onnx", folder / "converted.mnn"
    source.write_bytes(with_closed_extents(model))
    arguments = ["--framework", "ONNX", "--bizCode", "rlprune"]
    arguments += ["--modelFile", str(source), "--MNNModel", str(target)]
    with _caught_output() as printed:
        converter.mnnconvert(["mnnconvert", *arguments])  # returns True whatever happened
        if not target.exists():
            raise MeasurementError(f"MNN refuses the model: {_told(printed)}")
    return target.read_bytes()


def _told(printed: IO[bytes]) -> str:
    """The most telling of what was printed."""
    printed.seek(0)
    lines = printed.read().decode(errors="replace").splitlines()
    told = [line for line in lines if "not" in line.lower() or "error" in line.lower()]
    return one_line((told or lines or [""])[0])
