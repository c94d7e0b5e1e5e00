"""How much is done to find a plan: rounds of proposing plans and evaluating them.

One *evaluation* is `EVALUATION` images through the network, every image counted: the pass by which
options are first judged, the samples that a plan's layers are solved on, and those it is judged on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rlprune.errors import InputError
from rlprune.graph.types import PruningGraph
from rlprune.sensitivity.types import MAX_INPUTS

EVALUATION = 1000
"""Images."""
PASSED = (4, 256)
"""Samples of the unpruned network's one pass, at least and at most."""
PASS_MACS = 3.2e10
"""Of that pass, some two seconds of one core; of large networks it sees fewer samples, which
have more places each."""
MACS_PER_SEC = 1.5e10
"""Of one core of an x86-64 server in ONNX Runtime; other machines take twice or half the time."""
USUAL_SHARE = 0.5
"""Of the unpruned network's work that a plan leaves, where the budget does not say."""
LEAST_SAMPLES, LEAST_ROUNDS = 16, 2
"""Of a large network; its samples have more places each."""
OPERATOR_SEC = 1e-3
"""CPU time that a plan takes besides for each operator: cutting, loading."""
SOLVED = ("conv", "linear")
"""Kinds of operators whose weights are solved."""
CUBES_PER_SEC = 3e10
"""Solving a layer of d inputs takes d^3 steps, of which so many go by in a second. With this and
the above, fitted to 22 searches of eleven networks, each is told within a factor of 1.4; without
the solving a DenseNet of 18 layers took 2.2 times what was said, and a ConvNeXt at 0.35 of its
latency 0.6 times, without what plans save."""


@dataclass(frozen=True, slots=True)
class Effort:
    """Rounds, and what is done in each."""

    rounds: int
    plans: int
    """Evaluated in a round."""
    solved: int
    """Samples that a plan's layers are solved on."""
    judged: int
    """Samples that it is judged on, others than those."""
    finals: int
    """Plans that are looked at more closely in the end."""
    closer: int
    """Samples that these are judged on; they are solved on all of the first pass."""
    most_sec: float = 1e9
    """CPU time beyond which a large network is looked at on fewer samples, and in fewer rounds."""
    few: int | None = None
    """Whole models whose latency is measured before the first plan, where it is not known; the best
    plan of every round is measured as well. None: all that latencies are fitted to."""

    def images(self, graph: PruningGraph) -> int:
        """That go through the network, about."""
        return sum(self.images_by(passed_count(graph)))

    def images_by(self, passed: int) -> tuple[int, int]:
        """Through the unpruned network, of whose one pass they are `passed`, and through pruned
        ones."""
        own = self.solved + self.judged
        if not self.rounds:
            return passed, 0
        closer = max(passed, self.solved) + self.closer
        return passed + own + closer, self.rounds * self.plans * own + self.finals * closer

    def fitted(self, graph: PruningGraph) -> Effort:
        """What of it a network can afford."""
        over = self.cpu_sec(graph) / self.most_sec
        if over <= 1 or not self.rounds:
            return self
        solved, judged, closer = (
            max(int(count / over), min(count, LEAST_SAMPLES))
            for count in (self.solved, self.judged, self.closer)
        )
        fewer = replace(self, solved=solved, judged=judged, closer=closer)
        rounds = int(self.rounds * self.most_sec / fewer.cpu_sec(graph))
        return replace(fewer, rounds=min(max(rounds, LEAST_ROUNDS), self.rounds))

    def cpu_sec(self, graph: PruningGraph, share: float = USUAL_SHARE) -> float:
        """CPU time that finding a plan takes, roughly, for a share of the unpruned latency."""
        unpruned, pruned = self.images_by(passed_count(graph))
        macs = int(graph.macs(graph.widths)) * (unpruned + share * pruned)
        plans = self.rounds * self.plans + self.finals
        once = len(graph.operators) * OPERATOR_SEC + _cubes(graph) / CUBES_PER_SEC
        return macs / MACS_PER_SEC + plans * once


EFFORTS = {
    "instant": Effort(0, 0, 0, 0, 0, 0, few=2),
    "quick": Effort(5, 8, 64, 64, 5, 192, most_sec=300.0, few=4),
    "thorough": Effort(15, 16, 128, 256, 8, 600, most_sec=3600.0),
}
"""By name: one pass of the unpruned network, some eight evaluations, some hundred."""


DEFAULT_EFFORT = "quick"
EVALUATING = "evaluating plans"
"""What progress calls it."""


def passed_count(graph: PruningGraph) -> int:
    """Samples of the one pass, where there are as many."""
    affordable = PASS_MACS // max(int(graph.macs(graph.widths)), 1)
    return int(min(max(affordable, PASSED[0]), PASSED[1]))


def cost_text(name: str, graph: PruningGraph, share: float = USUAL_SHARE) -> str:
    """What finding a plan of this network, for a share of its latency, will cost, for who waits for
    it."""
    effort = EFFORTS[name].fitted(graph)
    count = effort.rounds * effort.plans + effort.finals
    plans = f"{count} plans are evaluated" if effort.rounds else "one pass"
    return f"effort {name}: {plans}, about {cpu_text(effort.cpu_sec(graph, share))} of CPU"


def cpu_text(seconds: float) -> str:
    """`40 s` or `12 min`."""
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{max(seconds, 1):.0f} s"


def check_effort(name: str) -> str:
    """Raises InputError where it is none."""
    if name not in EFFORTS:
        raise InputError(f"no effort {name[:40]!r}; give {', '.join(EFFORTS)}", field="effort")
    return name


def _cubes(graph: PruningGraph) -> float:
    """Cubes of the numbers that a layer's outputs are each made of, all layers' added up."""
    found = 0.0
    for op in graph.operators:
        if op.kind in SOLVED:
            groups = max(op.groups, 1)
            inputs = int(op.in_width.at(graph.widths)) * math.prod(op.kernel) / groups
            found += groups * inputs**3 if inputs <= MAX_INPUTS else 0.0
    return found
