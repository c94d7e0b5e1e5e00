"""From classes of equal ids to groups: units that appear equally often in the same places."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlprune.graph.channels import ChannelMap, Channels, Hold, Producer
from rlprune.graph.normal import NormalModel
from rlprune.graph.types import Group, Held, IntArray, Member
from rlprune.graph.walk import Node


def group_units(
    normal: NormalModel, channels: Channels, order: Sequence[int]
) -> tuple[tuple[Group, ...], tuple[Held, ...], ChannelMap]:
    """Groups in order of their first producer, what is held and why, and the map from ids to units.

    `order` has the node indices in canonical order.
    """
    classes, reasons = channels.solve()
    count = len(reasons)
    rank = {normal.nodes[index].name: place for place, index in enumerate(order)}
    producers = sorted(channels.producers, key=lambda p: rank.get(p.node, len(rank)))
    born = _first_places(producers, channels, classes, count)
    signature = _signatures(channels, classes, count)

    free = (reasons < 0) & (born < np.iinfo(np.int64).max)
    group_of = np.full(count, -1, dtype=np.int64)
    unit_of = np.full(count, -1, dtype=np.int64)
    alone = np.zeros(count, dtype=bool)
    members_of: list[IntArray] = []
    candidates = np.flatnonzero(free)
    candidates = candidates[np.argsort(born[candidates], kind="stable")]
    _, first, which = np.unique(signature[candidates], return_index=True, return_inverse=True)
    for label in np.argsort(first, kind="stable"):
        units = candidates[which == label]
        if len(units) == 1:
            alone[units] = True
            continue
        group_of[units] = len(members_of)
        unit_of[units] = np.arange(len(units))
        members_of.append(units)

    empty = np.zeros(0, dtype=np.int64)
    known = ChannelMap(
        shapes=normal.shapes,
        blocks={name: tuple(blocks) for name, blocks in channels.blocks.items()},
        group_of=group_of[classes] if count else empty,
        unit_of=unit_of[classes] if count else empty,
        producers=tuple(producers),
    )
    widths = [len(units) for units in members_of]
    members = _members(normal, known, widths, order)
    names = _names(normal, known, producers, len(widths))
    groups = tuple(
        Group(name, width, tuple(own))
        for name, width, own in zip(names, widths, members, strict=True)
    )
    held = []
    nodes = {node.name: node for node in normal.nodes}
    lone = Hold(np.zeros(0, dtype=np.int64), "a single unit")
    for producer in producers:
        ids = _producer_ids(channels, producer)
        own = classes[ids]
        kept = own[group_of[own] < 0]
        if len(kept):
            given = reasons[kept][reasons[kept] >= 0]
            by = channels.hold_at(int(given.min())) if len(given) else lone
            layer = layer_name(nodes[producer.node], producer.tensor)
            held.append(Held(producer.node, producer.tensor, len(kept), by.reason, layer, by.node))
    for note in channels.notes:
        layer = layer_name(nodes[note.node], note.tensor)
        held.append(Held(note.node, note.tensor, note.width, note.reason, layer, note.node))
    held.sort(key=lambda item: rank.get(item.node, len(rank)))
    return groups, tuple(held), known


def _producer_ids(channels: Channels, producer: Producer) -> IntArray:
    return next(
        block.ids.ravel()
        for block in channels.blocks[producer.tensor]
        if producer.axis in block.axes
    )


def _first_places(
    producers: Sequence[Producer], channels: Channels, classes: IntArray, count: int
) -> IntArray:
    """Where each class is first produced, counted through all producing axes in order."""
    born = np.full(count, np.iinfo(np.int64).max, dtype=np.int64)
    offset = 0
    for producer in producers:
        own = classes[_producer_ids(channels, producer)]
        np.minimum.at(born, own, offset + np.arange(len(own)))
        offset += len(own)
    return born


def _signatures(channels: Channels, classes: IntArray, count: int) -> NDArray[np.uint64]:
    """A hash per class of how often it appears on which axes; equal for exchangeable units."""
    signature = np.zeros(count, dtype=np.uint64)
    seen: set[int] = set()
    for name, block in channels.all_blocks():
        if id(block.ids) in seen and name not in channels.weights:
            continue
        seen.add(id(block.ids))
        present, often = np.unique(classes[block.ids.ravel()], return_counts=True)
        signature[present] += _mix(len(seen)) * _scramble(often.astype(np.uint64))
    return signature


def _mix(value: int) -> np.uint64:
    """splitmix64's step: a well-spread odd number for every place."""
    mask = (1 << 64) - 1
    z = (value * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return np.uint64(z | 1)


def _scramble(often: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """So that twice here does not look like once here and once there."""
    return often * (often + np.uint64(0x9E3779B97F4A7C15))


def _members(
    normal: NormalModel, known: ChannelMap, widths: Sequence[int], order: Sequence[int]
) -> list[list[Member]]:
    members: list[list[Member]] = [[] for _ in widths]
    done: set[str] = set()
    made = {(producer.tensor, producer.axis) for producer in known.producers}
    makers = {tensor for tensor, _ in made}
    for index in order:
        node = normal.nodes[index]
        for tensor in node.inputs:
            if tensor in done or tensor not in normal.weights:
                continue
            done.add(tensor)
            axes = sorted(a for block in known.blocks.get(tensor, ()) for a in block.axes)
            layer = layer_name(node, tensor)
            for axis in axes:
                group, _ = known.axis_units(tensor, axis)
                # What makes channels reads others; biases, norms and depthwise kernels carry them.
                reads = tensor in makers and (tensor, axis) not in made
                for g, often in zip(*np.unique(group[group >= 0], return_counts=True), strict=True):
                    repeat = int(often) // widths[g]
                    members[g].append(Member(node.name, tensor, axis, repeat, layer, reads))
    return members


def _names(
    normal: NormalModel, known: ChannelMap, producers: Sequence[Producer], count: int
) -> list[str]:
    """The layer that first makes each group; numbered where one layer makes several."""
    nodes = {node.name: node for node in normal.nodes}
    names = [""] * count
    for producer in producers:
        group, _ = known.axis_units(producer.tensor, producer.axis)
        for g in np.unique(group[group >= 0]):
            names[g] = names[g] or layer_name(nodes[producer.node], producer.tensor)
    taken: Counter[str] = Counter()
    for place, name in enumerate(names):
        taken[name] += 1
        if taken[name] > 1:
            names[place] = f"{name}:{taken[name]}"
    return names


def layer_name(node: Node, tensor: str) -> str:
    """The module path of a layer: from its weight's name, its node's, or the exporter's notes."""
    found = re.match(r"^([A-Za-z_][\w.]*?)[._](in_proj_)?weight([^A-Za-z].*)?$", tensor)
    if found:
        return found[1]
    if node.name.startswith("/"):
        path: list[str] = []
        for part in node.name.strip("/").split("/")[:-1]:
            # The older exporter repeats the path: /layer1/layer1.0/conv1/Conv.
            if path and part.startswith(path[-1] + "."):
                path.pop()
            path.append(part)
        if path:
            return ".".join(path)
    return node.scope or node.name
