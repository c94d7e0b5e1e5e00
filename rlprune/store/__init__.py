"""What survives the process: graphs, devices, measurements, plans, jobs; SQLite or PostgreSQL.

Importing this does not import SQLAlchemy (0.4 s): clients and workers read `records` only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlprune.store.records import DeviceHealth, DeviceRecord, PlanRecord

if TYPE_CHECKING:
    from rlprune.store.store import Store

__all__ = ["DeviceHealth", "DeviceRecord", "PlanRecord", "Store", "open_store"]


def open_store(
    url: str | None = None,
    *,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] | None = None,
) -> Store:
    """Opens a store, and creates it if it is not there; one of an earlier version is upgraded.

    Args:
        url: `sqlite:///FILE`, a file name, or `postgresql+DRIVER://...`; None for a SQLite file in
            the user's data folder, which all rlprune commands of this user share.
        clock: seconds since the epoch.
        monotonic: seconds that only pass, by which leases last; `time.monotonic` if left out, or
            `clock` where another one than the machine's is given.

    Raises:
        InputError: no such kind of store, or the file is none or of a later version.
        UnavailableError: the database does not answer.
    """
    from rlprune.store.database import Database
    from rlprune.store.store import Store

    if url is None:
        import platformdirs

        url = f"sqlite:///{Path(platformdirs.user_data_dir('rlprune')) / 'store.sqlite'}"
    return Store(Database(url), clock=clock, monotonic=monotonic)


def __getattr__(name: str) -> Any:
    if name == "Store":
        from rlprune.store.store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
