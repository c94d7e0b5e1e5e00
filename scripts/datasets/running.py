"""How makers of datasets run: stopped cleanly, telling how long the rest takes, into what."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from rlprune.errors import InputError, RlpruneError

STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable(*, goes_on: bool = True) -> Iterator[None]:
    """Ends with a line on Ctrl+C, on SIGTERM and on errors of ours; what is finished stays.

    Args:
        goes_on: whether the same command finds what was finished.
    """
    before = [(number, signal.getsignal(number)) for number in STOPS]
    listen()
    try:
        yield
    except KeyboardInterrupt:
        print("stopped" + goes_on * "; the same command goes on where it was", file=sys.stderr)
        raise SystemExit(130) from None
    except RlpruneError as error:
        raise SystemExit(str(error)) from error
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def listen() -> None:
    """Both ways to stop a run lead through every `finally`."""
    for number in STOPS:  # a shell starts jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)


@dataclass
class Clock:
    """How long the rest takes, from what was done since the start; work is in any unit."""

    left: float = 0.0
    done: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def finish(self, work: float) -> float:
        """Counts it; returns the minutes still to go."""
        self.left = max(0.0, self.left - work)
        self.done += work
        return (time.monotonic() - self.started) / self.done * self.left / 60


def recorded_folder() -> Path:
    """The recorded models that ship.

    Raises:
        InputError: the package that holds them is not installed.
    """
    return Path(_recordings().RECORDED)


def zoo_folder() -> Path:
    """The trained networks that ship; raises as `recorded_folder` does."""
    return Path(_recordings().ZOO)


def _recordings() -> ModuleType:
    try:
        import rlprune_recordings
    except ImportError as error:
        raise InputError(
            "the recordings are not installed: pip install scripts/datasets/recordings"
        ) from error
    return rlprune_recordings
