"""Device keys: what must be equal for two latencies to be comparable."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import onnx

from rlprune.errors import InputError
from rlprune.graph.sizes import at_sizes
from rlprune.latency.types import MACS_DEVICE

MAX_KEY = 120
_CPUINFO = Path("/proc/cpuinfo")
_NOISE = re.compile(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*$|\b\d+-core\b", re.IGNORECASE)

_SMOOTH = ("mnn-", "openvino-")
"""How keys begin of what likes all widths alike; ncnn and ONNX Runtime lose more to odd widths than
they save. `macs` counts as theirs: it is taken for a device that is not at
hand, and unrounded plans of 0.8 of the MACs ran at 0.8 to 1.42 of the latency."""
BLOCK = 8
"""Channels that kernels compute at a time."""
INT8_BLOCK = 16
"""The same in int8, until it is measured (`latency.multiples`): 64 channels narrowed to 56 took
0.92 of the latency for 0.84 of the MACs (ONNX Runtime), 48 took 0.72 for 0.69."""


def preferred_multiple(device: str, precision: str = "f32") -> int:
    """What keep counts should be multiples of on a device, by its key: 8, or 1 where all do; in
    int8 16, except that `macs` are counted alike."""
    if precision == "int8" and device != MACS_DEVICE:
        return INT8_BLOCK
    return 1 if device.startswith(_SMOOTH) else BLOCK


class Named(Protocol):
    """A runtime, or who speaks for one in another process."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...


def local_device_key(runtime: Named, *, thread_count: int = 1, batch: int = 1) -> str:
    """The key of this machine: runtime, hardware, threads, batch; `[a-z0-9._-]{1,120}`.

    For example `ort-1.31.1.x86_64-amd-epyc-25-1.t1.b1`. The batch is that of the models whose
    latency the key stands for; models of another batch are measured and planned under another key.
    """
    tail = f".t{thread_count}.b{batch}"
    head = f"{_slug(runtime.name)}-{_slug(runtime.version)}.{_slug(platform.machine())}-"
    return (head + _cpu_slug(_CPUINFO))[: MAX_KEY - len(tail)].rstrip("-._") + tail


def batch_of(input_shapes: Iterable[Sequence[int]]) -> int:
    """The leading extent of the first input that has more than one; else, or where open, 1."""
    leading = (shape[0] for shape in input_shapes if len(shape) > 1)
    return max(1, next(leading, 1))


def threads_of(device: str) -> int:
    """Threads that a device key stands for; 1 where it names none."""
    named = re.search(r"\.t(\d+)\.", device)
    return max(1, int(named[1])) if named else 1


def with_threads(device: str, threads: int) -> str:
    """The key of the same device with so many threads.

    Raises:
        InputError: the key names no threads, as `macs` does not, and more than one is asked for.
    """
    if threads == threads_of(device):
        return device
    if not re.search(r"\.t\d+\.", device):
        raise InputError(
            f"device {device!r} names no threads to choose; leave threads out", field="threads"
        )
    return re.sub(r"\.t\d+\.", f".t{threads}.", device, count=1)


def check_batch(device: str, input_shapes: Iterable[Sequence[int]]) -> None:
    """Refuses a model of another batch than the device key's, where the key names one.

    Raises:
        InputError: they differ.
    """
    named = re.search(r"\.b(\d+)$", device)
    batch = batch_of(input_shapes)
    if named is not None and int(named[1]) != batch:
        raise InputError(
            f"device {device!r} measures models of batch {named[1]}, this one is of batch {batch}; "
            f"start `rlprune work --batch {batch}` there and name that key",
            field="device",
        )


def model_batch(model: onnx.ModelProto) -> int:
    """The same of an ONNX model or skeleton."""
    weights = {tensor.name for tensor in model.graph.initializer}
    model = at_sizes(model)
    return batch_of(
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in model.graph.input
        if value.name not in weights
    )


def _cpu_slug(cpuinfo: Path) -> str:
    """Model name, and family and model numbers: hypervisors shorten names to, say, "AMD EPYC"."""
    fields: dict[str, str] = {}
    try:
        for line in cpuinfo.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip().lower(), value.strip())
    except OSError:
        pass  # no Linux: the interpreter's word is all there is
    name = fields.get("model name") or fields.get("hardware") or platform.processor() or "cpu"
    numbers = [fields[key] for key in ("cpu family", "model", "cpu part") if fields.get(key)]
    return _slug("-".join([_NOISE.sub(" ", name), *numbers])) or "cpu"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-._")
