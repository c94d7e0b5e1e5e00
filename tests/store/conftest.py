"""Every kind of store that the suite runs over."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from postgres import postgres_server, programs, short_folder

from rlprune.store import Store, open_store

POSTGRES = os.environ.get("RLPRUNE_TEST_POSTGRES_URL")
"""A server to use; without, one is started where the machine has PostgreSQL installed."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    if POSTGRES:
        yield POSTGRES
    elif programs() is None:
        pytest.skip("no PostgreSQL installed, and RLPRUNE_TEST_POSTGRES_URL is not set")
    else:
        with short_folder() as folder, postgres_server(folder) as url:
            yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.sqlite'}"
        return
    server = request.getfixturevalue("postgres")
    name = f"rlprune_{uuid.uuid4().hex[:12]}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield sa.make_url(server).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = open_store(url)
    yield store
    store.close()
