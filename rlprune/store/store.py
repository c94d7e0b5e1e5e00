"""What is known of graphs, devices, measurements and plans, and survives the process.

Every method is one transaction: it happens whole or not at all, and what a writing method returned
from is on disk (`database`). All methods may be called from any thread, and from several processes
at once.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from rlprune.device_keys import canonical_key
from rlprune.errors import InputError, NotFoundError
from rlprune.files import digest
from rlprune.graph.types import PruningGraph
from rlprune.latency.types import F32, Measurement
from rlprune.plans import PruningPlan
from rlprune.store import encoding, schema
from rlprune.store.database import Database
from rlprune.store.lease_watch import LeaseWatch
from rlprune.store.plan_rows import plan_of_request, plan_page, plan_row, read_plan
from rlprune.store.records import UNSAID, Asked, DeviceRecord, PlanRecord

Clock = Callable[[], float]
"""Seconds since the epoch."""

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000


class Store:
    """Graphs, devices, measurements and plans over one `Database`; jobs stand in `store.jobs`."""

    def __init__(
        self, database: Database, *, clock: Clock = time.time, monotonic: Clock | None = None
    ) -> None:
        """See `open_store`."""
        self.database = database
        self.clock = clock
        self.lease_watch = LeaseWatch(
            monotonic or (time.monotonic if clock is time.time else clock)
        )

    def close(self) -> None:
        """Closes all connections; the store is not used afterwards."""
        self.database.close()

    # Graphs

    def put_graph(self, graph: PruningGraph, skeleton: bytes) -> None:
        """Keeps a graph and its skeleton; the first one of a fingerprint stays."""
        with self.database.write() as connection:
            insert_graph(self.database, connection, (graph, skeleton), self.clock())

    def graph(self, fingerprint: str) -> PruningGraph:
        """The graph of a fingerprint.

        Raises:
            NotFoundError: none was put.
        """
        row = self._graph_row(fingerprint)
        with encoding.stored(f"graph {fingerprint[:12]}"):
            return PruningGraph.from_json(row.graph)

    def skeleton(self, fingerprint: str) -> bytes:
        """The skeleton of a fingerprint.

        Raises:
            NotFoundError: none was put.
        """
        return bytes(self._graph_row(fingerprint).skeleton)

    def graphs(self) -> dict[str, PruningGraph]:
        """All graphs by fingerprint."""
        query = sa.select(schema.graphs.c.fingerprint, schema.graphs.c.graph)
        with self.database.read() as connection:
            rows = connection.execute(query).all()
        with encoding.stored("a graph"):
            return {fingerprint: PruningGraph.from_json(text) for fingerprint, text in rows}

    def _graph_row(self, fingerprint: str) -> sa.Row[str, bytes]:
        encoding.check_id(fingerprint, field="fingerprint")
        rows = schema.graphs.c
        query = sa.select(rows.graph, rows.skeleton).where(rows.fingerprint == fingerprint)
        with self.database.read() as connection:
            found = connection.execute(query).first()
        if found is None:
            raise NotFoundError(
                f"no model with fingerprint {fingerprint[:12]!r} is known; send its skeleton",
                field="fingerprint",
            )
        return found

    # Devices

    def register_device(
        self, device: str, description: Mapping[str, str] | None = None
    ) -> DeviceRecord:
        """Makes a device known, or notes that it was seen; a new description replaces the old one.

        Raises:
            InputError: the device key is malformed.
        """
        device = canonical_key(device)
        encoding.check_device(device)
        text = json.dumps(dict(description or {}), sort_keys=True)
        with self.database.write() as connection:
            touch_device(self.database, connection, device, self.clock())
            if description is not None:
                connection.execute(
                    sa.update(schema.devices)
                    .where(schema.devices.c.device == device)
                    .values(description=text)
                )
        return self.device(device)

    def last_seen_sec(self, device: str) -> float:
        """When a device was last heard of; the cheap way to see that it is known.

        Raises:
            NotFoundError: unknown; names the known ones.
        """
        device = canonical_key(device)
        encoding.check_id(device, field="device")
        query = sa.select(schema.devices.c.last_seen_sec).where(schema.devices.c.device == device)
        with self.database.read() as connection:
            found = connection.scalar(query)
            if found is not None:
                return float(found)
            rows = sa.select(schema.devices.c.device).order_by(schema.devices.c.device).limit(20)
            names = ", ".join([*connection.scalars(rows), "macs"])
        raise NotFoundError(f"device {device!r} is unknown; known are: {names}", field="device")

    def device(self, device: str) -> DeviceRecord:
        """One device; raises as `last_seen_sec`."""
        device = canonical_key(device)
        self.last_seen_sec(device)
        return self._devices(schema.devices.c.device == device)[0]

    def devices(self) -> list[DeviceRecord]:
        """All devices by key."""
        return self._devices(sa.true())

    def _devices(self, which: sa.ColumnElement[bool]) -> list[DeviceRecord]:
        own = schema.measurements.c.device == schema.devices.c.device
        count = sa.select(sa.func.count()).where(own).scalar_subquery()
        last = sa.select(sa.func.max(schema.measurements.c.accepted_sec)).where(own)
        query = sa.select(
            schema.devices,
            count.label("measurement_count"),
            last.scalar_subquery().label("last_measured_sec"),
        ).where(which)
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(schema.devices.c.device)).mappings().all()
        with encoding.stored("a device's description"):
            return [
                DeviceRecord(
                    key=row["device"],
                    description=json.loads(row["description"]),
                    first_seen_sec=row["first_seen_sec"],
                    last_seen_sec=row["last_seen_sec"],
                    measurement_count=row["measurement_count"],
                    generation=row["generation"],
                    last_measured_sec=row["last_measured_sec"],
                )
                for row in rows
            ]

    def generation(self, device: str) -> int:
        """Grows with every accepted measurement of the device; 0 for one never heard of."""
        device = canonical_key(device)
        query = sa.select(schema.devices.c.generation).where(schema.devices.c.device == device)
        with self.database.read() as connection:
            return int(connection.scalar(query) or 0)

    def generations(self) -> dict[str, int]:
        """The same of every device; it counts measurements, so it also says which has most."""
        query = sa.select(schema.devices.c.device, schema.devices.c.generation)
        with self.database.read() as connection:
            return {device: int(generation) for device, generation in connection.execute(query)}

    # Measurements

    def add_measurements(self, measurements: Sequence[Measurement]) -> None:
        """Accepts measurements taken in this process; makes their devices known.

        Raises:
            InputError: a sample is NaN, negative or missing; nothing was added.
        """
        for index, measurement in enumerate(measurements):
            encoding.check_measurement(measurement, field=f"measurements[{index}]")
        rows = measurement_rows(measurements)
        if rows:
            with self.database.write() as connection:
                insert_measurements(self.database, connection, rows, self.clock())

    def measurements(self, device: str) -> list[Measurement]:
        """All measurements of a device, in the order in which they were accepted."""
        device = canonical_key(device)
        rows = schema.measurements.c
        query = sa.select(rows.subject, rows.body).where(rows.device == device).order_by(rows.seq)
        with self.database.read() as connection:
            found = connection.execute(query).all()
        with encoding.stored(f"a measurement of {device}"):
            return [encoding.measurement_from_json(subject, body) for subject, body in found]

    def sample_count(self, device: str) -> int:
        """Measurements of a device that have samples, that is, did not fail."""
        device = canonical_key(device)
        rows = schema.measurements.c
        query = sa.select(sa.func.count()).where(rows.device == device, rows.status != "failed")
        with self.database.read() as connection:
            return int(connection.scalar(query) or 0)

    def has_precision(self, device: str, precision: str) -> bool:
        """Whether a device has measurements in a precision that did not fail."""
        device = canonical_key(device)
        rows = schema.measurements.c
        # Subjects in f32 do not say so (`encoding.subject_key`).
        says = rows.subject.contains('"precision":', autoescape=True)
        if precision != F32:
            says = rows.subject.contains(f'"precision":"{precision}"', autoescape=True)
        which = sa.not_(says) if precision == F32 else says
        query = sa.select(rows.seq).where(rows.device == device, rows.status != "failed", which)
        with self.database.read() as connection:
            return connection.execute(query.limit(1)).first() is not None

    # Plans

    def put_plan(
        self,
        plan: PruningPlan,
        *,
        request_id: str = "",
        content: bytes | None = None,
        graph: tuple[PruningGraph, bytes] | None = None,
        asked: Asked = UNSAID,
    ) -> str:
        """Keeps a plan; returns its id.

        With a `request_id` seen before, nothing is written and the first plan's id is returned.

        Args:
            content: what was asked, to tell a repeated request from another one under the same id;
                the plan itself where None.
            graph: put in the same transaction, with its skeleton.
            asked: by whom and how, in the user's words.

        Raises:
            ConflictError: the same request_id came with other content.
        """
        row = plan_row(plan, self.clock(), request_id=request_id, content=content, asked=asked)
        with self.database.write() as connection:
            if self.database.insert_new(connection, schema.plans, row):
                if graph is not None:
                    insert_graph(self.database, connection, graph, self.clock())
                return str(row["plan_id"])
            first = plan_of_request(connection, request_id, row["content_digest"])
        assert first is not None, "only a row with this request_id can stand in the way"
        return first

    def plan_of_request(self, request_id: str, content: bytes) -> str | None:
        """The id of the plan that an earlier call with this request_id got; None if there is none.

        Raises:
            ConflictError: the same request_id came with other content.
        """
        with self.database.read() as connection:
            return plan_of_request(connection, request_id, digest(content))

    def plan(self, plan_id: str) -> PruningPlan:
        """One plan.

        Raises:
            NotFoundError: there is none with this id.
        """
        return self.plan_record(plan_id).plan

    def plan_record(self, plan_id: str) -> PlanRecord:
        """One plan, with when it was made; raises as `plan`."""
        with self.database.read() as connection:
            return read_plan(connection, plan_id)

    def plans(
        self, *, page_size: int = 0, page_token: str = "", device: str = ""
    ) -> tuple[list[PlanRecord], str]:
        """One page of plans, newest first, and the token of the next page (empty after the last).

        Args:
            page_size: at most so many; 0 for 50, never more than 1000, and fewer where they are
                long.
            page_token: as a call with the same `device` returned it; empty for the first page.
            device: only plans for this device; empty for all.

        Raises:
            InputError: page_size negative, or a token that was not given out for this `device`.
        """
        device = canonical_key(device)
        limit = page_limit(page_size)
        encoding.check_id(device, field="device")
        with self.database.read() as connection:
            return plan_page(connection, limit, page_token, device)


def page_limit(page_size: int) -> int:
    """Rows on a page that was asked for with `page_size`; InputError if that is negative."""
    if page_size < 0:
        raise InputError(f"page_size {page_size} is negative", field="page_size")
    return min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def insert_graph(
    database: Database,
    connection: sa.Connection,
    graph: tuple[PruningGraph, bytes],
    now_sec: float,
) -> None:
    """Keeps a graph and its skeleton within a transaction, if the fingerprint is new."""
    database.insert_new(
        connection,
        schema.graphs,
        {
            "fingerprint": graph[0].fingerprint,
            "graph": graph[0].to_json(),
            "skeleton": graph[1],
            "created_sec": now_sec,
        },
    )


def touch_device(
    database: Database, connection: sa.Connection, device: str, now_sec: float
) -> None:
    """Notes within a transaction that a device was seen; makes it known if it was not."""
    database.insert_new(
        connection,
        schema.devices,
        {
            "device": device,
            "description": "{}",
            "first_seen_sec": now_sec,
            "last_seen_sec": now_sec,
            "generation": 0,
        },
    )
    connection.execute(
        sa.update(schema.devices)
        .where(schema.devices.c.device == device)
        .values(last_seen_sec=now_sec)
    )


def measurement_rows(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Checked measurements as they are kept."""
    return [
        {
            "device": canonical_key(measurement.device),
            "subject": encoding.subject_key(measurement.subject),
            "status": measurement.status,
            "body": encoding.measurement_to_json(measurement),
        }
        for measurement in measurements
    ]


def insert_measurements(
    database: Database,
    connection: sa.Connection,
    rows: Sequence[dict[str, Any]],
    now_sec: float,
    *,
    job_id: str | None = None,
) -> None:
    """Inserts `measurement_rows` within a transaction and moves their devices' generations on."""
    for device, count in sorted(Counter(row["device"] for row in rows).items()):
        touch_device(database, connection, device, now_sec)
        connection.execute(
            sa.update(schema.devices)
            .where(schema.devices.c.device == device)
            .values(generation=schema.devices.c.generation + count)
        )
    if rows:
        more = {"job_id": job_id, "accepted_sec": now_sec}
        connection.execute(sa.insert(schema.measurements), [row | more for row in rows])
