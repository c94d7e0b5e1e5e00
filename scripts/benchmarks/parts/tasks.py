"""What benchmarks of plans share: networks, image splits, and profiles kept between runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets import catalogue
from datasets.pack import CifarPack
from rlprune.files import digest, read_npz, write_npz
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.planning.profiles import PROFILE_FORMAT
from rlprune.schemes import Space
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.energy import energy_profiles
from rlprune.sensitivity.evaluate import Evaluator
from rlprune.sensitivity.fit import fit_inputs
from rlprune.sensitivity.measured import measure_profiles
from rlprune.sensitivity.types import GroupProfiles
from rlprune.surgery.importance import unit_scores


@dataclass(frozen=True)
class Split:
    """Test images to calibrate and choose with, and to report on."""

    calibrate: NDArray[np.integer]
    report: NDArray[np.integer]


def split_images(pack: CifarPack, *, final: bool) -> Split:
    """The halves of `test_reward`, or, for final figures, all of it and `test_report`."""
    reward = pack.splits["test_reward"]
    if final:
        return Split(reward, pack.splits["test_report"])
    halves = np.array_split(np.random.default_rng(7).permutation(reward), 2)
    return Split(*halves)


def network_images(
    net: catalogue.Loaded, pack: CifarPack, index: NDArray[np.integer], trace: OnnxTrace
) -> CalibrationSet:
    """Test images of these indices, as the network takes them."""
    pixels, labels = pack.pixels("test")
    x = net.preprocess(pixels[index])
    return fit_inputs({"x": x}, labels[index].astype(np.int64), trace)


def context_of(evaluator: Evaluator, space: Space) -> str:
    """Digest of all that evaluations depend on: model, images, and how they are evaluated.

    The last is told by the answer for one plan, every site at its middle option, so that what was
    kept before a change of the evaluator is not found after it.
    """
    middle = space.settings_at(space.option_count // 2)
    images = evaluator.calibration
    return digest(
        evaluator.trace.model.SerializeToString(deterministic=True),
        images.x.tobytes(),
        images.labels.tobytes(),
        evaluator.evaluate(middle).image_losses.tobytes(),
    )


def kept_profiles(evaluator: Evaluator, space: Space, work: Path) -> GroupProfiles:
    """The measured profile, kept in `work` between runs: it is what takes longest."""
    images = evaluator.calibration
    key = digest(
        PROFILE_FORMAT,
        context_of(evaluator, space),
        space.settings.tobytes(),
        *(score.tobytes() for score in unit_scores(evaluator.trace)),  # which units an option keeps
    )
    path = work / f"profile-{key}.npz"
    if path.exists():
        data = read_npz(path)
        return replace(
            energy_profiles(evaluator.trace, space),
            measured_loss=data["measured_loss"],
            base_loss=evaluator.base.loss,
            image_count=len(images),
        )
    profiles = measure_profiles(evaluator, space)
    assert profiles.measured_loss is not None
    write_npz(path, {"measured_loss": profiles.measured_loss})
    return profiles
