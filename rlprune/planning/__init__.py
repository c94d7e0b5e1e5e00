"""Planning: from a traced model, a device and a budget to a plan; where the rooms below meet.

`make_plan` is pure. `task_for` reads the store and keeps compiled tables for as long as the device
has reported nothing new. `plan_model` is the whole way on this machine, without a server: what has
not been measured yet is measured once, and found in the local store the next time.
"""

from rlprune.planning.candidates import check_count, default_count
from rlprune.planning.local import (
    check_measured,
    device_task,
    plan_model,
    split_calibration,
    which_device,
)
from rlprune.planning.make import check_budget, make_plan
from rlprune.planning.profiles import (
    OnProgress,
    profile_model,
    read_calibration,
)
from rlprune.planning.reasons import with_reasons
from rlprune.planning.tables import latency_model, task_for

__all__ = [
    "OnProgress",
    "check_budget",
    "check_count",
    "check_measured",
    "default_count",
    "device_task",
    "latency_model",
    "make_plan",
    "plan_model",
    "profile_model",
    "read_calibration",
    "split_calibration",
    "task_for",
    "which_device",
    "with_reasons",
]
