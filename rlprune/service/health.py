"""Health checking (`grpc.health.v1`): SERVING while the store can be read and written.

It is answered on the event loop itself, without a thread, a queue or a look at the store: that is
looked at every few seconds by a thread of its own, and one that does not come back in time counts
as a store that is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2

from rlprune.errors import InputError, NotFoundError, RlpruneError
from rlprune.service import limits, wire
from rlprune.service.call_log import LOG
from rlprune.service.front import HEALTH_MESSAGE_SEC, Method, Service, read_message

CHECK_SEC = 0.5
"""From one look at the store to the next; one takes some 0.2 ms."""
CHECK_TIMEOUT_SEC = 5.0

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_PATH = f"/{health.SERVICE_NAME}"


class Health:
    """What is told of each service, and the watch on the store. Used on the event loop."""

    def __init__(self, names: Sequence[str]) -> None:
        """Every one of `names` is NOT_SERVING until `set`."""
        self._status: dict[str, Any] = dict.fromkeys(("", *names), _NOT_SERVING)
        self._watched = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._ending = self._lost = False
        self._checks = futures.ThreadPoolExecutor(1, thread_name_prefix="rlprune-health")

    def service(self) -> Service:
        """Both rpcs."""
        check = Method(
            f"{health.SERVICE_NAME}.Check",
            health_pb2.HealthCheckRequest,
            self._check,
            pool=None,
            message_sec=HEALTH_MESSAGE_SEC,
        )
        return Service({f"{_PATH}/Check": check.handler(), f"{_PATH}/Watch": self._watch_rpc()})

    def _check(self, request: Any) -> Message:
        status = self._status.get(request.service)
        if status is None:
            raise NotFoundError(f"no service {request.service[:80]!r}", field="service")
        answer: Message = health_pb2.HealthCheckResponse(status=status)
        return answer

    def _watch_rpc(self) -> Any:
        async def watch(_: Any, context: Any) -> None:
            try:
                data = await read_message(context, HEALTH_MESSAGE_SEC)
                request = limits.parse(data, health_pb2.HealthCheckRequest, "Watch")
            except InputError as error:
                refusal = wire.refusal(error)
                await context.abort(refusal.code, refusal.message, refusal.trailing)
            await self._watched.Watch(request, context)

        return grpc.stream_stream_rpc_method_handler(
            watch, response_serializer=health_pb2.HealthCheckResponse.SerializeToString
        )

    async def set(self, serving: bool) -> None:
        """What is told from now on, of all services."""
        for name in self._status:
            self._status[name] = _SERVING if serving and not self._ending else _NOT_SERVING
            await self._watched.set(name, self._status[name])

    async def store_lost(self) -> None:
        """NOT_SERVING until the next look at the store finds it well."""
        await self.set(False)
        self._lost = True

    async def end(self) -> None:
        """NOT_SERVING, for good."""
        self._ending = True
        await self.set(False)

    async def watch_store(self, check: Callable[[], None]) -> None:
        """Sets what `check` says again and again, until cancelled; a change leaves a line in the
        log."""
        loop = asyncio.get_running_loop()
        why, looking = "", None
        try:
            while True:
                await asyncio.sleep(CHECK_SEC)
                before = why
                if looking is None:
                    looking = loop.run_in_executor(self._checks, check)
                try:
                    await asyncio.wait_for(asyncio.shield(looking), CHECK_TIMEOUT_SEC)
                    why = ""
                except TimeoutError:
                    why = f"no answer of the store within {CHECK_TIMEOUT_SEC:.0f} s"
                except RlpruneError as error:
                    why = str(error)
                if looking.done():
                    looking = None
                if why != before or self._lost:
                    self._lost = False
                    LOG.warning("health: %s", f"NOT_SERVING, {why}" if why else "SERVING again")
                    await self.set(not why)
        finally:
            self._checks.shutdown(wait=False, cancel_futures=True)
