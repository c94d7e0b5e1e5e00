"""Torch-Pruning's global pruning as a policy: how most people choose widths today.

Only the widths are Torch-Pruning's; which channels stay is decided by surgery, as for every other
policy, so that policies are compared and not importances.
"""

from __future__ import annotations

import copy
import warnings

import numpy as np
import torch
from torch import nn

from rlprune.graph.types import FloatArray, IntArray, PruningGraph
from rlprune.task.knapsack import least_keeps
from rlprune.task.task import PruningTask

RATIO_COUNT = 60
"""Pruning ratios tried, evenly spaced below 1."""


class TorchPruningPolicy:
    """A magnitude pruner with `global_pruning=True`, at the least ratio that meets the budget."""

    name = "magnitude"

    def __init__(self, module: nn.Module, shape: tuple[int, ...] = (1, 3, 32, 32)) -> None:
        self.module, self.shape = module, shape
        self._candidates: IntArray | None = None

    def plan(self, task: PruningTask, budget_ms: FloatArray) -> IntArray:
        """As `Policy.plan`; all ratios' widths are found once."""
        if self._candidates is None:
            ratios = np.arange(RATIO_COUNT) / RATIO_COUNT
            self._candidates = np.array(
                [_nearest(task, self.widths(task.graph, float(ratio))) for ratio in ratios]
            )
        upper = task.tables.upper_ms(self._candidates)
        plans = []
        for budget in np.asarray(budget_ms):
            within = np.flatnonzero(upper <= budget)
            plans.append(self._candidates[within[0]] if len(within) else least_keeps(task))
        return np.array(plans)

    def widths(self, graph: PruningGraph, ratio: float) -> IntArray:
        """What each group keeps [G] at a ratio, read from the pruned module's convolutions.

        Raises:
            ValueError: the module's convolutions are not the graph's.
        """
        import torch_pruning

        module = copy.deepcopy(self.module)
        for parameter in module.parameters():
            parameter.requires_grad_(True)  # frozen ones would be left out without a word
        called = _called(module, self.shape)
        importance = torch_pruning.importance.MagnitudeImportance(p=2)
        full = [part.out_channels for part in called]
        classifiers = [part for part in module.modules() if isinstance(part, nn.Linear)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = torch_pruning.pruner.MagnitudePruner(
                module,
                torch.zeros(self.shape),
                importance=importance,
                global_pruning=True,
                pruning_ratio=ratio,
                round_to=8,
                ignored_layers=classifiers,
            )
            pruner.step()
        kept = [part.out_channels for part in called]
        convolutions = [op for op in graph.operators if op.kind in ("conv", "depthwise_conv")]
        widths = graph.widths
        if full != [int(op.out_width.at(widths)) for op in convolutions]:
            raise ValueError("the module's convolutions are not in the order of the graph's")
        keeps = np.full(len(widths), -1)
        for op, count in zip(convolutions, kept, strict=True):
            # A wider stage's stream is the one before and channels of its own: the rest is theirs.
            known = [(group, repeat) for group, repeat in op.out_width.terms if keeps[group] >= 0]
            rest = count - op.out_width.const - sum(keeps[g] * repeat for g, repeat in known)
            for group, repeat in op.out_width.terms:
                if keeps[group] < 0:
                    keeps[group] = np.clip(rest // repeat, 1, widths[group])
                    rest -= keeps[group] * repeat
        return np.where(keeps < 0, widths, keeps)


def _called(module: nn.Module, shape: tuple[int, ...]) -> list[nn.Conv2d]:
    """The module's convolutions in the order of their calls, which is the graph's."""
    called: list[nn.Conv2d] = []
    parts = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    hooks = [part.register_forward_hook(lambda one, *_: called.append(one)) for part in parts]
    with torch.no_grad():
        module(torch.zeros(shape))
    for hook in hooks:
        hook.remove()
    return called


def _nearest(task: PruningTask, keeps: IntArray) -> IntArray:
    """Each group's level nearest to `keeps` [G]."""
    choice = np.abs(task.levels - keeps[:, None]).argmin(-1)
    return np.asarray(task.keeps_at(choice[None])[0])
