"""What a whole plan loses: fitted to recorded evaluations, or, where there are none, just summed.

`SurrogateObjective` is an ensemble of ridge regressions on the plan's widths (a bootstrap each),
read pessimistically: mean plus deviations, so that a policy that trains against it is not drawn to
where nobody looked. It has no say in planning; it is the reward of training.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from rlprune.errors import InputError
from rlprune.files import read_npz, write_npz
from rlprune.graph.types import FloatArray, IntArray
from rlprune.solver.task import Objective

FORMAT = "rlprune.objective/1"
FEATURE_SETS = ("sum", "widths", "curves", "coupled")
"""Each holds the summed profile losses; then keep ratios and squares; own losses; both, and each
ratio times the mean ratio."""
_RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
_LEAST_SCALE = 0.02
_MEMBERS = 16
_FOLDS = 5
LEAST_RECORDS = 24
"""Fewer evaluations than this say too little for a fit."""
_HOPELESS = 2.0
"""Nats above the unpruned model from where plans count ever less: there all are about as bad as
guessing, and which is worse tells nothing."""


@runtime_checkable
class SpreadObjective(Protocol):
    """An objective that knows how far plans of one kind lie apart; the scale of rewards."""

    def spread(self, keeps: IntArray) -> FloatArray:
        """Typical difference in loss, nats, between recorded plans like these [B, G] -> [B]."""
        ...


def reward_scale(objective: Objective, keeps: IntArray) -> FloatArray:
    """What a reward of 1 is worth at reference plans [B, G], in the objective's unit [B].

    The objective's own spread where it has recorded plans; else a quarter of the reference's loss.
    In any case at least 0.02, or noise around plans that lose nothing would drown everything else.
    """
    if isinstance(objective, SpreadObjective):
        return np.maximum(objective.spread(keeps), _LEAST_SCALE)
    return np.maximum(0.25 * objective.loss(keeps), _LEAST_SCALE)


@dataclass(frozen=True)
class AdditiveObjective:
    """The sum of single-group losses: what the knapsack believes, no more."""

    levels: IntArray
    """[G, L]."""
    curve: FloatArray
    """[G, L]."""

    def loss(self, keeps: IntArray) -> FloatArray:
        """As `Objective.loss`; between levels the curves are interpolated."""
        return np.asarray(curve_at(self.levels, self.curve, keeps).sum(-1))


@dataclass(frozen=True)
class SurrogateObjective:
    """log(loss increase + offset) as a bootstrap ensemble of linear functions of features."""

    levels: IntArray
    curve: FloatArray
    """Profile losses the features are made of [G, L]."""
    feature_set: str
    offset: float
    """Added before the logarithm, nats."""
    mean: FloatArray
    """Of the features on record [F]."""
    deviation: FloatArray
    """Of the features on record [F]."""
    weights: FloatArray
    """[F, M]."""
    bias: FloatArray
    """[M]."""
    recorded: FloatArray
    """Mean squared keep ratio and log loss of the plans on record [N, 2]."""
    pessimism: float
    """Deviations of the ensemble added to its mean."""
    ridge: float
    spearman: float
    """Held-out rank correlation, cross-validated."""
    r2: float
    """Held-out share of the variance of the log loss, cross-validated."""

    @staticmethod
    def fit(
        levels: IntArray,
        curve: FloatArray,
        keeps: IntArray,
        increase: FloatArray,
        *,
        increase_se: FloatArray | None = None,
        pessimism: float = 1.0,
        seed: int = 0,
    ) -> SurrogateObjective:
        """Fits to plans [N, G] and the loss increase of each [N], nats.

        Feature set and ridge are chosen by cross-validation; each member then sees a bootstrap of
        the plans. `increase_se` [N] weighs plans by how well they are known.

        Raises:
            ValueError: fewer than 24 plans, or shapes that do not belong together.
        """
        if len(keeps) < LEAST_RECORDS:
            raise ValueError(f"{len(keeps)} evaluations are too few, {LEAST_RECORDS} are needed")
        if len(increase) != len(keeps) or curve.shape != levels.shape:
            raise ValueError(f"increase {increase.shape}, curve {curve.shape}, keeps {keeps.shape}")
        rng = np.random.default_rng(seed)
        # Below the offset differences are noise; above, the logarithm makes errors relative.
        offset = max(0.02, 0.05 * float(np.median(increase)))
        target = np.log(np.maximum(increase, 0.0) + offset)
        weight = 1.0 / (1.0 + (np.maximum(increase, 0.0) / _HOPELESS) ** 2)
        if increase_se is not None:
            relative = increase_se / (np.maximum(increase, 0.0) + offset)
            weight = weight / (0.1**2 + relative**2)
        weight /= weight.mean()
        fold = rng.permutation(len(keeps)) % _FOLDS
        tables = {name: _features(name, levels, curve, keeps, offset) for name in FEATURE_SETS}
        best_error, best_name, best_ridge = np.inf, FEATURE_SETS[0], _RIDGES[0]
        held_out = np.zeros_like(target)
        for name, table in tables.items():
            guesses = _cross_validate(table, target, weight, fold)  # [ridges, N]
            errors = (weight * (guesses - target) ** 2).mean(1)
            if errors.min() < best_error:
                best_error, best_name = float(errors.min()), name
                best_ridge, held_out = _RIDGES[int(errors.argmin())], guesses[errors.argmin()]
        table = tables[best_name]
        mean, deviation = _moments(table)
        scaled = (table - mean) / deviation
        members = []
        for _ in range(_MEMBERS):
            times = rng.multinomial(len(target), np.full(len(target), 1 / len(target)))
            members.append(_ridge(scaled, target, weight * times, (best_ridge,)))
        return SurrogateObjective(
            levels=levels,
            curve=curve,
            feature_set=best_name,
            offset=offset,
            mean=mean,
            deviation=deviation,
            weights=np.concatenate([member[0] for member in members], axis=1),
            bias=np.concatenate([member[1] for member in members]),
            recorded=np.stack([_kept(levels, keeps), target], axis=1),
            pessimism=pessimism,
            ridge=best_ridge,
            spearman=_correlation(_ranks(held_out), _ranks(target)),
            r2=1.0 - float(((held_out - target) ** 2).mean() / max(target.var(), 1e-12)),
        )

    def _members(self, keeps: IntArray) -> FloatArray:
        """Every member's log loss [B, M], kept near what was ever on record."""
        table = _features(self.feature_set, self.levels, self.curve, keeps, self.offset)
        guess = (table - self.mean) / self.deviation @ self.weights + self.bias
        low, high = self.recorded[:, 1].min(), self.recorded[:, 1].max()
        return np.clip(guess, low - 0.5, high + 1.0)

    def loss(self, keeps: IntArray) -> FloatArray:
        """As `Objective.loss`: mean plus `pessimism` deviations, in log space."""
        guess = self._members(keeps)
        log_loss = guess.mean(1) + self.pessimism * guess.std(1)
        return np.asarray(np.exp(log_loss) - self.offset)

    def spread(self, keeps: IntArray) -> FloatArray:
        """Half the distance between the quartiles of recorded losses of plans that keep as much.

        Quartiles, and at most the plan's own loss: random plans on record are far worse than any
        that a policy would propose.
        """
        kept, log_loss = self.recorded.T
        distance = (_kept(self.levels, keeps)[:, None] - kept) / 0.1  # [B, N]
        near = np.exp(-0.5 * distance**2) + 1e-9
        order = np.argsort(log_loss)
        mass = np.cumsum(near[:, order], axis=1)
        mass /= mass[:, -1:]
        quartiles = [log_loss[order][(mass < share).sum(1).clip(max=len(order) - 1)]
                     for share in (0.25, 0.75)]  # fmt: skip
        own = self._members(keeps).mean(1)
        half = np.clip((quartiles[1] - quartiles[0]) / 2, 0.05, 1.0)
        return np.asarray(np.exp(own) * half)

    def save(self, path: str | Path) -> None:
        """Writes the objective as one npz file, whole or not at all."""
        arrays = {field.name: np.array(getattr(self, field.name)) for field in fields(self)}
        write_npz(Path(path), {"format": np.array(FORMAT), **arrays})

    @staticmethod
    def load(path: str | Path) -> SurrogateObjective:
        """Reads what `save` wrote; nothing is unpickled.

        Raises:
            InputError: missing, damaged, or of another format.
        """
        try:
            data = read_npz(Path(path))
            if str(data.pop("format")) != FORMAT:
                raise ValueError(f"not of format {FORMAT!r}")
            values = {
                name: data[name] for name in (field.name for field in fields(SurrogateObjective))
            }
            plain = {
                name: str(value) if name == "feature_set" else float(value)
                for name, value in values.items()
                if value.ndim == 0
            }
            return SurrogateObjective(**{**values, **plain})  # type: ignore[arg-type]
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{path} is no objective ({error}); fit it again") from error


def curve_at(levels: IntArray, curve: FloatArray, keeps: IntArray) -> FloatArray:
    """Curves [G, L] at keeps [B, G], linear between levels and flat below the least -> [B, G]."""
    above = (levels < keeps[..., None]).sum(-1)
    below = np.maximum(above - 1, 0)
    group = np.arange(len(levels))
    low, high = levels[group, below], levels[group, above]
    part = np.clip((keeps - low) / np.maximum(high - low, 1), 0.0, 1.0)
    part = np.where(high > low, part, 1.0)
    return np.asarray(curve[group, below] * (1 - part) + curve[group, above] * part)


def _kept(levels: IntArray, keeps: IntArray) -> FloatArray:
    return np.asarray(((keeps / levels[:, -1]) ** 2).mean(-1))


def _features(
    name: str, levels: IntArray, curve: FloatArray, keeps: IntArray, offset: float
) -> FloatArray:
    """Plans [B, G] -> features [B, F]."""
    own = curve_at(levels, curve, keeps)
    total = own.sum(-1, keepdims=True)
    ratio = keeps / levels[:, -1]
    # Curves come in nats or in shares of energy; relative to their own size both behave.
    scale = max(float(curve[:, 0].mean()), 1e-9) if len(curve) else 1.0
    parts = [
        np.log(total / scale + 1e-3),
        np.log(total + offset),
        np.sqrt(total / scale),
        total / scale,
    ]
    if name in ("widths", "coupled"):
        parts += [ratio, ratio**2]
    if name in ("curves", "coupled"):
        parts += [own / scale, np.sqrt(own / scale)]
    if name == "coupled":
        mean = ratio.mean(-1, keepdims=True)
        parts += [ratio * mean, mean, mean**2]
    return np.concatenate(parts, axis=1)


def _moments(table: FloatArray) -> tuple[FloatArray, FloatArray]:
    deviation = table.std(0)
    return table.mean(0), np.where(deviation > 1e-9, deviation, 1.0)


def _ridge(
    table: FloatArray, target: FloatArray, weight: FloatArray, ridges: tuple[float, ...]
) -> tuple[FloatArray, FloatArray]:
    """Weights [F, K] and biases [K] of weighted ridge regressions, one per ridge."""
    share = weight / weight.sum()
    centre, level = share @ table, float(share @ target)
    root = np.sqrt(weight)[:, None]
    left, sizes, right = np.linalg.svd((table - centre) * root, full_matrices=False)
    projected = left.T @ ((target - level) * root[:, 0])  # [r]
    shrunk = sizes / (sizes**2 + np.array(ridges)[:, None]) * projected  # [K, r]
    weights = right.T @ shrunk.T
    return weights, level - centre @ weights


def _cross_validate(
    table: FloatArray, target: FloatArray, weight: FloatArray, fold: IntArray
) -> FloatArray:
    """Held-out predictions per ridge [K, N]."""
    guesses = np.zeros((len(_RIDGES), len(target)))
    for held in range(_FOLDS):
        train, test = fold != held, fold == held
        mean, deviation = _moments(table[train])
        scaled = (table - mean) / deviation
        weights, bias = _ridge(scaled[train], target[train], weight[train], _RIDGES)
        guesses[:, test] = (scaled[test] @ weights + bias).T
    return guesses


def _ranks(values: FloatArray) -> FloatArray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])  # ties share a rank


def _correlation(one: FloatArray, other: FloatArray) -> float:
    one, other = one - one.mean(), other - other.mean()
    size = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum() / size) if size > 0 else 0.0
