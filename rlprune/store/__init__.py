"""What survives the process: graphs, devices, measurements, plans, jobs; SQLite or PostgreSQL."""

from __future__ import annotations

import time
from pathlib import Path

import platformdirs

from rlprune.store.database import Database
from rlprune.store.store import Clock, DeviceRecord, PlanRecord, Store

__all__ = ["DeviceRecord", "PlanRecord", "Store", "open_store"]


def open_store(url: str | None = None, *, clock: Clock = time.time) -> Store:
    """Opens a store, and creates it if it is not there.

    Args:
        url: `sqlite:///FILE`, a file name, or `postgresql+DRIVER://...`; None for a SQLite file in
            the user's data folder, which all rlprune commands of this user share.
        clock: seconds since the epoch.

    Raises:
        InputError: no such kind of store, or the file is none or of another version.
        UnavailableError: the database does not answer.
    """
    if url is None:
        url = f"sqlite:///{Path(platformdirs.user_data_dir('rlprune')) / 'store.sqlite'}"
    return Store(Database(url), clock=clock)
