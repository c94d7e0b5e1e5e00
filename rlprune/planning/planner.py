"""What planning on this machine and planning by a server have to do each in its own way."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rlprune.constraints import BoundConstraints
from rlprune.graph.types import IntArray, PruningGraph
from rlprune.latency.types import Measurement, ModelSubject
from rlprune.planning.request import PlanRequest, Unit
from rlprune.plans import PruningPlan
from rlprune.progress import OnProgress
from rlprune.schemes import Space
from rlprune.sensitivity.types import GroupProfiles

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.planning.proposals import Round


@dataclass(frozen=True)
class Question:
    """A request about one traced model, with all that is found out before the first plan."""

    request: PlanRequest
    trace: OnnxTrace
    device: str
    """The key that is meant, or `macs`."""
    bound: BoundConstraints
    space: Space
    """What may be decided."""
    profiles: GroupProfiles
    deadline: float
    """When measuring ends, by `time.monotonic`; infinite where it has all the time."""
    few: int | None = None
    """Whole models that are measured before the first plan; None: all that latencies are fitted
    to."""
    model_name: str = ""
    """What the user calls the model."""
    on_progress: OnProgress | None = None

    @property
    def graph(self) -> PruningGraph:
        """Of the model."""
        return self.trace.graph

    def subject(self, keeps: IntArray) -> ModelSubject:
        """The model under a plan's settings [S], as it is measured."""
        settings = tuple(int(value) for value in keeps)
        own = self.request.arithmetic
        return ModelSubject(
            self.graph.fingerprint, settings, self.space.schemes, own.precision, own.keep_float
        )

    @property
    def out_of_time(self) -> bool:
        """Whether the deadline has passed."""
        return math.isfinite(self.deadline) and time.monotonic() >= self.deadline


class Planner(Protocol):
    """Who answers planning questions: this machine, or a server."""

    default_timeout_sec: float
    """How long measuring may take where the request does not say."""

    def resolve(self, request: PlanRequest, graph: PruningGraph) -> str:
        """The key of the device that is meant, or `macs`; refuses, before any work is done, what
        this planner cannot do.

        Raises:
            InputError: the device, the policy or an option is not for this planner.
            MissingExtraError: a runtime of this machine is meant that is not installed.
        """
        ...

    def round_to(self, request: PlanRequest, device: str) -> int:
        """What keep counts are multiples of where the request does not say."""
        ...

    def answer(
        self, question: Question, budget: float, unit: Unit, search: Round | None = None
    ) -> PruningPlan:
        """The plan for one budget, its candidates not yet chosen from; what the device needs for it
        is measured first, if the request waits for that.

        Args:
            search: the round of a search that it is for; the plan is then the best by what was
                evaluated, its candidates those to evaluate next.

        Raises:
            NotFoundError: the device is unknown, or has measured nothing that a latency could be
                predicted from.
            UnavailableError: a server's device has not measured enough in time.
        """
        ...

    def learn(self, question: Question, keeps: IntArray) -> None:
        """Measures a plan's latency for the plans to come, where that is done while somebody
        waits."""
        ...

    def measure(self, question: Question, keeps: IntArray) -> Measurement:
        """A plan's settings [S] beside the unpruned model on the device, in new processes.

        Raises:
            MeasurementError: the device cannot measure.
            UnavailableError: it did not in time.
        """
        ...

    def put(self, question: Question, plan: PruningPlan) -> None:
        """Keeps the plan that the user is given. A store that cannot take it loses it no plan: that
        is told, and all."""
        ...
