"""Policies: who decides how many units each group keeps.

`get_policy` is the only door the rooms above need.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rlprune.errors import PolicyError
from rlprune.policy.base import Policy, SamplingPolicy

__all__ = ["POLICY_NAMES", "REMOVED_POLICIES", "Policy", "SamplingPolicy", "get_policy"]

POLICY_NAMES = ("search", "learned", "knapsack", "global", "uniform", "uniform-plain")
REMOVED_POLICIES = {"corrected": "knapsack"}
"""Names of earlier versions, and which plans the same."""

DATA = Path(__file__).parent / "data"
DEFAULT_ARTIFACT = DATA / "default"


def get_policy(name_or_path: str) -> Policy:
    """A policy by name, or from an artifact's directory; `learned` ships with the package.

    Of `search` it is what plans before anything was evaluated (`race.PosteriorRace` after that).

    Raises:
        PolicyError: no such name or path, or what is there is damaged or of another version.
    """
    from rlprune.policy.baselines import (
        GlobalMagnitudePolicy,
        KnapsackPolicy,
        PlainUniformPolicy,
        UniformPolicy,
    )

    plain: dict[str, Callable[[], Policy]] = {
        "search": KnapsackPolicy,
        "knapsack": KnapsackPolicy,
        "global": GlobalMagnitudePolicy,
        "uniform": UniformPolicy,
        "uniform-plain": PlainUniformPolicy,
    }
    if name_or_path in plain:
        return plain[name_or_path]()
    if name_or_path == "learned" or Path(name_or_path).is_dir():
        from rlprune.policy.learned import LearnedPolicy

        return LearnedPolicy.load(DEFAULT_ARTIFACT if name_or_path == "learned" else name_or_path)
    if instead := REMOVED_POLICIES.get(name_or_path):
        raise PolicyError(
            f"policy {name_or_path!r} is no longer there; give {instead!r}, which plans the same",
            field="policy",
        )
    raise PolicyError(
        f"no policy {name_or_path!r}: give {', '.join(POLICY_NAMES)} or an artifact's directory",
        field="policy",
    )
