"""A worker's child on a machine where the toy scheme is installed: `toy_child.py FOLDER ...`."""

import sys
from pathlib import Path

sys.path[:0] = [sys.argv.pop(1), str(Path(__file__).parent)]

from rlprune.device.child_main import main  # noqa: E402  (the path comes first)

main()
