"""One connection to a server: deadlines on every call, retries with a reason, our errors.

What may pass (`wire.may_retry`) is tried again, with backoff and unchanged, so that the request_id
in it makes repeating harmless.
"""

from __future__ import annotations

import random
import ssl
import time
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from rlprune.errors import InputError
from rlprune.service.credentials import check_token, is_loopback, split_address
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
            InputError: not HOST:PORT, no certificate, a token that cannot be sent, or one that
                would be sent in the open.
        """
        host, _ = split_address(target, field="server", example="127.0.0.1:50051")
        self.target = target
        self._patience_sec = patience_sec
        self._answered = False
        self._metadata = (("authorization", f"Bearer {check_token(token)}"),) if token else ()
        local = is_loopback(host)
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # A server that was restarted is found within seconds, not after gRPC's two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.enable_http_proxy", 0 if local else 1),
        ]
        if tls_ca is not None:
            credentials = grpc.ssl_channel_credentials(_certificates(tls_ca))
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
        self,
        rpc: str,
        request: Message,
        answer: type[M],
        *,
        timeout_sec: float = CALL_TIMEOUT_SEC,
        until: float | None = None,
    ) -> M:
        """Calls `Service/Method` of package rlprune.v1.

        Args:
            timeout_sec: of each try.
            until: when to give up on a server that is away or answers too late, by
                `time.monotonic`; None for the channel's patience, as where it has never answered.
                Only of calls that may be repeated after they were heard.

        Raises:
            RlpruneError: the class that the server raised; UnavailableError without an answer.
        """
        method = self._channel.unary_unary(
            f"/rlprune.v1.{rpc}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        give_up = time.monotonic() + min(self._patience_sec, timeout_sec)
        if until is not None and self._answered:
            give_up = max(give_up, until)
        backoff_sec = FIRST_BACKOFF_SEC
        while True:
            try:
                found: M = method(request, timeout=timeout_sec, metadata=self._metadata)
                self._answered = True
                return found
            except grpc.RpcError as error:
                again = may_retry(error, late=until is not None and self._answered)
                if not again or time.monotonic() + backoff_sec > give_up:
                    raise error_of(error, self.target) from None
            # Apart from each other: those who were refused together do not come back together.
            time.sleep(backoff_sec * random.uniform(0.5, 1.0))
            backoff_sec = min(2 * backoff_sec, MAX_BACKOFF_SEC)


def _certificates(path: str | Path) -> bytes:
    """A PEM file's bytes, if there are certificates in it."""
    try:
        data = Path(path).read_bytes()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii"))
    except ValueError as error:  # ssl.SSLError is one of OSError and ValueError
        raise InputError(f"{path} holds no certificate in PEM", field="tls_ca") from error
    except OSError as error:
        why = error.strerror if error.filename else "it holds no certificate in PEM"
        raise InputError(f"cannot read {path}: {why}", field="tls_ca") from error
    return data
