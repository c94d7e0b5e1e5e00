"""How each operator of a model is listed among those that cost time: a table that others fill."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlprune.graph.lister import Lister
from rlprune.graph.walk import Node

Handler = Callable[[Lister, Node, Sequence[str]], None]
"""Lists a node; the last argument has its inputs that are no constants, never empty."""
LISTED: dict[str, Handler] = {}
"""How each operator is listed, by its name in the default domain (or `domain.Name`)."""


def listed(operators: str) -> Callable[[Handler], Handler]:
    """Enters a handler for operators, by their names with blanks between."""

    def enter(handler: Handler) -> Handler:
        LISTED.update(dict.fromkeys(operators.split(), handler))
        return handler

    return enter
