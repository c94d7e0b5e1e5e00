"""What a runtime profits from, as it was measured once: `scripts/bench profits` writes it.

Which kernels are faster when they are cut is a matter of a runtime's own kernels. MNN computes 3x3
convolutions by Winograd's algorithm and nothing else so fast, so that a 2x3 takes longer there than
a 3x3. What does not pay is not offered, measured or planned with. Of runtimes and kernels that were
not measured everything is offered, and the device's own measurements decide.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rlprune.device_keys import canonical_key
from rlprune.graph.types import Operator

FORMAT = "rlprune.profits/1"
DATA = Path(__file__).parent / "data" / "profits.json"


@dataclass(frozen=True, slots=True)
class Profits:
    """What pays on one runtime in one precision."""

    schemes: tuple[str, ...]
    """Names of schemes, `channel` first."""
    kernels: Mapping[str, frozenset[tuple[int, ...]]]
    """By kind of convolution (`kernel_label`), the extents that are worth cutting a kernel to."""

    def extents(self, operator: Operator) -> frozenset[tuple[int, ...]] | None:
        """What a convolution's kernel is worth cutting to; None where that was not measured."""
        return self.kernels.get(kernel_label(operator))


def kernel_label(operator: Operator) -> str:
    """The kind of a convolution, e.g. `3x3`, `3x3/2` (stride 2), `depthwise_5x5`; empty where none
    of its kind was measured."""
    stride, kind = set(operator.stride), operator.kind
    plain = kind == "conv" and operator.groups == 1
    if len(stride) != 1 or set(operator.dilation) != {1} or not (plain or kind == "depthwise_conv"):
        return ""
    [step] = stride
    depthwise = "" if plain else "depthwise_"
    strided = "" if step == 1 else f"/{step}"
    return f"{depthwise}{'x'.join(map(str, operator.kernel))}{strided}"


def profits_of(device: str, precision: str) -> Profits | None:
    """What pays on a device, by its key's runtime; None where nothing was measured of it."""
    return _measured().get((canonical_key(device).partition("-")[0], precision))


def profitable_schemes(device: str, precision: str) -> tuple[str, ...]:
    """The schemes that a device profits from, `channel` first; all three where that is not known,
    as for `macs`, where operations count."""
    found = profits_of(device, precision)
    return ("channel", "block", "shape") if found is None else found.schemes


@cache
def _measured() -> dict[tuple[str, str], Profits]:
    """By runtime and precision."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    return {
        (runtime, precision): Profits(
            schemes=tuple(own["schemes"]),
            kernels={
                label: frozenset(tuple(map(int, one.split("x"))) for one in extents)
                for label, extents in own["kernels"].items()
            },
        )
        for runtime, by_precision in data["runtimes"].items()
        for precision, own in by_precision.items()
    }
