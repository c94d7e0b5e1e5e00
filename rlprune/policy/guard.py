"""When a learned policy may answer without anything being evaluated.

The promise is never to do worse than the classical planners. Who holds no weights cannot check
that, so a policy answers alone only where what was recorded of it, on models it had not seen, says
that it gains: the lower end of the interval is above zero.
"""

from __future__ import annotations

from collections.abc import Mapping

from rlprune.policy.artifact import PolicyArtifact
from rlprune.policy.base import Policy
from rlprune.policy.learned import LearnedPolicy


def recorded_gain(artifact: PolicyArtifact) -> tuple[float, float] | None:
    """The 90 % interval of the gain over the knapsack [nats]; None where none was recorded.

    That on models left out of training, one after another, where the provenance has it; else that
    on the validation models, which chose the policy and so flatter it.
    """
    left_out = artifact.provenance.get("left_out")
    if isinstance(left_out, Mapping):
        try:
            return float(left_out["gain_low"]), float(left_out["gain_high"])
        except (KeyError, TypeError, ValueError):
            return None
    score = artifact.validation
    return None if score is None else (score.gain_low, score.gain_high)


def refusal_reason(policy: Policy, *, untrained: bool = False) -> str:
    """Why the policy's plans are not to be taken unevaluated; empty where they are.

    Policies that learned nothing on other models by reinforcement answer for themselves.

    Args:
        untrained: whether the network to plan for is at its initialisation.
    """
    if not isinstance(policy, LearnedPolicy):
        return ""
    if untrained:
        return f"{policy.name} learned on trained networks only"
    found = recorded_gain(policy.artifact)
    if found is None:
        return f"no gain of {policy.name} on unseen models is recorded"
    low, high = found
    if low > 0:
        return ""
    return (
        f"{policy.name} was not better on held-out networks: 90 % interval of its gain "
        f"{low:.3f} .. {high:.3f} nats"
    )
