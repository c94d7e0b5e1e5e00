"""Loss curves of a traced model: of its weights, or measured on this machine and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlprune.files import digest, read_npz, write_npz
from rlprune.progress import OnProgress as OnProgress
from rlprune.schemes import Space
from rlprune.sensitivity.types import GroupProfiles

if TYPE_CHECKING:
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.sensitivity.calibration import CalibrationSet
    from rlprune.sensitivity.sources import CalibrationSource

PROFILE_FORMAT = "rlprune.profile/4"
"""Part of every kept profile's name: a new way of measuring finds none of the old."""


def read_calibration(
    trace: OnnxTrace, calibration: CalibrationSource | None
) -> CalibrationSet | None:
    """The calibration set that is meant, where there is one.

    Raises:
        CalibrationError: it is refused.
    """
    if calibration is None:
        return None
    from rlprune.sensitivity.sources import open_calibration

    return open_calibration(calibration, trace)


def profile_model(
    trace: OnnxTrace,
    space: Space,
    images: CalibrationSet | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> GroupProfiles:
    """Loss curves of a traced model: of its weights, and measured where there are images.

    Measuring costs one evaluation per group and level, so its result is kept beside the local store
    under a digest of everything it depends on, and found there the next time.

    Raises:
        CalibrationError: the model cannot be evaluated on the images.
        MissingExtraError: evaluating needs a runtime, and none is installed.
    """
    from rlprune.sensitivity.energy import energy_profiles

    profiles = energy_profiles(trace, space)
    if images is None:
        return profiles
    from rlprune.runtime import get_runtime
    from rlprune.sensitivity.evaluate import Evaluator
    from rlprune.sensitivity.measured import measure_profiles

    key = digest(
        PROFILE_FORMAT.encode(),
        trace.graph.fingerprint.encode(),
        trace.model.SerializeToString(deterministic=True),
        images.digest.encode(),
        space.settings.tobytes(),
        *(name for name in space.schemes if name != "channel"),
    )
    path = _profile_path(key)
    known = _read_profile(path, profiles)
    if known is not None:
        return known
    # In f32 whatever the plan's precision: of ResNet-20's 68 options alone, losses in f32 and after
    # quantisation rank as one (Spearman 0.999), while quantising takes a third of a second each.
    evaluator = Evaluator(trace, images, runtime=get_runtime(), schemes=space.schemes)
    measured = measure_profiles(
        evaluator, space, on_progress=named(on_progress, "evaluating groups")
    )
    _write_profile(path, measured)
    return measured


def named(on_progress: OnProgress | None, what: str) -> Callable[[int, int], None] | None:
    """Progress of one thing that is being done."""
    if on_progress is None:
        return None
    return lambda done, total: on_progress(what, done, total)


def _profile_path(key: str) -> Path:
    from platformdirs import user_data_path

    return user_data_path("rlprune") / "profiles" / f"{key}.npz"


def _read_profile(path: Path, energy: GroupProfiles) -> GroupProfiles | None:
    """`energy` with the losses kept at `path`; None where there are none or they are damaged."""
    try:
        data = read_npz(path)
        measured = data["measured_loss"].astype(np.float64)
        base_loss, image_count = float(data["base_loss"]), int(data["image_count"])
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError):
        return None
    if measured.shape[1:] != energy.levels.shape:
        return None
    return replace(energy, measured_loss=measured, base_loss=base_loss, image_count=image_count)


def _write_profile(path: Path, profiles: GroupProfiles) -> None:
    assert profiles.measured_loss is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_npz(
        path,
        {
            "measured_loss": profiles.measured_loss,
            "base_loss": np.array(profiles.base_loss),
            "image_count": np.array(profiles.image_count),
        },
    )
