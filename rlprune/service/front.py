"""The front of the server: an event loop takes the calls, threads answer them.

A call whose message has not come costs a little memory and no thread, so callers that open calls
and send nothing, or lose their network in the middle, stop nobody. In this order a call needs: the
token (health checks do not), its message within a time, room in the queue, and a message that is
within its method's limits. What a method raises becomes a status (`wire`), its bugs INTERNAL, and
each call leaves a line in the log.
"""

from __future__ import annotations

import asyncio
import hmac
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent import futures
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from rlprune.errors import (
    AuthenticationError,
    InputError,
    OverloadedError,
    RlpruneError,
    StoreError,
)
from rlprune.service import limits, wire
from rlprune.service.call_log import LOG, Call, TokenLog

SHORT_THREADS = 8
LONG_THREADS = 4
MAX_CONCURRENT = 64
"""Calls of each kind; those beyond are refused at once instead of queueing past their end."""
MESSAGE_SEC = 120.0
"""How long a request may take to arrive: a skeleton of 16 MB over 1 Mbit/s."""
HEALTH_MESSAGE_SEC = 10.0

_LONG = ("CreatePlan", "RequestMeasurement")
"""Methods that trace or plan; with threads of their own, so that leases and reports go on."""
_HEALTH = "/grpc.health.v1.Health/"

T = TypeVar("T")


class EventLoop:
    """An asyncio loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        run = threading.Thread(target=self._loop.run_forever, name="rlprune-front", daemon=True)
        run.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop and waits for it; from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def start(self, work: Coroutine[Any, Any, None]) -> futures.Future[None]:
        """Runs a coroutine on the loop until it ends or the future is cancelled."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)


@cache
def event_loop() -> EventLoop:
    """The loop of all servers in this process, never closed: gRPC has one queue of events for all
    loops, and what comes there for one that is closed stops the others, or crashes the process."""
    return EventLoop()


class Pool:
    """Threads with a queue of limited length."""

    def __init__(self, thread_count: int, name: str) -> None:
        self._threads = futures.ThreadPoolExecutor(thread_count, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._count = 0

    def submit(self, work: Callable[[], T]) -> futures.Future[T]:
        """Has a thread do `work`; OverloadedError where as much is queued as may be."""
        with self._lock:
            if self._count >= MAX_CONCURRENT:
                raise OverloadedError(f"the server has {self._count} calls to answer; try later")
            self._count += 1
        future = self._threads.submit(work)
        future.add_done_callback(self._ended)  # also where it was cancelled in the queue
        return future

    def _ended(self, _: futures.Future[Any]) -> None:
        with self._lock:
            self._count -= 1

    def close(self) -> None:
        """Drops what is queued and lets end what runs; does not wait for it."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Method:
    """One rpc."""

    name: str
    """Full name, as the log has it."""
    request: type[Message]
    answer: Callable[[Any], Message]
    """Called on a thread of `pool`, or on the event loop itself where there is none."""
    pool: Pool | None
    message_sec: float
    store_lost: Callable[[], Awaitable[None]] | None = None
    """Awaited before a call is told that the store is lost."""

    @property
    def short_name(self) -> str:
        return self.name.rpartition(".")[2]

    def handler(self) -> Any:
        """What gRPC calls. Of the streaming kind, since a unary one is called with the message
        only, and no time limits the wait for that."""
        return grpc.stream_unary_rpc_method_handler(self._handle)

    async def _handle(self, _: Any, context: Any) -> bytes:
        call = Call(self.name, context.peer())
        try:
            data = await read_message(context, self.message_sec)
            if self.pool is None:
                return self._work(data, call)
            return await asyncio.wrap_future(self.pool.submit(lambda: self._work(data, call)))
        except RlpruneError as error:
            refusal, call.error = wire.refusal(error), f"{type(error).__name__}: {error}"
            if isinstance(error, StoreError) and self.store_lost is not None:
                await self.store_lost()
        except asyncio.CancelledError:
            # The caller went away, or its deadline passed. What waits in the queue leaves it.
            call.status = "CANCELLED"
            raise
        except Exception as error:
            LOG.exception("bug in %s", self.name)
            refusal, call.error = wire.BUG, type(error).__name__
        finally:
            if call.error:
                call.status = refusal.code.name
            call.log()
        await context.abort(refusal.code, refusal.message, refusal.trailing)
        raise AssertionError("an aborted call does not go on")

    def _work(self, data: bytes, call: Call) -> bytes:
        request = limits.parse(data, self.request, self.short_name)
        call.about(request)
        try:
            found = self.answer(request)
        except MemoryError as error:
            raise InputError("this takes more memory than the server has") from error
        call.about(found)
        return found.SerializeToString()


async def read_message(context: Any, timeout_sec: float) -> bytes:
    """The raw message of a call; InputError where none comes in time."""
    try:
        data = await asyncio.wait_for(context.read(), timeout_sec)
    except TimeoutError as error:
        raise InputError(f"no request came within {timeout_sec:.0f} s") from error
    if not isinstance(data, bytes):
        raise InputError("the call ended without a request")
    return data


class Service(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """All rpcs of a service."""

    def __init__(self, handlers: Mapping[str, Any]) -> None:
        """Handlers by the rpc's path."""
        self._handlers = dict(handlers)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(handler_call_details.method)


class Pools:
    """The threads that answer: few for what takes long, others for the rest."""

    def __init__(self, store_lost: Callable[[], Awaitable[None]]) -> None:
        self._store_lost = store_lost
        self._short = Pool(SHORT_THREADS, "rlprune-rpc")
        self._long = Pool(LONG_THREADS, "rlprune-plan")

    def service(self, service: ServiceDescriptor, implementation: object) -> Service:
        """The rpcs of `implementation`, each a method of the same name in snake case."""
        return Service(
            {
                f"/{service.full_name}/{method.name}": Method(
                    method.full_name,
                    GetMessageClass(method.input_type),
                    getattr(implementation, _snake(method.name)),
                    self._long if method.name in _LONG else self._short,
                    MESSAGE_SEC,
                    self._store_lost,
                ).handler()
                for method in service.methods
            }
        )

    def close(self) -> None:
        """See `Pool.close`."""
        self._short.close()
        self._long.close()


class TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses every rpc without the token, before its message, save health checks."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()
        self._log = TokenLog()

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        if details.method.startswith(_HEALTH):
            return await continuation(details)
        sent = dict(details.invocation_metadata or ()).get("authorization", "")
        given = sent if isinstance(sent, bytes) else sent.encode()
        if hmac.compare_digest(given, self._expected):
            return await continuation(details)

        async def refuse(_: Any, context: Any) -> None:
            self._log.refused(details.method, context.peer())
            refusal = wire.refusal(AuthenticationError("the token is missing or wrong"))
            await context.abort(refusal.code, refusal.message, refusal.trailing)

        return grpc.stream_unary_rpc_method_handler(refuse)


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)[1:]
