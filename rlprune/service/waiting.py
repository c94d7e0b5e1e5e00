"""Waiting for a device: jobs are looked at until none is open.

A server that goes away meanwhile, to be restarted or for the while that a network is down, does not
end the wait: the jobs are in its store, and it is asked again until the wait's own end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rlprune.errors import UnavailableError
from rlprune.latency.types import Measurement
from rlprune.planning.profiles import OnProgress
from rlprune.service.channel import CALL_TIMEOUT_SEC, Channel
from rlprune.service.device_messages import device_from, job_from
from rlprune.store.records import DeviceRecord, Job
from rlprune.v1 import devices_pb2

LONG_TIMEOUT_SEC = 120.0
"""Of a call that plans or fits: a large model is traced once, a device's tables fitted once a
report."""
HEALTH_PAGE_SIZE = 8
"""Devices asked for at once with their health: a fit each, where it has measured since."""
SILENT_SEC = 120.0
"""A device not seen for so long may have no worker; the server's clock and ours may differ."""
FIRST_POLL_SEC = 0.1
MAX_POLL_SEC = 1.0
LEAST_TIMEOUT_SEC = 5.0
"""Of a look near the end of a wait: a busy server may need it."""


def wait_for_jobs(
    channel: Channel,
    job_ids: Sequence[str],
    device: str,
    deadline: float,
    on_progress: OnProgress | None,
) -> None:
    """Returns when none of the jobs is open any more.

    Args:
        deadline: by `time.monotonic`.

    Raises:
        UnavailableError: some are still open at the deadline, or the server is away.
    """
    jobs = {job_id: find_job(channel, job_id, until=deadline)[:2] for job_id in job_ids}
    what = f"measuring on {device}"
    if on_progress is not None and any(job.state.open for job, _ in jobs.values()):
        seen = next((one.last_seen_sec for one in list_devices(channel) if one.key == device), 0.0)
        age_sec = time.time() - seen
        if age_sec > SILENT_SEC:
            what += f" (last seen {age_sec:.0f} s ago; is `rlprune work` running there?)"
    poll_sec = FIRST_POLL_SEC
    while True:
        if on_progress is not None:
            done = sum(reported for _, reported in jobs.values())
            total = sum(len(job.subjects) for job, _ in jobs.values())
            on_progress(what, done, total)
        still = [job_id for job_id, (job, _) in jobs.items() if job.state.open]
        if not still:
            return
        if time.monotonic() + poll_sec > deadline:
            raise UnavailableError(
                f"device {device!r} has {len(still)} of {len(jobs)} jobs still to do; is "
                "`rlprune work` running there? Ask again later: what is measured is kept",
                field="device",
            )
        time.sleep(poll_sec)
        poll_sec = min(1.5 * poll_sec, MAX_POLL_SEC)
        # The oldest is done first, so one look a round is enough until it is.
        for job_id in still:
            jobs[job_id] = find_job(channel, job_id, until=deadline)[:2]
            if jobs[job_id][0].state.open:
                break


def list_devices(channel: Channel, *, health: bool = False) -> list[DeviceRecord]:
    """All devices that the server knows, by key; see `Client.devices`."""
    found: list[DeviceRecord] = []
    request = devices_pb2.ListDevicesRequest(with_health=health)
    if health:
        request.page_size = HEALTH_PAGE_SIZE
    while True:
        page = channel.call(
            "DeviceService/ListDevices",
            request,
            devices_pb2.ListDevicesResponse,
            timeout_sec=LONG_TIMEOUT_SEC,
        )
        found += [device_from(device) for device in page.devices]
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


def find_job(
    channel: Channel, job_id: str, *, until: float, with_measurements: bool = False
) -> tuple[Job, int, list[Measurement]]:
    """A job, how many of its subjects were reported, and what was; asked for until then."""
    request = devices_pb2.GetJobRequest(job_id=job_id, with_measurements=with_measurements)
    left_sec = max(until - time.monotonic(), LEAST_TIMEOUT_SEC)
    found = channel.call(
        "DeviceService/GetJob",
        request,
        devices_pb2.Job,
        timeout_sec=min(left_sec, CALL_TIMEOUT_SEC),
        until=until,
    )
    job, measurements = job_from(found)
    return job, found.reported_count, measurements
