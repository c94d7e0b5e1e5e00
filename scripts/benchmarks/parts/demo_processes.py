"""The server and the worker of the demo: processes of their own, ended with it."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlprune.errors import RlpruneError
from rlprune.service.client import Client

START_SEC = 60.0
"""Deadline of a process that starts."""
RLPRUNE = (sys.executable, "-c", "from rlprune.cli import main; main()")


@contextmanager
def process(folder: Path, name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`rlprune ...` in a process of its own, ended with SIGTERM; its log lies in `folder`."""
    log = folder / f"{name}.log"
    with log.open("w") as stderr:
        child = subprocess.Popen(
            [*RLPRUNE, *arguments], stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        yield child
        child.send_signal(signal.SIGTERM)
        if child.wait(30) != 0:
            raise RlpruneError(
                f"the {name} ended with {child.returncode}: {log.read_text()[-500:]}"
            )
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


@contextmanager
def server(folder: Path, url: str) -> Iterator[str]:
    """A server; its HOST:PORT."""
    with process(folder, "server", "serve", "--listen=127.0.0.1:0", f"--store={url}") as child:
        assert child.stdout is not None
        ready = select.select([child.stdout], [], [], START_SEC)[0]
        line = child.stdout.readline() if ready else ""
        if not line.startswith("listening on "):
            raise RlpruneError(f"no server: {(folder / 'server.log').read_text()[-500:]}")
        yield line.removeprefix("listening on ").strip()


def wait_for_device(client: Client) -> str:
    """The key under which the worker introduced itself."""
    until = time.monotonic() + START_SEC
    while time.monotonic() < until:
        for record in client.devices():
            return record.key
        time.sleep(0.2)
    raise RlpruneError(f"no worker introduced itself within {START_SEC:.0f} s")
