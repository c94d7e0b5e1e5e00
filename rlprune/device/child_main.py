"""What runs in the measuring child: `python -m rlprune.device.child_main FD PARENT_PID`.

Reads parts of jobs from the socket FD and answers with measurements, for as long as its worker
lives. Runtimes are native code and models come from elsewhere: whatever they do to this process
stays in it. Its limits are its own doing: memory for good, CPU time anew with every session.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rlprune.errors import InputError, MissingExtraError, RlpruneError
from rlprune.latency.collect import ModelOf, measure_subjects, skeleton_models
from rlprune.latency.measure import MeasureConfig
from rlprune.latency.types import Measurement
from rlprune.runtime import Runtime, get_runtime
from rlprune.service.device_messages import measurement_to
from rlprune.store.encoding import check_measurement, subject_from_key
from rlprune.v1 import devices_pb2

try:
    import resource
except ImportError:  # no limits there
    resource = None  # type: ignore[assignment]

OUT_OF_MEMORY = 71
"""Exit code where Python code met the memory limit; native code aborts."""
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    """Serves the parent at the other end of the socket until it hangs up."""
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    _die_with(int(sys.argv[2]))
    # Ctrl+C and SIGTERM reach whole groups of processes; the worker decides when this one ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.dup2(2, 1)  # what runtimes print must not mix with a command's JSON
    try:
        setup = json.loads(connection.recv_bytes())
        _limit_memory(setup["memory_bytes"])
        try:
            runtime = get_runtime(setup["runtime"])
        except RlpruneError as error:
            extra = error.extra if isinstance(error, MissingExtraError) else ""
            _send(connection, {"refused": str(error), "extra": extra})
            return
        _send(connection, {"name": runtime.name, "version": runtime.version})
        _serve(connection, runtime, setup["cpu_sec"])
    except (EOFError, ConnectionError):
        pass  # the parent is gone


def _serve(connection: Connection[Any, Any], runtime: Runtime, cpu_sec: float) -> None:
    skeletons: dict[str, bytes] = {}  # of one graph at a time
    model_of: ModelOf = skeleton_models(skeletons.__getitem__)
    while True:
        request = json.loads(connection.recv_bytes())
        skeleton = connection.recv_bytes()
        _limit_cpu(cpu_sec)
        if request["fingerprint"] not in skeletons:
            skeletons = {request["fingerprint"]: skeleton}
            model_of = skeleton_models(skeletons.__getitem__)

        def progress(done: int, planned: int) -> None:
            _limit_cpu(cpu_sec)
            _send(connection, {"progress": [done, planned]})

        try:
            measured = measure_subjects(
                [subject_from_key(key) for key in request["subjects"]],
                model_of=model_of,
                device=request["device"],
                runtime=runtime,
                config=MeasureConfig(**request["config"]),
                on_progress=progress,
            )
        except (EOFError, ConnectionError):
            raise
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except RlpruneError as error:
            _send(connection, {"refused": str(error)})
        except Exception as error:  # a runtime may raise anything
            _send(connection, {"crashed": f"{type(error).__name__}: {error}"})
        else:
            # As it travels to the server; nothing on the way writes it anew.
            report = devices_pb2.ReportRequest(
                measurements=[measurement_to(_reportable(one)) for one in measured]
            )
            _send(connection, {"measured": len(measured)})
            connection.send_bytes(report.SerializeToString())


def _reportable(found: Measurement) -> Measurement:
    """The measurement, or that it failed where a server would refuse it (a coarse clock)."""
    try:
        check_measurement(found)
    except InputError as error:
        return Measurement.failed(
            found.device, found.subject, str(error), thread_count=found.thread_count
        )
    return found


def _send(connection: Connection[Any, Any], message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _die_with(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent ends, be it by `kill -9`; Linux only.

    Elsewhere it ends with the socket, that is after the session that runs.
    """
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # no set-uid program makes it more than it is
        if os.getppid() != parent_pid:  # it was gone before
            sys.exit(1)
        # Where memory ends in spite of the limit, this is the process to end.
        with contextlib.suppress(OSError):  # /proc may be read-only in a container
            Path("/proc/self/oom_score_adj").write_text("1000")


def _limit_memory(memory_bytes: int) -> None:
    """Heap and anonymous mappings; not address space, of which runtimes reserve more than is."""
    if resource is not None:
        _lower(resource.RLIMIT_DATA, memory_bytes)
        _lower(resource.RLIMIT_CORE, 0)  # a crash is told by its signal


def _limit_cpu(cpu_sec: float) -> None:
    """So much more from now; SIGXCPU ends the process then."""
    if resource is not None:
        _lower(resource.RLIMIT_CPU, int(time.process_time() + cpu_sec) + 1)


def _lower(kind: int, value: int) -> None:
    """Sets the soft limit, which may be raised again, as far as the hard one lets it."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


if __name__ == "__main__":
    main()
