"""Training: learn from recorded models (`rlprune.recording`) to plan for others.

`train` runs PPO agents on Ray. Importing this package loads neither torch nor Ray.
"""

from __future__ import annotations

from rlprune.training.run import TrainSummary, model_dirs, train

__all__ = ["TrainSummary", "model_dirs", "train"]
