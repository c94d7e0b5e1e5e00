"""A plan carried out on a traced model: what all schemes take out, taken out at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlprune.errors import PlanError
from rlprune.graph.types import FloatArray, IntArray
from rlprune.schemes.channels import CHANNELS
from rlprune.schemes.registry import check_schemes, scheme_named
from rlprune.schemes.shapes import SHAPES
from rlprune.schemes.sites import CHANNEL_ONLY
from rlprune.surgery.removal import Removal

if TYPE_CHECKING:
    from onnx import ModelProto

    from rlprune.graph.from_onnx import OnnxTrace


def removal_of(
    trace: OnnxTrace,
    settings: IntArray,
    schemes: Sequence[str] = CHANNEL_ONLY,
    *,
    scores: list[FloatArray] | None = None,
) -> Removal:
    """What a plan takes out of the traced model.

    Args:
        settings: values [S] of all sites of the schemes.
        scores: what the model's units are worth, where that is known already.

    Raises:
        PlanError: settings that the model does not offer.
    """
    from rlprune.surgery.importance import unit_scores
    from rlprune.surgery.onnx import check_keeps, kept_units

    start = len(trace.graph.groups)
    keeps = settings[:start]
    check_keeps(trace.graph, keeps)
    removal = Removal(kept_units(unit_scores(trace) if scores is None else scores, keeps))
    for name in check_schemes(schemes):
        if name == CHANNELS.name:
            continue
        scheme = scheme_named(name)
        sites = scheme.sites(trace.graph)
        values = settings[start : start + len(sites)]
        start += len(sites)
        for site, value in zip(sites, values.tolist(), strict=False):
            if not scheme.accepts(trace.graph, site, value):
                raise PlanError(f"site {site.name!r} has no option {value} of scheme {name!r}")
        if len(values) == len(sites):
            removal = scheme.remove(trace, sites, values, removal)
    if start != len(settings):
        raise PlanError(f"{len(settings)} settings for a model of {start} sites")
    return removal


def carry_out(
    trace: OnnxTrace,
    settings: IntArray,
    schemes: Sequence[str] = CHANNEL_ONLY,
    *,
    scores: list[FloatArray] | None = None,
) -> ModelProto:
    """The traced model under a plan, not corrected; the trace is not changed. See `removal_of`."""
    from rlprune.surgery.onnx import cut

    return cut(trace, removal_of(trace, settings, schemes, scores=scores))


def cut_kernels(trace: OnnxTrace, schemes: Sequence[str]) -> frozenset[str]:
    """The weights of convolutions that some of the schemes may take taps of."""
    if SHAPES.name not in schemes:
        return frozenset()
    operators = trace.graph.operators
    return frozenset(operators[site.operators[0]].weight for site in SHAPES.sites(trace.graph))
