"""Which channels must live or die together.

Every channel axis of every tensor carries an array of ids, one per position. An operator's rule
says which ids are equal (`tie`), which are new (`fresh`), and which cannot be pruned (`hold`). The
classes of equal ids are the *units*; units that appear equally often in exactly the same places
form a *group*. What is not understood is held, so a mistake costs savings, never a wrong network.
(Idea: the dependency graphs of Fang et al., DepGraph, CVPR 2023, on ids instead of layers.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from rlprune.errors import ModelError
from rlprune.graph.types import IntArray

MAX_IDS = 2**22
"""Bound on ids and on any id array, so that a hostile file cannot eat the memory."""
MAX_STORED = 2**25
"""Bound on all of them together, and on the ties."""


@dataclass(frozen=True, slots=True)
class Block:
    """Channel ids of one or more axes of a tensor, jointly."""

    axes: tuple[int, ...]
    """Ascending."""
    ids: IntArray
    """Shape: the extents of `axes`."""


@dataclass(frozen=True, slots=True)
class Producer:
    """A weight axis that makes channels: what a unit's importance is read from."""

    node: str
    tensor: str
    axis: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Ids that may not be pruned, and why."""

    ids: IntArray
    reason: str
    node: str = ""
    """Whose rule says so."""


@dataclass(frozen=True, slots=True)
class Note:
    """A layer that makes channels nobody follows, and why; it is listed with what is held."""

    node: str
    tensor: str
    width: int
    reason: str


@dataclass
class Channels:
    """The id arrays while rules run; `solve` turns them into classes."""

    shapes: Mapping[str, tuple[int, ...]]
    weights: frozenset[str]
    """Names of the initializers: what can be sliced freely."""
    sized: frozenset[str] = frozenset()
    """What is computed from weights and open extents alone: constants, were these fixed."""
    blocks: dict[str, list[Block]] = field(default_factory=dict)
    producers: list[Producer] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    touched: set[tuple[str, int]] = field(default_factory=set)
    """Weight axes that the rule that runs now has claimed."""
    node: str = ""
    """Whose rule runs now; holds remember it."""
    count: int = 0
    stored: int = 0
    """Length of all id arrays of activations and of all ties."""
    _left: list[IntArray] = field(default_factory=list)
    _right: list[IntArray] = field(default_factory=list)
    _holds: list[Hold] = field(default_factory=list)
    _parts: list[tuple[str, tuple[int, ...], Block, list[int]]] = field(default_factory=list)

    def fresh(self, *shape: int) -> IntArray:
        """New ids that nothing is tied to yet."""
        size = int(np.prod(shape, dtype=np.int64))
        if self.count + size > MAX_IDS:
            raise ModelError(f"the model has more than {MAX_IDS} channels")
        ids = np.arange(self.count, self.count + size, dtype=np.int64).reshape(shape)
        self.count += size
        return ids

    def _spend(self, count: int) -> None:
        self.stored += count
        if self.stored > MAX_STORED:
            raise ModelError(f"following the channels takes more than {MAX_STORED} numbers")

    def tie(self, left: IntArray, right: IntArray) -> None:
        """Ids of `left` equal those of `right`, position by position (broadcast)."""
        if left is right:
            return
        a, b = np.broadcast_arrays(left, right)
        self._spend(2 * a.size)
        self._left.append(a.ravel())
        self._right.append(b.ravel())

    def tie_along(self, ids: IntArray, axis: int) -> IntArray:
        """All ids along `axis` become one; the ids without that axis."""
        first = np.take(ids, 0, axis=axis)
        self.tie(ids, np.expand_dims(first, axis))
        return np.asarray(first, dtype=np.int64)

    def only(self, block: Block, axes: Iterable[int]) -> Block:
        """The block on some of its axes; what lies along the others is tied."""
        ids, kept = block.ids, list(block.axes)
        for axis in [axis for axis in reversed(block.axes) if axis not in axes]:
            ids = self.tie_along(ids, kept.index(axis))
            kept.remove(axis)
        return Block(tuple(kept), ids)

    def is_held(self, ids: IntArray) -> bool:
        """Whether a rule has held all of `ids` already."""
        return any(np.isin(ids, hold.ids).all() for hold in self._holds)

    def hold(self, ids: IntArray, reason: str) -> None:
        """Nothing of `ids` may be pruned."""
        self._holds.append(Hold(ids.ravel(), reason, self.node))

    def note(self, node: str, tensor: str, width: int, reason: str) -> None:
        """Lists a layer as held whose channels no weight axis makes, so that none could be held."""
        self.notes.append(Note(node, tensor, width, reason))

    def block(self, name: str) -> Block | None:
        """The channel ids of an activation; None where all its axes are fixed."""
        blocks = self.blocks.get(name)
        return blocks[0] if blocks else None

    def put(self, name: str, axes: tuple[int, ...], ids: IntArray) -> None:
        """The ids of an activation that a node makes."""
        if name:
            self._spend(ids.size)
            self.blocks[name] = [Block(axes, ids)]

    def claim(self, name: str, axes: tuple[int, ...], ids: IntArray) -> None:
        """A rule reads these axes of a weight in step with `ids`."""
        if tuple(self.shapes[name][axis] for axis in axes) != ids.shape:
            raise ModelError(
                f"weight {name!r} of shape {self.shapes[name]} does not fit the "
                f"{'x'.join(map(str, ids.shape))} channels it is used on"
            )
        self.touched.update((name, axis) for axis in axes)
        for block in self.blocks.setdefault(name, []):
            if block.axes == axes:
                self.tie(block.ids, ids)
                return
            if set(block.axes) & set(axes):
                # Two readers see the weight's axes as different products: keep it whole.
                self.hold(block.ids, "read in two ways that do not fit")
                self.hold(ids, "read in two ways that do not fit")
                return
        self.blocks[name].append(Block(axes, ids))

    def claim_part(self, name: str, axes: tuple[int, ...], block: Block, own: list[int]) -> None:
        """As `claim`, of a weight that has only the axes `own` of a block of several.

        To slice it there, what lies along the other axes must be tied; whether `own` shrinks at all
        is known when every rule has spoken.
        """
        if len(own) == len(block.axes):
            self.claim(name, axes, block.ids)
        elif own:
            self._parts.append((name, axes, block, own))

    def made(self, node: str, name: str, axis: int, ids: IntArray) -> IntArray:
        """A weight axis that makes channels: claims it with new `ids`, or those of an earlier
        reader."""
        self.claim(name, (axis,), ids)
        self.producers.append(Producer(node, name, axis))
        # Where an earlier reader saw the axis jointly with others, `claim` held both.
        return next((block.ids for block in self.blocks[name] if block.axes == (axis,)), ids)

    def whole(self, name: str, reason: str, *, skip: Iterable[int] = ()) -> None:
        """Every axis of a weight is read as it is."""
        for axis, extent in enumerate(self.shapes.get(name, ())):
            if axis not in skip and extent > 1:
                for block in self.blocks.get(name, ()):
                    if axis in block.axes:
                        self.hold(block.ids, reason)
                        break
                else:
                    ids = self.fresh(1)
                    self.hold(ids, reason)
                    self.blocks.setdefault(name, []).append(
                        Block((axis,), np.broadcast_to(ids, (extent,)))
                    )

    def axis(self, name: str, axis: int, reason: str) -> IntArray:
        """The ids of one axis of an activation, held where only other axes are its channels.

        Where others are channels too, what lies along them is tied.
        """
        block = self.block(name)
        if block is not None and axis in block.axes:
            ids = self.only(block, (axis,)).ids
            if name in self.sized:
                self.hold(ids, "comes from a graph input or a fixed tensor")
            return ids
        if block is not None:
            self.hold(block.ids, reason)
        ids = self.fresh(self.shapes[name][axis])
        self.hold(
            ids, reason if block is not None else "comes from a graph input or a fixed tensor"
        )
        return ids

    def solve(self) -> tuple[IntArray, IntArray]:
        """Classes of equal ids, made rectangular.

        Returns:
            class of every id [count], and per class the index of the reason it is held for, or -1.
        """
        labels = _components(self.count, self._left, self._right)
        for name, axes, block, own in self._parts:
            varying = {block.axes[place] for place in varying_axes(labels[block.ids])}
            if varying & set(own):
                self.claim(name, axes, self.only(block, own).ids)
        labels = _components(self.count, self._left, self._right)
        while True:
            reasons = self._reasons(labels)
            size = len(self._left)
            for name, block in self.all_blocks():
                if block.ids.ndim > 1:
                    self._make_rectangular(name, block, labels, reasons)
            if len(self._left) == size:
                return labels, reasons
            labels = _components(self.count, self._left, self._right)

    def hold_at(self, index: int) -> Hold:
        """The hold of an index in `solve`'s reasons."""
        return self._holds[index]

    def all_blocks(self) -> Iterator[tuple[str, Block]]:
        for name, blocks in self.blocks.items():
            for block in blocks:
                yield name, block

    def _reasons(self, labels: IntArray) -> IntArray:
        class_count = int(labels.max()) + 1 if len(labels) else 0
        reasons = np.full(class_count, len(self._holds), dtype=np.int64)
        for index, hold in enumerate(self._holds):
            np.minimum.at(reasons, labels[hold.ids], index)
        reasons[reasons == len(self._holds)] = -1
        return reasons

    def _make_rectangular(
        self, name: str, block: Block, labels: IntArray, reasons: IntArray
    ) -> None:
        """Ties ids until dropping any unit leaves a box: only one axis of a joint block may shrink.

        A channel shuffle's [groups, channels / groups] so loses the same positions of every group.
        """
        classes = labels[block.ids]
        if (reasons[classes] >= 0).all():
            return
        varying = varying_axes(classes)
        if len(varying) <= 1:
            return
        free = max(varying, key=lambda axis: (classes.shape[axis], axis))
        for axis in varying:
            if axis != free:
                self.tie(block.ids, np.take(block.ids, [0], axis=axis))


def varying_axes(values: IntArray) -> list[int]:
    """Axes along which the array is not constant."""
    return [
        axis
        for axis in range(values.ndim)
        if values.shape[axis] > 1 and (values != np.take(values, [0], axis=axis)).any()
    ]


def _components(count: int, left: list[IntArray], right: list[IntArray]) -> IntArray:
    """Connected components, numbered by their smallest id: minimum hooking and pointer jumping."""
    label = np.arange(count, dtype=np.int64)
    if left:
        a, b = np.concatenate(left), np.concatenate(right)
        while True:
            la, lb = label[a], label[b]
            apart = la != lb
            if not apart.any():
                break
            a, b, la, lb = a[apart], b[apart], la[apart], lb[apart]
            np.minimum.at(label, np.maximum(la, lb), np.minimum(la, lb))
            while True:
                jumped = label[label]
                if (jumped == label).all():
                    break
                label = jumped
    return np.unique(label, return_inverse=True)[1].astype(np.int64).ravel()


@dataclass(frozen=True)
class ChannelMap:
    """For every axis of every tensor of a traced model, which unit of which group each position
    is."""

    shapes: Mapping[str, tuple[int, ...]]
    blocks: Mapping[str, tuple[Block, ...]]
    group_of: IntArray
    """Group of every id, -1 where held [ids]."""
    unit_of: IntArray
    """Unit within the group, -1 where held [ids]."""
    producers: tuple[Producer, ...]

    def axis_units(self, tensor: str, axis: int) -> tuple[IntArray, IntArray]:
        """Group and unit of every position of an axis, -1 where held.

        Raises:
            KeyError: no tensor of that name.
        """
        extent = self.shapes[tensor][axis]
        axis = axis % len(self.shapes[tensor])
        for block in self.blocks.get(tensor, ()):
            if axis in block.axes:
                group = self.group_of[block.ids]
                place = block.axes.index(axis)
                if block.ids.ndim > 1:
                    # A joint block shrinks along the one axis its units vary along.
                    unit = self.unit_of[block.ids]
                    if varying_axes(group * (self.unit_of.max(initial=0) + 2) + unit) != [place]:
                        break
                    index = tuple(slice(None) if k == place else 0 for k in range(block.ids.ndim))
                    return group[index], unit[index]
                return group, self.unit_of[block.ids]
        fixed = np.full(extent, -1, dtype=np.int64)
        return fixed, fixed
