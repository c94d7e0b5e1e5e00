"""The devices that plans are made for."""

from __future__ import annotations

from typing import Any

from rlprune.store import DeviceHealth, DeviceRecord


def device_report(record: DeviceRecord) -> dict[str, Any]:
    """What is told of a device, and how far its predictions can be trusted."""
    # A server of an earlier version sends none.
    health = record.health or DeviceHealth(float("nan"), float("nan"), stale=False)
    return {
        "key": record.key,
        "device": record.key,  # as 0.6 called it
        "runtime": _runtime(record),
        "measurement_count": record.measurement_count,
        "last_measured_sec": record.last_measured_sec,
        "last_seen_sec": record.last_seen_sec,
        "error_ratio": health.error_ratio,
        "drift_ratio": health.drift_ratio,
        "stale": health.stale,
        "parked_job_count": health.parked_job_count,
        "dropped": health.dropped,
        "description": record.description,
    }


def _runtime(record: DeviceRecord) -> str:
    """As the device's worker says; a key begins with it, too."""
    return record.description.get("runtime") or record.key.partition("-")[0]
