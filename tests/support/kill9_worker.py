"""A worker that notes, on disk, every report that the server acknowledged to it.

`kill9_worker.py HOST:PORT LOG`; one line of JSON per report: its request id and its samples, which
are as good as unique.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from device_rig import faulty

from rlprune.device.worker import work
from rlprune.service.device_client import DeviceClient
from rlprune.service.device_messages import measurement_from
from rlprune.store.records import ReportAnswer

PLAIN_REPORT = DeviceClient.report


def main(server: str, log: Path) -> None:
    number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def report(
        self: DeviceClient, lease_id: str, request_id: str, measurements: Any, **how: bool
    ) -> ReportAnswer:
        answer = PLAIN_REPORT(self, lease_id, request_id, measurements, **how)
        samples = [measurement_from(message).wall_ms for message in measurements]
        noted = {"request_id": request_id, "samples": samples}
        os.write(number, json.dumps(noted).encode() + b"\n")
        os.fsync(number)
        return answer

    DeviceClient.report = report  # type: ignore[method-assign]
    work(server, runtime="faulty", config=replace(faulty(), part_size=2))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
