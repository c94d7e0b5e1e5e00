"""The measuring child as its worker sees it: a process that may die without harm.

Models come from elsewhere and runtimes are native code, so a model that crashes the runtime, eats
all memory or hangs it must take down something that can be started again. The child lives on from
part to part, since importing a runtime takes a second; after a fault the next part gets a new one,
and so does who asks for a fresh one.
The worker itself never loads a runtime. Needs POSIX; the limits are set by `child_main`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from google.protobuf.message import DecodeError

from rlprune.device.child_main import OUT_OF_MEMORY
from rlprune.errors import (
    MeasurementError,
    MissingExtraError,
    NotFoundError,
    UnavailableError,
)
from rlprune.latency.measure import MeasureConfig
from rlprune.latency.types import Subject
from rlprune.store.encoding import subject_key
from rlprune.v1 import devices_pb2, types_pb2

START_SEC = 120.0
"""How long a child may take to import its runtime."""
_POLL_SEC = 0.1

Checkpoint = Callable[[int, int], None]
"""(sessions done, sessions planned); may raise to end the measuring."""


_ENVIRONMENT = re.compile(
    "PATH|HOME|TMPDIR|TMP|TEMP|TZ|LANG|LANGUAGE|VIRTUAL_ENV|SYSTEMROOT|WINDIR|XDG_CACHE_HOME"
    "|(LC|LD|DYLD|PYTHON|OMP|GOMP|KMP|MKL|OPENBLAS|BLIS|VECLIB|NUMEXPR|ORT|OV|OPENVINO|MNN|CUDA"
    "|NVIDIA|COVERAGE|FAKETIME)[A-Z0-9_]*"
)
_SECRET = re.compile("TOKEN|SECRET|PASS|KEY|CREDENTIAL|AUTH")


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the worker's environment the child gets: where programs and libraries are and how
    they compute. Models come from elsewhere, so no token or other secret is among it."""
    return {
        name: value
        for name, value in environment.items()
        if _ENVIRONMENT.fullmatch(name.upper()) and not _SECRET.search(name.upper())
    }


def _most_memory() -> int:
    """Three quarters of what the machine has, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 * 3


@dataclass(frozen=True, slots=True)
class ChildConfig:
    """What a measuring child may use, and what runs it."""

    memory_bytes: int = _most_memory()
    """Heap and anonymous memory (RLIMIT_DATA); three quarters of the machine's if left out."""
    cpu_sec: float = 120.0
    """CPU time that one session (load, warm up, sample) may take, its control's included."""
    wall_sec: float = 180.0
    """Wall time without a finished session after which the child counts as hung."""
    command: tuple[str, ...] = (sys.executable, "-P", "-m", "rlprune.device.child_main")
    """What starts it; a Python of another environment may have another runtime."""


class ChildFault(Exception):
    """A measurement took the child down, or would have; its message says how.

    Of no error class that travels: whoever measures makes a failed measurement of it.
    """


class Child:
    """A measuring child, started when it is needed. Used by one thread."""

    def __init__(self, runtime: str, config: ChildConfig | None = None) -> None:
        self._runtime = runtime
        self._config = config or ChildConfig()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None
        self.name = runtime
        self.version = ""
        """Of the runtime, as the child says; known once it was started."""
        self._used = False

    def start(self) -> None:
        """Has the runtime loaded in a process of its own, unless that is the case.

        Raises:
            NotFoundError, MissingExtraError: there is no such runtime, or it is not installed.
            UnavailableError: the child does not come up.
        """
        if self._process is not None:
            return
        ours, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [*self._config.command, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=child_environment(os.environ),
            )
        self._connection = ours
        config = self._config
        self._send(
            {"runtime": self._runtime, "memory_bytes": config.memory_bytes}
            | {"cpu_sec": config.cpu_sec}
        )
        try:
            hello = self._answer(time.monotonic() + START_SEC)
        except ChildFault as error:
            raise UnavailableError(f"runtime {self._runtime} does not start: {error}") from error
        if hello is None:
            self.close()
            raise UnavailableError(f"runtime {self._runtime} did not start in {START_SEC:g} s")
        if "refused" in hello:
            self.close()
            if hello["extra"]:
                raise MissingExtraError("measuring", hello["extra"])
            raise NotFoundError(hello["refused"], field="runtime")
        self.name, self.version = str(hello["name"]), str(hello["version"])

    def measure(
        self,
        subjects: Sequence[Subject],
        *,
        device: str,
        config: MeasureConfig,
        fingerprint: str = "",
        skeleton: bytes = b"",
        checkpoint: Checkpoint,
    ) -> list[types_pb2.Measurement]:
        """Measures as `latency.collect.measure_subjects` does, variants of one skeleton at most.
        The measurements are as the child encoded them, and not checked.

        `checkpoint` is called several times a second; what it raises ends the child and passes.

        Raises:
            ChildFault: the child died of it, hung, or the runtime raised what it should not.
            MeasurementError: nothing of this can be measured; the child is well.
            UnavailableError: no child comes up.
        """
        self.start()
        self._used = True
        keys = [subject_key(subject) for subject in subjects]
        request = {"subjects": keys, "device": device, "fingerprint": fingerprint}
        self._send({**request, "config": asdict(config)}, skeleton)
        done, planned = 0, 0
        give_up = time.monotonic() + self._config.wall_sec
        while True:
            try:
                checkpoint(done, planned)
            except BaseException:
                self.close()
                raise
            if time.monotonic() > give_up:
                self.close()
                raise ChildFault(f"hung: no session finished in {self._config.wall_sec:g} s")
            message = self._answer(time.monotonic() + _POLL_SEC)
            if message is None:
                continue
            if "progress" in message:
                done, planned = message["progress"]
                give_up = time.monotonic() + self._config.wall_sec
            elif "refused" in message:
                raise MeasurementError(message["refused"])
            elif "crashed" in message:
                raise ChildFault(f"the runtime raised {message['crashed']}"[:400])
            elif message.get("measured") == len(subjects):
                return self._measurements(len(subjects))
            else:
                raise self._nonsense(ValueError())

    def refresh(self) -> None:
        """Sees to it that the next measurement is the first of its process."""
        if self._used:
            self.close()

    def close(self) -> None:
        """Ends the child at once, if there is one; the next measurement starts another."""
        self._used = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _send(self, message: dict[str, Any], *more: bytes) -> None:
        assert self._connection is not None
        try:
            self._connection.send_bytes(json.dumps(message).encode())
            for content in more:
                self._connection.send_bytes(content)
        except ConnectionError:
            pass  # it has died; waiting for its answer will say of what

    def _answer(self, until: float) -> dict[str, Any] | None:
        """The next message; None where none came in time; ChildFault where the child has died."""
        content = self._received(until)
        if content is None:
            return None
        try:
            message = json.loads(content)
        except ValueError as error:
            raise self._nonsense(error) from error
        return message if isinstance(message, dict) else {}

    def _measurements(self, subject_count: int) -> list[types_pb2.Measurement]:
        content = self._received(time.monotonic() + START_SEC)
        try:
            found = devices_pb2.ReportRequest.FromString(content or b"").measurements
        except DecodeError as error:
            raise self._nonsense(error) from error
        if len(found) != subject_count:
            raise self._nonsense(ValueError())
        return list(found)

    def _received(self, until: float) -> bytes | None:
        assert self._connection is not None and self._process is not None
        try:
            if not self._connection.poll(max(0.0, until - time.monotonic())):
                return None
            content: bytes = self._connection.recv_bytes()
        except (EOFError, ConnectionError):
            code = self._process.wait()
            self.close()
            raise ChildFault(self._death(code)) from None
        except OSError as error:
            raise self._nonsense(error) from error
        return content

    def _nonsense(self, error: Exception) -> ChildFault:
        """A process whose memory was written over may say anything."""
        self.close()
        return ChildFault(f"the measuring process answered nonsense ({type(error).__name__})")

    def _death(self, code: int) -> str:
        megabytes = self._config.memory_bytes >> 20
        if code == OUT_OF_MEMORY:
            return f"out of memory: {megabytes} MB are allowed"
        if code >= 0:
            return f"the measuring process ended with exit code {code}"
        name = signal.Signals(-code).name
        if name == "SIGXCPU":
            return f"used more than {self._config.cpu_sec:g} s of CPU time in one session"
        if name == "SIGKILL":
            return "the measuring process was killed (SIGKILL), perhaps for want of memory"
        hint = f", perhaps at the limit of {megabytes} MB" if name == "SIGABRT" else ""
        return f"crashed the runtime ({name}{hint})"
