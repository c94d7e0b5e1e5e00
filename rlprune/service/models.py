"""Skeletons as callers send them: parsed within limits and traced, never run, never loaded."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from rlprune.errors import ModelError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import parse, strip
from rlprune.graph.types import PruningGraph

MAX_SKELETON_BYTES = 16 * 2**20
_KEPT = 256  # graphs kept traced; one is some 100 kB


class Skeletons:
    """Traces skeletons, each once; safe to share between threads.

    A trace cannot be interrupted; what bounds its time is the size, and what `graph.load` refuses
    (nodes, bodies, nesting) before anything is analysed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._traced: OrderedDict[bytes, tuple[PruningGraph, bytes]] = OrderedDict()

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
        except ModelError as error:
            error.field = field
            raise
        with self._lock:
            self._traced[key] = traced
            while len(self._traced) > _KEPT:
                self._traced.popitem(last=False)
        return traced
