"""A worker is fed every status there is, by a server on a real port, and measures on."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from device_rig import FAULTY_KEY, conv, faulty, until, working
from faulty_child import SLOW

from rlprune.device.worker import MAX_REFUSALS, work
from rlprune.errors import AuthenticationError, RlpruneError
from rlprune.latency.types import Subject
from rlprune.service.device_messages import subject_to
from rlprune.v1 import devices_pb2, devices_pb2_grpc, types_pb2

S = grpc.StatusCode
ENDING = (S.UNAUTHENTICATED, S.PERMISSION_DENIED)
ODD = [code for code in S if code is not S.OK and code not in ENDING]
SUBJECTS = [conv(3), conv(5)]


class Answers(devices_pb2_grpc.DeviceServiceServicer):
    """Serves one job until it is done; before that, per rpc, the statuses it was told to give."""

    def __init__(self, subjects: Sequence[Subject] = SUBJECTS, **codes: list[Any]) -> None:
        self.subjects = list(subjects)
        self.codes = {name: deque(own) for name, own in codes.items()}
        self.calls: Counter[str] = Counter()
        self.reports: list[devices_pb2.ReportRequest] = []
        self.state = devices_pb2.JOB_STATE_LEASED
        self.lease_sec = 30.0
        self.done = threading.Event()

    def _odd(self, name: str, context: grpc.ServicerContext) -> None:
        self.calls[name] += 1
        code = self.codes[name].popleft() if self.codes.get(name) else None
        if isinstance(code, tuple):
            code, reason = code
            detail = types_pb2.ErrorDetail(reason=reason)
            context.set_trailing_metadata((("rlprune-error-bin", detail.SerializeToString()),))
        if code is not None:
            context.abort(code, "as the test wants it")

    def RegisterDevice(self, request: Any, context: Any) -> devices_pb2.Device:
        self._odd("register", context)
        return devices_pb2.Device(key=request.key)

    def Lease(self, request: Any, context: Any) -> devices_pb2.LeaseResponse:
        self._odd("lease", context)
        if self.done.is_set():
            return devices_pb2.LeaseResponse()
        job = devices_pb2.Job(job_id="j", device=request.device, state=self.state)
        job.subjects.extend(map(subject_to, self.subjects))
        left = [subject_to(subject) for subject in self.subjects]
        return devices_pb2.LeaseResponse(job=job, lease_id="L", left=left, lease_sec=self.lease_sec)

    def Renew(self, request: Any, context: Any) -> devices_pb2.RenewResponse:
        self._odd("renew", context)
        return devices_pb2.RenewResponse(lease_sec=self.lease_sec)

    def Report(self, request: Any, context: Any) -> devices_pb2.ReportResponse:
        self.reports.append(request)
        self._odd("report", context)
        if request.done:
            self.done.set()
        return devices_pb2.ReportResponse(
            job_id="j", state=self.state, accepted_count=len(request.measurements)
        )


@contextmanager
def serving(answers: Answers) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    devices_pb2_grpc.add_DeviceServiceServicer_to_server(answers, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@pytest.mark.parametrize("rpc", ["register", "lease", "report"])
def test_a_worker_outlives_every_status_and_reports_what_it_measured_once(rpc: str) -> None:
    answers = Answers(**{rpc: list(ODD)})
    with serving(answers) as address, working(address, runtime="faulty", config=faulty()) as ran:
        assert answers.done.wait(60) and not ran.done()
        until(lambda: answers.calls["lease"] > (len(ODD) if rpc == "lease" else 1))
    assert answers.calls[rpc] > len(ODD)
    # What was not acknowledged was sent again as it was: measured once, counted once.
    sent = {report.request_id: report.SerializeToString() for report in answers.reports}
    assert len(sent) == 1
    assert {report.SerializeToString() for report in answers.reports} == set(sent.values())
    assert len(answers.reports[0].measurements) == len(SUBJECTS)
    assert all(m.status in ("ok", "unstable") for m in answers.reports[0].measurements)


def test_no_status_of_a_renewal_but_the_end_of_the_lease_stops_the_measuring() -> None:
    answers = Answers([conv(SLOW)], renew=list(ODD))  # takes a second
    answers.lease_sec = 0.15  # renewed every 50 ms
    with serving(answers) as address, working(address, runtime="faulty", config=faulty()):
        assert answers.done.wait(60)
    assert len(answers.reports) == 1 and answers.calls["renew"] > 0


@pytest.mark.parametrize("refused", [(S.INVALID_ARGUMENT, "INPUT"), (S.ALREADY_EXISTS, "CONFLICT")])
def test_a_report_that_is_refused_for_good_gives_the_job_back_and_the_worker_goes_on(
    refused: tuple[grpc.StatusCode, str],
) -> None:
    answers = Answers(report=[refused])
    with serving(answers) as address, working(address, runtime="faulty", config=faulty()) as ran:
        assert answers.done.wait(60) and not ran.done()
    first, release, second = answers.reports
    assert not first.release and release.release and not release.measurements
    assert second.done and second.request_id != first.request_id


def test_a_job_whose_reports_are_always_refused_ends_as_failed() -> None:
    refused = [(S.INVALID_ARGUMENT, "INPUT"), None] * MAX_REFUSALS
    answers = Answers(report=refused)
    with serving(answers) as address, working(address, runtime="faulty", config=faulty()):
        assert answers.done.wait(60)
    last = answers.reports[-1]
    assert last.done and [m.status for m in last.measurements] == ["failed"] * len(SUBJECTS)


def test_a_lease_that_ended_is_not_reported_on_again() -> None:
    answers = Answers(report=[(S.FAILED_PRECONDITION, "LEASE")])
    with serving(answers) as address, working(address, runtime="faulty", config=faulty()) as ran:
        assert answers.done.wait(60) and not ran.done()
    assert len({report.request_id for report in answers.reports}) == 2


def test_a_state_of_a_later_server_is_no_reason_to_end() -> None:
    answers = Answers()
    answers.state = 99  # type: ignore[assignment]
    with serving(answers) as address, working(address, runtime="faulty", config=faulty()) as ran:
        assert answers.done.wait(60) and not ran.done()
    assert len(answers.reports) == 1


@pytest.mark.parametrize("code", ENDING)
@pytest.mark.parametrize("rpc", ["register", "lease", "report"])
def test_a_refused_token_ends_the_worker(rpc: str, code: grpc.StatusCode) -> None:
    answers = Answers(**{rpc: [code] * 3})
    with serving(answers) as address, pytest.raises(AuthenticationError):
        work(address, runtime="faulty", config=faulty())


def test_once_ends_where_the_answers_are_of_no_use() -> None:
    answers = Answers(lease=[S.INTERNAL] * 3)
    with serving(answers) as address, pytest.raises(RlpruneError, match="INTERNAL"):
        work(address, runtime="faulty", once=True, config=faulty())
    assert FAULTY_KEY and not answers.reports
