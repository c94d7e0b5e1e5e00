"""Whether a device is still as fast as it was: the controls as canaries.

Every measurement has a control interleaved, a small canary model or the unpruned model, and the
same controls come back for months. While the device is what it was, each takes what it took; when
it throttles, or an update changed its kernels, all of them move together. Ratios to the control
survive that; milliseconds do not, so what is known of milliseconds is taken from the regime that is
on now, and a regime that has hardly been measured makes the device's model stale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from rlprune.latency.types import CANARY, PRECISIONS, Measurement, ModelSubject

WINDOW = 8
AGREEING = 6
"""Of so many measurements in a row so many must agree that the controls moved."""
LIMIT = 1.4
"""... by this factor. A neighbour on a rented machine makes 1.3 come and go."""
ENOUGH = 5
"""Whole models measured in a regime before it counts as known."""


@dataclass(frozen=True)
class Drift:
    """What became of a device's speed."""

    ratio: float
    """The controls' latency in the regime that is on now over the one before; 1.0 where there was
    only one, NaN without measurements."""
    stale: bool
    """Whether milliseconds should be measured again before they are believed."""
    control_ms: Mapping[str, float]
    """Latency of each control today: the canary's, and by fingerprint the unpruned models'."""


def device_drift(measurements: Sequence[Measurement]) -> Drift:
    """Follows one device's controls through its measurements, in the order they were taken."""
    logs: dict[str, list[float]] = {}  # of the regime that is on, per control
    recent: list[tuple[str, float, float]] = []  # (control, log, departure)
    ratio, models = float("nan"), ENOUGH
    for one in measurements:
        name, ms = _control(one)
        if not name:
            continue
        log = float(np.log(ms))
        whole = isinstance(one.subject, ModelSubject)
        ratio = 1.0 if np.isnan(ratio) else ratio
        models += whole
        if name in logs:
            recent = [*recent, (name, log, log - median(logs[name]))][-WINDOW:]
            moved = median(departure for _, _, departure in recent)
            agreeing = [
                (known, value) for known, value, by in recent if np.sign(moved) * by > np.log(LIMIT)
            ]
            if len(agreeing) >= AGREEING:
                # Controls not seen since have moved as far as the others did.
                logs = {known: [median(own) + moved] for known, own in logs.items()}
                for seen in {known for known, _ in agreeing}:
                    logs[seen] = [value for known, value in agreeing if known == seen]
                recent, ratio, models = [], float(np.exp(moved)), 0
                continue
        logs.setdefault(name, []).append(log)
    today = {name: float(np.exp(median(own))) for name, own in logs.items()}
    return Drift(ratio, models < ENOUGH, today)


def _control(one: Measurement) -> tuple[str, float]:
    """Name of the control and its ms; no name where there was none."""
    ms = one.control_ms
    if one.status == "failed" or not np.isfinite(ms) or ms <= 0:
        return "", 0.0
    if isinstance(one.subject, ModelSubject) and one.beside_itself:
        return one.subject.fingerprint, ms
    # Beside itself in another precision: nothing that comes back in this one.
    other = dict(one.conditions).get("control", CANARY) in PRECISIONS
    return ("", 0.0) if other else (CANARY, ms)
