"""What a way of making networks smaller says of itself: where it decides, between what, and how.

A `Site` is a place in the network where one decision is taken, an option one of the things that can
be done there. Planning, policies and environments know options by index and nothing of what they
do; a `Scheme` knows, and is one file of this room and one line of its registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rlprune.constraints import BoundConstraints
from rlprune.graph.types import FloatArray, IntArray, Operator, PruningGraph

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.surgery.removal import Removal


@dataclass(frozen=True, slots=True)
class Site:
    """One place of one network where one decision is taken."""

    name: str
    """Unique among its scheme's."""
    scheme: str
    values: tuple[int, ...]
    """What each option is called in plan files, stores and messages (a number of channels, the
    extents of a kernel ...), from 0 on. The last option leaves the site as it is."""
    shares: tuple[float, ...]
    """How much of the site each option leaves, 0 to 1; the last is 1. Of options that lose the same
    a planner takes the one that leaves more."""
    ordered: bool = True
    """Whether an option loses at least what the next one loses: true of widths, not of shapes."""
    operators: tuple[int, ...] = ()
    """The operators whose form an option changes, as indices of the graph's; none where options
    only change widths, which the operators state themselves."""


class Scheme(Protocol):
    """One way of making networks smaller. Stateless; any thread may call it."""

    @property
    def name(self) -> str:
        """As plans and messages have it."""
        ...

    def sites(self, graph: PruningGraph, bound: BoundConstraints | None = None) -> list[Site]:
        """The sites of a graph, always the same and in the same order, whatever is allowed there.

        Args:
            bound: what the user allows; without, every value that there is may be an option.

        Raises:
            InputError: the constraints cannot be met.
        """
        ...

    def accepts(self, graph: PruningGraph, site: Site, value: int) -> bool:
        """Whether a plan may name `value` at a site, as `sites` has it without constraints."""
        ...

    def describe(self, site: Site, value: int) -> str:
        """An option in a few words, e.g. `48 of 64 channels`."""
        ...

    def form(self, operator: Operator, value: int) -> Operator:
        """One of the site's operators under the option of this value; widths are left alone."""
        ...

    def dropped(self, trace: OnnxTrace, site: Site) -> FloatArray:
        """Share (0-1) of the energy of the site's weights that each option drops [options]."""
        ...

    def predicted_loss(self, graph: PruningGraph, site: Site, dropped: FloatArray) -> FloatArray:
        """What each option is thought to lose where nothing was measured, nats [options].

        Args:
            dropped: share of energy, or of the site where no weights are known [options].
        """
        ...

    def remove(
        self, trace: OnnxTrace, sites: list[Site], values: IntArray, removal: Removal
    ) -> Removal:
        """What surgery is to take out for these options, beside what `removal` has already.

        Args:
            sites: the scheme's own, as `sites(trace.graph)` has them.
            values: one of each of these sites.
        """
        ...
