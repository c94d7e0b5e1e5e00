"""How much each group loses at each keep level: the accuracy side of a planning task."""

from __future__ import annotations

from dataclasses import dataclass

from rlprune.graph.types import FloatArray, IntArray

MAX_INPUTS = 1 << 13
"""What a layer's outputs are each made of, at most; one that reads more stays as it was cut. The
covariance of VGG-16's first linear layer, 25,088 inputs, would take 5 GiB and never have images
enough."""
FOLD_COUNT = 4
"""Image i lies in fold i modulo this, whatever the plan."""


@dataclass(frozen=True)
class GroupProfiles:
    """Loss curves over keep levels, for one graph.

    `levels` [G, L] ascending, padded by repeating the full width; `level_count` [G]; curves are 0
    at the full width and in the padding.
    """

    fingerprint: str
    levels: IntArray
    level_count: IntArray
    energy_loss: FloatArray | None
    """Data-free [G, L]: share (0-1) of the group's effective weight energy that is dropped; None
    where only shapes were known (a skeleton)."""
    measured_loss: FloatArray | None = None
    """[S, G, L]: divergence (nats) from the unpruned model's answers with the group alone at that
    level, after correction, on each of S disjoint folds of the calibration images."""
    base_loss: float = float("nan")
    """Cross-entropy of the unpruned model on the calibration images; NaN where not measured."""
    image_count: int = 0
    initial_loss: FloatArray | None = None
    """[G, L], of a network that was not trained: what a score at initialisation says is lost, on a
    scale of its own (`sensitivity.initial`); None for a trained one."""
    predicted_loss: FloatArray | None = None
    """[S, L]: what is predicted of the sites (`sensitivity.predicted`), summed where they stand for
    several of another network; None where it is still to be predicted when asked."""
    passed_count: int = 0
    """Samples of the unpruned network's one pass that `predicted_loss` is told by; 0 where it is
    predicted from weights or shapes."""
    initial_score: str = ""
    """What `initial_loss` goes by, as a note has it; empty where that is None."""

    @property
    def profiled(self) -> bool:
        """Whether losses measured on data are there."""
        return self.measured_loss is not None
