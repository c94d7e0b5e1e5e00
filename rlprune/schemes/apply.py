"""A plan carried out on a traced model: one scheme after the other, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlprune.errors import PlanError
from rlprune.graph.types import FloatArray, IntArray
from rlprune.schemes.channels import CHANNELS
from rlprune.schemes.registry import check_schemes, scheme_named
from rlprune.schemes.sites import CHANNEL_ONLY

if TYPE_CHECKING:
    from onnx import ModelProto

    from rlprune.graph.from_onnx import OnnxTrace


def carry_out(
    trace: OnnxTrace,
    settings: IntArray,
    schemes: Sequence[str] = CHANNEL_ONLY,
    *,
    scores: list[FloatArray] | None = None,
) -> ModelProto:
    """The traced model under a plan, not corrected; the trace is not changed.

    Args:
        settings: values [S] of all sites of the schemes.
        scores: what the traced model's units are worth, where that is known already.

    Raises:
        PlanError: settings that the model does not offer.
    """
    from rlprune.surgery.onnx import prune_onnx

    made = without_channels(trace, settings, schemes)
    keeps = settings[: len(trace.graph.groups)]
    return prune_onnx(made, keeps, scores=scores if made is trace else None)


def without_channels(
    trace: OnnxTrace, settings: IntArray, schemes: Sequence[str] = CHANNEL_ONLY
) -> OnnxTrace:
    """The traced model with all but the channels of a plan carried out; itself where that is all
    there is."""
    from rlprune.graph.from_onnx import trace_onnx

    start = len(trace.graph.groups)
    for name in check_schemes(schemes):
        if name == CHANNELS.name:
            continue
        scheme = scheme_named(name)
        sites = scheme.sites(trace.graph)
        values = np.asarray(settings[start : start + len(sites)])
        start += len(sites)
        if len(values) == len(sites) and all(
            value == site.values[-1] for site, value in zip(sites, values.tolist(), strict=True)
        ):
            continue
        names = [group.name for group in trace.graph.groups]
        trace = trace_onnx(scheme.carry_out(trace, sites, values))
        assert names == [group.name for group in trace.graph.groups], name
    if start != len(settings):
        raise PlanError(f"{len(settings)} settings for a model of {start} sites")
    return trace
