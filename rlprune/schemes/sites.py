"""What can be decided about a network by some schemes, under some constraints."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from rlprune.constraints import BoundConstraints
from rlprune.errors import InputError
from rlprune.graph.types import IntArray, PruningGraph
from rlprune.schemes.base import Site
from rlprune.schemes.channels import CHANNELS, channel_sites
from rlprune.schemes.registry import check_schemes, scheme_named
from rlprune.schemes.space import Space, formed

CHANNEL_ONLY = (CHANNELS.name,)


def space_of(
    graph: PruningGraph, bound: BoundConstraints, schemes: Sequence[str] = CHANNEL_ONLY
) -> Space:
    """What may be decided about a graph: the sites of these schemes, with the options allowed.
    Groups of channels are always among them; where `channel` is not one of the schemes, all stay.

    Raises:
        InputError: a scheme is not known, or the constraints cannot be met.
    """
    return Space(graph, tuple(_sites(graph, bound, schemes)))


def whole_space(graph: PruningGraph, schemes: Sequence[str] = CHANNEL_ONLY) -> Space:
    """The same without constraints: whatever a plan may name."""
    return Space(graph, tuple(_sites(graph, None, schemes)))


def space_with(
    graph: PruningGraph,
    levels: IntArray,
    level_count: IntArray,
    schemes: Sequence[str] = CHANNEL_ONLY,
) -> Space:
    """What may be decided where somebody else has chosen the options: those of values `levels`
    [S, L], of which each site has the first `level_count` [S].

    Raises:
        InputError: a site has no such option, or not the one that leaves it as it is, at the end.
    """
    rows = [own[:count] for own, count in zip(levels, level_count, strict=True)]
    groups, others = len(graph.groups), other_sites(graph, schemes)
    if len(rows) != groups + len(others):
        raise InputError(f"options of {len(rows)} sites, the model has {groups + len(others)}")
    sites = channel_sites(graph, rows[:groups])
    for site, row in zip(others, rows[groups:], strict=True):
        shares = dict(zip(site.values, site.shares, strict=True))
        values = tuple(row.tolist())
        if not set(values) <= set(shares) or values[-1] != site.values[-1]:
            raise InputError(f"site {site.name!r} has no options {list(values)}")
        sites.append(replace(site, values=values, shares=tuple(shares[one] for one in values)))
    return Space(graph, tuple(sites))


def other_sites(graph: PruningGraph, schemes: Sequence[str]) -> list[Site]:
    """The sites of all these schemes but `channel`: those behind the groups in settings."""
    return [
        site
        for name in check_schemes(schemes)
        if name != CHANNELS.name
        for site in scheme_named(name).sites(graph)
    ]


def unpruned_settings(graph: PruningGraph, schemes: Sequence[str] = CHANNEL_ONLY) -> IntArray:
    """The settings [S] that leave a graph as it is."""
    return np.array(
        [*graph.widths, *(site.values[-1] for site in other_sites(graph, schemes))], dtype=np.int64
    )


def costs(
    graph: PruningGraph, settings: IntArray, schemes: Sequence[str] = CHANNEL_ONLY
) -> tuple[int, int]:
    """Multiply-accumulates and parameters of the graph at settings [S]."""
    space = whole_space(graph, schemes)
    choice = space.choice_of(settings)
    return int(space.macs(choice)), int(space.params(choice))


def without_effect(
    graph: PruningGraph, settings: IntArray, schemes: Sequence[str] = CHANNEL_ONLY
) -> set[int]:
    """The sites of which settings [S] leave nothing behind: groups of channels and kernels that lie
    in a block that is left out. What is said of them does not matter."""
    groups, others = len(graph.groups), other_sites(graph, schemes)
    made = formed(graph, others, settings[groups:]).operators
    present = {index for index, operator in enumerate(made) if not operator.absent}
    alive = {
        group
        for index in present
        for width in (made[index].in_width, made[index].out_width)
        for group, _ in width.terms
    }
    gone = {index for index in range(groups) if index not in alive}
    for place, site in enumerate(others, start=groups):
        own = formed(graph, [site], settings[place, None]).operators
        leaves_out = any(own[index].absent for index in site.operators)
        if site.operators and not leaves_out and not present.intersection(site.operators):
            gone.add(place)
    return gone


def variants(
    graph: PruningGraph, settings: IntArray, schemes: Sequence[str] = CHANNEL_ONLY
) -> list[tuple[PruningGraph, IntArray]]:
    """The graphs whose operators plans [N, S] have, each with the places of its plans."""
    count = len(graph.groups)
    if settings.shape[1] == count:
        return [(graph, np.arange(len(settings)))]
    sites = other_sites(graph, schemes)
    found, place = np.unique(settings[:, count:], axis=0, return_inverse=True)
    return [
        (formed(graph, sites, values), np.flatnonzero(place.ravel() == index))
        for index, values in enumerate(found)
    ]


def _sites(
    graph: PruningGraph, bound: BoundConstraints | None, schemes: Sequence[str]
) -> list[Site]:
    found: list[Site] = []
    for name in check_schemes(schemes):
        own = scheme_named(name).sites(graph, bound)
        if name not in schemes:
            own = [_left(site) for site in own]
        elif bound is not None and name != CHANNELS.name:
            own = [_held(site, _names(graph, site), bound.requested.hold) for site in own]
        found += own
    return found


def _names(graph: PruningGraph, site: Site) -> set[str]:
    """What a user may call a site: its own name, and those of the layers that it changes."""
    names, nodes = {site.name}, set()
    for index in site.operators:
        names.add(graph.operators[index].weight)
        nodes.add(graph.operators[index].name)
    for group in graph.groups:
        for member in group.members:
            if member.node in nodes:
                names.update((member.tensor, member.layer))
    for fixed in graph.held:
        if fixed.node in nodes:
            names.update((fixed.tensor, fixed.layer))
    return (names | nodes) - {""}


def _held(site: Site, names: Collection[str], patterns: Sequence[str]) -> Site:
    """The site with nothing to decide, where the user holds it, or a layer of it, as it is."""
    if not any(fnmatchcase(name, pattern) for pattern in patterns for name in names):
        return site
    return _left(site)


def _left(site: Site) -> Site:
    """The site with nothing to decide."""
    return replace(site, values=site.values[-1:], shares=site.shares[-1:])
