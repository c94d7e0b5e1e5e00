"""A device's measurements turned into tables, kept until the device reports again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary

from rlprune.device_keys import canonical_key
from rlprune.errors import NotFoundError
from rlprune.files import digest
from rlprune.latency.device import check_batch
from rlprune.latency.tables import LatencyTables
from rlprune.latency.types import (
    F32,
    IN_F32,
    INT8,
    MACS_DEVICE,
    Arithmetic,
    Subject,
)
from rlprune.planning.dominated import Options, paying_options, restricted
from rlprune.schemes import Space
from rlprune.sensitivity.types import GroupProfiles
from rlprune.solver.task import PruningTask

if TYPE_CHECKING:
    from rlprune.latency.known import Donor
    from rlprune.latency.model import LatencyModel
    from rlprune.store import Store

DONOR_COUNT = 30
"""Measurements a device must have for another to start from its costs."""

T = TypeVar("T")


class Recent(Generic[T]):
    """The values used last, at most `limit` of them; safe to share between threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._values: OrderedDict[tuple[object, ...], T] = OrderedDict()

    def get(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        """The value of `key`; made outside the lock, so at worst twice, to equal values."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        with self._lock:
            self._values[key] = made
            while len(self._values) > self._limit:
                self._values.popitem(last=False)
        return made


class _Compiled:
    """What one store's measurements were turned into."""

    def __init__(self) -> None:
        self.models: Recent[LatencyModel] = Recent(8)
        self.precisions: Recent[bool] = Recent(64)
        self.tables: Recent[LatencyTables] = Recent(32)
        self.missing: Recent[tuple[Subject, ...]] = Recent(128)
        self.paying: Recent[Options] = Recent(32)


# Keyed by the store object, not its URL: what was compiled ends with the store it came from.
_compiled: WeakKeyDictionary[Store, _Compiled] = WeakKeyDictionary()
_compiled_lock = threading.Lock()


def _compiled_of(store: Store) -> _Compiled:
    with _compiled_lock:
        return _compiled.setdefault(store, _Compiled())


def latency_model(store: Store, device: str, arithmetic: Arithmetic = IN_F32) -> LatencyModel:
    """The device's latency model of an arithmetic, over all its measurements in that so far; fitted
    once per generation.

    A device without measurements has one too: its `missing` names everything. What it starts from
    are the operators of another device of the store, or those that ship of a runtime
    (`latency.known`): whichever is more like it.
    """
    device = canonical_key(device)
    from rlprune.latency.model import LatencyModel

    generation, donor = _state(store, device)
    return _compiled_of(store).models.get(
        (device, generation, donor, arithmetic),
        lambda: LatencyModel.fit(
            device,
            store.measurements(device),
            store.graphs(),
            arithmetic=arithmetic,
            donor=_donor(store, device, donor, arithmetic),
        ),
    )


def has_precision(store: Store, device: str, precision: str) -> bool:
    """Whether the device has measured anything in a precision; looked up once per generation."""
    device = canonical_key(device)
    key = (device, store.generation(device), precision)
    return _compiled_of(store).precisions.get(key, lambda: store.has_precision(device, precision))


def missing_for(
    space: Space,
    store: Store,
    device: str,
    arithmetic: Arithmetic = IN_F32,
    few: int | None = None,
) -> tuple[Subject, ...]:
    """What the device should measure before plans of these options are worth much: `missing` of its
    latency model, found once per generation."""
    device = canonical_key(device)
    key = (*_options(space), device, *_state(store, device), arithmetic, few)
    return _compiled_of(store).missing.get(
        key, lambda: tuple(latency_model(store, device, arithmetic).missing(space, few))
    )


def _state(store: Store, device: str) -> tuple[int, str | None]:
    """What a device's latency model depends on: its generation, and the device most like it, whose
    costs may stand in for what it has not measured.

    It is read before the measurements are: a report that arrives in between makes what is computed
    fresher than its key says, and the next call computes it again.
    """
    from rlprune.latency.known import distance, kind_of

    generations = store.generations()
    generation, own = generations.pop(device, 0), kind_of(device, F32)
    others = [key for key, count in generations.items() if count >= DONOR_COUNT]
    return generation, min(
        others,
        key=lambda key: (*distance(kind_of(key, F32), own), -generations[key], key),
        default=None,
    )


def _donor(store: Store, device: str, other: str | None, arithmetic: Arithmetic) -> Donor | None:
    """What a device's latency model starts from: `other`'s costs, or what ships; the store's own
    where both are equally like it."""
    from rlprune.latency.known import Donor, distance, donor, kind_of, nearest

    own = kind_of(device, arithmetic.precision)
    ships = nearest(own)
    if other is not None:
        found = kind_of(other, arithmetic.precision)
        if not ships or distance(found, own) <= distance(ships[0], own):
            from rlprune.latency.model import LatencyModel

            model = LatencyModel.fit(other, store.measurements(other), {}, arithmetic=arithmetic)
            if model.points:
                return Donor(model.costs, model.call_ms)
    return donor(ships)


def can_tell(store: Store, device: str, arithmetic: Arithmetic = IN_F32) -> bool:
    """Whether anything is known that the device's latencies could be told from."""
    from rlprune.latency.known import is_known

    if device == MACS_DEVICE or is_known(device, arithmetic.precision):
        return True
    if store.sample_count(device) == 0:
        return False
    return arithmetic == IN_F32 or not latency_model(store, device, arithmetic).empty


def _options(space: Space) -> tuple[str, str]:
    """What tells one space from others: its graph's fingerprint, and a digest of its options."""
    return space.graph.fingerprint, digest(
        space.settings.tobytes(), space.option_count.tobytes(), ",".join(space.schemes)
    )


def tables_for(
    space: Space, store: Store, device: str, arithmetic: Arithmetic = IN_F32
) -> LatencyTables:
    """The device's latency, in an arithmetic, of every plan over a space's options.

    Raises:
        NotFoundError: nothing is known of the device, or of its runtime; where the store has never
            heard of it, it is told of which.
    """
    device = canonical_key(device)
    from rlprune.latency.macs import macs_tables

    options = _options(space)
    if device == MACS_DEVICE:
        return _compiled_of(store).tables.get((*options, device, 0), lambda: macs_tables(space))
    check_batch(device, space.graph.input_shapes)
    if not can_tell(store, device, arithmetic):
        raise nothing_measured(store, device, arithmetic)
    return _compiled_of(store).tables.get(
        (*options, device, *_state(store, device), arithmetic),
        lambda: latency_model(store, device, arithmetic).compile(space),
    )


def task_for(
    space: Space,
    profiles: GroupProfiles,
    store: Store,
    device: str,
    arithmetic: Arithmetic = IN_F32,
) -> PruningTask:
    """The planning task of one network on one device, its tables as fresh as the store; in int8
    without the options that do not pay (`dominated`).

    Whether enough was measured for it is `latency_model(store, device, ...).missing(...)`.

    Raises:
        NotFoundError: the device is unknown (names the known ones) or has measured nothing.
    """
    device = canonical_key(device)
    task = PruningTask(space, tables_for(space, store, device, arithmetic), profiles)
    if arithmetic.precision != INT8 or device == MACS_DEVICE:
        return task
    paying = _compiled_of(store).paying.get(
        (*_options(space), device, store.generation(device), arithmetic),
        lambda: paying_options(task),
    )
    return restricted(task, paying, lambda own: tables_for(own, store, device, arithmetic))


def nothing_measured(store: Store, device: str, arithmetic: Arithmetic = IN_F32) -> NotFoundError:
    """The refusal of a device without measurements; one never heard of is told the known ones."""
    store.device(device)
    of = "" if arithmetic == IN_F32 else f" in {arithmetic.precision}"
    return NotFoundError(
        f"device {device!r} has reported no measurements{of} yet; start `rlprune work` on it",
        field="device",
    )
