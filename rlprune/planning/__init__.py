"""Planning: from a traced model, a device and a budget to a plan; where the rooms below meet.

A `PlanRequest` is what may be asked. `make_plans` goes the whole way from it to the plans, with a
`Planner` for what differs between this machine (`LocalPlanner`) and a server. `make_plan` is one
answer, and pure. `task_for` reads the store and keeps compiled tables for as long as the device has
reported nothing new.

Names are imported when they are first used, so that a client pays for what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlprune.planning.local import LocalPlanner, check_measured, device_task, which_device
    from rlprune.planning.make import make_plan
    from rlprune.planning.planner import Planner, Question
    from rlprune.planning.profiles import profile_model, read_calibration
    from rlprune.planning.request import PlanOptions, PlanRequest
    from rlprune.planning.rounds import make_plans
    from rlprune.planning.tables import latency_model, task_for
    from rlprune.progress import OnProgress

__all__ = [
    "LocalPlanner",
    "OnProgress",
    "PlanOptions",
    "PlanRequest",
    "Planner",
    "Question",
    "check_measured",
    "device_task",
    "latency_model",
    "make_plan",
    "make_plans",
    "profile_model",
    "read_calibration",
    "task_for",
    "which_device",
]

_HOMES = {
    "local": ("LocalPlanner", "check_measured", "device_task", "which_device"),
    "make": ("make_plan",),
    "planner": ("Planner", "Question"),
    "profiles": ("OnProgress", "profile_model", "read_calibration"),
    "request": ("PlanOptions", "PlanRequest"),
    "rounds": ("make_plans",),
    "tables": ("latency_model", "task_for"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
