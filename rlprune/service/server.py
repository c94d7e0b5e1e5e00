"""The gRPC server: plans and devices over one store, health and reflection beside them.

It binds loopback. Any other interface is refused without a TLS certificate and a token. With a
token set, every rpc but health checking needs it, reflection included. One process holds a port.
SIGTERM turns health to NOT_SERVING, lets calls that run finish, and ends with exit code 0.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import signal
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.internal import api_implementation
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from rlprune.errors import AuthenticationError, InputError, MissingExtraError, RlpruneError
from rlprune.policy import get_policy
from rlprune.service import wire
from rlprune.service.devices import DeviceService
from rlprune.service.models import Skeletons
from rlprune.service.plans import PlanService
from rlprune.store import Store, open_store
from rlprune.store.jobs import JobQueue
from rlprune.store.leases import Leases
from rlprune.v1 import devices_pb2, plans_pb2

LOG = logging.getLogger("rlprune.service")

DEFAULT_LISTEN = "127.0.0.1:50051"
THREAD_COUNT = 8
MAX_CONCURRENT = 64
"""Calls beyond this are refused at once (RESOURCE_EXHAUSTED) instead of queueing past their end."""
MAX_MESSAGE_BYTES = 32 * 2**20
_POLLS = ("Lease", "Renew", "GetJob")  # many a minute, and told only where they are refused
_HEALTH = "/grpc.health.v1.Health/"


class Server:
    """A running server. Made by `start`."""

    def __init__(self, server: grpc.Server, store: Store, address: str, own_store: bool) -> None:
        self._server = server
        self._store = store
        self._own_store = own_store
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self.address = address
        """HOST:PORT as bound; the real port where 0 was asked for."""

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self.address.rpartition(":")[2])

    def set_serving(self) -> None:
        """Health checks answer SERVING from now on."""
        for name in ("", *(service.full_name for service in _services())):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_sec: float = 10.0) -> None:
        """NOT_SERVING, then no new calls, then waits for those that run, at most `grace_sec`."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_sec).wait()
        if self._own_store:
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
    reflection = _reflection()
    host, port = _split(listen)
    credentials = _credentials(tls_cert, tls_key)
    if not _is_loopback(host) and (credentials is None or not token):
        raise InputError(
            f"{listen} can be reached from other machines: give a TLS certificate and key and a "
            "token, or listen on 127.0.0.1",
            field="listen",
        )
    own = {name: get_policy(str(path)) for name, path in (policies or {}).items()}
    server = grpc.server(
        futures.ThreadPoolExecutor(THREAD_COUNT, thread_name_prefix="rlprune-rpc"),
        interceptors=[_TokenCheck(token)] if token else [],
        maximum_concurrent_rpcs=MAX_CONCURRENT,
        options=[
            ("grpc.so_reuseport", 0),  # else a second server on the port takes half the calls
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ],
    )
    try:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if credentials is None:
            bound = server.add_insecure_port(target)
        else:
            bound = server.add_secure_port(target, credentials)
    except RuntimeError as error:
        raise InputError(
            f"cannot listen on {listen}: the port is taken or may not be bound", field="listen"
        ) from error
    try:
        opened = store if isinstance(store, Store) else open_store(store)
    except BaseException:
        server.stop(None)  # gives the port back
        raise
    running = Server(
        server, opened, f"{target.rpartition(':')[0]}:{bound}", own_store=opened is not store
    )
    jobs, skeletons = JobQueue(opened), Skeletons()
    leases = Leases(opened, lease_sec=lease_sec)
    plan_service, device_service = _services()
    server.add_generic_rpc_handlers(
        (
            _handlers(plan_service, PlanService(opened, jobs, skeletons, own)),
            _handlers(device_service, DeviceService(opened, jobs, leases, skeletons)),
        )
    )
    names = [service.full_name for service in _services()]
    reflection.enable_server_reflection(
        [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    server.start()
    running.set_serving()
    LOG.info("listening on %s, store %s", running.address, opened.database)
    return running


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


class _TokenCheck(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses every rpc without the token, save health checks, which tell nothing."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        if details.method.startswith(_HEALTH):
            return continuation(details)
        sent = dict(details.invocation_metadata or ()).get("authorization", "")
        given = sent if isinstance(sent, bytes) else sent.encode()
        if hmac.compare_digest(given, self._expected):
            return continuation(details)
        return grpc.unary_unary_rpc_method_handler(_refuse_token)


def _refuse_token(request: bytes, context: grpc.ServicerContext) -> None:
    wire.refuse(context, AuthenticationError("the token is missing or wrong"))


def _services() -> tuple[ServiceDescriptor, ServiceDescriptor]:
    return (
        plans_pb2.DESCRIPTOR.services_by_name["PlanService"],
        devices_pb2.DESCRIPTOR.services_by_name["DeviceService"],
    )


def _handlers(service: ServiceDescriptor, implementation: object) -> Any:
    """All rpcs of a service, each a method of the same name in snake case."""
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            _guarded(method, getattr(implementation, _snake(method.name))),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
        for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _guarded(
    method: MethodDescriptor, call: Callable[[Any], Any]
) -> Callable[[Any, grpc.ServicerContext], Any]:
    """`call` with its refusals turned into statuses, its bugs into INTERNAL, and a line logged."""

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        if not context.is_active():
            wire.abandon(context)
        began = time.perf_counter()
        outcome = "OK"
        try:
            return call(request)
        except RlpruneError as error:
            outcome = f"{type(error).__name__}: {error}"
            wire.refuse(context, error)
        except Exception as error:
            outcome = type(error).__name__
            wire.refuse_internal(context, LOG, method.full_name)
        finally:
            took_ms = 1000 * (time.perf_counter() - began)
            level = logging.DEBUG if method.name in _POLLS and outcome == "OK" else logging.INFO
            LOG.log(level, "%s %.1f ms %s", method.full_name, took_ms, outcome)

    return answer


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)[1:]


def _reflection() -> Any:
    try:
        from grpc_reflection.v1alpha import reflection
    except ModuleNotFoundError as error:
        raise MissingExtraError("serving", "service") from error
    return reflection


def _split(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(f"{listen!r} is not HOST:PORT, e.g. {DEFAULT_LISTEN}", field="listen")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _credentials(
    tls_cert: str | Path | None, tls_key: str | Path | None
) -> grpc.ServerCredentials | None:
    if tls_cert is None and tls_key is None:
        return None
    if tls_cert is None or tls_key is None:
        raise InputError("TLS needs both a certificate and its key", field="tls_key")
    try:
        pair = (Path(tls_key).read_bytes(), Path(tls_cert).read_bytes())
    except OSError as error:
        raise InputError(
            f"cannot read {error.filename}: {error.strerror}", field="tls_cert"
        ) from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls_cert, tls_key)
    except (ssl.SSLError, ValueError) as error:
        raise InputError(
            f"{tls_cert} and {tls_key} are not a certificate and its unencrypted key in PEM",
            field="tls_cert",
        ) from error
    return grpc.ssl_server_credentials([pair])
