"""What a plan loses on a calibration set after it was corrected, without torch.

A plan is applied by surgery, then corrected: its layers are reconstructed from the channels that
stay (`reconstruct`), or it is left as it was cut. The network so corrected is a plain ONNX file and
can be judged on other inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from rlprune.constraints import float_nodes
from rlprune.errors import CalibrationError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import FloatArray, IntArray, PruningGraph
from rlprune.precision import SCALED_COUNT, quantised
from rlprune.runtime.base import Array, Runtime
from rlprune.schemes import CHANNEL_ONLY, cut_kernels, removal_of
from rlprune.sensitivity.batching import Batching
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.divergence import (
    Judged,
    agreement,
    arranged,
    channel_spread,
    divergence,
    judged_outputs,
    labelled,
    log_softmax,
    with_channels,
)
from rlprune.sensitivity.reconstruct import Reconstruction, with_layers
from rlprune.sensitivity.refine import DenseRows, refine
from rlprune.sensitivity.types import FOLD_COUNT
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import cut

MAX_BATCH_VALUES = 1 << 22
"""Values of the widest activation in one batch (16 MiB). Larger batches were slower on ResNet-20:
they then no longer fit the cache."""
MAX_ANSWERS = 1 << 22
"""Values of all answers that are kept to compare with; of larger answers some positions stand for
all. A recogniser with 6,625 letters spent as long on comparing as on running with 16 times more."""
AGAIN_COUNT = 128
"""Samples that layers are solved a second time on, where many plans are evaluated."""
MIN_POSITIONS = 8
"""Of one sample's answer, however many samples there are."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a network loses on one calibration set."""

    loss: float
    """Mean cross-entropy, nats; NaN without labels."""
    loss_se: float
    """Its standard error over samples."""
    accuracy: float
    """Share (0-1) of the samples whose top class is right; NaN without labels."""
    fold_losses: FloatArray
    """Mean cross-entropy on each of `FOLD_COUNT` disjoint folds."""
    image_losses: FloatArray = field(default_factory=lambda: np.zeros(0))
    """Cross-entropy of every sample [N], so that two plans can be compared sample by sample; empty
    where it was not kept."""
    fold_divergences: FloatArray = field(default_factory=lambda: np.zeros(FOLD_COUNT))
    """Mean divergence from the unpruned network's answers on each fold, nats (`divergence`): what a
    plan changes, whatever the labels say, and free of most of their noise."""
    image_divergences: FloatArray = field(default_factory=lambda: np.zeros(0))
    """That of every sample [N]; empty where it was not kept."""
    agreement: float = float("nan")
    """Share (0-1) of what is decided as by the unpruned network: top classes, yes or no; NaN where
    answers are values."""

    @property
    def divergence(self) -> float:
        """Mean over the folds, nats."""
        return float(self.fold_divergences.mean())

    @staticmethod
    def of(
        losses: FloatArray,
        divergences: FloatArray,
        accuracy: float,
        agreement: float = float("nan"),
    ) -> Evaluation:
        """From what every sample says, [N] each."""
        return Evaluation(
            loss=float(losses.mean()),
            loss_se=float(losses.std(ddof=1) / np.sqrt(len(losses)))
            if len(losses) > 1
            else float("nan"),
            accuracy=accuracy,
            fold_losses=_fold_means(losses),
            image_losses=losses,
            fold_divergences=_fold_means(divergences),
            image_divergences=divergences,
            agreement=agreement,
        )

    def merged_with(self, further: Evaluation) -> Evaluation:
        """This on its samples and `further` on others, as one."""
        own, others = len(self.image_losses), len(further.image_losses)

        def mean(one: float, other: float) -> float:
            return (one * own + other * others) / (own + others)

        return Evaluation.of(
            np.concatenate([self.image_losses, further.image_losses]),
            np.concatenate([self.image_divergences, further.image_divergences]),
            mean(self.accuracy, further.accuracy),
            mean(self.agreement, further.agreement),
        )


class Evaluator:
    """Evaluates plans of one traced model on one calibration set. Used by one thread at a time."""

    def __init__(
        self,
        trace: OnnxTrace,
        calibration: CalibrationSet,
        *,
        runtime: Runtime,
        scores: list[FloatArray] | None = None,
        reconstruct: bool = True,
        reconstruction: Reconstruction | None = None,
        schemes: Sequence[str] = CHANNEL_ONLY,
        int8: bool = False,
        keep_float: Sequence[str] = (),
        again_on: CalibrationSet | None = None,
    ) -> None:
        """Runs the unpruned model, to know its answers and what its layers read.

        Args:
            scores: importance per group and unit, as `prune_onnx` takes it.
            reconstruct: whether a plan's network is reconstructed after the cut.
            reconstruction: from other samples than plans are judged on; of these if None.
            schemes: whose options plans take.
            int8: whether a corrected network is quantised before it is evaluated, as it will run.
            keep_float: patterns of layers that then stay in float.
            again_on: samples that layers are solved a second time on; if None, `AGAIN_COUNT` drawn
                from those that plans are judged on.

        Raises:
            CalibrationError: the model cannot be run on the samples, or overflows on them.
        """
        self.trace = trace
        self.calibration = calibration
        self._runtime = runtime
        self._scores = unit_scores(trace) if scores is None else scores
        judged = judged_outputs(trace.model, calibration.outputs)
        if calibration.y is not None:
            judged = labelled(judged)
        wanted = [one.tensor for one in judged]
        self._batching = Batching.find(trace, calibration, runtime, wanted)
        self._batch_values = _batch_values(trace.graph, self._batching)
        self._judge = _Judge.of(judged, list(self._run(trace.model, calibration, judged)))
        self._dense = DenseRows()
        self._again_on = again_on
        self._reconstruction: Reconstruction | None = None
        if reconstruct:
            self._reconstruction = reconstruction or Reconstruction.of(
                trace, calibration, runtime, cut_kernels(trace, schemes)
            )
        self._int8 = int8
        self._keep_float = float_nodes(trace.graph, keep_float)
        self.base = self._judge.same(calibration.y)
        """The unpruned model's evaluation."""

    def top_classes(self) -> IntArray | None:
        """What the unpruned model chooses for every sample [N]; None where it is not one choice
        between classes."""
        return self._judge.top_classes()

    def evaluate(self, settings: IntArray, schemes: Sequence[str] = CHANNEL_ONLY) -> Evaluation:
        """The plan's loss after correction; settings [S] of the schemes' sites."""
        return self.evaluate_model(self.as_run(self.corrected_model(settings, schemes)))

    def evaluate_part(
        self, settings: IntArray, start: int, stop: int, schemes: Sequence[str] = CHANNEL_ONLY
    ) -> Evaluation:
        """The same by samples `start` to `stop` alone, corrected as for all."""
        made = self.as_run(self.corrected_model(settings, schemes))
        return self.evaluate_model(made, start, stop)

    def as_run(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A corrected model as it is evaluated: itself, or quantised with scales from the first of
        these samples."""
        if not self._int8:
            return model
        few = self.calibration.take(np.arange(min(SCALED_COUNT, len(self.calibration))))
        feeds = (self._batching.feeds(batch) for batch in few.batches(self._batch_values))
        asked = [one.tensor for one in self._judge.judged]
        return quantised(self._batching.prepare(model, asked), feeds, keep_float=self._keep_float)

    def evaluate_model(
        self, model: onnx.ModelProto, start: int = 0, stop: int | None = None
    ) -> Evaluation:
        """A model cut from the traced one as it stands, by samples `start` to `stop`."""
        stop = len(self.calibration) if stop is None else stop
        samples = self.calibration
        if (start, stop) != (0, len(samples)):
            samples = samples.take(np.arange(start, stop))
        answers = self._run(model, samples, self._judge.judged)
        return self._judge.score(answers, samples.y, start, stop)

    def corrected_model(
        self, settings: IntArray, schemes: Sequence[str] = CHANNEL_ONLY, *, again: bool = False
    ) -> onnx.ModelProto:
        """The pruned model with the correction in its weights and biases: a plain ONNX file.

        Args:
            again: whether its layers are solved a second time (`sensitivity.refine`), as a plan is
                carried out.
        """
        removal = removal_of(self.trace, settings, schemes, scores=self._scores)
        pruned = cut(self.trace, removal)
        found = self._reconstruction
        if found is None:
            return pruned
        if not again:
            return found.apply(pruned, removal)
        if self._again_on is None:
            self._again_on, _ = self.calibration.split(min(len(self.calibration), AGAIN_COUNT))
        on = self._again_on
        given = (self.trace, pruned, removal, found, on, self._runtime)
        return with_layers(pruned, refine(*given, dense=self._dense, restored=on.made_up))

    def unexplained(self, settings: IntArray, schemes: Sequence[str] = CHANNEL_ONLY) -> float:
        """Share (0-1) of the variance of a layer's output that least squares cannot restore under a
        plan, in the layer that loses most; known without evaluating the plan.

        Raises:
            ValueError: layers are not reconstructed.
        """
        if self._reconstruction is None:
            raise ValueError("this evaluator does not reconstruct")
        removal = removal_of(self.trace, settings, schemes, scores=self._scores)
        return self._reconstruction.unexplained(removal)

    def _run(
        self, model: onnx.ModelProto, samples: CalibrationSet, judged: Sequence[Judged]
    ) -> Iterator[tuple[IntArray, list[Array]]]:
        """Places in the set [n] and every judged answer [n, ...], batch by batch."""
        names = [one.tensor for one in judged]
        batches = samples.batches(self._batch_values)
        for batch, values in self._batching.run(self._runtime, model, names, batches):
            yield batch.index, self._batching.apart([values[name] for name in names])


@dataclass(frozen=True)
class _Judge:
    """The unpruned network's answers, with which others are compared."""

    judged: tuple[Judged, ...]
    dense: Sequence[Sequence[Array]]
    """By sample and judged tensor, [P, C]: of many positions a fixed draw."""
    spreads: Sequence[FloatArray]
    """By judged tensor, of its channels [C]."""
    positions: int
    """Kept of each answer, at most."""

    @staticmethod
    def of(judged: Sequence[Judged], answers: Sequence[tuple[IntArray, Sequence[Array]]]) -> _Judge:
        """Of all samples' answers [n, ...].

        Raises:
            CalibrationError: they are not finite.
        """
        found = tuple(
            with_channels(one, [answer[k] for _, answer in answers]) for k, one in enumerate(judged)
        )
        for _, batch in answers:
            for one, answer in zip(found, batch, strict=True):
                kinds = np.asarray(answer, dtype=np.float64)
                # A class may be masked by -inf.
                if np.isnan(kinds).any() or (kinds == np.inf).any():
                    raise CalibrationError(
                        f"the unpruned model answers with NaN or infinite values ({one.output!r}) "
                        "on these inputs; give them as the model takes them"
                    )
        count = sum(len(index) for index, _ in answers)
        widest = sum(
            arranged(answer, one).shape[2] for one, answer in zip(found, answers[0][1], strict=True)
        )
        positions = max(MIN_POSITIONS, MAX_ANSWERS // max(1, count * widest))
        dense: list[list[Array]] = [[] for _ in range(count)]
        for index, batch in answers:
            kept = [
                _drawn(arranged(answer, one), positions)
                for one, answer in zip(found, batch, strict=True)
            ]
            for row, place in enumerate(index):
                dense[place] = [answer[row] for answer in kept]
        spreads = [
            channel_spread([own[k] for own in dense]) if one.kind == "values" else np.ones(1)
            for k, one in enumerate(found)
        ]
        return _Judge(found, dense, spreads, positions)

    def top_classes(self) -> IntArray | None:
        """Of every sample [N], by the first answer alone."""
        if self.judged[0].kind != "logits" or any(len(own[0]) != 1 for own in self.dense):
            return None
        return np.array([int(own[0].argmax()) for own in self.dense])

    def same(self, y: IntArray | None) -> Evaluation:
        """The unpruned network's own evaluation."""
        count = len(self.dense)
        losses, right = np.full(count, np.nan), np.full(count, np.nan)
        if y is not None:
            logits = self._logits(np.stack([own[0] for own in self.dense]))
            losses, right = _cross_entropy(logits, y)
        return Evaluation.of(losses, np.zeros(count), float(right.mean()), 1.0)

    def score(
        self,
        answers: Iterator[tuple[IntArray, list[Array]]],
        y: IntArray | None,
        start: int,
        stop: int,
    ) -> Evaluation:
        """Answers of samples `start` to `stop`, whose places count from `start`."""
        count = stop - start
        losses, right = np.full(count, np.nan), np.full(count, np.nan)
        diverge, agree = np.zeros(count), np.full(count, np.nan)
        for index, batch in answers:
            parts, shares = [], []
            for k, (one, answer, spread) in enumerate(
                zip(self.judged, batch, self.spreads, strict=True)
            ):
                own = _drawn(arranged(answer, one), self.positions)
                dense = np.stack([self.dense[start + place][k] for place in index])
                if own.shape != dense.shape:
                    raise CalibrationError(
                        f"output {one.output!r} is of another size once the model is pruned; "
                        "judge it by other outputs (output)",
                        field="output",
                    )
                parts.append(divergence(one, dense, own, spread))
                share = agreement(one, dense, own)
                if share is not None:
                    shares.append(share)
                if k == 0 and y is not None:
                    losses[index], right[index] = _cross_entropy(self._logits(own), y[index])
            diverge[index] = np.mean(parts, 0)
            if shares:
                agree[index] = np.mean(shares, 0)
        return Evaluation.of(losses, diverge, float(right.mean()), float(agree.mean()))

    def _logits(self, answer: Array) -> FloatArray:
        """The first answer [n, 1, C] as logits [n, C]."""
        if self.judged[0].kind != "logits" or answer.shape[1] != 1 or answer.shape[2] < 2:
            raise CalibrationError(
                f"labels go with logits [N, classes]; output {self.judged[0].output!r} answers "
                f"{list(answer.shape[1:])} for each sample: leave y out"
            )
        return np.asarray(answer[:, 0], dtype=np.float64)


def _cross_entropy(logits: FloatArray, y: IntArray) -> tuple[FloatArray, FloatArray]:
    """Of each sample, and whether its top class is right (1 or 0) [n]."""
    own = log_softmax(logits)
    right = np.asarray(logits.argmax(1) == y, dtype=np.float64)
    return -own[np.arange(len(y)), y], right


def _fold_means(values: FloatArray) -> FloatArray:
    """[FOLD_COUNT]; of fewer samples than folds, their mean stands for what has none."""
    folds = [values[fold::FOLD_COUNT] for fold in range(FOLD_COUNT)]
    return np.array([fold.mean() if len(fold) else values.mean() for fold in folds])


def _drawn(answer: Array, most: int) -> Array:
    """At most so many positions of an answer [n, P, C], the same ones whoever answers."""
    count = answer.shape[1]
    if count > most:
        answer = answer[:, np.sort(np.random.default_rng(count).choice(count, most, replace=False))]
    kind = np.float32 if answer.dtype.kind == "f" else answer.dtype
    return np.asarray(answer, dtype=kind)


def _batch_values(graph: PruningGraph, batching: Batching) -> int:
    """Input values that go in one batch, so that the widest activation fits the cache."""
    if batching.answer_axes is None:
        return 1
    widest = max(
        (
            int(op.out_width.at(graph.widths)) * int(np.prod(op.out_spatial, dtype=np.int64))
            for op in graph.operators
        ),
        default=1,
    )
    each = sum(int(np.prod(shape, dtype=np.int64)) for shape in graph.input_shapes)
    return max(1, MAX_BATCH_VALUES // max(widest, 1)) * each
