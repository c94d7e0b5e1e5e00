"""What a policy sees at one group: the same slots, by the same code, in training and in serving.

Every slot is a plain number without a unit, so that a policy moves to other widths, depths and
devices; none of the vector's length depends on the model. Slots come in three blocks by how often
they change: with the task, with the episode (its budget and its loss curves), with every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlprune.graph.types import FloatArray, IntArray
from rlprune.mdp.traits import TASK_SLOTS, later, later_mean, task_block
from rlprune.solver.costs import LevelCosts
from rlprune.solver.reference import Reference
from rlprune.solver.separable import at_level
from rlprune.solver.task import PruningTask

OBSERVATION_VERSION = 2
"""Grows when a slot changes its meaning, its place or its scale; artifacts name theirs."""
LIMIT = 5.0
"""Every slot is clipped to -LIMIT .. LIMIT."""
KEEP_RATIOS = (0.25, 0.5, 0.75)
"""Where curves are sampled, besides the least level; between levels they are interpolated."""

_SAMPLES = ("least", "25", "50", "75")

EPISODE_SLOTS = (
    "profiled",  # 1 where losses measured on data are present
    "energetic",  # 1 where weight energies are present
    *(f"loss_{name}" for name in _SAMPLES),  # log1p(loss / mean over groups of loss at least level)
    *(f"energy_{name}" for name in _SAMPLES),  # share of weight energy dropped
    "log_loss_scale",  # log of that mean / 4, where measured
    "budget_ratio",  # budget over base
    "floor_ratio",  # least over base
    "budget_position",  # (budget - least) / (base - least)
    "reference_keep",  # the reference's keep over width
    "reference_level",  # the same by level, 0-1
    "reference_loss",  # log1p(the group's loss in the reference / mean at least level)
    "reference_total",  # the reference's summed loss over that of the least levels
    "reference_price",  # log1p(its shadow price, as loss total over latency range)
    "later_loss_mean",  # loss_50 over the groups still to come
    "later_loss_max",
    "later_keep_mean",  # reference_keep over the groups still to come
    "later_keep_min",
)
STEP_SLOTS = (
    *(f"saved_{name}" for name in _SAMPLES),  # latency saved by this level now, of the range, log
    "plan_keep",  # keep over width that the reference takes here, given the choices so far
    "plan_level",
    "price",  # shadow price now, as reference_price
    "loss_to_go",  # log1p(loss the reference still expects / mean at least level) / 2
    "grow_value",  # log(loss won per ms one level up / price) / 2
    "shrink_value",  # log(loss paid per ms one level down / price) / 2
    "slack",  # budget that choices so far and the reference's rest leave, of the range
    "headroom",  # budget that choices so far and the least rest leave, of the range
    "kept_delta",  # mean over the groups done of keep over width, minus the reference's
    "last_delta",  # the same of the last group
    "loss_delta",  # summed loss minus the reference's, over mean at least level, log
)
SLOTS: tuple[str, ...] = (*TASK_SLOTS, *EPISODE_SLOTS, *STEP_SLOTS)

MOST_BUDGET_RATIO = 1e6
_EPS = 1e-12


@dataclass(frozen=True)
class Encoder:
    """The part of the observation that only the task decides; made once per task."""

    task: PruningTask
    costs: LevelCosts
    block: FloatArray
    """[G, task slots]."""
    energy: FloatArray
    """Sampled energy curves [G, 4]; zeros where there are none."""
    sampling: tuple[IntArray, IntArray, FloatArray]
    """Level below, level above and weight of the one above, at each sample [G, 4]."""
    base_ms: float
    least_ms: float
    """Predicted latency of the full and of the least plan."""

    @staticmethod
    def of(task: PruningTask, costs: LevelCosts, least: IntArray) -> Encoder:
        """least [G] are the level indices of the cheapest plan."""
        full = task.level_count - 1
        latency = costs.latency_ms(np.stack([full, least]))
        sampling = _sampling(task.levels)
        energy = task.profiles.energy_loss
        return Encoder(
            task=task,
            costs=costs,
            block=task_block(task, costs, float(latency[0])),
            energy=np.zeros((task.group_count, 4)) if energy is None else _sample(energy, sampling),
            sampling=sampling,
            base_ms=float(latency[0]),
            least_ms=float(latency[1]),
        )

    @property
    def range_ms(self) -> float:
        """Between the full and the least plan; never 0."""
        return max(self.base_ms - self.least_ms, _EPS)


@dataclass(frozen=True)
class EpisodeEncoder:
    """The part that one episode adds: B rows with their budgets and loss curves."""

    encoder: Encoder
    reference: Reference
    loss: FloatArray
    """[B, G, L]."""
    limit_ms: FloatArray
    """What the predicted latency may be [B]."""
    block: FloatArray
    """[B, G, episode slots]."""
    norm: FloatArray
    """Mean over groups of the loss at the least level [B]."""

    @staticmethod
    def of(
        encoder: Encoder,
        reference: Reference,
        loss: FloatArray,
        limit_ms: FloatArray,
        profiled: NDArray[np.bool_],
        energetic: NDArray[np.bool_],
    ) -> EpisodeEncoder:
        """profiled, energetic [B]: whether loss and energy curves are shown to the policy."""
        norm = np.maximum(loss[:, :, 0].mean(1), _EPS)
        # Budgets may be any number; far above the unpruned latency they all say the same.
        limit_ms = np.minimum(limit_ms, MOST_BUDGET_RATIO * encoder.base_ms)
        block = _episode_block(encoder, reference, loss, limit_ms, norm, profiled, energetic)
        return EpisodeEncoder(encoder, reference, loss, limit_ms, block, norm)

    def observe(
        self, group: int, plan: IntArray, latency_ms: FloatArray, moves_ms: FloatArray,
        least_ms: FloatArray,
    ) -> NDArray[np.float32]:  # fmt: skip
        """The observation [B, D] at `group`.

        Args:
            group: whose turn it is.
            plan: level indices [B, G], choices so far and the reference's rest.
            latency_ms: of `plan` [B].
            moves_ms: what each level of this group would add to it [B, L].
            least_ms: latency of the choices so far with the least rest [B].
        """
        encoder, rows = self.encoder, len(plan)
        step = self._step_block(group, plan, latency_ms, moves_ms, least_ms)
        wide = np.concatenate(
            [
                np.broadcast_to(encoder.block[group], (rows, len(TASK_SLOTS))),
                self.block[:, group],
                step,
            ],
            axis=1,
        )
        return np.asarray(np.clip(wide, -LIMIT, LIMIT), dtype=np.float32)

    def _step_block(
        self, group: int, plan: IntArray, latency_ms: FloatArray, moves_ms: FloatArray,
        least_ms: FloatArray,
    ) -> FloatArray:  # fmt: skip
        encoder, reference, task = self.encoder, self.reference, self.encoder.task
        row = np.arange(len(plan))
        here = plan[:, group]
        top = int(task.level_count[group]) - 1
        below, above, weight = (part[group] for part in encoder.sampling)
        sampled = moves_ms[:, below] * (1 - weight) + moves_ms[:, above] * weight  # [B, 4]
        scale = task.group_count / encoder.range_ms
        saved = _signed_log((moves_ms[:, top, None] - sampled) * scale)
        remaining = reference.rest_ms(group, plan) + self.limit_ms - latency_ms
        _, to_go, price = reference.lookup(group, remaining)
        curve = self.loss[:, group]
        rate = curve / np.maximum(price, _EPS)[:, None]  # a loss in ms at the shadow price
        up, down = np.minimum(here + 1, top), np.maximum(here - 1, 0)
        grow = _value(rate[row, here] - rate[row, up], moves_ms[row, up] - moves_ms[row, here])
        shrink = _value(
            rate[row, down] - rate[row, here], moves_ms[row, here] - moves_ms[row, down]
        )
        width = task.levels[:, -1]
        kept = (task.keeps_at(plan) - reference.keeps) / width  # [B, G]
        before = at_level(self.loss, reference.choice).sum(1)
        now = at_level(self.loss, plan).sum(1)
        total = self.norm * task.group_count
        return np.stack(
            [
                *saved.T,
                task.levels[group, here] / width[group],
                here / max(top, 1),
                np.log1p(price * encoder.range_ms / total),
                np.log1p(to_go / self.norm) / 2,
                np.where(here < top, grow, -LIMIT),
                np.where(here > 0, shrink, LIMIT),
                (self.limit_ms - latency_ms) / encoder.range_ms,
                (self.limit_ms - least_ms) / encoder.range_ms,
                kept[:, :group].mean(1) if group else np.zeros(len(plan)),
                kept[:, group - 1] if group else np.zeros(len(plan)),
                _signed_log((now - before) / self.norm),
            ],
            axis=1,
        )


def _sampling(levels: IntArray) -> tuple[IntArray, IntArray, FloatArray]:
    width = levels[:, -1:]
    target = np.concatenate([levels[:, :1], np.array(KEEP_RATIOS) * width], axis=1)  # [G, 4]
    above = (levels[:, None, :] < target[:, :, None]).sum(-1)
    below = np.maximum(above - 1, 0)
    group = np.arange(len(levels))[:, None]
    low, high = levels[group, below], levels[group, above]
    weight = np.where(high > low, (target - low) / np.maximum(high - low, 1), 1.0)
    return below, above, np.clip(weight, 0.0, 1.0)


def _sample(curve: FloatArray, sampling: tuple[IntArray, IntArray, FloatArray]) -> FloatArray:
    """Curves [..., G, L] at the samples [..., G, 4]."""
    below, above, weight = sampling
    group = np.arange(len(below))[:, None]
    return np.asarray(curve[..., group, below] * (1 - weight) + curve[..., group, above] * weight)


def _signed_log(value: FloatArray) -> FloatArray:
    return np.asarray(np.sign(value) * np.log1p(np.abs(value)))


def _value(gain_ms: FloatArray, cost_ms: FloatArray) -> FloatArray:
    """Log of what is won over what is paid, both in ms at the shadow price, halved."""
    return np.asarray(np.log(np.maximum(gain_ms, 1e-9) / np.maximum(cost_ms, 1e-9)) / 2)


def _episode_block(
    encoder: Encoder,
    reference: Reference,
    loss: FloatArray,
    limit_ms: FloatArray,
    norm: FloatArray,
    profiled: NDArray[np.bool_],
    energetic: NDArray[np.bool_],
) -> FloatArray:
    task = encoder.task
    rows, groups = loss.shape[:2]
    sampled = np.log1p(_sample(loss, encoder.sampling) / norm[:, None, None])  # [B, G, 4]
    keep = reference.keeps / task.levels[:, -1]
    own = at_level(loss, reference.choice)
    latency = encoder.costs.latency_ms(reference.choice)
    remaining = reference.rest_ms(0, reference.choice) + limit_ms - latency
    price = reference.lookup(0, remaining)[2]
    total = norm * groups
    half = sampled[..., 2]

    def per_row(value: FloatArray) -> FloatArray:
        return np.broadcast_to(value[:, None], (rows, groups))

    energy = encoder.energy * energetic[:, None, None]
    columns = [
        per_row(profiled.astype(np.float64)),
        per_row(energetic.astype(np.float64)),
        *np.moveaxis(sampled, -1, 0),
        *np.moveaxis(energy, -1, 0),
        per_row(np.where(profiled, np.log(norm) / 4, 0.0)),
        per_row(limit_ms / max(encoder.base_ms, _EPS)),
        per_row(np.full(rows, encoder.least_ms / max(encoder.base_ms, _EPS))),
        per_row((limit_ms - encoder.least_ms) / encoder.range_ms),
        keep,
        reference.choice / np.maximum(task.level_count - 1, 1),
        np.log1p(own / norm[:, None]),
        per_row(own.sum(1) / total),
        per_row(np.log1p(price * encoder.range_ms / total)),
        later_mean(half),
        later(half, np.maximum),
        later_mean(keep),
        later(keep, np.minimum),
    ]
    return np.stack(columns, axis=-1)
