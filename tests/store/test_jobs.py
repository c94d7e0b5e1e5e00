"""Jobs and leases: one holder, one count, nothing lost, and a clock of the test's own."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import pytest

from rlprune.errors import ConflictError, InputError, LeaseError, NotFoundError
from rlprune.latency.types import FAULT, Measurement, ModelSubject, OperatorSpec
from rlprune.store import Store, open_store
from rlprune.store.encoding import subject_key
from rlprune.store.jobs import PARK_SEC, SUBJECTS_PER_JOB, JobQueue
from rlprune.store.leases import Leases
from rlprune.store.records import Job, JobState, Lease

DEVICE = "board-1"
FINGERPRINT = "ab" * 32


def spec(width: int) -> OperatorSpec:
    return OperatorSpec("conv", "", 3, width, (8, 8), (8, 8), (3, 3))


def measured(subject: OperatorSpec | ModelSubject, ms: float = 1.0) -> Measurement:
    return Measurement(DEVICE, subject, ((ms,),), ((ms,),))


def failed(subject: OperatorSpec | ModelSubject, reason: str = "no kernel") -> Measurement:
    return Measurement(DEVICE, subject, (), (), status="failed", reason=reason)


class Rig:
    """A store with one device and a clock that only the test moves."""

    def __init__(self, url: str) -> None:
        self.now = 1000.0
        self.store = open_store(url, clock=lambda: self.now)
        self.store.register_device(DEVICE)
        self.jobs = JobQueue(self.store)
        self.leases = Leases(self.store, lease_sec=60.0)

    def lease(self, worker_id: str = "worker-1") -> Lease:
        lease = self.leases.lease(worker_id, DEVICE)
        assert lease is not None
        return lease

    def state(self, job: Job) -> JobState:
        return self.jobs.job(job.job_id).state


@pytest.fixture
def rig(url: str) -> Iterator[Rig]:
    rig = Rig(url)
    yield rig
    rig.store.close()


def test_a_job_is_leased_reported_and_done(rig: Rig) -> None:
    subjects = [spec(8), ModelSubject(FINGERPRINT, (4, 8))]
    (job,) = rig.jobs.enqueue(DEVICE, subjects, fingerprint=FINGERPRINT)
    lease = rig.lease()
    assert lease.job.subjects == lease.left == tuple(subjects)
    assert (lease.job.fingerprint, lease.end_sec) == (FINGERPRINT, 1060.0)
    part = rig.leases.report(lease.lease_id, "r1", [measured(subjects[0])])
    assert (part.state, part.accepted_count, part.generation) == ("leased", 1, 1)
    whole = rig.leases.report(lease.lease_id, "r2", [measured(subjects[1])], done=True)
    assert (whole.state, whole.accepted_count, whole.generation) == ("done", 1, 2)
    assert rig.state(job) is JobState.DONE and rig.jobs.reported_count(job.job_id) == 2
    assert (
        rig.jobs.reported(job.job_id)
        == rig.store.measurements(DEVICE)
        == [measured(s) for s in subjects]
    )
    assert rig.leases.lease("worker-1", DEVICE) is None


def test_a_late_report_is_refused_and_changes_nothing(rig: Rig) -> None:
    rig.jobs.enqueue(DEVICE, [spec(8)])
    lease = rig.lease()
    rig.now += 60.0
    with pytest.raises(LeaseError):
        rig.leases.report(lease.lease_id, "r1", [measured(spec(8))], done=True)
    with pytest.raises(LeaseError):
        rig.leases.renew(lease.lease_id)
    assert rig.store.generation(DEVICE) == 0
    second = rig.lease("worker-2")
    assert second.lease_id != lease.lease_id and second.job.job_id == lease.job.job_id
    with pytest.raises(LeaseError):  # the first worker wakes up while the second holds the lease
        rig.leases.report(lease.lease_id, "r2", [measured(spec(8))], done=True)
    rig.leases.report(second.lease_id, "r3", [measured(spec(8))], done=True)
    assert rig.store.generation(DEVICE) == 1


def test_the_same_report_counts_once_and_gets_the_first_answer_even_after_the_end(rig: Rig) -> None:
    rig.jobs.enqueue(DEVICE, [spec(8), spec(16)])
    lease = rig.lease()
    part = rig.leases.report(lease.lease_id, "r1", [measured(spec(8))])
    rig.leases.report(lease.lease_id, "r2", [measured(spec(16))], done=True)
    rig.now += 1000.0
    assert rig.leases.report(lease.lease_id, "r1", [measured(spec(8))]) == part
    assert rig.store.generation(DEVICE) == 2
    with pytest.raises(ConflictError):
        rig.leases.report(lease.lease_id, "r1", [measured(spec(8), 2.0)])
    with pytest.raises(ConflictError):
        rig.leases.report(lease.lease_id, "r1", [measured(spec(8))], done=True)


def test_a_report_of_something_else_is_refused_and_changes_nothing(rig: Rig) -> None:
    rig.jobs.enqueue(DEVICE, [spec(8), spec(16)])
    lease = rig.lease()
    good = measured(spec(8))
    for bad, field in (
        (measured(spec(24)), "measurements[1].subject"),
        (dataclasses.replace(good, device="board-2"), "measurements[1].device"),
    ):
        with pytest.raises(InputError) as refusal:
            rig.leases.report(lease.lease_id, "r1", [good, bad])
        assert refusal.value.field == field
    with pytest.raises(InputError, match="1 of 2"):
        rig.leases.report(lease.lease_id, "r1", [good], done=True)
    with pytest.raises(InputError):
        rig.leases.report(lease.lease_id, "bad id!", [good])
    with pytest.raises(LeaseError):
        rig.leases.report("0" * 32, "r1", [good])
    assert rig.store.generation(DEVICE) == 0 and rig.store.measurements(DEVICE) == []
    # None of the refusals has used up the request_id.
    assert rig.leases.report(lease.lease_id, "r1", [good]).accepted_count == 1


def test_a_subject_counts_once_in_its_job_under_whatever_request_id(rig: Rig) -> None:
    rig.jobs.enqueue(DEVICE, [spec(8), spec(16)])
    lease = rig.lease()
    rig.leases.report(lease.lease_id, "r1", [measured(spec(8))])
    for again in ([measured(spec(8), 2.0)], [measured(spec(16)), measured(spec(16), 2.0)]):
        with pytest.raises(InputError, match="counts once"):
            rig.leases.report(lease.lease_id, "r2", again)
    assert rig.store.measurements(DEVICE) == [measured(spec(8))]
    rig.leases.report(lease.lease_id, "r2", [measured(spec(16))], done=True)
    assert rig.store.generation(DEVICE) == 2


def test_three_subjects_that_take_the_measuring_process_down_park_the_job(rig: Rig) -> None:
    specs = [spec(8), spec(16), spec(24), spec(32)]
    (job,) = rig.jobs.enqueue(DEVICE, specs)
    lease = rig.lease()
    faults = [
        dataclasses.replace(failed(one, f"SIGSEGV at {index}"), conditions=((FAULT, "child"),))
        for index, one in enumerate(specs)
    ]
    rig.leases.report(lease.lease_id, "r1", [failed(specs[3], "no kernel"), *faults[:2]])
    assert rig.state(job) is JobState.LEASED, "two faults, and one that is none"
    answer = rig.leases.report(lease.lease_id, "r2", [])
    assert answer.state is JobState.LEASED
    # The third one is the job's last: it is finished and needs no parking.
    answer = rig.leases.report(lease.lease_id, "r3", faults[2:3], done=True)
    assert answer.state is JobState.FAILED

    (job,) = rig.jobs.enqueue(DEVICE, [*specs, spec(40)])
    lease = rig.lease()
    answer = rig.leases.report(lease.lease_id, "r4", faults[:3])
    assert answer.state is rig.state(job) is JobState.PARKED
    assert "3 subjects" in rig.jobs.job(job.job_id).reason
    assert "SIGSEGV at 2" in rig.jobs.job(job.job_id).reason
    with pytest.raises(LeaseError):
        rig.leases.renew(lease.lease_id)
    assert rig.leases.lease("worker-1", DEVICE) is None
    assert {subject_key(spec(32)), subject_key(spec(40))} <= set(rig.jobs.unmeasurable(DEVICE))


def test_renewing_keeps_the_lease(rig: Rig) -> None:
    rig.jobs.enqueue(DEVICE, [spec(8)])
    lease = rig.lease()
    for _ in range(5):
        rig.now += 50.0
        assert rig.leases.renew(lease.lease_id) == rig.now + 60.0
    assert rig.leases.lease("worker-2", DEVICE) is None


def test_a_worker_that_asks_again_gets_the_lease_it_holds(rig: Rig) -> None:
    rig.jobs.enqueue(DEVICE, [spec(width) for width in range(8, 8 * 40, 8)])
    first = rig.lease()
    assert rig.lease() == first
    assert rig.lease("worker-2").job.job_id != first.job.job_id


def test_the_next_worker_gets_only_what_is_left(rig: Rig) -> None:
    rig.jobs.enqueue(DEVICE, [spec(8), spec(16)])
    rig.leases.report(rig.lease().lease_id, "r1", [measured(spec(8))])
    rig.now += 61.0
    second = rig.lease("worker-2")
    assert second.left == (spec(16),)
    answer = rig.leases.report(second.lease_id, "r2", [measured(spec(16))], done=True)
    assert answer.state == "done"


def test_three_failures_park_a_job_and_its_subjects_rest_for_an_hour(rig: Rig) -> None:
    (job,) = rig.jobs.enqueue(DEVICE, [spec(8), spec(16)])
    for attempt in range(3):
        assert rig.state(job) is JobState.PENDING
        lease = rig.lease(f"worker-{attempt}")
        if attempt == 0:
            rig.leases.report(lease.lease_id, "r1", [measured(spec(8))])
        rig.now += 61.0
    assert rig.leases.lease("worker-9", DEVICE) is None
    assert rig.state(job) is JobState.PARKED
    assert "never finished" in rig.jobs.job(job.job_id).reason
    assert list(rig.jobs.unmeasurable(DEVICE)) == [subject_key(spec(16))]
    rig.now += PARK_SEC
    assert rig.jobs.unmeasurable(DEVICE) == {}


def test_releasing_counts_as_no_failure(rig: Rig) -> None:
    (job,) = rig.jobs.enqueue(DEVICE, [spec(8)])
    for attempt in range(4):
        rig.leases.report(rig.lease().lease_id, f"r{attempt}", [], release=True)
    found = rig.jobs.job(job.job_id)
    assert (found.state, found.failure_count) == (JobState.PENDING, 0)


def test_what_the_device_cannot_run_is_data_and_given_up_after_three_times(rig: Rig) -> None:
    for attempt in range(3):
        assert rig.jobs.unmeasurable(DEVICE) == {}
        (job,) = rig.jobs.enqueue(DEVICE, [spec(8)])
        answer = rig.leases.report(
            rig.lease().lease_id,
            f"r{attempt}",
            [failed(spec(8), str(attempt))],
            done=True,
        )
        assert answer.state == rig.state(job) == JobState.FAILED
    assert rig.jobs.unmeasurable(DEVICE) == {subject_key(spec(8)): "2"}


def test_a_subject_stands_in_one_open_job_only(rig: Rig) -> None:
    first = rig.jobs.enqueue(DEVICE, [spec(8), spec(16)])
    second = rig.jobs.enqueue(DEVICE, [spec(16), spec(24)])
    assert second[0] == first[0] and second[1].subjects == (spec(24),)
    assert rig.jobs.open_jobs(DEVICE) == second
    many = [spec(8 * n) for n in range(10, 10 + 3 * SUBJECTS_PER_JOB)]
    assert [len(job.subjects) for job in rig.jobs.enqueue(DEVICE, many)] == [SUBJECTS_PER_JOB] * 3


def test_a_named_request_is_one_job_however_often_it_is_sent(rig: Rig) -> None:
    job = rig.jobs.request(DEVICE, [spec(8)], request_id="q1")
    assert rig.jobs.request(DEVICE, [spec(8)], request_id="q1") == job
    assert rig.jobs.request(DEVICE, [spec(8)], request_id="q2") != job
    with pytest.raises(ConflictError):
        rig.jobs.request(DEVICE, [spec(16)], request_id="q1")
    for subjects in ([], [spec(8), spec(8)]):
        with pytest.raises(InputError):
            rig.jobs.request(DEVICE, subjects, request_id="q3")
    with pytest.raises(InputError, match="variant"):
        rig.jobs.request(DEVICE, [ModelSubject(FINGERPRINT, (1,))], request_id="q3")


def test_an_unknown_device_is_named_and_so_are_the_known(rig: Rig) -> None:
    for call in (
        lambda: rig.jobs.enqueue("board-9", [spec(8)]),
        lambda: rig.jobs.request("board-9", [spec(8)], request_id="q1"),
        lambda: rig.leases.lease("worker-1", "board-9"),
    ):
        with pytest.raises(NotFoundError, match=f"board-9.*{DEVICE}, macs"):
            call()
    with pytest.raises(NotFoundError):
        rig.jobs.job("nope")


def test_many_workers_at_once_never_share_a_job(url: str) -> None:
    store = open_store(url)
    store.register_device(DEVICE)
    jobs, leases = JobQueue(store), Leases(store)
    for width in range(8, 8 * 31, 8):
        jobs.request(DEVICE, [spec(width)], request_id=f"q{width}")
    taken: list[str] = []

    def work(name: str, store: Store) -> None:
        while (lease := leases.lease(name, DEVICE)) is not None:
            taken.append(lease.job.job_id)
            (subject,) = lease.left
            leases.report(lease.lease_id, lease.job.job_id, [measured(subject)], done=True)

    threads = [threading.Thread(target=work, args=(f"w{n}", store)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 30
    assert store.generation(DEVICE) == 30
    store.close()


def test_reports_of_one_id_racing_count_once(rig: Rig) -> None:
    rig.jobs.enqueue(DEVICE, [spec(8), spec(16)])
    lease = rig.lease()
    answers: list[object] = []

    def send() -> None:
        answers.append(rig.leases.report(lease.lease_id, "r1", [measured(spec(8))]))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8 and len(set(answers)) == 1
    assert rig.store.generation(DEVICE) == 1
