"""Whether the files that a SQLite store was opened from are still the ones at its path.

Who deletes or replaces a file does not stop those who have it open: they would go on writing to a
file that no folder holds, and lose all of it at their end. What tells is the inode.
"""

from __future__ import annotations

import os
from pathlib import Path


class StoreFiles:
    """The files of an open store, as the file system knew them when it was opened.

    The write-ahead log counts: as long as one connection is open, SQLite itself leaves it alone.
    Never opens them: closing would end the locks that this process holds on them (POSIX).
    """

    def __init__(self, path: str | None) -> None:
        """Of a SQLite file; of what is none (None), nothing is ever missing."""
        paths = [] if path is None else [path, f"{path}-wal"]
        self._known = {one: found for one in paths if (found := _identity(one)) is not None}

    def missing(self) -> str:
        """Name of a file that is not there any more or is another one now; empty: all are well."""
        for path, known in self._known.items():
            if _identity(path) != known:
                return Path(path).name
        return ""


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
