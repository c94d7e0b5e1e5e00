"""One Ray cluster for all tests that need one: starting it takes longer than most of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _ray_environment() -> Iterator[None]:
    """One for the whole session: a process that has read one token starts no cluster of another."""
    with pytest.MonkeyPatch.context() as patch:
        # Ray's first start would otherwise write a token into the home directory.
        patch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef0123456789abcdef")
        # Its processes read the tasks' objective from the tests' folder.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def ray_cluster(_ray_environment: None) -> Iterator[None]:
    from rlprune.cluster import ray_session

    with ray_session(None):
        yield
