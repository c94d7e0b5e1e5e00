"""How whoever works long says how far it is."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]
"""(what is being done, how much is done, of how much)."""
