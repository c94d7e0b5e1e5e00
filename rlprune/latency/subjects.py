"""Whether a measured model's settings are ones that its graph offers."""

from __future__ import annotations

from rlprune.errors import InputError
from rlprune.graph.types import PruningGraph
from rlprune.latency.types import ModelSubject
from rlprune.schemes import other_sites, scheme_named


def check_settings(graph: PruningGraph, subject: ModelSubject) -> None:
    """Refuses settings that the graph does not have; without settings the model is unpruned.

    Raises:
        InputError: too few or too many, out of range, or of a scheme that is not known.
    """
    widths = graph.widths.tolist()
    keeps, others = subject.settings[: len(widths)], subject.settings[len(widths) :]
    sites = other_sites(graph, subject.schemes)
    if len(keeps) != len(widths) or len(others) != len(sites):
        raise InputError(
            f"{len(subject.settings)} settings of a model that has {len(widths) + len(sites)} sites"
        )
    if any(not 1 <= keep <= width for keep, width in zip(keeps, widths, strict=True)):
        raise InputError("keep counts that its model does not have")
    for site, value in zip(sites, others, strict=True):
        if not scheme_named(site.scheme).accepts(graph, site, value):
            raise InputError(f"site {site.name!r} has no option {value} of scheme {site.scheme!r}")
