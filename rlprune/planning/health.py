"""How far a device's predictions can be trusted: their error, and whether the device drifted."""

from __future__ import annotations

import threading
from dataclasses import replace
from statistics import median
from weakref import WeakKeyDictionary

from rlprune.latency.model import LatencyModel
from rlprune.planning.tables import latency_model
from rlprune.store import Store
from rlprune.store.jobs import JobQueue
from rlprune.store.records import DeviceHealth, DeviceRecord

MAX_GRAPHS = 9
"""Models whose interval is looked at; each costs a fit (0.1 s with 1,600 measurements)."""

# One entry a device, of the generation it was computed at; ends with its store.
_known: WeakKeyDictionary[Store, dict[str, tuple[int, DeviceHealth]]] = WeakKeyDictionary()
_known_lock = threading.Lock()


def with_health(store: Store, record: DeviceRecord) -> DeviceRecord:
    """The record with its health as of now; computed once per generation of the device."""
    with _known_lock:
        known = _known.setdefault(store, {})
    generation, health = known.get(record.key, (-1, None))
    if health is None or generation != record.generation:
        model = latency_model(store, record.key)
        health = DeviceHealth(
            error_ratio=_error_ratio(model),
            drift_ratio=model.drift.ratio,
            stale=model.drift.stale,
            dropped=model.dropped,
        )
        known[record.key] = (record.generation, health)
    parked = JobQueue(store).parked_count(record.key)
    return replace(record, health=replace(health, parked_job_count=parked))


def _error_ratio(model: LatencyModel) -> float:
    """Median half-width of the 90 % interval over models with whole-model measurements."""
    graphs = [rows.graph for rows in model.rows if len(rows.ms) > 1]
    chosen = graphs[:: -(-len(graphs) // MAX_GRAPHS)] if graphs else []
    widths = [model.correction(graph).half_width for graph in chosen]
    return median(widths) if widths else float("nan")
