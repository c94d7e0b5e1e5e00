"""Graphs of models as callers name them: by a skeleton or by the fingerprint of one sent before.

A skeleton is parsed within limits and traced, never run, never loaded.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import traceback
from collections import OrderedDict

from rlprune.errors import ModelError, RlpruneError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import parse, strip
from rlprune.graph.types import PruningGraph
from rlprune.planning.tables import Recent
from rlprune.store import Store

MAX_SKELETON_BYTES = 16 * 2**20
MAX_KEPT_BYTES = 64 * 2**20
"""Of traced skeletons kept, as they take memory here."""
MAX_KEPT = 256
MAX_KNOWN = 128
"""Graphs of the store kept in memory."""
_GRAPH_BYTES = 100_000
"""A traced graph without the constants of its skeleton; measured of ResNet-50's."""

LOG = logging.getLogger("rlprune.service")


class Graphs:
    """Traces skeletons, and finds the graphs of a store, each once; safe to share between threads.

    A trace cannot be interrupted; what bounds its time is the size, and what `graph.load` refuses
    (nodes, bodies, nesting) before anything is analysed.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: Recent[PruningGraph] = Recent(MAX_KNOWN)
        self._lock = threading.Lock()
        self._traced: OrderedDict[bytes, tuple[PruningGraph, bytes]] = OrderedDict()
        self._kept_bytes = 0

    def graph(self, fingerprint: str) -> PruningGraph:
        """The graph of a skeleton that was sent before.

        Raises:
            NotFoundError: none was.
        """
        return self._known.get((fingerprint,), lambda: self._store.graph(fingerprint))

    def trace(self, skeleton: bytes, *, field: str = "skeleton") -> tuple[PruningGraph, bytes]:
        """The graph of a skeleton, and the skeleton as it may be kept: surely without weights.

        Raises:
            ModelError: too large, not a skeleton, or not to be analysed.
        """
        if len(skeleton) > MAX_SKELETON_BYTES:
            raise ModelError(
                f"skeleton has {len(skeleton)} bytes, more than {MAX_SKELETON_BYTES}", field=field
            )
        key = hashlib.sha256(skeleton).digest()
        with self._lock:
            if key in self._traced:
                self._traced.move_to_end(key)
                return self._traced[key]
        try:
            model = parse(skeleton)
            traced = (trace_onnx(model).graph, strip(model))
        except RlpruneError as error:
            error.field = field
            raise
        except Exception as error:
            # Whatever a file can do to the analysis is the file's fault to its sender, and told to
            # us in one line.
            LOG.warning("a skeleton of %d bytes ended its analysis: %s", len(skeleton), _at(error))
            raise ModelError(
                f"the model cannot be analysed ({type(error).__name__}); check the file with "
                "onnx.checker, and tell us if it is sound",
                field=field,
            ) from None
        self._keep(key, traced)
        return traced

    def _keep(self, key: bytes, traced: tuple[PruningGraph, bytes]) -> None:
        with self._lock:
            if key not in self._traced:
                self._traced[key] = traced
                self._kept_bytes += _size(traced)
            while len(self._traced) > MAX_KEPT or self._kept_bytes > MAX_KEPT_BYTES:
                self._kept_bytes -= _size(self._traced.popitem(last=False)[1])


def _size(traced: tuple[PruningGraph, bytes]) -> int:
    """About how many bytes a kept trace takes: the skeleton, and its constants once more."""
    return 2 * len(traced[1]) + _GRAPH_BYTES


def _at(error: BaseException) -> str:
    """What was raised, and where."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:200]!r} at {last.filename}:{last.lineno}"
