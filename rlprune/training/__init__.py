"""Training: record what plans lose on real models, and learn from it to plan for others.

`train` runs a population of PPO agents on Ray. Importing this package loads neither torch nor Ray.
"""

from __future__ import annotations

from rlprune.training.run import TrainSummary, model_dirs, train

__all__ = ["TrainSummary", "model_dirs", "train"]
