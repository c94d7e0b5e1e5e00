"""Before training: what the units of a module are worth, so that it is planned, cut, then trained.

Reconvene's row (Eccles et al.): a plan at initialisation, within seconds. Here the budget is a
latency, and the plan is the one that every policy makes of these scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlprune.sensitivity.initial import InitialScores

if TYPE_CHECKING:
    from rlprune.graph.from_torch import TorchTrace
    from rlprune.sensitivity.sources import CalibrationSource


def score_units(
    trace: TorchTrace, score: str, calibration: CalibrationSource | None = None
) -> InitialScores:
    """Scores by synflow, or by snip or grasp of the images of a calibration file.

    Raises:
        InputError: an unknown score, or images missing or given for nothing.
        CalibrationError: the file is refused.
        ModelError: the module cannot be scored.
    """
    from rlprune.sensitivity.sources import open_calibration
    from rlprune.surgery.torch_saliency import check_score, initial_scores

    check_score(score, with_images=calibration is not None)
    images = open_calibration(calibration, trace.onnx)
    if images is None:
        return InitialScores(score, initial_scores(trace, score))
    return InitialScores(score, initial_scores(trace, score, images.x, images.labels))
