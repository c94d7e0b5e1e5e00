"""The grid: every method on every network, device, budget and seed, on the same images.

A *case* is one network with one seed's images: disjoint ones to profile on, to choose on (the
objective), and to report on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.parts.tasks import Split, context_of, kept_profiles, network_images
from benchmarks.peers.book import Book
from benchmarks.peers.candidates import Keeps, choose, propose
from benchmarks.peers.findings import (
    CANDIDATES,
    CHECKPOINTS,
    DATA_FREE,
    RULES,
    UNPROFILED,
    Finding,
    GridSettings,
    PlanFound,
)
from benchmarks.peers.rules import SensitivityPolicy
from benchmarks.peers.search import Trail, follow
from benchmarks.peers.searches import search_named
from datasets import catalogue
from datasets.pack import CifarPack
from rlprune.files import digest
from rlprune.graph.types import IntArray
from rlprune.planning import task_for
from rlprune.policy import Policy, get_policy
from rlprune.runtime import get_runtime
from rlprune.schemes import space_with
from rlprune.schemes.channels import keep_levels
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.evaluate import Evaluation, Evaluator
from rlprune.sensitivity.measured import single_site_plans
from rlprune.sensitivity.types import GroupProfiles
from rlprune.solver.knapsack import budgets_at
from rlprune.solver.task import PruningTask
from rlprune.store import Store


class Case:
    """One network with one seed's images; for one thread."""

    def __init__(
        self,
        settings: GridSettings,
        net: catalogue.Loaded,
        seed: int,
        pack: CifarPack,
        split: Split,
        store: Store,
    ) -> None:
        """Runs the unpruned network on the objective's images, and one pruned one."""
        self.settings, self.net, self.seed = settings, net, seed
        self._pack, self._split, self._store = pack, split, store
        self.book = Book(settings.work / "peers.sqlite")
        self.trace = catalogue.traced(net)
        graph = self.trace.graph
        self.space = space_with(graph, *keep_levels(graph, round_to=settings.round_to))
        order = np.random.default_rng([seed, 2]).permutation(split.calibrate)
        first = settings.objective_count
        self._profile_index = order[first : first + settings.profile_count]
        if len(self._profile_index) < settings.profile_count:
            raise SystemExit(f"{len(order)} images are too few to profile and to choose on")
        self.objective = Evaluator(self.trace, self._images(order[:first]), runtime=get_runtime())
        self.context = context_of(self.objective, self.space)
        self._policies: dict[str, Policy] = {}

    def _images(self, index: NDArray[np.integer]) -> CalibrationSet:
        return network_images(self.net, self._pack, index, self.trace)

    @cached_property
    def report(self) -> CalibrationSet:
        return self._images(self._split.report[: self.settings.report_count])

    @cached_property
    def _report_judge(self) -> Evaluator:
        return Evaluator(self.trace, self.report, runtime=get_runtime(), reconstruct=False)

    @cached_property
    def report_context(self) -> str:
        index = self._split.report[: self.settings.report_count]
        return digest(self.context, np.asarray(index).tobytes())

    @cached_property
    def profiles(self) -> GroupProfiles:
        """Measured on images of their own, the same for all devices."""
        evaluator = Evaluator(self.trace, self._images(self._profile_index), runtime=get_runtime())
        return kept_profiles(evaluator, self.space, self.settings.work)

    def task(self, device: str) -> PruningTask:
        """With the measured profile."""
        return task_for(self.space, self.profiles, self._store, device)

    def evaluate(self, keeps: IntArray) -> Evaluation:
        """On the objective's images."""
        return self.book.evaluation(
            self.context, keeps, lambda: self.objective.evaluate(np.asarray(keeps))
        )

    def _evaluate_part(self, keeps: tuple[int, ...], start: int, stop: int) -> Evaluation:
        """By some of them; the whole is kept, as other methods may ask for it."""
        whole = self.evaluate(np.array(keeps))
        losses, divergences = whole.image_losses, whole.image_divergences
        return Evaluation.of(losses[start:stop], divergences[start:stop], whole.accuracy)

    def judge(self, keeps: IntArray) -> Evaluation:
        """On the report's images, reconstructed on the objective's; full widths are left as is."""

        def made() -> Evaluation:
            if (np.asarray(keeps) == self.trace.graph.widths).all():
                model = self.trace.model
            else:
                model = self.objective.corrected_model(np.asarray(keeps))
            return self._report_judge.evaluate_model(model)

        return self.book.evaluation(self.report_context, keeps, made)

    def find(self, method: str, device: str, share: float) -> Finding:
        """The method's plans in one cell, from the book where it has them; all of them judged.

        Raises:
            PolicyError: the policy cannot be loaded.
        """
        task = self.task(device)
        budget = float(budgets_at(task, np.array([share]))[0])
        policy = self._policy(method.removesuffix(DATA_FREE)) if method in RULES else None
        proposed = self._proposed(method, task, budget) if method in CANDIDATES else None
        key = self._key(method, policy, proposed, task, f"{device} {budget!r}")

        def made() -> dict[str, Any]:
            plans = self._plans(method, policy or proposed, task, budget, key)
            for plan in plans:
                choice = task.space.choice_of(np.array([plan.keeps]))
                upper = float(task.tables.upper_ms(choice)[0])
                if upper > budget:
                    raise AssertionError(f"{method} plans {upper} ms for a budget of {budget} ms")
            profiled = method not in UNPROFILED and not method.endswith(DATA_FREE)
            profile = len(single_site_plans(self.space)) if profiled else 0
            widths = tuple(int(width) for width in self.trace.graph.widths)
            place = (method, self.net.name, device, share, self.seed)
            return asdict(Finding(*place, profile, tuple(plans), widths))

        found = Finding.read(self.book.finding(key, made))
        self.judge(self.trace.graph.widths)
        for plan in found.plans:
            self.judge(np.array(plan.keeps))
        return replace(found, report=self.report_context)

    def _proposed(self, method: str, task: PruningTask, budget: float) -> list[Keeps]:
        count, rng = CANDIDATES[method], np.random.default_rng(0)
        return propose(task, self._policy("learned"), budget, count, rng)

    def _key(
        self,
        method: str,
        policy: Policy | None,
        proposed: list[Keeps] | None,
        task: PruningTask,
        where: str,
    ) -> str:
        """Digest of all that the method's plans depend on; what is reported on is no part of it."""
        settings, measured = self.settings, task.profiles.measured_loss
        assert measured is not None
        if method.endswith(DATA_FREE):
            measured = task.data_free.curve
        return digest(
            method if policy is None else f"{method} {policy.name}",
            f"{settings.search_count} {settings.episode_count} {settings.profile_count}",
            "" if proposed is None else str(proposed),
            self.context,
            f"{where} {self.seed} by divergence",
            measured.tobytes(),
            task.tables.operators.flat_ms.tobytes(),
        )

    def _policy(self, name: str) -> Policy:
        if name not in self._policies:
            known = self.settings.policy if name == "learned" else name
            sensitivity = name == "sensitivity"
            self._policies[name] = SensitivityPolicy() if sensitivity else get_policy(known)
        return self._policies[name]

    def _plans(
        self,
        method: str,
        by: Policy | list[Keeps] | None,
        task: PruningTask,
        budget: float,
        key: str,
    ) -> list[PlanFound]:
        """By number of evaluations: a policy's, the best of those proposed, or a search's."""
        if isinstance(by, list):
            count = self.settings.objective_count
            keeps, seen = choose(by, self._evaluate_part, count)
            return [PlanFound(-(-seen // count), keeps)]
        if by is not None:
            task = task.data_free if method.endswith(DATA_FREE) else task
            [choice] = by.plan(task, np.array([budget]))
            return [PlanFound(0, tuple(task.space.settings_at(choice).tolist()))]
        # What a search draws must not change when it is resumed, but differ from cell to cell.
        drawn_from = int(key[:8], 16)
        count = self.settings.count(method)
        trail = follow(
            search_named(method, task, budget, count, drawn_from),
            lambda choice: self.evaluate(task.space.settings_at(choice)).divergence,
            lambda choice: bool(task.tables.upper_ms(choice[None])[0] <= budget),
            count,
        )
        return list(_checkpoints(trail, task, method, count))


def _checkpoints(trail: Trail, task: PruningTask, method: str, count: int) -> Iterator[PlanFound]:
    """Best so far at the checkpoints up to `count`; the greedy search has but one answer."""
    known = sorted({*(c for c in CHECKPOINTS if c < count), count})
    for at in [count] if method == "netadapt" else known:
        best = trail.at(at)
        if best is not None:
            keeps = task.space.settings_at(np.array(best[0]))
            yield PlanFound(min(at, trail.evaluation_count), tuple(keeps.tolist()))
