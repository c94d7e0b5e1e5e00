"""The demo's server and worker, each a process of its own."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlprune.service.client import Client

START_SEC = 60.0
"""Deadline of a process that starts."""


class DemoError(Exception):
    """A step did not do what it must; the message says which."""


@contextmanager
def process(folder: Path, name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`rlprune ...` in a process of its own, ended with SIGTERM; its log lies in `folder`."""
    log = folder / f"{name}.log"
    command = [sys.executable, "-c", "from rlprune.cli import main; main()", *arguments]
    with log.open("w") as stderr:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        yield child
        if child.poll() is not None:
            raise DemoError(f"the {name} ended by itself: {log.read_text()[-500:]}")
        child.send_signal(signal.SIGTERM)
        if child.wait(30) != 0:
            raise DemoError(f"the {name} ended with {child.returncode}: {log.read_text()[-500:]}")
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


@contextmanager
def server(folder: Path, url: str) -> Iterator[str]:
    """A server with the policy just trained; its HOST:PORT."""
    own = f"--policy=learned={folder / 'policy'}"
    arguments = ("serve", "--listen=127.0.0.1:0", f"--store={url}", own)
    with process(folder, "server", *arguments) as child:
        assert child.stdout is not None
        if not select.select([child.stdout], [], [], START_SEC)[0]:
            raise DemoError(f"the server said nothing for {START_SEC:.0f} s")
        line = child.stdout.readline()
        if not line.startswith("listening on "):
            raise DemoError(f"no server: {(folder / 'server.log').read_text()[-500:]}")
        yield line.removeprefix("listening on ").strip()


@contextmanager
def worker(folder: Path, address: str) -> Iterator[None]:
    with process(folder, "worker", "work", f"--server={address}"):
        yield


def wait_for_device(client: Client) -> str:
    """The key under which the worker introduced itself."""
    until = time.monotonic() + START_SEC
    while time.monotonic() < until:
        for record in client.devices():
            return record.key
        time.sleep(0.2)
    raise DemoError(f"no worker introduced itself within {START_SEC:.0f} s")
