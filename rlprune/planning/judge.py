"""What a search judges plans by: which images are used for what, and each plan as it will be
carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.types import PruningGraph
from rlprune.latency.types import INT8, Arithmetic
from rlprune.planning.effort import Effort, passed_count
from rlprune.runtime import get_runtime
from rlprune.schemes import Space
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.evaluate import Evaluation, Evaluator
from rlprune.sensitivity.one_pass import OnePass

Keeps = tuple[int, ...]
"""A plan's settings [S]."""

JUDGED_SHARE, CLOSER_SHARE = 5, 3
"""One image in so many at most judges plans, and judges the last few."""


@dataclass(frozen=True)
class SearchImages:
    """What of a calibration set is used for what."""

    passed: CalibrationSet
    """The unpruned network's one pass."""
    solved: CalibrationSet
    """What plans' layers are solved on; among those of the pass."""
    judged: CalibrationSet
    """What plans are judged on, none of those before."""
    closer: CalibrationSet
    """What the last few plans are judged on, others again; solved they are on those of the
    pass."""
    source: str
    """All of them in words."""

    @staticmethod
    def needed(effort: Effort, graph: PruningGraph) -> int:
        """Images of which all of the above are as many as the effort wants."""
        passed = max(passed_count(graph), effort.solved)
        own = passed + effort.judged + effort.closer
        return max(JUDGED_SHARE * effort.judged, CLOSER_SHARE * effort.closer, own)

    @staticmethod
    def of(images: CalibrationSet, effort: Effort, graph: PruningGraph) -> SearchImages:
        """Drawn in an order that is random and always the same."""
        drawn, count = images.shuffled(), len(images)
        judged = min(effort.judged, count // JUDGED_SHARE)
        closer = min(effort.closer, count // CLOSER_SHARE)
        left = count - judged - closer
        passed = min(max(passed_count(graph), effort.solved), left)
        first = drawn.take(np.arange(passed))
        return SearchImages(
            first,
            first.take(np.arange(min(max(effort.solved, 1), passed))),
            drawn.take(np.arange(count - max(judged, 1), count)),
            drawn.take(np.arange(left, left + closer) if closer else np.arange(count)),
            images.text(),
        )


class Judge:
    """Evaluates plans of one model as they will be carried out; none twice in one way."""

    def __init__(
        self,
        trace: OnnxTrace,
        space: Space,
        images: SearchImages,
        arithmetic: Arithmetic,
        *,
        evaluates: bool = True,
    ) -> None:
        """Runs the unpruned network once.

        Args:
            evaluates: whether any plan will be evaluated.

        Raises:
            CalibrationError: it does not run on the images.
            MissingExtraError: no runtime is installed.
        """
        self._trace, self._space, self._images = trace, space, images
        self._arithmetic = arithmetic
        self.one_pass = OnePass.of(
            trace, space, images.passed, get_runtime(), hurried=not evaluates
        )
        self.source = images.source
        self.image_count = len(images.passed)
        """Images that went through the network so far."""
        self._first: dict[Keeps, Evaluation] = {}
        self._closer: dict[Keeps, Evaluation] = {}

    def evaluate(self, keeps: Keeps) -> Evaluation:
        """A plan of these settings [S], by few images."""
        if keeps not in self._first:
            solved, judged = self._images.solved, self._images.judged
            self._first[keeps] = self._evaluated(keeps, self._by_few, len(solved) + len(judged))
        return self._first[keeps]

    def look_closer(self, keeps: Keeps) -> Evaluation:
        """The same by more images."""
        if keeps not in self._closer:
            solved, judged = self._images.passed, self._images.closer
            self._closer[keeps] = self._evaluated(keeps, self._by_more, len(solved) + len(judged))
        return self._closer[keeps]

    def seen_closer(self, keeps: Keeps) -> Evaluation | None:
        """What `look_closer` has found of a plan."""
        return self._closer.get(keeps)

    def _evaluated(self, keeps: Keeps, judge: Evaluator, image_count: int) -> Evaluation:
        settings, schemes = np.array(keeps, dtype=np.int64), self._space.schemes
        model = judge.as_run(judge.corrected_model(settings, schemes, again=True))
        self.image_count += image_count
        return judge.evaluate_model(model)

    @cached_property
    def _by_few(self) -> Evaluator:
        return self._evaluator(self._images.solved, self._images.judged)

    @cached_property
    def _by_more(self) -> Evaluator:
        return self._evaluator(self._images.passed, self._images.closer)

    def _evaluator(self, solved: CalibrationSet, judged: CalibrationSet) -> Evaluator:
        self.image_count += len(solved) + len(judged)
        return Evaluator(
            self._trace,
            judged,
            runtime=get_runtime(),
            reconstruction=self.one_pass.reconstruction,
            schemes=self._space.schemes,
            int8=self._arithmetic.precision == INT8,
            keep_float=self._arithmetic.keep_float,
            again_on=solved,
        )
