"""All that can be decided about one network: its sites, the options of each, and what they change.

`choice` [..., S] holds an option's index for every site; it is what solvers, policies, environments
and latency tables work with. `settings` [..., S] holds the values of the same options: what plan
files, the store and messages name, since they stay right when other constraints leave other
options. The sites of the scheme `channel` come first, in the graph's order of groups, so that
settings can be read as keep counts by whatever only asks for widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from rlprune.graph.types import FloatArray, IntArray, Operator, PruningGraph
from rlprune.schemes.base import Site
from rlprune.schemes.registry import scheme_named


@dataclass(frozen=True)
class Form:
    """One form that an operator can take, and the options under which it does."""

    index: int
    """Of the operator in its graph."""
    operator: Operator
    options: tuple[tuple[int, int], ...] = ()
    """(site, option) pairs that must all be chosen; none where there is but one form."""

    def holds(self, choice: IntArray) -> NDArray[np.bool_]:
        """For which choices [..., S] the operator has this form [...]."""
        found = np.ones(choice.shape[:-1], dtype=np.bool_)
        for site, option in self.options:
            found &= choice[..., site] == option
        return found


def formed(graph: PruningGraph, sites: Sequence[Site], settings: IntArray) -> PruningGraph:
    """The graph with every operator in the form that the sites' values [S] give it; widths stay
    functions of what the groups keep."""
    operators = list(graph.operators)
    for site, value in zip(sites, settings.tolist(), strict=True):
        for index in site.operators:
            operators[index] = scheme_named(site.scheme).form(operators[index], value)
    return replace(graph, operators=tuple(operators)) if operators != [*graph.operators] else graph


@dataclass(frozen=True)
class Space:
    """The sites of one graph with the options that are allowed."""

    graph: PruningGraph
    sites: tuple[Site, ...]

    @property
    def schemes(self) -> tuple[str, ...]:
        """Names of the schemes that may be used, `channel` first."""
        return tuple(dict.fromkeys(("channel", *(site.scheme for site in self.sites))))

    @property
    def group_count(self) -> int:
        """How many of the sites are groups of channels; they come first."""
        return len(self.graph.groups)

    @cached_property
    def option_count(self) -> IntArray:
        """Options of each site [S]."""
        return np.array([len(site.values) for site in self.sites], dtype=np.int64)

    @cached_property
    def settings(self) -> IntArray:
        """Value of each option [S, L], padded by repeating the last."""
        return np.array(self._padded([site.values for site in self.sites]), dtype=np.int64)

    @cached_property
    def shares(self) -> FloatArray:
        """How much of its site each option leaves [S, L], 0 to 1."""
        return np.array(self._padded([site.shares for site in self.sites]), dtype=np.float64)

    @cached_property
    def ordered(self) -> NDArray[np.bool_]:
        """Which sites' options are a chain [S]."""
        return np.array([site.ordered for site in self.sites], dtype=np.bool_)

    @property
    def unpruned(self) -> IntArray:
        """The choice [S] that leaves everything as it is."""
        return self.option_count - 1

    def _padded(self, rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        longest = max((len(row) for row in rows), default=1)
        padded = [[*row, *[row[-1]] * (longest - len(row))] for row in rows]
        return np.array(padded).reshape(len(rows), longest)

    def settings_at(self, choice: IntArray) -> IntArray:
        """Option indices [..., S] -> values [..., S]."""
        return np.asarray(self.settings[np.arange(len(self.sites)), choice])

    def choice_of(self, settings: IntArray) -> IntArray:
        """Values [..., S] -> option indices [..., S].

        Raises:
            ValueError: a value is of none of its site's options.
        """
        same = self.settings == settings[..., None]  # [..., S, L]
        if not same.any(-1).all():
            raise ValueError("a setting that is none of its site's options")
        return np.asarray(same.argmax(-1), dtype=np.int64)

    def with_settings(self, settings: IntArray) -> Space:
        """The same with the values [S] among the options: a plan may have been edited by hand, or
        made for another device."""
        sites = []
        every: dict[str, dict[str, Site]] = {}
        for site, value in zip(self.sites, settings.tolist(), strict=True):
            if value not in site.values:
                if site.scheme not in every:
                    own = scheme_named(site.scheme).sites(self.graph)
                    every[site.scheme] = {one.name: one for one in own}
                whole = every[site.scheme][site.name]
                share = dict(zip(whole.values, whole.shares, strict=True))
                values = sorted({*site.values, value}, key=lambda one: (share[one], one))
                shares = tuple(share[one] for one in values)
                site = replace(site, values=tuple(values), shares=shares)
            sites.append(site)
        return Space(self.graph, tuple(sites))

    @cached_property
    def form_sites(self) -> dict[int, tuple[int, ...]]:
        """For every operator that has more than one form, the sites that decide on it."""
        found: dict[int, tuple[int, ...]] = {}
        for place, site in enumerate(self.sites):
            for index in site.operators:
                found[index] = (*found.get(index, ()), place)
        return found

    def forms_of(self, index: int) -> list[Form]:
        """All forms of one operator, the last site's options running fastest."""
        places = self.form_sites.get(index, ())
        counts = [range(len(self.sites[place].values)) for place in places]
        return [
            self._form(index, tuple(zip(places, options, strict=True)))
            for options in product(*counts)
        ]

    def forms(self) -> Iterator[Form]:
        """All forms of all operators, in the graph's order."""
        for index in range(len(self.graph.operators)):
            yield from self.forms_of(index)

    def _form(self, index: int, options: tuple[tuple[int, int], ...]) -> Form:
        operator = self.graph.operators[index]
        for place, option in options:
            site = self.sites[place]
            operator = scheme_named(site.scheme).form(operator, site.values[option])
        return Form(index, operator, options)

    def variant(self, choice: IntArray) -> PruningGraph:
        """The graph as one choice [S] makes it; see `formed`."""
        return formed(self.graph, self.sites, self.settings_at(choice))

    def macs(self, choice: IntArray) -> IntArray:
        """Multiply-accumulates at batch 1 of choices [..., S] -> [...]."""
        keeps = self.settings_at(choice)[..., : self.group_count]
        total = self.graph.macs(keeps)
        for form, base in self._changed():
            ins, outs = base.in_width.at(keeps), base.out_width.at(keeps)
            more = form.operator.macs_at(ins, outs) - base.macs_at(ins, outs)
            total = total + form.holds(choice) * more
        return total

    def params(self, choice: IntArray) -> IntArray:
        """Numbers in the weights of the cut file of choices [..., S] -> [...]."""
        keeps = self.settings_at(choice)[..., : self.group_count]
        total = self.graph.params(keeps)
        owned = any(weight.operators for weight in self.graph.weights)
        absent: dict[int, NDArray[np.bool_]] = {}
        for form, base in self._changed():
            if form.operator.absent and owned:
                gone = absent.get(form.index, np.False_)
                absent[form.index] = np.asarray(gone | form.holds(choice))
                continue
            ins, outs = base.in_width.at(keeps), base.out_width.at(keeps)
            more = form.operator.params_at(ins, outs) - base.params_at(ins, outs)
            total = total + form.holds(choice) * more
        for weight in self.graph.weights:
            if weight.operators and absent.keys() >= set(weight.operators):
                gone = np.logical_and.reduce([absent[index] for index in weight.operators])
                total = total - gone * weight.at(keeps)
        return total

    def _changed(self) -> Iterator[tuple[Form, Operator]]:
        """The forms that differ from what the graph has, each with that."""
        for index in self.form_sites:
            base = self.graph.operators[index]
            yield from ((form, base) for form in self.forms_of(index) if form.operator != base)
