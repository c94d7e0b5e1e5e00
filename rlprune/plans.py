"""The answer: which option every site takes, and what that is predicted to cost.

A plan holds no weights and no indices: which channels survive is decided where the weights are. It
is a plain JSON file that outlives any server and can be replayed. The module is called `plans`
because `rlprune.plan(...)` is the function that makes one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rlprune.constraints import Constraints
from rlprune.device_keys import canonical_key
from rlprune.errors import InputError, PlanError, PlanMismatchError
from rlprune.files import fields_of, write_atomic
from rlprune.graph.types import IntArray, PruningGraph
from rlprune.json_values import count as _count
from rlprune.json_values import finite as _finite
from rlprune.json_values import known as _known
from rlprune.json_values import pair as _pair
from rlprune.schemes import other_sites, scheme_named
from rlprune.schemes.channels import CHANNELS

FORMAT = "rlprune.plan/1"


@dataclass(frozen=True, slots=True)
class PlanEntry:
    """What one site keeps (`schemes.base.Site`)."""

    name: str
    """Name of the site; of a group, that of the first node that produces its channels."""
    scheme: str
    """What `width` and `keep` count: under `channel`, the channels of a group."""
    width: int
    """Value of the site in the unpruned model."""
    keep: int
    """Value of the option that was chosen for it."""
    members: tuple[str, ...]
    """`tensor[axis]` of every weight axis that shrinks with the group, for the reader."""
    constraint: str = ""
    """The constraint on it, e.g. `held by 'layer4.*'`; empty where there is none."""


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


@dataclass(frozen=True)
class PruningPlan:
    """What every site of one graph keeps, for one device and one budget."""

    fingerprint: str
    """Fingerprint (sha256, 64 hex digits) of the graph that this plan is for."""
    policy: str
    """Name and version of what decided, e.g. `knapsack` or `learned/1f3a9c`."""
    profiled: bool
    """True if sensitivity was measured on calibration data, False if it was predicted."""
    device: str
    """Device key, or `macs`: then every latency is a number of millions of MACs."""
    budget_ms: float
    """The latency budget; one that was asked for as a ratio is turned into ms."""
    feasible: bool
    """False where no plan was found within the budget; the plan is then that of least latency."""
    base_latency_ms: float
    """Predicted for the unpruned model."""
    least_latency_ms: float
    """Predicted for the plan of least latency."""
    predicted_latency_ms: float
    predicted_interval_ms: tuple[float, float]
    """90 % interval of the prediction; its upper end was compared with the budget."""
    groups: tuple[PlanEntry, ...]
    """One entry for every site: the groups of channels in the graph's order, then other sites."""
    macs: int
    """Multiply-accumulates of one inference of the pruned model at batch 1."""
    params: int
    """Parameters of the pruned model, BatchNorm folded into the weights."""
    reference: PlanFigures | None = None
    """The latency knapsack's plan for the same question."""
    note: str = ""
    """Remarks for the reader, separated by semicolons, e.g. why the knapsack's plan was taken."""
    certificate: Certificate | None = None
    """The plan as measured on its device; None where nobody asked for that."""
    constraints: Constraints = field(default_factory=Constraints)
    """The constraints that it keeps to; `round_to` is None only where it is not known."""
    candidates: tuple[Candidate, ...] = ()
    """The plans that it was chosen from, the knapsack's first; empty where there was no choice."""
    precision: str = "f32"
    """Precision that its latencies are for: `f32`, `bf16` or `int8`."""
    unpruned: tuple[Unpruned, ...] = ()
    """The unpruned network in f32, in int8 and in the plan's precision, as far as that is known;
    empty where only one is."""
    expected_divergence: float | None = field(default=None, compare=False)
    """Divergence expected after reconstruction, nats; None for a network that was not trained."""

    @property
    def keeps(self) -> IntArray:
        """What every site keeps [S], groups of channels first, in the graph's order of groups."""
        return np.array([entry.keep for entry in self.groups], dtype=np.int64)

    @property
    def schemes(self) -> tuple[str, ...]:
        """Schemes that the plan says something of."""
        return tuple(dict.fromkeys(("channel", *(entry.scheme for entry in self.groups))))

    @property
    def about(self) -> dict[str, str]:
        """What is written into the metadata of a model that was cut by the plan; `rlprune.plan` is
        the sha256 (hex) of the plan's JSON as `to_json()` gives it."""
        return {
            "rlprune.version": version("rlprune"),
            "rlprune.graph": self.fingerprint,
            "rlprune.plan": hashlib.sha256(self.to_json().encode()).hexdigest(),
            "rlprune.policy": self.policy,
            "rlprune.device": self.device,
            "rlprune.budget_ms": repr(self.budget_ms),
            "rlprune.predicted_latency_ms": repr(self.predicted_latency_ms),
        }

    def check(self, graph: PruningGraph) -> None:
        """Refuses a plan that cannot be applied to `graph`.

        A plan for the same network at another size of its inputs fits: its groups are the graph's,
        though the fingerprints, which tell of all extents, differ.

        Raises:
            PlanMismatchError: it is for another graph.
            PlanError: it asks for what the graph cannot give.
        """
        if self.fingerprint != graph.fingerprint:
            difference = self._difference(graph)
            if difference:
                raise PlanMismatchError(
                    f"plan is for graph {self.fingerprint[:12]}, model is "
                    f"{graph.fingerprint[:12]}, and {difference}; trace and plan the model again",
                    field="plan.fingerprint",
                )
        channels = [entry for entry in self.groups if entry.scheme == CHANNELS.name]
        if len(channels) != len(graph.groups):
            raise PlanError(
                f"plan has {len(channels)} groups, model has {len(graph.groups)}",
                field="plan.groups",
            )
        for entry, group in zip(channels, graph.groups, strict=True):
            if not 1 <= entry.keep <= group.width:
                raise PlanError(
                    f"group {group.name!r}: keep {entry.keep} is not within 1..{group.width}",
                    field="plan.groups",
                )
        self._check_others(graph, [entry for entry in self.groups if entry not in channels])

    def _check_others(self, graph: PruningGraph, entries: list[PlanEntry]) -> None:
        """Refuses entries of other schemes that the graph has no sites for."""
        for entry in entries:
            try:
                scheme_named(entry.scheme)
            except InputError as error:
                raise PlanError(f"site {entry.name!r}: {error}", field="plan.groups") from error
        sites = other_sites(graph, self.schemes)
        if [entry.name for entry in entries] != [site.name for site in sites]:
            raise PlanError(
                "plan has other sites than the model; trace and plan the model again",
                field="plan.groups",
            )
        for entry, site in zip(entries, sites, strict=True):
            if not scheme_named(site.scheme).accepts(graph, site, entry.keep):
                raise PlanError(
                    f"site {site.name!r} has no option {entry.keep} of scheme {site.scheme!r}",
                    field="plan.groups",
                )

    def _difference(self, graph: PruningGraph) -> str:
        """How the plan's groups are not the graph's; empty where they are."""
        channels = [entry for entry in self.groups if entry.scheme == CHANNELS.name]
        if len(channels) != len(graph.groups):
            return f"the plan has {len(channels)} groups, the model {len(graph.groups)}"
        for entry, group in zip(channels, graph.groups, strict=True):
            if entry.name != group.name:
                return f"where the plan has group {entry.name!r} the model has {group.name!r}"
            if entry.width != group.width:
                return (
                    f"group {entry.name!r} has {entry.width} units in the plan, "
                    f"{group.width} in the model"
                )
            members = {f"{member.tensor}[{member.axis}]" for member in group.members}
            if entry.members and members and not members.intersection(entry.members):
                return f"group {entry.name!r} is of other weights ({entry.members[0]} in the plan)"
        return ""

    def to_json(self, *, indent: int | None = 2) -> str:
        """The plan as one JSON object (format `rlprune.plan/1`)."""
        return json.dumps({"format": FORMAT, **fields_of(self)}, indent=indent, default=fields_of)

    @staticmethod
    def from_json(text: str) -> PruningPlan:
        """The inverse of `to_json`.

        Raises:
            PlanError: truncated, not JSON, another format, or fields missing or of the wrong type.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"plan is not JSON or is cut short ({error}); make it again") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlanError(f"not a plan of format {FORMAT!r}; make it again with `rlprune plan`")
        try:
            reference = data["reference"]
            return PruningPlan(
                fingerprint=str(data["fingerprint"]),
                policy=str(data["policy"]),
                profiled=bool(data["profiled"]),
                device=canonical_key(str(data["device"])),
                precision=str(data.get("precision", "f32")),
                budget_ms=_finite(data["budget_ms"]),
                feasible=bool(data["feasible"]),
                base_latency_ms=_finite(data["base_latency_ms"]),
                least_latency_ms=_finite(data["least_latency_ms"]),
                predicted_latency_ms=_finite(data["predicted_latency_ms"]),
                predicted_interval_ms=_pair(data["predicted_interval_ms"]),
                groups=tuple(
                    PlanEntry(
                        name=str(entry["name"]),
                        scheme=str(entry["scheme"]),
                        width=_count(entry["width"]),
                        keep=_count(entry["keep"]),
                        members=tuple(str(member) for member in entry["members"]),
                        constraint=str(entry.get("constraint", "")),
                    )
                    for entry in data["groups"]
                ),
                macs=_count(data["macs"]),
                params=_count(data["params"]),
                reference=None if reference is None else PlanFigures(**_figures(reference)),
                note=str(data["note"]),
                certificate=_certificate(data.get("certificate")),
                constraints=_constraints(data.get("constraints", {})),
                candidates=tuple(_candidate(one) for one in data.get("candidates", ())),
                unpruned=tuple(
                    Unpruned(str(one["precision"]), _finite(one["latency_ms"]))
                    for one in data.get("unpruned", ())
                ),
                expected_divergence=_known(data.get("expected_divergence")),
            )
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
            InputError,
        ) as error:
            raise PlanError(
                f"plan is damaged ({repr(error)[:200]}); make it again with `rlprune plan`"
            ) from error

    def save(self, path: str | Path) -> None:
        """Writes the plan; either the whole file is there afterwards or nothing changed."""
        write_atomic(Path(path), self.to_json().encode() + b"\n")

    @staticmethod
    def load(path: str | Path) -> PruningPlan:
        """Reads a plan file.

        Raises:
            PlanError: not a readable plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read plan {path}: {error}") from error
        try:
            return PruningPlan.from_json(text)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error


def _figures(data: Any) -> dict[str, Any]:
    """What `PlanFigures` holds."""
    return {
        "keeps": tuple(_count(keep) for keep in data["keeps"]),
        "predicted_latency_ms": _finite(data["predicted_latency_ms"]),
        "predicted_interval_ms": _pair(data["predicted_interval_ms"]),
        "macs": _count(data["macs"]),
        "params": _count(data["params"]),
    }


def _candidate(data: Any) -> Candidate:
    return Candidate(
        **_figures(data),
        policy=str(data["policy"]),
        divergence=_known(data.get("divergence")),  # not in plans of 0.4 and before
        gain_se=_known(data["gain_se"]),
        loss=_known(data["loss"]),
        loss_se=_known(data["loss_se"]),
        image_count=_count(data.get("image_count", 0)),
        chosen=bool(data["chosen"]),
    )


def _certificate(data: Any) -> Certificate | None:
    if data is None:
        return None
    return Certificate(
        within=bool(data["within"]),
        measured_latency_ms=_finite(data["measured_latency_ms"]),
        measured_interval_ms=_pair(data["measured_interval_ms"]),
        rounds=tuple(
            MeasuredRound(
                keeps=tuple(_count(keep) for keep in one["keeps"]),
                predicted_latency_ms=_finite(one["predicted_latency_ms"]),
                measured_latency_ms=_finite(one["measured_latency_ms"]),
                measured_interval_ms=_pair(one["measured_interval_ms"]),
                status=str(one["status"]),
                reason=str(one["reason"]),
            )
            for one in data["rounds"]
        ),
    )


def _constraints(data: Any) -> Constraints:
    """Of plans made before constraints were recorded: none."""
    patterns = {key: tuple(data.get(key, ())) for key in ("hold", "pin", "keep_float")}
    return Constraints(**{**data, **patterns})
