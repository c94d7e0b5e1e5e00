"""What is believed of the loss of every option, and what evaluated plans say of it.

The loss of a plan is about the sum of what its options lose, and what each loses is known up to a
factor. The logarithms of these factors are Gaussian: options of one site share most of theirs, and
neighbours on a chain more than others. A plan that was evaluated tells of all its options at once,
those that are thought to lose most before all (a linear-Gaussian update about the present mean, as
in an iterated extended Kalman filter). Draws from what is then believed are proposals of the next
plans to look at (Thompson sampling; Russo et al. 2018, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.schemes import Space

FLOOR = 2e-3
"""Nats added to every loss before its logarithm is taken: less cannot be told from nothing."""
STEPS = 12
"""Linearisations of one update, at most; two or three where plans lose about what is expected."""
SHARES = (1.0, 0.5, 0.25, 0.1)
"""Of a step to where a linearisation points: the first that makes what was seen likelier."""
SETTLED = 1e-3
"""Greatest change of a factor's logarithm at which an update ends."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Standard deviations of the logarithms of factors before anything was evaluated."""

    site: float = 0.7
    """Of what all options of a site share."""
    option: float = 0.25
    """Of what options of one site have each for itself."""
    reach: float = 1.0
    """Options of a chain whose shares differ by this in the logarithm correlate by 1/e there."""
    together: float = 0.5
    """Of what plans of several changes lose beyond the sum of each alone; common to all plans."""
    error: float = 0.05
    """Of what stays unexplained of a plan."""


@dataclass(frozen=True)
class Evaluated:
    """Plans that were looked at."""

    choice: IntArray
    """[N, S]"""
    log_loss: FloatArray
    """Logarithm of loss + FLOOR [N]."""
    variance: FloatArray
    """Of that, and of what no sum explains [N]."""


@dataclass(frozen=True)
class Belief:
    """Gaussian over the logarithms of the factors of all options; immutable."""

    space: Space
    prior: FloatArray
    """Logarithm of loss + FLOOR that each option is thought to have [S, L]; -inf of the one that
    leaves the site as it is, and of padding."""
    covariance: FloatArray
    """Of a site's factors before anything was seen [S, L, L]; sites are independent then."""
    spread: Spread
    seen: Evaluated
    factors: FloatArray
    """Mean of the logarithms [S, L]."""
    together: float
    """Mean of the logarithm of what plans lose beyond the sum."""

    @staticmethod
    def of(space: Space, curve: FloatArray, spread: Spread = Spread()) -> Belief:
        """Before anything was evaluated: losses `curve` [S, L], nats, and how far they are off."""
        site_count, length = curve.shape
        changes = np.arange(length) < space.option_count[:, None] - 1  # [S, L]
        prior = np.where(changes, np.log(np.maximum(curve, 0.0) + FLOOR), -np.inf)
        place = np.log(np.maximum(space.shares, 0.02))
        apart = np.abs(place[:, :, None] - place[:, None, :]) / spread.reach
        own = np.where(space.ordered[:, None, None], np.exp(-apart), np.eye(length))
        return Belief(
            space=space,
            prior=prior,
            covariance=spread.site**2 + spread.option**2 * own,
            spread=spread,
            seen=Evaluated(np.zeros((0, site_count), dtype=np.int64), np.zeros(0), np.zeros(0)),
            factors=np.zeros(curve.shape),
            together=0.0,
        )

    @property
    def curve(self) -> FloatArray:
        """What each option is believed to lose [S, L], nats: the median."""
        return self._curve(self.factors)

    def after(self, choice: IntArray, loss: FloatArray, error: FloatArray) -> Belief:
        """What is believed once plans were evaluated, too.

        Args:
            choice: [N, S].
            loss: nats [N].
            error: standard errors, as shares of the losses [N].
        """
        before = self.seen
        seen = Evaluated(
            np.concatenate([before.choice, choice]),
            np.concatenate([before.log_loss, np.log(np.maximum(loss, 0.0) + FLOOR)]),
            np.concatenate([before.variance, error**2 + self.spread.error**2]),
        )
        made = replace(self, seen=seen)
        for _ in range(STEPS):
            moved = made._step()
            if np.abs(moved.factors - made.factors).max(initial=0.0) < SETTLED:
                return moved
            made = moved
        return made

    def draws(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Curves [K, S, L] as they may be, by what is believed."""
        noise = rng.standard_normal((count, *self.prior.shape, 1))
        factors = (self._root @ noise)[..., 0]  # [K, S, L]
        if len(self.seen.choice):
            # A draw of the prior, moved by what it would have made of the same plans.
            lines = _Lines.of(self, self.seen.choice)
            beyond = self.spread.together * rng.standard_normal(count)
            wrong = np.sqrt(self.seen.variance) * rng.standard_normal((count, len(lines.weight)))
            told = lines.told(factors, beyond) + wrong  # [K, N]
            factors = factors - lines.moved(self._solve(lines, told))
        return self._curve(self.factors + factors)

    def expected(self, choice: IntArray) -> tuple[FloatArray, FloatArray]:
        """Logarithm of loss + FLOOR of plans [N, S], and its standard deviation [N]."""
        lines = _Lines.of(self, choice)
        variance = lines.covariance(lines).diagonal()
        if len(self.seen.choice):
            seen = _Lines.of(self, self.seen.choice)
            cross = lines.covariance(seen)  # [N, M]
            variance = variance - (cross * self._solve(seen, cross)).sum(1)
        return lines.log_loss, np.sqrt(np.maximum(variance, 0.0))

    def median_loss(self, choice: IntArray) -> FloatArray:
        """What plans [N, S] are believed to lose [N], nats."""
        log_loss, _ = self.expected(choice)
        return np.maximum(np.exp(log_loss) - FLOOR, 0.0)

    @property
    def _root(self) -> FloatArray:
        """Of the covariance [S, L, L]."""
        jitter = 1e-9 * np.eye(self.covariance.shape[-1])
        return np.asarray(np.linalg.cholesky(self.covariance + jitter))

    def _surprise(self) -> float:
        """Minus the logarithm of how likely the mean is, but for a constant."""
        lines = _Lines.of(self, self.seen.choice)
        missed = (self.seen.log_loss - lines.log_loss) ** 2 / self.seen.variance
        apart = np.linalg.solve(self._root, self.factors[..., None])
        beyond = (self.together / self.spread.together) ** 2
        return float(missed.sum() + (apart**2).sum() + beyond)

    def _step(self) -> Belief:
        """Towards the likeliest mean."""
        there, before = self._linearised(), self._surprise()
        for share in SHARES:
            made = replace(
                self,
                factors=self.factors + share * (there.factors - self.factors),
                together=self.together + share * (there.together - self.together),
            )
            if made._surprise() <= before:
                return made
        return self

    def _linearised(self) -> Belief:
        """The mean that would be likeliest if losses were linear about the present one."""
        lines = _Lines.of(self, self.seen.choice)
        missing = self.seen.log_loss - lines.log_loss + lines.told(self.factors, self.together)
        weights = self._solve(lines, missing[None])
        beyond = self.spread.together**2 * float((weights @ lines.several)[0])
        return replace(self, factors=lines.moved(weights)[0], together=beyond)

    def _solve(self, lines: _Lines, told: FloatArray) -> FloatArray:
        """(H P H' + R)^-1 of rows [K, N]."""
        whole = lines.covariance(lines) + np.diag(self.seen.variance)
        return np.asarray(np.linalg.solve(whole, told.T).T)

    def _curve(self, factors: FloatArray) -> FloatArray:
        return np.asarray(np.exp(self.prior + factors))


@dataclass(frozen=True)
class _Lines:
    """Logarithms of plans' losses as linear functions of the factors, about their mean."""

    belief: Belief
    choice: IntArray
    """[N, S]"""
    log_loss: FloatArray
    """At the mean [N]."""
    weight: FloatArray
    """By how much each follows its option's factor [N, S]."""
    several: FloatArray
    """1 where more than one site is changed [N]."""

    @staticmethod
    def of(belief: Belief, choice: IntArray) -> _Lines:
        sites = np.arange(choice.shape[1])
        each = belief.curve[sites, choice]  # [N, S]; 0 where a site stays
        total = np.maximum(each.sum(1), FLOOR)
        several = (each > 0.0).sum(1) > 1
        log_loss = np.log(total) + belief.together * several
        return _Lines(belief, choice, log_loss, each / total[:, None], several.astype(np.float64))

    def told(self, factors: FloatArray, together: FloatArray | float) -> FloatArray:
        """What factors [..., S, L] come to [..., N]."""
        own = factors[..., np.arange(self.choice.shape[1]), self.choice]  # [..., N, S]
        beyond = np.asarray(together)[..., None] * self.several
        return np.asarray((own * self.weight).sum(-1) + beyond)

    def covariance(self, other: _Lines) -> FloatArray:
        """Of two lists of plans before anything was seen [N, M]."""
        found = self.belief.spread.together**2 * np.outer(self.several, other.several)
        for site, shared in enumerate(self.belief.covariance):  # all at once would be [N, M, S]
            own = shared[np.ix_(self.choice[:, site], other.choice[:, site])]
            found += np.outer(self.weight[:, site], other.weight[:, site]) * own
        return np.asarray(found)

    def moved(self, weights: FloatArray) -> FloatArray:
        """P H' of weights [K, N], as factors [K, S, L]."""
        sites = np.arange(self.choice.shape[1])
        shared = self.belief.covariance[sites, :, self.choice]  # [N, S, L]
        return np.asarray(np.einsum("kn,ns,nsl->ksl", weights, self.weight, shared))
