"""The grid: every method on every network, device, budget and seed, on the same images.

A *case* is one network with one seed's images: disjoint ones to profile on, to choose on (the
objective), and to report on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
from datasets import catalogue
from benchmarks.peers.torch_pruning import TorchPruningPolicy
from benchmarks.parts.tasks import Split, context_of, kept_profiles, network_images
from datasets.pack import CifarPack
from numpy.typing import NDArray

from benchmarks.peers.amc import amc, random_policy
from benchmarks.peers.book import Book
from benchmarks.peers.findings import (
    CANDIDATES,
    CHECKPOINTS,
    DATA_FREE,
    LEAN,
    RACE,
    RULES,
    UNPROFILED,
    Finding,
    GridSettings,
    PlanFound,
    search_count,
)
from benchmarks.peers.rules import SensitivityPolicy
from benchmarks.peers.search import Search, Space, Trail, follow
from benchmarks.peers.searches import evolution, netadapt, random_search
from rlprune.graph.types import IntArray
from rlprune.planning import make_plan, task_for
from rlprune.planning.candidates import choose
from rlprune.plans import PruningPlan
from rlprune.policy import Policy, get_policy
from rlprune.task.knapsack import budgets_at
from rlprune.profile.calibration import CalibrationSet
from rlprune.profile.energy import loss_curve
from rlprune.profile.evaluate import Evaluation, Evaluator, evaluate_model
from rlprune.profile.measured import single_group_plans
from rlprune.profile.types import GroupProfiles, keep_levels
from rlprune.runtime import get_runtime
from rlprune.store import Store
from rlprune.store.encoding import digest
from rlprune.task.task import PruningTask


class Case:
    """One network with one seed's images; for one thread."""

    def __init__(
        self,
        settings: GridSettings,
        net: catalogue.Loaded,
        seed: int,
        pack: CifarPack,
        split: Split,
        book: Book,
        store: Store,
    ) -> None:
        """Runs the unpruned network on the objective's images, and one pruned one."""
        self.settings, self.net, self.seed = settings, net, seed
        self._pack, self._split, self._book, self._store = pack, split, book, store
        self.trace = catalogue.traced(net)
        self.levels, self.level_count = keep_levels(self.trace.graph, round_to=settings.round_to)
        order = np.random.default_rng([seed, 2]).permutation(split.calibrate)
        first = settings.objective_count
        self._profile_index = order[first : first + settings.profile_count]
        if len(self._profile_index) < settings.profile_count:
            raise SystemExit(f"{len(order)} images are too few to profile and to choose on")
        self.objective = Evaluator(self.trace, self._images(order[:first]), runtime=get_runtime())
        self.context = context_of(self.objective, self.levels, self.level_count)
        self._policies: dict[str, Policy] = {}

    def _images(self, index: NDArray[np.integer]) -> CalibrationSet:
        return network_images(self.net, self._pack, index, self.trace)

    @cached_property
    def report(self) -> CalibrationSet:
        return self._images(self._split.report[: self.settings.report_count])

    @cached_property
    def report_context(self) -> str:
        index = self._split.report[: self.settings.report_count]
        return digest(self.context, np.asarray(index).tobytes())

    @cached_property
    def profiles(self) -> GroupProfiles:
        """Measured on images of their own, the same for all devices."""
        evaluator = Evaluator(self.trace, self._images(self._profile_index), runtime=get_runtime())
        return kept_profiles(evaluator, self.levels, self.level_count, self.settings.work)

    @cached_property
    def lean_profiles(self) -> GroupProfiles:
        """On so many of those images that the profile and a race cost what `profiles` does."""
        share = max(0.25, 1.0 - RACE / self.profile_count)
        index = self._profile_index[: int(share * len(self._profile_index))]
        evaluator = Evaluator(self.trace, self._images(index), runtime=get_runtime())
        return kept_profiles(evaluator, self.levels, self.level_count, self.settings.work)

    def task(self, device: str, *, lean: bool = False) -> PruningTask:
        """With the measured profile."""
        profiles = self.lean_profiles if lean else self.profiles
        return task_for(self.trace.graph, profiles, self._store, device)

    def evaluate(self, keeps: IntArray) -> Evaluation:
        """On the objective's images."""
        return self._book.evaluation(
            self.context, keeps, lambda: self.objective.evaluate(np.asarray(keeps))
        )

    def _proposed(self, method: str, task: PruningTask, device: str, budget: float) -> PruningPlan:
        count = CANDIDATES[method]
        policy = self._policy("learned")
        return make_plan(task, policy, budget, device=device, candidate_count=count)

    def _evaluate_part(self, keeps: tuple[int, ...], start: int, stop: int) -> Evaluation:
        """By some of them; the whole is kept, as other methods may ask for it."""
        whole = self.evaluate(np.array(keeps))
        images = slice(start, stop)
        return Evaluation.of(
            whole.image_losses[images], whole.image_divergences[images], whole.accuracy
        )

    def judge(self, keeps: IntArray) -> Evaluation:
        """On the report's images, corrected with the objective's; full widths are left as is."""

        def made() -> Evaluation:
            if (np.asarray(keeps) == self.trace.graph.widths).all():
                model = self.trace.model
            else:
                model = self.objective.corrected_model(np.asarray(keeps))
            return evaluate_model(model, self.report, runtime=get_runtime())

        return self._book.evaluation(self.report_context, keeps, made)

    def find(
        self,
        method: str,
        device: str,
        share: float,
        *,
        only_kept: bool = False,
        on_progress: Callable[[int, float], None] | None = None,
    ) -> Finding | None:
        """The method's plans in one cell, from the book where it has them.

        None where it has not, and with `only_kept`.

        Raises:
            PolicyError: the policy cannot be loaded.
        """
        task = self.task(device, lean=method == LEAN)
        budget = float(budgets_at(task, np.array([share]))[0])
        policy = self._policy(method.removesuffix(DATA_FREE)) if method in RULES else None
        key = self._key(method, policy, task, device, budget)
        if only_kept and not self._book.has(key):
            return None

        def made() -> dict[str, Any]:
            started = time.monotonic()
            done, plans = self._plans(method, policy, task, device, budget, key, on_progress)
            found = Finding(
                method,
                self.net.name,
                self.net.family,
                device,
                share,
                self.seed,
                budget,
                task.base_ms,
                self._profile_cost(method),
                done,
                tuple(plans),
                tuple(int(width) for width in self.trace.graph.widths),
                time.monotonic() - started,
            )
            return asdict(found)

        found = Finding.read(self._book.finding(key, made))
        return replace(found, report=self.report_context)

    def judged(self, finding: Finding) -> Finding:
        """The finding, when all its plans and the unpruned network are judged."""
        self.judge(self.trace.graph.widths)
        for plan in finding.plans:
            self.judge(np.array(plan.keeps))
        return finding

    def _key(
        self, method: str, policy: Policy | None, task: PruningTask, device: str, budget: float
    ) -> str:
        """Digest of all that the method's plans depend on; what is reported on is no part of it."""
        settings, measured = self.settings, task.profiles.measured_loss
        assert measured is not None
        if method.endswith(DATA_FREE):
            measured = loss_curve(task.data_free.profiles, task.graph)
        return digest(
            method if policy is None else f"{method} {policy.name}",
            f"{settings.search_count} {settings.episode_count} {settings.profile_count}",
            self._proposed(method, task, device, budget).to_json() if method in CANDIDATES else "",
            self.context,
            f"{device} {budget!r} {self.seed} by divergence",
            measured.tobytes(),
            task.tables.flat_ms.tobytes(),
        )

    def evaluation_sec(self) -> float:
        """CPU time of one evaluation, every group at its middle level."""
        middle = self.levels[np.arange(len(self.levels)), self.level_count // 2]
        started = time.process_time()
        self.objective.evaluate(middle)
        return time.process_time() - started

    @property
    def profile_count(self) -> int:
        """Evaluations of the single-group profile."""
        return len(single_group_plans(self.levels, self.level_count))

    def _profile_cost(self, method: str) -> int:
        """Evaluations on all profile images that the method's profile costs."""
        if method in UNPROFILED or method.endswith(DATA_FREE):
            return 0
        return max(self.profile_count - RACE, 1) if method == LEAN else self.profile_count

    def _policy(self, name: str) -> Policy:
        if name not in self._policies:
            if name == "magnitude":
                policy: Policy = TorchPruningPolicy(self.net.module)
            elif name == "taylor":
                images = self._images(self._profile_index)
                policy = TorchPruningPolicy(self.net.module, taylor=(images.x, images.y))
            elif name == "sensitivity":
                policy = SensitivityPolicy()
            else:
                policy = get_policy(self.settings.policy if name == "learned" else name)
            self._policies[name] = policy
        return self._policies[name]

    def _plans(
        self,
        method: str,
        policy: Policy | None,
        task: PruningTask,
        device: str,
        budget: float,
        key: str,
        on_progress: Callable[[int, float], None] | None,
    ) -> tuple[int, list[PlanFound]]:
        """Evaluations made, and the plans by number of evaluations."""

        def found(count: int, keeps: IntArray, objective: float | None) -> PlanFound:
            upper = float(task.tables.upper_ms(keeps[None])[0])
            if upper > budget:
                raise AssertionError(f"{method} plans {upper} ms for a budget of {budget} ms")
            return PlanFound(count, tuple(int(keep) for keep in keeps), objective, upper)

        if policy is not None:
            if method.endswith(DATA_FREE):
                task = task.data_free
            return 0, [found(0, policy.plan(task, np.array([budget]))[0], None)]
        if method in CANDIDATES:
            plan = choose(
                self._proposed(method, task, device, budget),
                self._evaluate_part,
                self.settings.objective_count,
            )
            [chosen] = [one for one in plan.candidates if one.chosen]
            seen = sum(one.image_count for one in plan.candidates)
            count = -(-seen // self.settings.objective_count)
            return count, [found(count, np.array(plan.keeps), chosen.divergence)]
        # What a search draws must not change when it is resumed, but differ from cell to cell.
        drawn_from = int(key[:8], 16)
        count = search_count(method, self.settings)
        trail = follow(
            _search(method, task, budget, count, drawn_from),
            lambda keeps: self.evaluate(keeps).divergence,
            lambda keeps: bool(task.tables.upper_ms(keeps[None])[0] <= budget),
            count,
            on_progress,
        )
        return trail.evaluation_count, list(_checkpoints(trail, method, count, found))


def _search(method: str, task: PruningTask, budget: float, count: int, seed: int) -> Search:
    rng = np.random.default_rng(seed)
    if method == "amc":
        return amc(task, budget, count, seed)
    if method == "random_policy":
        return random_policy(task, budget, rng)
    space = Space.of(task, budget)
    if method == "random":
        return random_search(space, rng)
    if method == "netadapt":
        return netadapt(space, count, rng)
    start = get_policy("knapsack").plan(task, np.array([budget]))
    return evolution(space, task.choice_of(start)[0], rng)


def _checkpoints(
    trail: Trail,
    method: str,
    count: int,
    found: Callable[[int, IntArray, float | None], PlanFound],
) -> Iterator[PlanFound]:
    """Best so far at the checkpoints up to `count`; the greedy search has but one answer."""
    known = sorted({*(c for c in CHECKPOINTS if c < count), count})
    for at in [count] if method == "netadapt" else known:
        best = trail.at(at)
        if best is not None:
            yield found(at, np.array(best[0]), best[1])
