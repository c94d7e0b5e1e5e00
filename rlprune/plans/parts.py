"""What a plan is made of: the entry of a site, and the figures that stand beside a plan."""

from __future__ import annotations

from dataclasses import dataclass

from rlprune.errors import InputError
from rlprune.schemes import Site, scheme_named


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """What one site keeps (`schemes.base.Site`)."""

    name: str
    """Name of the site; of a group, that of the first node that produces its channels."""
    scheme: str
    """What `width` and `keep` say: under `channel` how many channels, under `shape` the extents of
    a kernel, two decimal digits each (103 is 1x3), under `block` whether it stays, 1 or 0."""
    width: int
    """Value of the site in the unpruned model."""
    keep: int
    """Value of the option that was chosen for it."""
    members: tuple[str, ...]
    """What shrinks or goes with it, for the reader: `tensor[axis]` of every weight axis, of a block
    the operators."""
    constraint: str = ""
    """The constraint on it, e.g. `held by 'layer4.*'`; empty where there is none."""

    @property
    def option(self) -> str:
        """What was chosen, in words, e.g. `48 of 64 channels`, `1x3 of 3x3`, `left out`; for the
        reader: what counts is `keep`."""
        try:
            return scheme_named(self.scheme).describe(self._site, self.keep)
        except InputError:  # a scheme of a package that is not installed here
            return f"{self.keep} of {self.width}"

    @property
    def _site(self) -> Site:
        return Site(self.name, self.scheme, (self.keep, self.width), (0.0, 1.0), ordered=False)


@dataclass(frozen=True, slots=True)
class Unpruned:
    """The network as it is, in one precision."""

    precision: str
    latency_ms: float
    """Where it was measured in turns with the network in f32, by that ratio."""


@dataclass(frozen=True, slots=True)
class PlanFigures:
    """What a plan is predicted to cost; the knapsack's stand beside every plan for comparison."""

    keeps: tuple[int, ...]
    """Value of every site (`PlanEntry.keep`), in the plan's order."""
    predicted_latency_ms: float
    predicted_interval_ms: tuple[float, float]
    macs: int
    params: int


@dataclass(frozen=True, slots=True)
class Candidate(PlanFigures):
    """One of several plans for the same budget; its figures are None until it is evaluated."""

    policy: str
    """Name and version of what proposed it; samples around a policy's plan end in `~1`, `~2`."""
    divergence: float | None = None
    """From the unpruned network's answers, after reconstruction, nats; what is chosen by."""
    gain_se: float | None = None
    """Standard error of its difference from the knapsack's, image by image, nats."""
    loss: float | None = None
    """Cross-entropy on the same images, nats; None where there were no labels."""
    loss_se: float | None = None
    image_count: int = 0
    """Images that it was evaluated on before successive halving dropped it, or all of them."""
    chosen: bool = False
    """Whether it is the plan."""


@dataclass(frozen=True, slots=True)
class MeasuredRound:
    """One plan that was measured on the way to a certificate."""

    keeps: tuple[int, ...]
    predicted_latency_ms: float
    measured_latency_ms: float
    """By the ratio to the unpruned model interleaved with it, in processes of their own."""
    measured_interval_ms: tuple[float, float]
    """Where another such measurement would lie: 95 % on either side."""
    status: str
    """`ok`, `unstable` or `failed`, as `Measurement.status`; `reason` says why it is not `ok`."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What measuring a plan on its device said (`rlprune.planning.certify`)."""

    within: bool
    """Whether the upper end of the measured interval is within the budget."""
    measured_latency_ms: float
    measured_interval_ms: tuple[float, float]
    rounds: tuple[MeasuredRound, ...]
