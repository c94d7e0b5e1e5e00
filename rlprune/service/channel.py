"""One connection to a server: deadlines on every call, retries with a reason, our errors.

Only UNAVAILABLE is tried again, with backoff and unchanged, so that the request_id in it makes
repeating harmless.
"""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from rlprune.errors import InputError
from rlprune.service.wire import error_of, may_retry

MAX_MESSAGE_BYTES = 64 * 2**20
CALL_TIMEOUT_SEC = 30.0
FIRST_BACKOFF_SEC = 0.1
MAX_BACKOFF_SEC = 2.0

M = TypeVar("M", bound=Message)


class Channel:
    """Calls rpcs of a server; may be used from several threads."""

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls_ca: str | Path | None = None,
        patience_sec: float = 5.0,
    ) -> None:
        """Opens nothing yet; the first call connects.

        Args:
            target: HOST:PORT.
            token: sent with every call. Beyond loopback only together with TLS.
            tls_ca: PEM file of the certificate that vouches for the server; turns TLS on.
            patience_sec: how long an unavailable server is tried again.

        Raises:
            InputError: not HOST:PORT, an unreadable certificate, or a token in the open.
        """
        host, colon, port = target.rpartition(":")
        if not colon or not host or not port.isdecimal():
            raise InputError(f"server {target!r} is not HOST:PORT", field="server")
        self.target = target
        self._patience_sec = patience_sec
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        local = _is_loopback(host.strip("[]"))
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # A server that was restarted is found within seconds, not after gRPC's two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.enable_http_proxy", 0 if local else 1),
        ]
        if tls_ca is not None:
            try:
                credentials = grpc.ssl_channel_credentials(Path(tls_ca).read_bytes())
            except OSError as error:
                raise InputError(
                    f"cannot read {tls_ca}: {error.strerror}", field="tls_ca"
                ) from error
            self._channel = grpc.secure_channel(target, credentials, options)
        elif token and not local:
            raise InputError(
                f"a token would go to {target} in the open; give the server's certificate (tls_ca)",
                field="tls_ca",
            )
        else:
            self._channel = grpc.insecure_channel(target, options)

    def close(self) -> None:
        """Ends the connection and what is running on it."""
        self._channel.close()

    def call(
        self, rpc: str, request: Message, answer: type[M], *, timeout_sec: float = CALL_TIMEOUT_SEC
    ) -> M:
        """Calls `Service/Method` of package rlprune.v1.

        Raises:
            RlpruneError: the class that the server raised; UnavailableError without an answer.
        """
        method = self._channel.unary_unary(
            f"/rlprune.v1.{rpc}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        give_up = time.monotonic() + min(self._patience_sec, timeout_sec)
        backoff_sec = FIRST_BACKOFF_SEC
        while True:
            try:
                found: M = method(request, timeout=timeout_sec, metadata=self._metadata)
                return found
            except grpc.RpcError as error:
                if not may_retry(error) or time.monotonic() + backoff_sec > give_up:
                    raise error_of(error, self.target) from None
            time.sleep(backoff_sec)
            backoff_sec = min(2 * backoff_sec, MAX_BACKOFF_SEC)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
