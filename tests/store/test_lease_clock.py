"""Leases last by clocks that only pass, whatever the time of day, a restart or a second server."""

from __future__ import annotations

import pytest

from rlprune.errors import LeaseError
from rlprune.latency.types import OperatorSpec
from rlprune.store import open_store
from rlprune.store.jobs import MAX_FAILURES, JobQueue
from rlprune.store.leases import Leases
from rlprune.store.records import Job, JobState, Lease

DEVICE = "board-1"
LEASE_SEC = 60.0
HOUR = 3600.0


def spec(width: int) -> OperatorSpec:
    return OperatorSpec("conv", "", 3, width, (8, 8), (8, 8), (3, 3))


class World:
    """The time that passes, and the time of day, which the test sets as it likes."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.set_by = 0.0

    def clock(self) -> float:
        return 1.8e9 + self.passed + self.set_by


class Server:
    """One server's view of a store; its monotonic clock starts anywhere."""

    def __init__(self, world: World, url: str, start: float = 0.0) -> None:
        self.store = open_store(url, clock=world.clock, monotonic=lambda: start + world.passed)
        self.store.register_device(DEVICE)
        self.jobs = JobQueue(self.store)
        self.leases = Leases(self.store, lease_sec=LEASE_SEC)

    def lease(self, worker_id: str) -> Lease | None:
        return self.leases.lease(worker_id, DEVICE)

    def state(self, job: Job) -> JobState:
        return self.jobs.job(job.job_id).state


def test_a_clock_that_jumps_ahead_ends_no_lease_and_parks_nothing(url: str) -> None:
    world = World()
    server = Server(world, url)
    (job,) = server.jobs.enqueue(DEVICE, [spec(8)])
    lease = server.lease("alive")
    assert lease is not None
    for _ in range(MAX_FAILURES + 1):
        world.set_by += 5 * HOUR
        assert server.lease("other") is None
        world.passed += 20.0
        server.leases.renew(lease.lease_id)
    assert (server.state(job), server.jobs.job(job.job_id).failure_count) == (JobState.LEASED, 0)
    server.store.close()


@pytest.mark.parametrize("jump", [-3 * HOUR, 0.0, 3 * HOUR])
def test_the_job_of_a_dead_worker_is_free_after_one_lease_whatever_the_clock_says(
    url: str, jump: float
) -> None:
    world = World()
    server = Server(world, url)
    (job,) = server.jobs.enqueue(DEVICE, [spec(8)])
    lease = server.lease("dead")
    assert lease is not None
    world.passed += 30.0
    end_sec = server.leases.renew(lease.lease_id)
    assert end_sec - world.clock() == LEASE_SEC
    world.set_by += jump
    world.passed += LEASE_SEC - 1.0
    assert server.lease("next") is None and server.state(job) is JobState.LEASED
    world.passed += 1.0
    with pytest.raises(LeaseError):
        server.leases.renew(lease.lease_id)
    again = server.lease("next")
    assert again is not None and again.job.job_id == job.job_id
    assert again.end_sec - world.clock() == LEASE_SEC
    server.store.close()


@pytest.mark.parametrize("jump", [-3 * HOUR, 3 * HOUR])
def test_a_restart_costs_a_living_worker_nothing_and_a_dead_ones_job_one_lease(
    url: str, jump: float
) -> None:
    world = World()
    first = Server(world, url, start=1e6)
    jobs = [first.jobs.enqueue(DEVICE, [spec(8 * n)])[0] for n in (1, 2)]
    alive, dead = first.lease("alive"), first.lease("dead")
    assert alive is not None and dead is not None
    first.store.close()
    world.passed += 10 * LEASE_SEC  # a long outage: nobody could renew
    world.set_by += jump
    second = Server(world, url, start=5.0)  # as after a reboot
    assert second.lease("next") is None, "the first look"
    second.leases.renew(alive.lease_id)
    world.passed += LEASE_SEC - 1.0
    second.leases.renew(alive.lease_id)
    assert second.lease("next") is None
    world.passed += 1.0
    freed = second.lease("next")
    assert freed is not None and freed.job.job_id == dead.job.job_id
    second.leases.renew(alive.lease_id)
    assert [second.state(job) for job in jobs] == [JobState.LEASED] * 2
    assert second.jobs.job(alive.job.job_id).failure_count == 0
    second.store.close()


def test_of_two_servers_each_renews_for_both_and_each_ends_what_it_saw_go_silent(
    url: str,
) -> None:
    world = World()
    one, two = Server(world, url, start=0.0), Server(world, url, start=-1e5)
    (job,) = one.jobs.enqueue(DEVICE, [spec(8)])
    lease = one.lease("roaming")
    assert lease is not None and two.lease("next") is None
    for turn in range(6):
        world.passed += 40.0
        (one, two)[turn % 2].leases.renew(lease.lease_id)
        assert one.lease("next") is None and two.lease("next") is None
    # Both saw the last renewal at that moment. It was the last word.
    world.passed += LEASE_SEC
    freed = one.lease("next")
    assert freed is not None and freed.job.job_id == job.job_id
    with pytest.raises(LeaseError):
        two.leases.renew(lease.lease_id)
    assert two.jobs.job(job.job_id).failure_count == 1
    one.store.close()
    two.store.close()


def test_a_server_of_shorter_leases_does_not_shorten_another_ones(url: str) -> None:
    world = World()
    long, short = Server(world, url), Server(world, url)
    short.leases = Leases(short.store, lease_sec=1.0)
    long.jobs.enqueue(DEVICE, [spec(8)])
    lease = long.lease("alive")
    assert lease is not None
    assert short.leases.renew(lease.lease_id) - world.clock() == LEASE_SEC
    world.passed += LEASE_SEC - 1.0
    assert short.lease("next") is None
    long.store.close()
    short.store.close()


def test_what_rests_for_an_hour_does_not_rest_for_a_day_when_the_clock_is_set_back(
    url: str,
) -> None:
    world = World()
    server = Server(world, url)
    server.jobs.enqueue(DEVICE, [spec(8)])
    for _ in range(MAX_FAILURES):
        assert server.lease("dies") is not None
        world.passed += LEASE_SEC
    assert server.lease("next") is None
    assert len(server.jobs.unmeasurable(DEVICE)) == 1
    world.set_by -= 24 * HOUR
    assert server.jobs.unmeasurable(DEVICE) == {}
    server.store.close()
