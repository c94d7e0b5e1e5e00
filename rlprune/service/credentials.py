"""What a server needs before it may be reached: an address, a certificate with its key, a token."""

from __future__ import annotations

import ipaddress
import logging
import ssl
import threading
import time
from pathlib import Path

import grpc

from rlprune.errors import InputError

LOG = logging.getLogger("rlprune.service")

MIN_TOKEN_LENGTH = 12
"""Beyond loopback; `openssl rand -hex 32` makes 64."""
RELOAD_SEC = 1.0
"""A certificate's files are looked at no more often, on the next connection after that."""


def split_address(text: str, *, field: str, example: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, an IPv6 host without its brackets.

    Raises:
        InputError: no such address; names `field`.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    known = host and not any(letter.isspace() or not letter.isprintable() for letter in host)
    if not colon or not known or not port.isdecimal() or int(port[:9]) > 65535:
        raise InputError(f"{text[:200]!r} is not HOST:PORT, e.g. {example}", field=field)
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_token(token: str) -> str:
    """The token itself, if it can be sent: a header is printable ASCII, without spaces at its ends.

    Raises:
        InputError: it holds anything else, or nothing. It is not told, being secret.
    """
    if not token or not all("!" <= letter <= "~" for letter in token):
        raise InputError(
            "the token is blank, or has spaces, line ends or letters beyond ASCII; give printable "
            "ASCII, for example of `openssl rand -hex 32`",
            field="token",
        )
    return token


class Certificate:
    """A certificate chain and its key in PEM files, read again when they change."""

    def __init__(self, cert: str | Path, key: str | Path) -> None:
        """Reads both.

        Raises:
            InputError: unreadable, not a pair, or the key is encrypted.
        """
        self._paths = (Path(cert), Path(key))
        self._lock = threading.Lock()
        self._config = self._read()
        self._stamp = self._changed()
        self._looked = time.monotonic()

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials that follow the files: new connections get what stands in them."""
        made: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            self._config,
            self._renewed,  # type: ignore[arg-type]  # None is allowed: unchanged
            require_client_authentication=False,
        )
        return made

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new pair where the files have changed; None, for the one in use, else. Called by gRPC
        at each connection."""
        with self._lock:
            if time.monotonic() - self._looked < RELOAD_SEC:
                return None
            self._looked = time.monotonic()
            try:
                stamp = self._changed()
                if stamp == self._stamp:
                    return None
                self._stamp = stamp
                self._config = self._read()
            except (InputError, OSError) as error:
                # Between the writing of the one file and of the other, or a mistake: the pair in
                # use goes on, and the next change is looked at again.
                LOG.warning("certificate not renewed, the old one is still used: %s", error)
                return None
        LOG.info("certificate renewed from %s", self._paths[0])
        return self._config

    def _changed(self) -> tuple[tuple[int, int, int], ...]:
        found = [path.stat() for path in self._paths]
        return tuple((one.st_mtime_ns, one.st_ino, one.st_size) for one in found)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        cert, key = self._paths
        try:
            chain, secret = cert.read_bytes(), key.read_bytes()
        except OSError as error:
            raise InputError(
                f"cannot read {error.filename}: {error.strerror}", field="tls_cert"
            ) from error
        try:
            # The password is asked of a terminal otherwise.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, _no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise InputError(
                f"{cert} and {key} are not a certificate and its unencrypted key in PEM",
                field="tls_cert",
            ) from error
        made: grpc.ServerCertificateConfiguration = grpc.ssl_server_certificate_configuration(
            [(secret, chain)]
        )
        return made


def _no_password() -> str:
    raise ValueError("the key is encrypted")
