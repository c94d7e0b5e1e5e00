"""The Ray cluster that a population trains on: one that runs, or one of this machine."""

from __future__ import annotations

import logging
import os
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from rlprune.errors import MissingExtraError, UnavailableError

LOG = logging.getLogger("rlprune.training")

START_TRIES = 3
"""How often a cluster on this machine is tried to be started."""


PROBE_SEC = 5.0
"""How long a cluster may take to answer the first bytes; Ray itself would wait for minutes, in C++,
where no signal is heard."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What every gRPC client says first (RFC 9113, 3.4): the preface and empty settings."""
_SETTINGS = 4
"""The kind of frame that every HTTP/2 server answers with first."""


def check_cluster(address: str) -> None:
    """Refuses an address `host:port` or `ray://host:port` where no server of gRPC answers in time.

    Other forms (`auto`) are Ray's to judge.

    Raises:
        UnavailableError: in one line.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_SEC) as connection:
            connection.settimeout(PROBE_SEC)
            connection.sendall(_PREFACE)
            answer = connection.recv(9)
        why = "what answers there is no Ray" if answer[3:4] != bytes((_SETTINGS,)) else ""
    except (OSError, OverflowError) as error:
        why = str(error)
    if why:
        raise UnavailableError(
            f"no Ray cluster at {address}: {why}; give the address of a running one (ray start "
            "--head prints it), or leave it out to train on this machine"
        )


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connects to a running cluster, or starts one on this machine for as long as the block lasts.

    Raises:
        MissingExtraError: Ray is not installed.
        UnavailableError: nothing answers at `address`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of what is meant
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtraError("training", "train") from error
    if address is not None:
        check_cluster(address)
    if ray.is_initialized():
        yield
        return
    try:
        if address is None:
            _start_cluster()
        else:
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
        raise UnavailableError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _start_cluster() -> None:
    """Starts a cluster on this machine, again where Ray's processes did not come up.

    Ray gives up after 30 s, with a bare `Exception`, and leaves what did start running.

    Raises:
        RuntimeError: the last try failed, too; says why, and where Ray's logs are.
    """
    import ray
    from ray._private.node import Node

    for tries_left in reversed(range(START_TRIES)):
        try:
            ray.init(
                num_cpus=max(2, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                _node_ip_address="127.0.0.2",  # 127.0.0.1 hangs: Ray rewrites it to the NIC's
            )
            return
        except Exception as error:
            for frame, _ in traceback.walk_tb(error.__traceback__):
                if isinstance(node := frame.f_locals.get("self"), Node):
                    node.kill_all_processes(check_alive=False)  # nobody else holds it
            if not tries_left:
                raise RuntimeError(f"{error} (Ray's logs: /tmp/ray/session_latest/logs)") from error
            LOG.warning("Ray did not start (%s), trying again", str(error))
