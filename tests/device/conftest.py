"""A store and a server over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlprune.service.server import Server, start
from rlprune.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(str(tmp_path / "s.sqlite"))
    yield store
    store.close()


@pytest.fixture
def server(store: Store) -> Iterator[Server]:
    server = start("127.0.0.1:0", store, lease_sec=4.0)
    yield server
    server.stop(0.5)
