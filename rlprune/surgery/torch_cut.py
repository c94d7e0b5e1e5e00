"""Which positions of a torch module's tensors stay, and where their content comes from.

A plan counts; which units survive is decided by weights. So that a plan applied again, to other
weights, gives a module of the very same form (padding counts, split sizes, index lists), the form
is that of a cut which keeps evenly spaced units, whatever the weights are; the units that do
survive then take those units' places, in order. That is sound because the units of a group are
exchangeable, and every result is checked (surgery.torch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from rlprune.graph.channels import ChannelMap
from rlprune.graph.from_torch import Place, TorchTrace
from rlprune.graph.torch_call import named_tensors
from rlprune.graph.types import IntArray
from rlprune.surgery.removal import Window, kept_mask


def form_units(widths: IntArray, keeps: IntArray) -> list[IntArray]:
    """The units whose places stay: `keeps[g]` of `widths[g]`, evenly spaced."""
    return [
        ((2 * np.arange(keep, dtype=np.int64) + 1) * width // (2 * keep)).astype(np.int64)
        for width, keep in zip(widths.tolist(), keeps.tolist(), strict=True)
    ]


def kept_positions(
    channels: ChannelMap, tensor: str, axis: int, size: int, kept: Sequence[IntArray]
) -> IntArray:
    """Positions of an axis of length `size` that stay when group g keeps the units `kept[g]`.

    Ascending; held positions, and those of a tensor that the trace does not know, all stay.
    """
    try:
        group, unit = channels.axis_units(tensor, axis)
    except KeyError:
        return np.arange(size, dtype=np.int64)
    return np.flatnonzero(kept_mask(group, unit, kept)).astype(np.int64)


def _is_whole(place: Place) -> bool:
    """Whether a place is the weight itself, as the module lays it out."""
    return place.axes == tuple(range(len(place.axes))) and not any(place.starts)


class Cut:
    """Which positions of every named parameter and buffer stay, and what stands there after."""

    def __init__(
        self,
        trace: TorchTrace,
        survivors: Sequence[IntArray],
        windows: Mapping[str, Window] = MappingProxyType({}),
    ) -> None:
        """`survivors[g]` are the units of group g that live on, ascending; `windows` as in
        `Removal`."""
        self.channels = trace.onnx.channels
        self.survivors = survivors
        self.widths = trace.graph.widths
        keeps = np.array([len(units) for units in survivors], dtype=np.int64)
        self.form = form_units(trace.graph.widths, keeps)
        places: dict[str, tuple[Place, ...]] = {
            name: (Place(name, tuple(range(8)), (0,) * 8),) for name in trace.onnx.normal.weights
        }
        places |= trace.moved
        # The exporter gives a shared tensor one of its names.
        shared = {id(t): places[name] for name, t in named_tensors(trace.module) if name in places}
        self._places = {
            name: shared[id(tensor)]
            for name, tensor in named_tensors(trace.module)
            if id(tensor) in shared
        }
        self.windowed = {
            name: place.tensor
            for name, (place, *more) in self._places.items()
            if place.tensor in windows and not more and _is_whole(place)
        }
        """By name the weights of convolutions that lose taps, as the trace calls them."""
        self.windows = windows
        nodes = [n for n in trace.onnx.model.graph.node if n.op_type in ("Conv", "ConvTranspose")]
        self._data = {
            node.input[1]: node.input[0] if node.op_type == "Conv" else node.output[0]
            for node in nodes
        }

    def units(self, name: str, axis: int, size: int) -> tuple[IntArray, IntArray]:
        """Group and unit of every position of that axis; -1 where held or not known."""
        group = np.full(size, -1, dtype=np.int64)
        unit = np.full(size, -1, dtype=np.int64)
        for place in self._places.get(name, ()):
            if axis >= len(place.axes) or place.axes[axis] < 0:
                continue
            try:
                g, u = self.channels.axis_units(place.tensor, place.axes[axis])
            except KeyError:
                continue
            start = place.starts[axis]  # below 0 where the place is longer, as keys with values
            low, high = max(start, 0), min(start + len(g), size)
            if low < high:
                group[low:high], unit[low:high] = (
                    g[low - start : high - start],
                    u[low - start : high - start],
                )
        return group, unit

    def stay(self, group: IntArray, unit: IntArray) -> IntArray:
        """Positions that stay in form of an axis with these groups and units, ascending."""
        return np.flatnonzero(kept_mask(group, unit, self.form)).astype(np.int64)

    def alive(self, name: str, axis: int, size: int) -> IntArray:
        """Positions of the survivors and of what is held, ascending."""
        group, unit = self.units(name, axis, size)
        return np.flatnonzero(kept_mask(group, unit, self.survivors)).astype(np.int64)

    def sources(self, name: str, axis: int, size: int) -> IntArray:
        """For every position of the axis after the cut, the position it is filled from."""
        group, unit = self.units(name, axis, size)
        source = np.arange(size, dtype=np.int64)
        for index in np.unique(group[group >= 0]):
            places = np.flatnonzero(group == index)
            order = places[np.argsort(unit[places], kind="stable")]
            table = order.reshape(self.widths[index], -1)  # [units, occurrences], both ascending
            source[table[self.form[index]]] = table[self.survivors[index]]
        return source[kept_mask(group, unit, self.form)]

    def tensor(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of it, in its memory format."""
        small = tensor.detach()
        for axis, size in enumerate(tensor.shape):
            source = self.sources(name, axis, size)
            if len(source) < size:
                small = small.index_select(axis, torch.from_numpy(source).to(small.device))
        for axis, (first, count) in enumerate(self.windows.get(self.windowed.get(name, ""), ())):
            small = small.narrow(2 + axis, first, count)
        small = small.contiguous() if name in self.windowed else small
        if tensor.dim() == 4 and not tensor.is_contiguous():
            small = small.contiguous(memory_format=torch.channels_last)
        return small.clone()

    def places(self, name: str) -> tuple[Place, ...]:
        """Where the trace has a tensor; nowhere where it does not know it."""
        return self._places.get(name, ())

    def wide_side(self, name: str, size: int) -> int:
        """Channels that stay on the side of a grouped convolution its weight lists per group."""
        for place in self._places.get(name, ()):
            if place.tensor in self._data:
                data = self._data[place.tensor]
                return len(kept_positions(self.channels, data, 1, size, self.form))
        return size
