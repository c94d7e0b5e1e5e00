"""The answer: which option every site takes, and what that is predicted to cost.

A plan holds no weights and no indices: which channels survive is decided where the weights are. It
is a plain JSON file that outlives any server and can be replayed.
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
from rlprune.errors import InputError, PlanError, PlanMismatchError
from rlprune.files import fields_of, write_atomic
from rlprune.graph.types import IntArray, PruningGraph
from rlprune.plans.parts import Candidate, Certificate, PlanEntry, PlanFigures, Unpruned
from rlprune.plans.reading import FORMAT, plan_fields
from rlprune.schemes import other_sites, scheme_named
from rlprune.schemes.channels import CHANNELS


@dataclass(frozen=True)
class PruningPlan:
    """What every site of one graph keeps, for one device and one budget."""

    fingerprint: str
    """Fingerprint (sha256, 64 hex digits) of the graph that this plan is for."""
    policy: str
    """Name and version of what decided, e.g. `knapsack` or `learned/1f3a9c`."""
    profiled: bool
    """True if sensitivity was measured on calibration data, or plans were evaluated on it; False if
    sensitivity was predicted."""
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
        """The plan as one JSON object (format `rlprune.plan/2`)."""
        return json.dumps({"format": FORMAT, **fields_of(self)}, indent=indent, default=_written)

    @staticmethod
    def from_json(text: str) -> PruningPlan:
        """The inverse of `to_json`.

        Raises:
            PlanError: truncated, not JSON, another format, or fields missing or of the wrong type.
        """
        return PruningPlan(**plan_fields(text))

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


def _written(part: Any) -> dict[str, Any]:
    """A part of a plan as its file has it; of an entry the option in words as well."""
    own = fields_of(part)
    return own | {"option": part.option} if isinstance(part, PlanEntry) else own
