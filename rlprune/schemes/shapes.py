"""Kernel shapes: a convolution keeps a smaller rectangle of its kernel.

A 3x3 kernel becomes 1x3, 3x1, 2x2, 1x1 ...: a dense convolution of fewer taps, whose time falls
with them in every runtime and precision that was measured. It is the pattern pruning of PatDNN
(Niu et al. 2020) and ClickTrain (Zhang et al. 2021) with one pattern a layer, so that no kernel of
our own is needed to profit from it. Which rectangle of its extents stays is decided where the
weights are, as it is which channels stay.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from rlprune.constraints import BoundConstraints
from rlprune.graph.types import FloatArray, IntArray, Operator, PruningGraph
from rlprune.schemes.base import Site
from rlprune.schemes.profits import profits_of
from rlprune.surgery.removal import first_places

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.surgery.removal import Removal, Window

MAX_EXTENT = 99
"""Of a kernel along one axis; greater ones are left as they are."""
BASE = MAX_EXTENT + 1
"""A value tells extents by two decimal digits each: 103 is 1x3, 30303 is 3x3x3."""
AXIS_OPTIONS = 3
"""Extents offered along one axis, the whole one among them."""
NATS_PER_LOG = 0.15
"""What a layer is thought to lose for every nat that its kernel's energy falls by."""


class Shapes:
    """The scheme `shape`; see `schemes.base.Scheme`. A value tells extents (`BASE`)."""

    name = "shape"

    def sites(self, graph: PruningGraph, bound: BoundConstraints | None = None) -> list[Site]:
        """One for every convolution whose kernel may be cut, by name of the operator. Where a
        device is bound, with the extents that it profits from."""
        profits = None if bound is None else profits_of(bound.device, bound.precision)
        found = []
        for index, op in enumerate(graph.operators):
            site = _site(index, op) if op.weight else None
            if site is not None:
                paying = None if profits is None else profits.extents(op)
                found.append(site if paying is None else _paying(site, paying))
        return found

    def accepts(self, graph: PruningGraph, site: Site, value: int) -> bool:
        """Extents that the kernel's border allows."""
        return value in site.values

    def describe(self, site: Site, value: int) -> str:
        """`1x3 of 3x3`."""
        words = ["x".join(map(str, _extents(one))) for one in (value, site.values[-1])]
        return " of ".join(words)

    def form(self, operator: Operator, value: int) -> Operator:
        """The convolution with a kernel of these extents; its border is that of the first taps."""
        extents = _extents(value)
        if operator.absent or extents == operator.kernel:
            return operator
        window = [_first_places(operator, axis, n)[0] for axis, n in enumerate(extents)]
        rank = len(extents)
        pads = list(operator.pads)
        for axis, (first, n) in enumerate(zip(window, extents, strict=True)):
            pads[axis] -= first * operator.dilation[axis]
            pads[rank + axis] -= (operator.kernel[axis] - first - n) * operator.dilation[axis]
        return replace(operator, kernel=extents, pads=tuple(pads))

    def dropped(self, trace: OnnxTrace, site: Site) -> FloatArray:
        """Of the taps that go."""
        operator = trace.graph.operators[site.operators[0]]
        energy = _tap_energy(trace, operator)
        kept = [energy[_slices(_window(operator, energy, value))].sum() for value in site.values]
        return np.asarray(np.clip(1.0 - np.array(kept) / max(energy.sum(), 1e-30), 0.0, 1.0))

    def predicted_loss(self, graph: PruningGraph, site: Site, dropped: FloatArray) -> FloatArray:
        """In proportion to the logarithm of the energy that is left."""
        return np.asarray(-NATS_PER_LOG * np.log(np.maximum(1.0 - dropped, 1e-3)))

    def remove(
        self, trace: OnnxTrace, sites: list[Site], values: IntArray, removal: Removal
    ) -> Removal:
        """Of every kernel but the rectangle of these extents that has most energy."""
        windows = {}
        for site, value in zip(sites, values.tolist(), strict=True):
            if value != site.values[-1]:
                operator = trace.graph.operators[site.operators[0]]
                energy = _tap_energy(trace, operator)
                windows[operator.weight] = _window(operator, energy, value)
        return removal.without(windows=windows)


SHAPES = Shapes()


def _site(index: int, op: Operator) -> Site | None:
    """The site of one convolution; None where its kernel cannot shrink."""
    if max(op.kernel, default=1) == 1 or max(op.kernel) > MAX_EXTENT:
        return None
    along = [
        [n for n in _offered(extent) if _first_places(op, axis, n)]
        for axis, extent in enumerate(op.kernel)
    ]
    whole = float(np.prod(op.kernel))
    found = sorted((float(np.prod(one)) / whole, _value(one)) for one in product(*along))
    if len(found) < 2:
        return None
    return Site(
        name=op.name,
        scheme=SHAPES.name,
        values=tuple(value for _, value in found),
        shares=tuple(share for share, _ in found),
        ordered=False,
        operators=(index,),
    )


def _paying(site: Site, extents: Collection[tuple[int, ...]]) -> Site:
    """The site with these extents only, and the whole kernel."""
    kept = [
        (value, share)
        for value, share in zip(site.values, site.shares, strict=True)
        if value == site.values[-1] or _extents(value) in extents
    ]
    values, shares = zip(*kept, strict=True)
    return replace(site, values=values, shares=shares)


def _offered(extent: int) -> list[int]:
    """Extents along an axis, the whole one last; of long axes the odd ones, about evenly spaced."""
    if extent <= AXIS_OPTIONS:
        return list(range(1, extent + 1))
    spread = np.linspace(0, (extent - 1) // 2, AXIS_OPTIONS - 1, endpoint=False)
    return [*sorted({1 + 2 * round(float(place)) for place in spread}), extent]


def _first_places(op: Operator, axis: int, count: int) -> list[int]:
    """Where `count` taps of an axis may begin."""
    border = op.pads[axis], op.pads[len(op.kernel) + axis]
    return first_places(op.kernel[axis], count, op.dilation[axis], border)


def _tap_energy(trace: OnnxTrace, operator: Operator) -> FloatArray:
    """Sum of squares of a kernel's weights at every tap, of its extents; ones in a skeleton."""
    from onnx import numpy_helper

    from rlprune.graph.weights import is_hollow

    tensor = next(one for one in trace.model.graph.initializer if one.name == operator.weight)
    if is_hollow(tensor):
        return np.ones(operator.kernel)
    weight = numpy_helper.to_array(tensor).astype(np.float64)
    return np.asarray(np.square(weight).sum((0, 1)))


def _window(operator: Operator, energy: FloatArray, value: int) -> Window:
    """The rectangle of a value's extents that has most energy; of equal ones the first."""
    extents = _extents(value)
    places = [_first_places(operator, axis, n) for axis, n in enumerate(extents)]
    windows = [tuple(zip(first, extents, strict=True)) for first in product(*places)]
    return max(windows, key=lambda one: float(energy[_slices(one)].sum()))


def _slices(window: Window) -> tuple[slice, ...]:
    return tuple(slice(first, first + count) for first, count in window)


def _value(extents: tuple[int, ...]) -> int:
    value = 0
    for extent in extents:
        value = value * BASE + extent
    return value


def _extents(value: int) -> tuple[int, ...]:
    extents: list[int] = []
    while value:
        value, extent = divmod(value, BASE)
        extents.insert(0, extent)
    return tuple(extents)
