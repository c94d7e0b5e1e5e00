"""Ids that no database takes are refused at the door, by name, in every kind of store alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from test_store import plan

from rlprune.errors import InputError
from rlprune.store import Store
from rlprune.store.jobs import JobQueue
from rlprune.store.leases import Leases

CALLS: dict[str, tuple[str, Callable[[Store, str], object]]] = {
    "plan": ("plan_id", lambda store, odd: store.plan(odd)),
    "plans": ("device", lambda store, odd: store.plans(device=odd)),
    "plan of request": ("request_id", lambda store, odd: store.put_plan(plan(), request_id=odd)),
    "device": ("device", lambda store, odd: store.device(odd)),
    "last seen": ("device", lambda store, odd: store.last_seen_sec(odd)),
    "register": ("device", lambda store, odd: store.register_device(odd)),
    "graph": ("fingerprint", lambda store, odd: store.graph(odd)),
    "skeleton": ("fingerprint", lambda store, odd: store.skeleton(odd)),
    "job": ("job_id", lambda store, odd: JobQueue(store).job(odd)),
    "enqueue": ("device", lambda store, odd: JobQueue(store).enqueue(odd, [])),
    "lease of a worker": ("worker_id", lambda store, odd: Leases(store).lease(odd, "board")),
    "lease on a device": ("device", lambda store, odd: Leases(store).lease("worker", odd)),
    "renew": ("lease_id", lambda store, odd: Leases(store).renew(odd)),
    "report": ("lease_id", lambda store, odd: Leases(store).report(odd, "r", [])),
}


ODD = ["a\x00b", "\x00", "a\nb", "\ud800", "x" * 10_000]


def test_an_odd_id_is_refused_by_name(store: Store) -> None:
    for call, (field, act) in CALLS.items():
        for odd in ODD:
            with pytest.raises(InputError) as refusal:
                act(store, odd)
            assert refusal.value.field == field, call
            assert len(str(refusal.value)) < 500 and "\n" not in str(refusal.value)
    assert store.devices() == [] and store.plans()[0] == []
