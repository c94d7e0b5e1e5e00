"""The name of a graph: a hash of what planning depends on, and of nothing else.

Names, weight values, the exporter and the process do not enter; group widths, operators with their
extents and wiring, and input shapes do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from rlprune.graph.types import Operator, Width

VERSION = 1
"""Changed when the canonical form changes, so that plans of old are refused, not misread."""


def fingerprint(
    widths: Sequence[int],
    operators: Sequence[Operator],
    input_shapes: Sequence[Sequence[int]],
) -> str:
    """sha256 (hex) of the canonical form."""
    form = {
        "version": VERSION,
        "inputs": [list(shape) for shape in input_shapes],
        "groups": list(widths),
        "operators": [_operator(op) for op in operators],
    }
    text = json.dumps(form, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _operator(op: Operator) -> list[object]:
    return [
        op.kind,
        op.variant,
        op.inputs,
        _width(op.in_width),
        _width(op.out_width),
        op.in_spatial,
        op.out_spatial,
        op.kernel,
        op.stride,
        op.pads,
        op.dilation,
        op.groups,
    ]


def _width(width: Width) -> list[object]:
    return [width.const, width.terms]
