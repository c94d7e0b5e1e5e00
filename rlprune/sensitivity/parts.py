"""A network run in parts, between which layers not yet run may change.

Layers that are solved one after the other, each for what it reads once those before it are solved,
would have a network run from its inputs as often as there are layers. Here a part ends where the
next layers are to be solved, and what later parts read of it is kept, so that all parts together
are one run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from rlprune.graph.bodies import reads_of
from rlprune.runtime.base import Array, Runtime
from rlprune.sensitivity.batching import does_not_run
from rlprune.sensitivity.layers import LayerChange
from rlprune.sensitivity.reconstruct import with_layers


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a part ends."""

    wanted: Sequence[str]
    """Tensors that are looked at there."""
    changing: AbstractSet[str]
    """Outputs of the layers that change there or later: what depends on one is run again."""


@dataclass(frozen=True, slots=True)
class _Part:
    nodes: Sequence[NodeProto]
    """In the file's order."""
    answers: Sequence[str]
    """What they compute that is wanted now, or read later."""
    kept: AbstractSet[str]
    """What is kept once they have run, of this part's and of those before."""


class PartwiseRun:
    """One network on one list of batches, run part by part, each part once and in order."""

    def __init__(
        self,
        model: ModelProto,
        stages: Sequence[Stage],
        feeds: Sequence[Mapping[str, Array]],
        runtime: Runtime,
    ) -> None:
        """`model`: prepared to take `feeds`, one for each batch, with only what stages ask for."""
        self._model = model
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._parts = _parts(model, stages, self._constants)
        self._stages = stages
        self._kept = [dict(one) for one in feeds]
        self._runtime = runtime
        self._next = 0

    def run(
        self, stage: int, changes: Mapping[str, LayerChange]
    ) -> Iterator[tuple[int, dict[str, Array]]]:
        """By batch its number and what the tensors that `stage` wants hold, with layers as in
        `changes`; parts before it that were not asked for are run, too.

        Raises:
            CalibrationError: it does not run, with what the runtime says.
        """
        while self._next < stage:
            for _ in self._run(changes):
                pass
        yield from self._run(changes)

    def _run(self, changes: Mapping[str, LayerChange]) -> Iterator[tuple[int, dict[str, Array]]]:
        part, wanted = self._parts[self._next], self._stages[self._next].wanted
        self._next += 1
        if not part.nodes:
            for number, known in enumerate(self._kept):
                yield number, {name: known[name] for name in wanted}
                self._drop(number, part, known)
            return
        model = with_layers(self._cut_out(part), changes)
        names = [value.name for value in model.graph.input]
        with does_not_run(), closing(self._runtime.load(model.SerializeToString())) as session:
            for number, before in enumerate(self._kept):
                answers = session.run({name: before[name] for name in names})
                known = before | dict(zip(part.answers, answers, strict=True))
                yield number, {name: known[name] for name in wanted}
                for name in part.kept & set(part.answers):
                    known[name] = np.array(known[name])  # the session may write over its own
                self._drop(number, part, known)

    def _drop(self, number: int, part: _Part, known: Mapping[str, Array]) -> None:
        self._kept[number] = {name: value for name, value in known.items() if name in part.kept}

    def _cut_out(self, part: _Part) -> ModelProto:
        """A model of the part's nodes alone, that is fed what was kept."""
        made = ModelProto()
        made.CopyFrom(self._around)
        made.graph.node.extend(part.nodes)
        computed = {name for node in part.nodes for name in node.output}
        read = dict.fromkeys(name for node in part.nodes for name in reads_of(node))
        for name in read:
            if name in self._constants:
                made.graph.initializer.append(self._constants[name])
            elif name not in computed:
                made.graph.input.append(self._fed(name))
        for name in part.answers:
            made.graph.output.add(name=name)
        return made

    def _fed(self, name: str) -> ValueInfoProto:
        """An input of what was kept; extents that differ between batches are left open."""
        values = [np.asarray(known[name]) for known in self._kept]
        kind = helper.np_dtype_to_tensor_dtype(values[0].dtype)
        extents = [
            extent if all(value.shape[axis] == extent for value in values) else None
            for axis, extent in enumerate(values[0].shape)
        ]
        return helper.make_tensor_value_info(name, kind, extents)

    @property
    def _around(self) -> ModelProto:
        """The model without its graph."""
        made = ModelProto(ir_version=self._model.ir_version)
        made.opset_import.extend(self._model.opset_import)
        made.functions.extend(self._model.functions)
        made.graph.name = self._model.graph.name
        return made


def most_kept(
    model: ModelProto, stages: Sequence[Stage], shapes: Mapping[str, Sequence[int]]
) -> int:
    """Numbers that are kept of one sample between two parts, at most."""
    constants = {tensor.name for tensor in model.graph.initializer}
    parts = _parts(model, stages, constants)
    sizes = [
        sum(int(np.prod(shapes.get(name, ()), dtype=np.int64)) for name in part.kept)
        for part in parts
    ]
    return max(sizes, default=0)


def _parts(
    model: ModelProto, stages: Sequence[Stage], constants: AbstractSet[str] | Mapping[str, object]
) -> list[_Part]:
    nodes = list(model.graph.node)
    reads = [[name for name in reads_of(node) if name not in constants] for node in nodes]
    done = [False] * len(nodes)
    fixed: set[str] = set()  # computed from constants alone: cheap, and so in every part anew
    for number, node in enumerate(nodes):
        if fixed.issuperset(reads[number]):
            fixed.update(node.output)
    made = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    kept = {value.name for value in model.graph.input if value.name not in constants}
    found = []
    for index, stage in enumerate(stages):
        needed: set[int] = set()
        asked = [name for name in stage.wanted if name not in kept]
        while asked:
            number = made[asked.pop()]
            if number not in needed:
                needed.add(number)
                asked.extend(name for name in reads[number] if name not in kept)
        order = sorted(needed)
        open_names = set(stage.changing)
        for number in order:
            if open_names.intersection(reads[number]):
                open_names.update(nodes[number].output)
        for number in order:
            done[number] = not open_names.intersection(nodes[number].output)
        later = {name for other in stages[index + 1 :] for name in other.wanted}
        for number, own in enumerate(reads):
            if not done[number]:
                later.update(own)
        computed = [name for number in order for name in nodes[number].output if name]
        lasting = {
            name for number in order if done[number] for name in nodes[number].output
        } - fixed
        answers = [
            name for name in computed if name in stage.wanted or (name in later and name in lasting)
        ]
        kept = (kept | lasting) & later
        found.append(_Part([nodes[number] for number in order], answers, frozenset(kept)))
    return found
