"""The command line: parse, wire up, call.

Promises of every command: results on stdout, progress on stderr; with `--json` stdout is one JSON
value and nothing else. Files appear whole or not at all. Exit 0; 1 for an error, told in one line
on stderr; 2 for wrong usage; 3 where no plan meets the budget; 130 after Ctrl+C, 143 after SIGTERM.
Heavy packages are imported by the command that needs them, so `--help` is quick.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType


def main() -> None:
    """The `rlprune` program."""
    try:
        # Temporary folders hold whole models: they go before the process does.
        signal.signal(signal.SIGTERM, _end)
        from rlprune.cli.app import app

        if sys.argv[1:2] == ["finetune"]:  # here, for it is of the whole process
            from rlprune.finetuning.memory import keep_freed_memory

            keep_freed_memory()
        app()
    except KeyboardInterrupt:  # while importing; later ones are the commands'
        sys.exit(130)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
