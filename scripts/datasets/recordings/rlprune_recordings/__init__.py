"""Recorded models and trained networks: what rlprune's default policy and curves are fitted to."""

from importlib.resources import files
from pathlib import Path

_HERE = Path(str(files(__name__)))

RECORDED = _HERE / "recorded"
"""A folder per model, as `rlprune record` writes them."""
ZOO = _HERE / "zoo"
"""Weights and a record of each CIFAR-10 network that `scripts/data zoo` trained."""
