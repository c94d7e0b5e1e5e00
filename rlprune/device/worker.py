"""The worker on a device: lease a job, have it measured in a child process, report, and again.

Connects outwards only. A lease is renewed while the measuring goes on; where it is lost, measuring
stops and nothing is reported. Results are reported a part at a time, so a killed worker loses
little. A job of whole models alone gets a child of its own. A part that takes the child down is
measured again one subject at a time, and what does it again is reported as failed. Whatever a
server answers, the worker lives on and keeps what it measured until that is acknowledged
(`delivery`); only a token that is refused ends it. SIGTERM and Ctrl+C give the job back and end
cleanly. Runs without torch, ray and gymnasium.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import threading
import uuid
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import onnx
from google.protobuf.message import DecodeError

from rlprune.device.child import Checkpoint, Child, ChildConfig, ChildFault
from rlprune.device.delivery import Backoff, RefusedError, Report, deliver
from rlprune.errors import (
    AuthenticationError,
    LeaseError,
    MeasurementError,
    NotFoundError,
    RlpruneError,
)
from rlprune.latency.device import local_device_key, model_batch
from rlprune.latency.measure import MeasureConfig
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec, Subject
from rlprune.progress import OnProgress
from rlprune.service.device_client import DeviceClient, LeasedJob
from rlprune.service.device_messages import measurement_to
from rlprune.store.records import JobState
from rlprune.v1 import types_pb2

LOG = logging.getLogger("rlprune.device")

MAX_REFUSALS = 3
"""Reports of one job that may be refused before it is reported as failed."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """How a worker behaves; the defaults suit a board on a network."""

    poll_sec: float = 1.0
    """Pause after a lease that brought nothing."""
    max_backoff_sec: float = 30.0
    """Longest pause between attempts to get an answer that is of use."""
    once_patience_sec: float = 60.0
    """How long a report is tried where the worker is to end `once` nothing is left to do."""
    part_size: int = 16
    """Subjects measured in turns and reported at once."""
    measure: MeasureConfig = MeasureConfig()  # noqa: RUF009  (frozen)
    """How each subject is measured; thread_count is the worker's own."""
    child: ChildConfig = ChildConfig()  # noqa: RUF009  (frozen)
    """What the measuring process may use."""


def work(
    server: str,
    *,
    token: str | None = None,
    tls_ca: str | Path | None = None,
    thread_count: int = 1,
    batch: int = 1,
    runtime: str = "ort",
    once: bool = False,
    stop: threading.Event | None = None,
    config: WorkerConfig | None = None,
    on_progress: OnProgress | None = None,
) -> int:
    """Measures what `server` asks of this device until it is stopped; returns the jobs finished.

    Args:
        server: HOST:PORT.
        token: what the server asks for, if anything.
        tls_ca: PEM file of the certificate that vouches for the server.
        thread_count: threads the runtime computes on; part of the device key, as is
        batch: of the models measured here; those of another are refused.
        runtime: name of the runtime that executes models.
        once: return when nothing is left to do, and raise where the server does not answer, or
            answers what is of no use.
        stop: ends the work when set; SIGTERM and Ctrl+C do too, in the main thread.
        on_progress: told how far the current job is.

    Raises:
        NotFoundError, MissingExtraError: no such runtime, or it is not installed.
        AuthenticationError: the token is missing or wrong.
        RlpruneError: the server does not answer, or in no useful way, with `once`.
    """
    config = config or WorkerConfig()
    client = DeviceClient(server, token=token, tls_ca=tls_ca)
    child = Child(runtime, config.child)
    try:
        with _stopped_by_signals(stop or threading.Event()) as ended:
            child.start()
            worker = _Worker(client, child, thread_count, batch, config, on_progress)
            return worker.run(ended, once=once)
    finally:
        child.close()
        client.close()


class _Stopped(Exception):
    """Raised inside a measurement when the worker is to end."""


class _Worker:
    def __init__(
        self,
        client: DeviceClient,
        child: Child,
        thread_count: int,
        batch: int,
        config: WorkerConfig,
        on_progress: OnProgress | None,
    ) -> None:
        self._client = client
        self._child = child
        self._key = local_device_key(child, thread_count=thread_count, batch=batch)
        self._batch = batch
        self._config = config
        self._measure = replace(config.measure, thread_count=thread_count)
        self._on_progress = on_progress
        self._backoff = Backoff(config.poll_sec, config.max_backoff_sec)
        self._patience_sec = float("inf")
        self._refusals: Counter[str] = Counter()  # of reports, by job
        # One worker, one lease: a worker that asks again gets the job it holds.
        self._worker_id = f"{platform.node()[:60]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"

    def run(self, stop: threading.Event, *, once: bool) -> int:
        self._patience_sec = self._config.once_patience_sec if once else float("inf")
        finished = 0
        registered = False
        while not stop.is_set():
            try:
                if not registered:
                    self._register()
                    registered = True
                job = self._client.lease(self._worker_id, self._key)
                if job is None and once:
                    return finished
                if job is not None:
                    finished += self._do(job, stop)
                else:
                    stop.wait(self._config.poll_sec)
                self._backoff.reset()
            except AuthenticationError:
                raise
            except LeaseError as error:
                LOG.warning("%s", error)
            except NotFoundError as error:
                LOG.warning("%s; introducing this device again", error)  # another store than before
                registered = False
                stop.wait(self._config.poll_sec)
            except RlpruneError as error:
                if once:
                    raise
                self._backoff.wait(error, stop)
        return finished

    def _register(self) -> None:
        description = {
            "runtime": self._child.name,
            "runtime_version": self._child.version,
            "thread_count": str(self._measure.thread_count),
            "machine": platform.machine(),
            "system": platform.platform()[:200],
            "python": platform.python_version(),
        }
        self._client.register_device(self._key, description)
        LOG.info("measuring for %s as %s", self._client.target, self._key)

    def _do(self, job: LeasedJob, stop: threading.Event) -> int:
        """Measures and reports a leased job; 1 if it was finished, 0 if it was given back."""
        fingerprint = job.job.fingerprint
        skeleton = self._client.skeleton(fingerprint) if fingerprint else b""
        total = len(job.job.subjects)
        size = self._config.part_size
        parts = deque(job.left[start : start + size] for start in range(0, len(job.left), size))
        if all(isinstance(subject, ModelSubject) for subject in job.left):
            # What a process did before tells on what it measures next, and a plan's certificate
            # stands on this. Starting one takes about a second.
            self._child.refresh()
        with _Renewal(self._client, job) as renewal:

            def checkpoint(done: int, planned: int) -> None:
                if stop.is_set():
                    raise _Stopped
                if renewal.lost:
                    raise LeaseError(f"lease of job {job.job.job_id} was lost while measuring")

            try:
                if self._refusals[job.job.job_id] >= MAX_REFUSALS:
                    raise RefusedError("the server refused what was measured")
                if not parts:  # a worker before us reported all, but never got to say "done"
                    self._report(job, [], stop, done=True)
                while parts:
                    checkpoint(0, 0)
                    if self._on_progress is not None:
                        self._on_progress("measuring", total - sum(map(len, parts)), total)
                    part = parts.popleft()
                    try:
                        measured = self._measured(part, fingerprint, skeleton, checkpoint)
                    except ChildFault as fault:
                        LOG.warning("measuring %d subjects: %s", len(part), fault)
                        if len(part) > 1:  # one of them did it
                            parts.extendleft((subject,) for subject in reversed(part))
                            continue
                        measured = [self._failed(part[0], str(fault), fault=True)]
                    if self._report(job, measured, stop, done=not parts) is JobState.PARKED:
                        LOG.warning("job %s is parked: too many faults", job.job.job_id)
                        return 0
            except _Stopped:
                self._report(job, [], stop, release=True)
                return 0
            except RefusedError as refusal:
                self._give_up(job, str(refusal), stop)
                return 0
        if self._on_progress is not None:
            self._on_progress("measuring", total, total)
        return 1

    def _report(
        self,
        job: LeasedJob,
        measurements: list[types_pb2.Measurement],
        stop: threading.Event,
        *,
        done: bool = False,
        release: bool = False,
    ) -> JobState:
        report = Report(job.lease_id, tuple(measurements), done, release)
        return deliver(self._client, report, self._backoff, stop, patience_sec=self._patience_sec)

    def _give_up(self, job: LeasedJob, reason: str, stop: threading.Event) -> None:
        """Gives a job back whose report was refused for good. One that comes back again and again
        is reported as failed, so that it does not go round for ever."""
        LOG.warning("report of job %s was refused: %s", job.job.job_id, reason)
        self._refusals[job.job.job_id] += 1
        try:
            if self._refusals[job.job.job_id] > MAX_REFUSALS:
                failed = [self._failed(subject, reason) for subject in job.left]
                self._report(job, failed, stop, done=True)
            else:
                self._report(job, [], stop, release=True)
        except RefusedError as refusal:
            LOG.warning("job %s is left until its lease ends: %s", job.job.job_id, refusal)
            stop.wait(job.lease_sec)
        else:
            stop.wait(self._config.poll_sec)

    def _measured(
        self,
        part: tuple[Subject, ...],
        fingerprint: str,
        skeleton: bytes,
        checkpoint: Checkpoint,
    ) -> list[types_pb2.Measurement]:
        """One measurement each; ChildFault where one of them takes the child down."""
        models = [subject for subject in part if isinstance(subject, ModelSubject)]
        try:
            batch = model_batch(onnx.load_model_from_string(skeleton)) if models else self._batch
        except (DecodeError, RlpruneError) as error:
            return [self._failed(subject, f"the job's model: {error}") for subject in part]
        if batch != self._batch:
            reason = (
                f"batch {batch}, but {self._key} is of batch {self._batch}: work --batch {batch}"
            )
            operators = tuple(subject for subject in part if isinstance(subject, OperatorSpec))
            return [self._failed(subject, reason) for subject in models] + (
                self._measured(operators, "", b"", checkpoint) if operators else []
            )
        try:
            return self._child.measure(
                part,
                device=self._key,
                config=self._measure,
                fingerprint=fingerprint,
                skeleton=skeleton,
                checkpoint=checkpoint,
            )
        except MeasurementError as error:
            LOG.warning("cannot measure: %s", error)
            return [self._failed(subject, str(error)) for subject in part]

    def _failed(
        self, subject: Subject, reason: str, *, fault: bool = False
    ) -> types_pb2.Measurement:
        count = self._measure.thread_count
        found = Measurement.failed(self._key, subject, reason, thread_count=count, fault=fault)
        return measurement_to(found)


class _Renewal:
    """Renews a lease from a thread of its own until left; `lost` says that the lease has ended."""

    def __init__(self, client: DeviceClient, job: LeasedJob) -> None:
        self._client = client
        self._lease_id = job.lease_id
        self._pause_sec = max(job.lease_sec / 3, 0.05)
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rlprune-renew", daemon=True)

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    def __enter__(self) -> _Renewal:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._pause_sec):
            try:
                self._client.renew(self._lease_id)
            except (LeaseError, AuthenticationError) as error:
                LOG.warning("renewing: %s", error)
                self._lost.set()
                return
            except RlpruneError as error:
                LOG.warning("renewing: %s", error)  # the lease may outlive the outage


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[threading.Event]:
    """Sets `stop` on SIGTERM and Ctrl+C while it lasts; only the main thread is told of them."""
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def end(signal_number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
