"""What a plan loses on calibration images after it was corrected, without torch.

A plan is applied by surgery, then corrected: its layers are reconstructed from the channels that
stay (`reconstruct`), or their outputs are matched to the dense network's statistics on the same
images (`statistics`), or it is left as it was cut. The network so corrected is a plain ONNX file
and can be judged on other images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import onnx

from rlprune.errors import CalibrationError, MeasurementError
from rlprune.graph.types import FloatArray, IntArray, PruningGraph
from rlprune.profile import statistics
from rlprune.profile.calibration import Calibration
from rlprune.profile.reconstruct import Reconstruction
from rlprune.profile.statistics import Moments
from rlprune.profile.types import FOLD_COUNT
from rlprune.runtime.base import Array, Runtime
from rlprune.surgery.importance import unit_scores
from rlprune.surgery.onnx import check_keeps, cut, kept_mask, kept_units

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace

Correction = Literal["reconstruct", "match", "none"]

MOST_BATCH_VALUES = 1 << 22
"""Values of the widest activation in one batch (16 MiB). Larger batches were slower on ResNet-20:
the passes of the correction then no longer find their data in the cache."""

LEAST_BATCH = 64
"""Fewer images than this have no statistics worth matching."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a network loses on one set of images."""

    loss: float
    """Mean cross-entropy, nats."""
    loss_se: float
    """Its standard error over images."""
    accuracy: float
    """Share (0-1) of the images whose top class is right."""
    fold_losses: FloatArray
    """Mean cross-entropy on each of `FOLD_COUNT` disjoint folds."""
    image_losses: FloatArray = field(default_factory=lambda: np.zeros(0))
    """Cross-entropy of every image [N], so that two plans can be compared image by image; empty
    where it was not kept."""
    fold_divergences: FloatArray = field(default_factory=lambda: np.zeros(FOLD_COUNT))
    """Mean divergence KL(unpruned || this) of the answers on each fold, nats: what a plan changes,
    whatever the labels say, and free of most of their noise."""
    image_divergences: FloatArray = field(default_factory=lambda: np.zeros(0))
    """That of every image [N]; empty where it was not kept."""

    @property
    def divergence(self) -> float:
        """Mean over the folds, nats."""
        return float(self.fold_divergences.mean())

    @staticmethod
    def of(losses: FloatArray, divergences: FloatArray, accuracy: float) -> Evaluation:
        """From what every image says, [N] each."""
        return Evaluation(
            loss=float(losses.mean()),
            loss_se=float(losses.std(ddof=1) / np.sqrt(len(losses))),
            accuracy=accuracy,
            fold_losses=_fold_means(losses),
            image_losses=losses,
            fold_divergences=_fold_means(divergences),
            image_divergences=divergences,
        )

    def then(self, further: Evaluation) -> Evaluation:
        """This on its images and `further` on others, as one."""
        own, others = len(self.image_losses), len(further.image_losses)
        return Evaluation.of(
            np.concatenate([self.image_losses, further.image_losses]),
            np.concatenate([self.image_divergences, further.image_divergences]),
            (self.accuracy * own + further.accuracy * others) / (own + others),
        )


class Evaluator:
    """Evaluates plans of one traced model on one set of images. Used by one thread at a time."""

    def __init__(
        self,
        trace: OnnxTrace,
        calibration: Calibration,
        *,
        runtime: Runtime,
        scores: list[FloatArray] | None = None,
        correction: Correction = "reconstruct",
    ) -> None:
        """Runs the unpruned model, to know its statistics and its loss.

        Args:
            scores: importance per group and unit, as `prune_onnx` takes it.
            correction: what is done to a plan's network after the cut.

        Raises:
            CalibrationError: the model cannot be run on a batch, or does not answer with logits.
        """
        if correction not in get_args(Correction):
            raise ValueError(f"no correction {correction!r}; there are {get_args(Correction)}")
        self.trace = trace
        self.calibration = calibration
        self._runtime = runtime
        self._correction = correction
        self._scores = unit_scores(trace) if scores is None else scores
        self._sites = statistics.find_sites(trace.model) if correction == "match" else []
        self._units = [trace.channels.axis_units(site.tensor, site.axis) for site in self._sites]
        self._batches = _batches(trace.graph, len(calibration))
        dense = statistics.open_batch(trace.model)
        dense = statistics.instrument(dense, self._sites, match=False)
        try:
            self._answers, self._dense = self._run(dense, None)
            if correction == "reconstruct":
                self._reconstruction = Reconstruction.of(trace, calibration, runtime)
        except MeasurementError as error:
            raise CalibrationError(
                f"the model does not run on a batch; export it with a dynamic batch ({error})",
                field="model",
            ) from error
        self.base = score(self._answers, calibration.y, self._answers)
        """The unpruned model's evaluation."""

    def evaluate(self, keeps: IntArray) -> Evaluation:
        """The plan's loss after correction; keeps [G]."""
        if self._correction == "match":
            _, logits, _, _ = self._matched(keeps)
        else:
            model = statistics.open_batch(self.corrected_model(keeps))
            logits, _ = self._run(model, None)
        return score(logits, self.calibration.y, self._answers)

    def evaluate_part(self, keeps: IntArray, start: int, stop: int) -> Evaluation:
        """The same by images `start` to `stop` alone, corrected as for all.

        Raises:
            ValueError: the correction is `match`.
        """
        if self._correction == "match":
            raise ValueError("statistics are matched on all images or none")
        images = self.calibration.take(np.arange(start, stop))
        batches = _batches(self.trace.graph, len(images))
        logits, _ = _run_batches(
            statistics.open_batch(self.corrected_model(keeps)),
            images,
            batches,
            [{} for _ in batches],
            self._runtime,
        )
        return score(logits, images.y, self._answers[start:stop])

    def corrected_model(self, keeps: IntArray) -> onnx.ModelProto:
        """The pruned model with the correction in its weights and biases: a plain ONNX file."""
        if self._correction != "match":
            pruned, kept = self._cut(keeps)
            return (
                pruned if self._correction == "none" else self._reconstruction.apply(pruned, kept)
            )
        pruned, _, found, targets = self._matched(keeps)
        counts = np.array([len(self.calibration.y[batch]) for batch in self._batches])
        return statistics.fold(
            pruned,
            self._sites,
            [statistics.pool(site, counts) for site in zip(*found, strict=True)],
            [statistics.pool(site, counts) for site in zip(*targets, strict=True)],
        )

    def _cut(self, keeps: IntArray) -> tuple[onnx.ModelProto, list[IntArray]]:
        """The model cut and nothing else, and the units it kept of every group."""
        check_keeps(self.trace.graph, keeps)
        kept = kept_units(self._scores, keeps)
        return cut(self.trace, kept), kept

    def _matched(
        self, keeps: IntArray
    ) -> tuple[onnx.ModelProto, FloatArray, list[list[Moments]], list[list[Moments]]]:
        """Pruned model, its logits when matched; per batch and site the moments found and
        wanted."""
        pruned, kept = self._cut(keeps)
        masks = [kept_mask(group, unit, kept) for group, unit in self._units]
        targets = [
            [dense.take(mask) for dense, mask in zip(batch, masks, strict=True)]
            for batch in self._dense
        ]
        opened = statistics.open_batch(pruned)
        model = statistics.instrument(opened, self._sites, match=True)
        logits, found = self._run(model, targets)
        return pruned, logits, found, targets

    def _run(
        self, model: onnx.ModelProto, targets: list[list[Moments]] | None
    ) -> tuple[FloatArray, list[list[Moments]]]:
        """Logits [N, K], and per batch and site the moments found."""
        further: list[dict[str, Array]] = [{} for _ in self._batches]
        for feeds, wanted in zip(further, targets or (), strict=targets is not None):
            for site, target in zip(self._sites, wanted, strict=True):
                feeds.update(statistics.target_feeds(site, target))
        logits, answers = _run_batches(
            model, self.calibration, self._batches, further, self._runtime
        )
        moments = []
        for answer in answers:
            flat = [np.asarray(value, dtype=np.float64) for value in answer]
            pairs = zip(flat[::2], flat[1::2], strict=True)
            moments.append([Moments(mean, np.maximum(var, 0.0)) for mean, var in pairs])
        return logits, moments


def evaluate_model(
    model: onnx.ModelProto, calibration: Calibration, *, runtime: Runtime, batch: int = 250
) -> Evaluation:
    """Loss and accuracy of a model as it stands, e.g. a corrected one on images kept apart."""
    opened = statistics.open_batch(model)
    batches = _strided(len(calibration), -(-len(calibration) // batch))
    logits, _ = _run_batches(opened, calibration, batches, [{} for _ in batches], runtime)
    return score(logits, calibration.y)


def score(logits: FloatArray, y: IntArray, dense: FloatArray | None = None) -> Evaluation:
    """Cross-entropy and accuracy of logits [N, K] against classes [N].

    With the unpruned model's logits `dense` [N, K] also the divergence from them.
    """
    own = _log_softmax(logits)
    loss = -own[np.arange(len(y)), y]
    theirs = own if dense is None else _log_softmax(dense)
    share = np.exp(theirs)
    with np.errstate(invalid="ignore"):  # a class masked by -inf in both costs nothing
        divergence = np.where(share > 0, share * (theirs - own), 0.0).sum(1)  # [N]
    return Evaluation.of(loss, divergence, float((logits.argmax(1) == y).mean()))


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def _fold_means(values: FloatArray) -> FloatArray:
    return np.array([values[fold::FOLD_COUNT].mean() for fold in range(FOLD_COUNT)])


def _run_batches(
    model: onnx.ModelProto,
    calibration: Calibration,
    batches: list[slice],
    further: list[dict[str, Array]],
    runtime: Runtime,
) -> tuple[FloatArray, list[list[Array]]]:
    """Logits [N, K], and every batch's other outputs. `further` are a batch's further inputs."""
    constant = {tensor.name for tensor in model.graph.initializer}
    name = next(value.name for value in model.graph.input if value.name not in constant)
    ends_in_softmax = _ends_in_softmax(model)
    logits: FloatArray | None = None
    others = []
    session = runtime.load(model.SerializeToString())
    try:
        for batch, feeds in zip(batches, further, strict=True):
            x, y = calibration.x[batch], calibration.y[batch]
            answer, *other = session.run({name: np.ascontiguousarray(x), **feeds})
            if answer.ndim != 2 or len(answer) != len(y) or answer.shape[1] <= int(y.max()):
                raise CalibrationError(
                    f"the model answers {list(answer.shape)} for {len(y)} images of classes up to "
                    f"{int(y.max())}; evaluating needs logits [N, classes]",
                    field="calibration",
                )
            values = np.asarray(answer, dtype=np.float64)
            if ends_in_softmax:
                values = np.log(np.maximum(values, 1e-30))
            if logits is None:
                logits = np.empty((len(calibration), values.shape[1]))
            logits[batch] = values
            others.append(other)
    finally:
        session.close()
    assert logits is not None
    return logits, others


def _batches(graph: PruningGraph, count: int) -> list[slice]:
    """Batches that fit the cache, all of (nearly) one size."""
    widest = max(
        (
            int(op.out_width.at(graph.widths)) * int(np.prod(op.out_spatial, dtype=np.int64))
            for op in graph.operators
        ),
        default=1,
    )
    size = max(LEAST_BATCH, MOST_BATCH_VALUES // max(widest, 1))
    return _strided(count, max(1, round(count / size)))


def _strided(count: int, batch_count: int) -> list[slice]:
    """Every image in one batch; strided, so that images sorted by class are mixed."""
    return [slice(start, None, batch_count) for start in range(min(count, batch_count))]


def _ends_in_softmax(model: onnx.ModelProto) -> bool:
    first = model.graph.output[0].name
    return any(first in node.output and node.op_type == "Softmax" for node in model.graph.node)
