"""Who evaluates plans: this process, or Ray actors in processes of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlprune.errors import RlpruneError, UnavailableError
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.types import IntArray
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.evaluate import Evaluation, Evaluator

EVALUATION_TIMEOUT_SEC = 600.0
"""Deadline of one evaluation in a worker."""
SETTLE_TIMEOUT_SEC = 10.0
"""How long workers may finish what they have before they are ended."""


class EvaluationPool(Protocol):
    """What evaluates plans on named sets of images."""

    def base(self, images: str) -> Evaluation:
        """The unpruned model's evaluation."""
        ...

    def evaluate(self, images: str, plans: IntArray) -> Iterable[Evaluation]:
        """Evaluations of plans [N, G], in their order."""
        ...


@contextmanager
def evaluation_pool(
    trace: OnnxTrace, images: dict[str, CalibrationSet], worker_count: int
) -> Iterator[EvaluationPool]:
    """Evaluates plans of one model for as long as the block lasts; 0 workers: in this process.

    Raises:
        MissingExtraError: workers are asked for, and Ray is not installed.
    """
    model = trace.model.SerializeToString()
    if worker_count == 0:
        yield _Worker(model, images)
        return
    from rlprune.cluster import ray_session

    with ray_session(None):
        import ray

        shared = ray.put(images)
        # A whole core, or an equal share where there are more workers than cores.
        share = min(1.0, float(ray.cluster_resources().get("CPU", 1.0)) / worker_count)
        # A worker that dies is started again and its calls repeated; evaluations are pure.
        actor = ray.remote(
            num_cpus=math.floor(100 * share) / 100,
            max_restarts=2,
            max_task_retries=2,
        )(_Worker)
        workers = [actor.remote(model, shared) for _ in range(worker_count)]
        pool = _RayPool(workers)
        try:
            yield pool
        finally:
            pool.settle()
            for worker in workers:
                ray.kill(worker, no_restart=True)


@dataclass
class _Worker:
    """Evaluates in this process; makes an evaluator when its images are first asked for."""

    model: bytes
    """A model whose trace is the one recorded: traced again where it is used."""
    images: dict[str, CalibrationSet]
    evaluators: dict[str, Evaluator] = field(default_factory=dict)

    def evaluator(self, images: str) -> Evaluator:
        if images not in self.evaluators:
            from rlprune.runtime import get_runtime

            trace = trace_onnx(self.model)
            self.evaluators = {images: Evaluator(trace, self.images[images], runtime=get_runtime())}
        return self.evaluators[images]

    def base(self, images: str) -> Evaluation:
        return self.evaluator(images).base

    def evaluate_one(self, images: str, keeps: IntArray) -> Evaluation:
        return self.evaluator(images).evaluate(keeps)

    def evaluate(self, images: str, plans: IntArray) -> Iterator[Evaluation]:
        for keeps in plans:
            yield self.evaluate_one(images, keeps)


@dataclass(frozen=True)
class _RayPool:
    """Workers in processes of their own, each with one plan at a time."""

    workers: list[Any]
    running: dict[Any, Any] = field(default_factory=dict)
    """Call -> the worker that has it."""

    def base(self, images: str) -> Evaluation:
        return self._result(self.workers[0].base.remote(images))

    def evaluate(self, images: str, plans: IntArray) -> Iterator[Evaluation]:
        calls: list[Any] = []
        told = 0
        for keeps in plans:
            worker = self._free_worker()
            calls.append(worker.evaluate_one.remote(images, keeps))
            self.running[calls[-1]] = worker
            while calls[told] not in self.running:
                yield self._result(calls[told])
                told += 1
        for call in calls[told:]:
            yield self._result(call)
            self.running.pop(call, None)

    def settle(self) -> None:
        """Lets what runs come to its end, within reason: Ray complains of calls cut short."""
        import ray

        if self.running:
            ray.wait(list(self.running), num_returns=len(self.running), timeout=SETTLE_TIMEOUT_SEC)

    def _free_worker(self) -> Any:
        import ray

        if len(self.running) < len(self.workers):
            busy = list(self.running.values())
            return next(worker for worker in self.workers if worker not in busy)
        done, _ = ray.wait(list(self.running), num_returns=1, timeout=EVALUATION_TIMEOUT_SEC)
        if not done:
            raise UnavailableError("the recording workers hang; record again to go on")
        return self.running.pop(done[0])

    @staticmethod
    def _result(call: Any) -> Evaluation:
        import ray

        try:
            evaluation: Evaluation = ray.get(call, timeout=EVALUATION_TIMEOUT_SEC)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
            raise UnavailableError(
                f"a recording worker died or hung ({type(error).__name__}); record again to go on"
            ) from error
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RlpruneError):
                raise error.cause from None  # told in one line, as in this process
            raise
        return evaluation
