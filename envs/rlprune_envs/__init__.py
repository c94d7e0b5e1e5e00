"""Gymnasium environments over `rlprune.mdp`; importing this registers `rlprune/ChannelPruning-v0`.

gymnasium.make("rlprune_envs:rlprune/ChannelPruning-v0")
"""

try:
    import gymnasium
except ImportError as error:
    from rlprune.errors import MissingExtraError

    raise MissingExtraError("rlprune_envs", "train") from error

from rlprune_envs.example import example_task
from rlprune_envs.single import ChannelPruningEnv
from rlprune_envs.vector import ChannelPruningVectorEnv

__all__ = ["ChannelPruningEnv", "ChannelPruningVectorEnv", "example_task"]

gymnasium.register(
    id="rlprune/ChannelPruning-v0",
    entry_point="rlprune_envs.single:ChannelPruningEnv",
    vector_entry_point="rlprune_envs.vector:ChannelPruningVectorEnv",
)
