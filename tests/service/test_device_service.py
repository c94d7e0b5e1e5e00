"""Devices, jobs and reports over a real channel."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace

import numpy as np
import pytest
from onnx_nets import conv_net
from service_rig import BOARD, Rig, macs_cost, measured, messages

from rlprune.errors import (
    ConflictError,
    InputError,
    LeaseError,
    MeasurementError,
    NotFoundError,
    PlanError,
    RlpruneError,
)
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.latency.types import Measurement, ModelSubject, OperatorSpec, Subject
from rlprune.service.device_messages import (
    measurement_from,
    measurement_to,
    subject_from,
    subject_to,
)
from rlprune.store.records import DeviceHealth, JobState
from rlprune.v1 import devices_pb2, types_pb2

NET = conv_net()
TRACE = trace_onnx(NET)
FULL = ModelSubject(TRACE.graph.fingerprint, tuple(int(w) for w in TRACE.graph.widths))
SPEC = OperatorSpec("conv", "", 3, 16, (8, 8), (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)


def ask(rig: Rig, *subjects: Subject, **changes: object) -> devices_pb2.Job:
    fields: dict[str, object] = {
        "device": BOARD,
        "subjects": [subject_to(subject) for subject in subjects],
        "skeleton": strip(TRACE.model),
        "request_id": uuid.uuid4().hex,
    }
    request = devices_pb2.RequestMeasurementRequest(**{**fields, **changes})  # type: ignore[arg-type]
    return rig.channel.call("DeviceService/RequestMeasurement", request, devices_pb2.Job)


@pytest.fixture
def board(rig: Rig) -> Rig:
    """A rig with one registered device."""
    rig.device.register_device(BOARD, {"runtime": "made up", "thread_count": "1"})
    return rig


def test_devices_are_listed_with_what_is_known_of_them(board: Rig) -> None:
    for key in ("board-2", "board-3"):
        board.device.register_device(key, {})
    ask(board, FULL)
    board.do_jobs(macs_cost(TRACE.graph))
    found = {record.key: record for record in board.client.devices()}
    assert list(found) == [BOARD, "board-2", "board-3"]
    assert found[BOARD].description == {"runtime": "made up", "thread_count": "1"}
    assert (found[BOARD].measurement_count, found[BOARD].generation) == (1, 1)
    page = board.channel.call(
        "DeviceService/ListDevices",
        devices_pb2.ListDevicesRequest(page_size=2),
        devices_pb2.ListDevicesResponse,
    )
    assert [device.key for device in page.devices] == [BOARD, "board-2"]
    assert page.next_page_token
    with pytest.raises(InputError) as refusal:
        board.channel.call(
            "DeviceService/ListDevices",
            devices_pb2.ListDevicesRequest(page_size=-1),
            devices_pb2.ListDevicesResponse,
        )
    assert refusal.value.field == "page_size"


def test_the_health_of_devices_is_told_where_it_is_asked_for(board: Rig) -> None:
    board.device.register_device("board-2", {})
    widths = TRACE.graph.widths
    for keeps in ((widths * share).round().astype(int) for share in np.linspace(0.3, 1.0, 12)):
        plan = ModelSubject(TRACE.graph.fingerprint, tuple(int(keep) for keep in keeps))
        ask(board, plan)
    board.do_jobs(macs_cost(TRACE.graph))
    ask(board, SPEC)
    for _ in range(3):
        assert board.device.lease("worker", BOARD) is not None
        board.now_offset += 31.0  # ... and never heard of again
    assert board.device.lease("worker", BOARD) is None
    assert board.client.devices()[0].health is None
    board.now_offset += 3600.0
    known, idle = board.client.devices(health=True)
    assert known.health is not None and idle.health is not None
    assert 0.0 < known.health.error_ratio < 0.3
    assert known.health.parked_job_count == 1 and idle.health.parked_job_count == 0
    assert known.last_measured_sec is not None and idle.last_measured_sec is None
    assert known.last_seen_sec - known.last_measured_sec > 60.0
    assert np.isnan(idle.health.error_ratio) and np.isnan(idle.health.drift_ratio)


def test_what_predictions_cannot_use_of_a_device_is_named(board: Rig) -> None:
    ask(board, SPEC)
    job = board.device.lease("worker", BOARD)
    assert job is not None
    apart = ((1.0,) * 3, (40.0,) * 3, (1.0,) * 3, (40.0,) * 3)
    report = [Measurement(BOARD, SPEC, apart, apart)]
    board.device.report(job.lease_id, uuid.uuid4().hex, messages(report), done=True)
    (known,) = board.client.devices(health=True)
    assert known.health is not None
    (dropped,) = known.health.dropped
    assert dropped.startswith(SPEC.kind) and "apart" in dropped


def test_a_device_that_slows_down_is_stale_until_it_is_measured_again(board: Rig) -> None:
    cost = macs_cost(TRACE.graph)

    def report(slowness: float, count: int) -> DeviceHealth:
        board.store.add_measurements(
            [with_control(SPEC, slowness * cost(SPEC), slowness) for _ in range(count)]
        )
        (known,) = board.client.devices(health=True)
        assert known.health is not None
        return known.health

    steady = report(1.0, 12)
    assert not steady.stale and steady.drift_ratio == 1.0
    slower = report(2.0, 12)
    assert slower.stale and slower.drift_ratio == pytest.approx(2.0, rel=0.1)
    board.store.add_measurements([with_control(FULL, 2.0 * cost(FULL), 2.0) for _ in range(8)])
    (again,) = board.client.devices(health=True)
    assert again.health is not None and not again.health.stale


def with_control(subject: Subject, ms: float, control_ms: float) -> Measurement:
    control = ((control_ms,) * 3,) * 4
    found = measured(BOARD, subject, ms)
    return replace(
        found,
        control_cpu_ms=control,
        control_wall_ms=control,
        conditions=(("control", "canary"),),
    )


def test_what_was_measured_arrives_exactly(board: Rig) -> None:
    job = ask(board, SPEC, FULL)
    leased = board.device.lease("worker", BOARD)
    assert leased is not None and leased.job.job_id == job.job_id
    assert leased.left == (SPEC, FULL)
    assert board.device.skeleton(leased.job.fingerprint) == strip(TRACE.model)
    sent = [
        Measurement(
            BOARD,
            subject,
            cpu_ms=((0.1, 1 / 3), (0.2, 0.25)),
            wall_ms=((0.2, 0.7), (0.3, 0.5)),
            control_cpu_ms=((0.1,), (0.3,)),
            control_wall_ms=((0.2,), (0.4,)),
            warmup_count=3,
            status="unstable",
            reason="drift",
            conditions=(("load_1m", "3.5"), ("control", "given")),
        )
        for subject in (SPEC, FULL)
    ]
    answer = board.device.report(leased.lease_id, "r1", messages(sent), done=True)
    assert (answer.state, answer.accepted_count, answer.generation) == (JobState.DONE, 2, 2)
    assert board.store.measurements(BOARD) == sent


def test_late_foreign_and_repeated_reports(board: Rig) -> None:
    ask(board, FULL)
    first = board.device.lease("worker-1", BOARD)
    assert first is not None and 0 < first.lease_sec <= 30.0
    board.now_offset += 31.0
    before = board.dump()
    report = [measured(BOARD, FULL, 1.0)]
    for lease_id in (first.lease_id, "0" * 32, ""):
        with pytest.raises(LeaseError):
            board.device.report(lease_id, "r1", messages(report), done=True)
        with pytest.raises(LeaseError):
            board.device.renew(lease_id)
    assert board.dump() == before
    second = board.device.lease("worker-2", BOARD)
    assert second is not None and second.job.job_id == first.job.job_id
    assert board.device.renew(second.lease_id) == pytest.approx(30.0, abs=5.0)
    answer = board.device.report(second.lease_id, "r1", messages(report), done=True)
    before = board.dump()
    assert board.device.report(second.lease_id, "r1", messages(report), done=True) == answer
    with pytest.raises(ConflictError):
        board.device.report(
            second.lease_id, "r1", messages([measured(BOARD, FULL, 2.0)]), done=True
        )
    assert board.dump() == before


BAD_SUBJECT = types_pb2.Subject()
HUGE = types_pb2.Subject(
    operator=types_pb2.OperatorSpec(kind="conv", in_width=1 << 20, out_width=1 << 20)
)
OTHER = types_pb2.Subject(model=types_pb2.ModelSubject(fingerprint="ab" * 32, keeps=[1, 1]))
WIDE = types_pb2.Subject(model=types_pb2.ModelSubject(fingerprint=FULL.fingerprint, keeps=[16, 99]))
SHORT = types_pb2.Subject(model=types_pb2.ModelSubject(fingerprint=FULL.fingerprint, keeps=[16]))
GOOD = subject_to(FULL)
OTHER_OPERATOR = subject_to(OperatorSpec("conv", "", 1, 1, (), ()))


@pytest.mark.parametrize(
    ("changes", "kind", "field"),
    [
        ({"device": "board-9"}, NotFoundError, "device"),
        ({"device": "macs"}, NotFoundError, "device"),
        ({"request_id": ""}, InputError, "request_id"),
        ({"subjects": []}, InputError, "subjects"),
        ({"subjects": [GOOD, GOOD]}, InputError, "subjects"),
        ({"subjects": [GOOD, BAD_SUBJECT]}, InputError, "subjects[1]"),
        ({"subjects": [HUGE]}, InputError, "subjects[0].operator"),
        ({"subjects": [OTHER]}, InputError, "subjects[0].model.fingerprint"),
        ({"subjects": [WIDE]}, PlanError, "subjects[0].model.keeps"),
        ({"subjects": [SHORT]}, PlanError, "subjects[0].model.keeps"),
        ({"skeleton": b"x"}, InputError, "skeleton"),
        ({"skeleton": b""}, NotFoundError, "fingerprint"),
    ],
)
def test_a_refused_request_names_the_field_and_changes_nothing(
    board: Rig, changes: dict[str, object], kind: type[RlpruneError], field: str
) -> None:
    before = board.dump()
    with pytest.raises(kind) as refusal:
        ask(board, FULL, **changes)
    assert refusal.value.field == field
    assert board.dump() == before


def sessions(*values: float) -> list[types_pb2.Session]:
    return [types_pb2.Session(samples_ms=values)]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cpu": sessions(float("nan"))}, "measurements[1].cpu_ms"),
        ({"cpu": sessions(-1.0)}, "measurements[1].cpu_ms"),
        ({"cpu": sessions(0.0)}, "measurements[1].cpu_ms"),
        ({"cpu": sessions()}, "measurements[1].cpu_ms"),
        ({"cpu": []}, "measurements[1].cpu_ms"),
        ({"wall": sessions(float("inf"))}, "measurements[1].wall_ms"),
        ({"control_cpu": sessions(1.0) * 2}, "measurements[1].control_cpu_ms"),
        ({"status": "great"}, "measurements[1].status"),
        ({"thread_count": 0}, "measurements[1].thread_count"),
        ({"warmup_count": -1}, "measurements[1].warmup_count"),
        ({"device": "board-2"}, "measurements[1].device"),
        (
            {"subject": subject_to(OperatorSpec("conv", "", 1, 1, (), ()))},
            "measurements[1].subject",
        ),
        ({"subject": BAD_SUBJECT}, "measurements[1].subject"),
    ],
)
def test_one_bad_measurement_refuses_the_report_and_changes_nothing(
    board: Rig, changes: dict[str, object], field: str
) -> None:
    ask(board, FULL, SPEC)
    leased = board.device.lease("worker", BOARD)
    assert leased is not None
    good = measurement_to(measured(BOARD, FULL, 1.0))
    bad = types_pb2.Measurement(
        **{  # type: ignore[arg-type]
            "device": BOARD,
            "subject": subject_to(SPEC),
            "cpu": sessions(1.0),
            "wall": sessions(1.0),
            "thread_count": 1,
            "status": "ok",
            **changes,
        }
    )
    before = board.dump()
    request = devices_pb2.ReportRequest(
        lease_id=leased.lease_id, request_id="r1", measurements=[good, bad], done=True
    )
    with pytest.raises(InputError) as refusal:
        board.channel.call("DeviceService/Report", request, devices_pb2.ReportResponse)
    assert refusal.value.field == field
    assert board.dump() == before


@pytest.mark.parametrize(
    ("key", "description", "field"),
    [
        ("UPPER", {}, "device"),
        ("macs", {}, "device"),
        ("../x", {}, "device"),
        ("x" * 121, {}, "device"),
        ("board-2", {"a": "x" * 257}, "description"),
        ("board-2", {str(n): "" for n in range(33)}, "description"),
    ],
)
def test_a_device_that_misnames_itself_is_refused(
    rig: Rig, key: str, description: dict[str, str], field: str
) -> None:
    before = rig.dump()
    with pytest.raises(InputError) as refusal:
        rig.device.register_device(key, description)
    assert refusal.value.field == field
    assert rig.dump() == before


def test_what_is_unknown_is_not_found(board: Rig) -> None:
    with pytest.raises(NotFoundError, match=BOARD):
        board.device.lease("worker", "board-9")
    with pytest.raises(NotFoundError):
        board.device.skeleton("ab" * 32)
    with pytest.raises(NotFoundError):
        board.channel.call(
            "DeviceService/GetJob", devices_pb2.GetJobRequest(job_id="nope"), devices_pb2.Job
        )


def test_asking_for_a_measurement_waits_for_it(board: Rig) -> None:
    keeps = np.array([[16, 32], [8, 8], [16, 32]])
    told: list[tuple[str, int, int]] = []
    with board.working(macs_cost(TRACE.graph)):
        found = board.client.measure(
            NET, keeps, BOARD, on_progress=lambda *progress: told.append(progress)
        )
    assert [m.subject.settings for m in found] == [(16, 32), (8, 8), (16, 32)]  # type: ignore[union-attr]
    assert found[0] == found[2] and found[1].latency_ms < found[0].latency_ms
    assert told[-1] == (f"measuring on {BOARD}", 2, 2)


def test_a_job_that_kills_its_workers_ends_the_waiting(board: Rig) -> None:
    def kill_three() -> None:
        count = 0
        while count < 3:
            if board.device.lease(f"worker-{count}", BOARD) is not None:
                count += 1
                board.now_offset += 31.0

    thread = threading.Thread(target=kill_three)
    thread.start()
    with pytest.raises(MeasurementError, match="never finished"):
        board.client.measure(NET, np.array([16, 32]), BOARD, timeout_sec=30.0)
    thread.join()


def test_macs_are_not_measured(board: Rig) -> None:
    with pytest.raises(InputError):
        board.client.measure(NET, np.array([16, 32]), "macs")


@pytest.mark.parametrize("subject", [SPEC, FULL])
def test_subjects_and_measurements_survive_the_wire(subject: Subject) -> None:
    assert subject_from(subject_to(subject)) == subject
    measurement = measured(BOARD, subject, 1 / 3)
    assert measurement_from(measurement_to(measurement)) == measurement
