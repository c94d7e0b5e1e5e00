"""What keep counts should be multiples of, from how long a few convolutions take.

Which widths pay hangs on a runtime's kernels, the processor and the precision, so it is measured: a
width between two multiples of 16 pays where it saves at least half of its share of what the lower
one saves. Of 64 channels narrowed to 48, ONNX Runtime in int8 had 0.28 of the latency saved; at 56
it should be half of that, and was 0.08.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlprune.latency.types import Measurement, OperatorSpec

LEAST, WHOLE = 48, 64
"""Neighbouring multiples of 16."""
BETWEEN = {8: 56, 4: 52, 1: 51}
"""A width for each finer multiple, of which it is one and the coarser is not."""
ENOUGH_SHARE = 0.5
"""Of what a width should save by its channels."""
MIN_SAVED = 0.05
"""Saved by the lower neighbour; less cannot be told from noise, and says nothing."""

_FORMS = (
    OperatorSpec(
        *("conv", "", 64, 0, (16, 16), (16, 16)),
        kernel=(3, 3),
        stride=(1, 1),
        pads=(1, 1, 1, 1),
        dilation=(1, 1),
    ),
    OperatorSpec(
        *("conv", "", 128, 0, (14, 14), (14, 14)),
        kernel=(1, 1),
        stride=(1, 1),
        pads=(0, 0, 0, 0),
        dilation=(1, 1),
    ),
)


def multiple_probes(precision: str) -> list[OperatorSpec]:
    """The operators that `measured_multiple` needs."""
    return [
        replace(form, out_width=width, precision=precision)
        for form in _FORMS
        for width in (WHOLE, *BETWEEN.values(), LEAST)
    ]


def measured_multiple(measurements: Sequence[Measurement], precision: str) -> int | None:
    """The finest of 1, 4, 8 and 16 such that it and all coarser ones pay, on average over the
    probes; None where they were not all measured, or tell nothing."""
    ratios: dict[OperatorSpec, float] = {}
    wanted = set(multiple_probes(precision))
    for one in measurements:  # the last one counts
        if one.subject in wanted and one.status != "failed":
            assert isinstance(one.subject, OperatorSpec)
            # Beside the same canary, so that the machine's slow minutes drop out.
            ratios[one.subject] = one.control_ratio
    if len(ratios) < len(wanted):
        return None
    curves = []
    for form in _FORMS:
        own = {spec.out_width: ms for spec, ms in ratios.items() if spec.kernel == form.kernel}
        saved = {width: 1.0 - ms / own[WHOLE] for width, ms in own.items()}
        if saved[LEAST] > MIN_SAVED:
            curves.append({width: share / saved[LEAST] for width, share in saved.items()})
    if not curves:
        return None
    found = WHOLE - LEAST
    for multiple, width in BETWEEN.items():
        fair = (WHOLE - width) / (WHOLE - LEAST)
        if np.mean([curve[width] for curve in curves]) < ENOUGH_SHARE * fair:
            break
        found = multiple
    return found
