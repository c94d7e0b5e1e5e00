"""The gRPC server: plans and devices over one store, health and reflection beside them.

It binds loopback. Any other interface is refused without a TLS certificate and a token. With a
token set, every rpc but health checking needs it, reflection included. One process holds a port.
SIGTERM turns health to NOT_SERVING, lets calls that run finish, and ends with exit code 0.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.internal import api_implementation
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME

from rlprune.errors import InputError, MissingExtraError
from rlprune.policy import get_policy
from rlprune.service import limits
from rlprune.service.call_log import LOG
from rlprune.service.credentials import (
    MIN_TOKEN_LENGTH,
    Certificate,
    check_token,
    is_loopback,
    split_address,
)
from rlprune.service.devices import DeviceService
from rlprune.service.front import EventLoop, Pools, TokenCheck, event_loop
from rlprune.service.health import Health
from rlprune.service.models import Graphs
from rlprune.service.plans import PlanService
from rlprune.store import Store, open_store
from rlprune.store.jobs import JobQueue
from rlprune.store.leases import Leases
from rlprune.v1 import devices_pb2, plans_pb2

LEAVE_SEC = 0.5
"""For threads without work to end once the server has stopped."""
DEFAULT_LISTEN = "127.0.0.1:50051"
MAX_ANSWER_BYTES = 32 * 2**20
MAX_DESCRIPTORS = 65_536
OWN_DESCRIPTORS = 128
"""Of the process's file descriptors, kept for the store and what else is no connection."""
MIN_CONNECTIONS = 16

OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a second server on the port takes half the calls
    ("grpc.max_receive_message_length", limits.MODEL_BYTES),
    ("grpc.max_send_message_length", MAX_ANSWER_BYTES),
    # gRPC would unpack a message of 24 MB to as many gigabytes. `limits` does it, to a limit; it
    # knows gzip by its first bytes, so nothing else is taken.
    ("grpc.per_message_decompression", 0),
    ("grpc.compression_enabled_algorithms_bitset", 0b101),  # plain, gzip
    # Who connects has to say so, and who went away without a word is noticed.
    ("grpc.server_handshake_timeout_ms", 8_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # of clients
    # Connections end when nobody uses them, and now and then, so that renewed certificates and
    # further servers are seen; calls that run have longer than any plan takes.
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 180_000),
    ("grpc.max_concurrent_streams", 1024),  # of one connection
)


class Server:
    """A running server. Made by `start`."""

    def __init__(
        self,
        loop: EventLoop,
        server: grpc.aio.Server,
        pools: Pools,
        health: Health,
        store: Store | None,
    ) -> None:
        self._loop = loop
        self._server = server
        self._pools = pools
        self._store = store
        self._health = health
        self._stopped = False
        self.address = ""
        """HOST:PORT as bound; the real port where 0 was asked for."""

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self.address.rpartition(":")[2])

    def open(self, check: Callable[[], None]) -> None:
        """Answers calls from now on, health checks by what `check` says of the store."""
        self._server.add_generic_rpc_handlers([self._health.service()])
        self._loop.run(self._server.start())
        self._loop.run(self._health.set(True))
        self._watch = self._loop.start(self._health.watch_store(check))

    def stop(self, grace_sec: float = 10.0) -> None:
        """NOT_SERVING, then no new calls, then waits for those that run, at most `grace_sec`.

        A server that has stopped stays so.
        """
        if self._stopped:
            return
        self._stopped = True
        self._loop.run(self._health.end())
        self._loop.run(self._server.stop(grace_sec))
        self._watch.cancel()
        self._pools.close()
        if self._store is not None:
            self._store.close()


def start(
    listen: str = DEFAULT_LISTEN,
    store: Store | str | None = None,
    *,
    token: str | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
    lease_sec: float = 60.0,
    policies: Mapping[str, str | Path] | None = None,
) -> Server:
    """Starts a server and returns at once; see `serve` for the arguments.

    A `store` given open stays open when the server stops.
    """
    if api_implementation.Type() == "python":
        raise InputError("protobuf runs without its compiled part; install its binary wheel")
    host, port = split_address(listen, field="listen", example=DEFAULT_LISTEN)
    certificate = _certificate(tls_cert, tls_key)
    if token is not None:
        check_token(token)
    if not is_loopback(host):
        _check_exposed(listen, token, certificate)
    interceptors = [TokenCheck(token)] if token is not None else []
    reflection = _reflection()
    own = {name: get_policy(str(path)) for name, path in (policies or {}).items()}
    loop = event_loop()
    server = loop.run(_made(interceptors))
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if certificate is None:
            bound = server.add_insecure_port(target)
        else:
            bound = server.add_secure_port(target, certificate.credentials())
    except RuntimeError as error:
        raise InputError(
            f"cannot listen on {listen}: the port is taken or may not be bound", field="listen"
        ) from error
    try:
        opened = store if isinstance(store, Store) else open_store(store)
    except BaseException:
        loop.run(_given_up(server))
        raise
    health = Health([service.full_name for service in _services()])
    pools = Pools(health.store_lost)
    running = Server(loop, server, pools, health, None if opened is store else opened)
    running.address = f"{target.rpartition(':')[0]}:{bound}"
    jobs, graphs = JobQueue(opened), Graphs(opened)
    leases = Leases(opened, lease_sec=lease_sec)
    plan_service, device_service = _services()
    server.add_generic_rpc_handlers(
        [
            pools.service(plan_service, PlanService(opened, jobs, graphs, own)),
            pools.service(device_service, DeviceService(opened, jobs, leases, graphs)),
            reflection,
        ]
    )
    running.open(opened.database.check)
    LOG.info("listening on %s, store %s", running.address, opened.database)
    return running


async def _made(interceptors: list[TokenCheck]) -> grpc.aio.Server:
    """The server, on the loop that this is run on."""
    limit = ("grpc.max_allowed_incoming_connections", _connection_limit())
    return grpc.aio.server(interceptors=interceptors, options=[*OPTIONS, limit])


async def _given_up(server: grpc.aio.Server) -> None:
    """Gives the port back, which only a server that was started does."""
    await server.start()
    await server.stop(None)


def _connection_limit() -> int:
    """Connections beyond this are closed at once: without descriptors left the store could not be
    opened either, nor would anybody who comes later be answered."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(min(soft, MAX_DESCRIPTORS) - OWN_DESCRIPTORS, MIN_CONNECTIONS)


def _raise_descriptor_limit() -> None:
    """As many file descriptors as this process may give itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(
    listen: str = DEFAULT_LISTEN,
    store_url: str | None = None,
    token: str | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
    *,
    lease_sec: float = 60.0,
    policies: Mapping[str, str | Path] | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves until SIGTERM or Ctrl+C, then stops in order. Called from the main thread.

    Args:
        listen: HOST:PORT; port 0 takes a free one.
        store_url: as `open_store` has it.
        token: what callers must send; needed beyond loopback.
        tls_cert, tls_key: PEM files of the server's certificate chain and its key; likewise.
        lease_sec: how long a worker may be silent before its job goes to another.
        policies: name -> trained policy's directory or file, beside or in place of those that ship.
        on_ready: told the bound HOST:PORT once calls are answered.

    Raises:
        InputError: the address is malformed or taken, or open to others without TLS and token.
        PolicyError: one of `policies` cannot be read.
    """
    ended = threading.Event()

    def end(signal_number: int, frame: FrameType | None) -> None:
        ended.set()

    _raise_descriptor_limit()
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server = start(
            listen,
            store_url,
            token=token,
            tls_cert=tls_cert,
            tls_key=tls_key,
            lease_sec=lease_sec,
            policies=policies,
        )
        if on_ready is not None:
            on_ready(server.address)
        # In turns, not for ever: a signal that the kernel gives to one of gRPC's threads does not
        # wake the main thread, which alone may run the handler; seen once, in a whole test run.
        while not ended.wait(0.5):
            pass
        server.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_what_runs() -> None:
    """Ends the process, with exit code 0, where calls go on that had their time: the interpreter
    would wait for their threads, for minutes where a database hangs."""
    until = time.monotonic() + LEAVE_SEC
    while time.monotonic() < until:
        running = [one for one in threading.enumerate() if not one.daemon]
        if running == [threading.main_thread()]:
            return
        time.sleep(0.05)
    LOG.warning("ended; threads still at work: %d", len(running) - 1)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


def _services() -> tuple[ServiceDescriptor, ServiceDescriptor]:
    return (
        plans_pb2.DESCRIPTOR.services_by_name["PlanService"],
        devices_pb2.DESCRIPTOR.services_by_name["DeviceService"],
    )


def _reflection() -> grpc.GenericRpcHandler[Any, Any]:
    """The handler of reflection; a message that cannot be read is answered like an empty one."""
    try:
        from grpc_reflection.v1alpha import reflection, reflection_pb2
    except ModuleNotFoundError as error:
        raise MissingExtraError("serving", "service") from error
    names = [service.full_name for service in _services()]
    names += [HEALTH_NAME, reflection.SERVICE_NAME]
    answers = reflection.aio.ReflectionServicer(names)  # type: ignore[attr-defined]
    kind = reflection_pb2.ServerReflectionRequest

    def read(data: bytes) -> Any:
        try:
            return limits.parse(data, kind, "ServerReflectionInfo")
        except InputError:
            return kind()

    handler = grpc.stream_stream_rpc_method_handler(
        answers.ServerReflectionInfo,
        read,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    made: grpc.GenericRpcHandler[Any, Any] = grpc.method_handlers_generic_handler(
        reflection.SERVICE_NAME, {"ServerReflectionInfo": handler}
    )
    return made


def _certificate(tls_cert: str | Path | None, tls_key: str | Path | None) -> Certificate | None:
    if tls_cert is None and tls_key is None:
        return None
    if tls_cert is None or tls_key is None:
        raise InputError("TLS needs both a certificate and its key", field="tls_key")
    return Certificate(tls_cert, tls_key)


def _check_exposed(listen: str, token: str | None, certificate: Certificate | None) -> None:
    """Refuses to listen where others can reach what is not protected."""
    if certificate is None or not token:
        raise InputError(
            f"{listen} can be reached from other machines: give a TLS certificate and key and a "
            "token, or listen on 127.0.0.1",
            field="listen",
        )
    if len(token) < MIN_TOKEN_LENGTH:
        raise InputError(
            f"{listen} can be reached from other machines: the token needs at least "
            f"{MIN_TOKEN_LENGTH} characters, for example of `openssl rand -hex 32`",
            field="token",
        )
