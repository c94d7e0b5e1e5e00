"""Policies: who decides how many units each group keeps.

`get_policy` is the only door the rooms above need.
"""

from __future__ import annotations

from pathlib import Path

from rlprune.errors import PolicyError
from rlprune.policy.base import Policy, SamplingPolicy

__all__ = ["POLICY_NAMES", "Policy", "SamplingPolicy", "get_policy"]

POLICY_NAMES = ("learned", "corrected", "knapsack", "global", "uniform", "uniform-plain")

DATA = Path(__file__).parent / "data"
DEFAULT_ARTIFACT = DATA / "default"
DEFAULT_CORRECTED = DATA / "corrected.json"


def get_policy(name_or_path: str) -> Policy:
    """A policy by name, or from a file: an artifact's directory or a corrected knapsack's JSON.

    `learned` and `corrected` are those that ship with the package.

    Raises:
        PolicyError: no such name or path, or what is there is damaged or of another version.
    """
    from rlprune.policy.baselines import (
        GlobalMagnitudePolicy,
        KnapsackPolicy,
        PlainUniformPolicy,
        UniformPolicy,
    )
    from rlprune.policy.corrected import CorrectedKnapsackPolicy
    from rlprune.policy.learned import LearnedPolicy

    if name_or_path == "learned":
        return LearnedPolicy.load(DEFAULT_ARTIFACT)
    if name_or_path == "corrected":
        return CorrectedKnapsackPolicy.load(DEFAULT_CORRECTED)
    if name_or_path == "knapsack":
        return KnapsackPolicy()
    if name_or_path == "global":
        return GlobalMagnitudePolicy()
    if name_or_path == "uniform":
        return UniformPolicy()
    if name_or_path == "uniform-plain":
        return PlainUniformPolicy()
    path = Path(name_or_path)
    if path.is_dir():
        return LearnedPolicy.load(path)
    if path.is_file():
        return CorrectedKnapsackPolicy.load(path)
    raise PolicyError(
        f"no policy {name_or_path!r}: give {', '.join(POLICY_NAMES)} or an artifact's directory",
        field="policy",
    )
