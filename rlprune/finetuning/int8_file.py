"""The int8 file of a module that was trained, and how good it is where it will run.

Files are judged in ONNX Runtime, by the run's own objective and on its own validation data; the
module's float file beside it, so that only rounding lies between the two scores.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from rlprune.constraints import float_nodes
from rlprune.errors import MeasurementError, ModelError
from rlprune.finetuning.batches import Batch
from rlprune.finetuning.checkpoint import Accuracy
from rlprune.finetuning.objective import Objective
from rlprune.graph.from_torch import TorchTrace, trace_torch
from rlprune.graph.types import PruningGraph
from rlprune.precision import SCALED_COUNT, quantised
from rlprune.runtime import get_runtime
from rlprune.runtime.base import Array, Session
from rlprune.sensitivity.batching import open_batch, real_inputs
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.surgery.borders import with_own_borders


@dataclass(frozen=True, slots=True)
class Files:
    """One module as ONNX, with an open batch, in float and in int8."""

    in_float: onnx.ModelProto
    in_int8: onnx.ModelProto


@dataclass(frozen=True, slots=True)
class Judged:
    """A file's score, and what it is the mean of."""

    score: Accuracy
    each: NDArray[np.float64]
    """[samples] right (1) or wrong (0), where accuracy judges; else [batches] the metric, or minus
    the loss."""
    counts: NDArray[np.float64]
    """Samples behind each of them."""

    def lost_to(self, other: Judged) -> tuple[float, float]:
        """By how much the other is better, and the standard error of that.

        The same samples are behind both, so only those count on which they differ. Of one batch
        alone nothing is known, and the error is 0.
        """
        apart = other.each - self.each
        share = self.counts / self.counts.sum()
        lost = float((share * apart).sum())
        if len(apart) < 2:
            return lost, 0.0
        spread = float((share**2 * (apart - lost) ** 2).sum())
        return lost, float(np.sqrt(spread * len(apart) / (len(apart) - 1)))


class Int8Writer:
    """Exports and quantises one module, as often as its weights change."""

    def __init__(
        self,
        module: nn.Module,
        example: Any,
        trace: TorchTrace,
        samples: CalibrationSet,
        keep_float: Sequence[str],
    ) -> None:
        """Tries it, before the module is trained.

        Args:
            module: cut; it may be anywhere, and is not changed.
            example: what it is called with, a batch of one.
            trace: of the unpruned module, whose layers `keep_float` names by patterns.
            samples: from training data; scales are taken from the first of them.

        Raises:
            InputError: a pattern means no layer.
            ModelError: the module cannot be quantised, or its file answers otherwise.
        """
        self._example = example
        self._weights = _float_weights(trace.graph, keep_float)
        few = samples.take(np.arange(min(SCALED_COUNT, len(samples))))
        # Samples one by one, as whatever batch the file has takes them.
        names = [value.name for value in real_inputs(trace.onnx.model)]
        self._feeds = [dict(zip(names, one.arrays.values(), strict=True)) for one in few.batches(1)]
        model = self.files(module, sample_count=1).in_float
        answers, self._form = tree_flatten(_answers_of(module, example))
        self._places = [at for at, one in enumerate(answers) if isinstance(one, Tensor)]
        self._answers = answers
        self._alone = not _takes_batches(model, self._feeds[0])
        if len(self._places) != len(model.graph.output):
            raise ModelError(
                f"the module answers {len(self._places)} tensors and its ONNX file "
                f"{len(model.graph.output)}, so the int8 file cannot be judged; let the module "
                "answer each tensor once, or plan in f32"
            )

    @property
    def layers(self) -> frozenset[str]:
        """Names of the module's layers that stay in float."""
        return frozenset(name.rpartition(".")[0] for name in self._weights)

    def files(self, module: nn.Module, *, sample_count: int | None = None) -> Files:
        """Of the module as it is now.

        Args:
            sample_count: of those that scales are taken from, all where left out.
        """
        trace = trace_torch(copy.deepcopy(module).cpu(), self._example)
        pairs = _weights_of(trace.graph)
        kept = {node for node, tensor in pairs if node and tensor in self._weights}
        model = open_batch(with_own_borders(trace.onnx))
        feeds = self._feeds[:sample_count]
        return Files(model, quantised(model, feeds, keep_float=kept))

    def judge(
        self, model: onnx.ModelProto, batches: Iterable[Batch], objective: Objective
    ) -> Judged:
        """A file on samples, whose tensors are on the CPU."""
        names = [value.name for value in real_inputs(model)]
        loss = good = 0.0
        each: list[NDArray[np.float64]] = []
        counts: list[NDArray[np.float64]] = []
        with closing(get_runtime().load(model.SerializeToString())) as session:
            for batch in batches:
                outputs = self._run(session, _feeds(batch, names))
                mean = objective.plain(outputs, batch.targets).item()
                summed = objective.good(outputs, batch.targets, mean, batch.count)
                loss, good = loss + mean * batch.count, good + summed
                if objective.judged_by == "accuracy":
                    right = (outputs.argmax(1) == batch.targets).double().reshape(batch.count, -1)
                    each.append(right.mean(1).numpy())
                    counts.append(np.ones(batch.count))
                else:
                    each.append(np.array([summed / batch.count]))
                    counts.append(np.array([float(batch.count)]))
        count = sum(float(one.sum()) for one in counts)
        return Judged(
            Accuracy(loss / count, good / count), np.concatenate(each), np.concatenate(counts)
        )

    def _run(self, session: Session, feeds: Mapping[str, Array]) -> Any:
        """The answers, in the form that the module gives them."""
        rows = [feeds]
        if self._alone:
            count = len(next(iter(feeds.values())))
            rows = [{name: one[k : k + 1] for name, one in feeds.items()} for k in range(count)]
        runs = [[np.array(one) for one in session.run(row)] for row in rows]
        answers = list(self._answers)
        for place, found in zip(self._places, zip(*runs, strict=True), strict=True):
            answers[place] = torch.from_numpy(np.concatenate(found) if self._alone else found[0])
        return tree_unflatten(answers, self._form)


def _takes_batches(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> bool:
    """Whether a file answers to a sample fed twice with two rows: an export may hold extents of its
    example that no opening finds."""
    twice = {name: np.concatenate([one, one]) for name, one in feeds.items()}
    with closing(get_runtime().load(model.SerializeToString())) as session:
        try:
            return all(one.shape[:1] == (2,) for one in session.run(twice))
        except MeasurementError:
            return False


def _answers_of(module: nn.Module, example: Any) -> Any:
    """What a module answers to its example, in eval mode and on the CPU."""
    alone = copy.deepcopy(module).cpu().eval()
    with torch.no_grad():
        return Batch(example, None, 1).answers(alone)


def _feeds(batch: Batch, names: Sequence[str]) -> dict[str, Array]:
    tensors = [one.detach() for one in tree_leaves(batch.inputs) if isinstance(one, Tensor)]
    return {
        name: (one.float() if one.is_floating_point() else one).numpy()
        for name, one in zip(names, tensors, strict=True)
    }


def _float_weights(graph: PruningGraph, patterns: Sequence[str]) -> frozenset[str]:
    """Names of the weights of layers that stay in float: a module that was cut and exported again
    may name its nodes otherwise, but not its weights."""
    if not patterns:
        return frozenset()
    nodes = float_nodes(graph, patterns)
    return frozenset(tensor for node, tensor in _weights_of(graph) if node in nodes)


def _weights_of(graph: PruningGraph) -> Iterator[tuple[str, str]]:
    """Names of nodes and of the weights that they read."""
    yield from ((m.node, m.tensor) for group in graph.groups for m in group.members)
    yield from ((held.node, held.tensor) for held in graph.held)
