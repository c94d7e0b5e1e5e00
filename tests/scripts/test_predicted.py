"""Where nothing was measured, losses are predicted from other networks', and planned by."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from synthetic import chain_graph, channel_space, random_task

from datasets.fit_curves import Example, fit_curves, save
from datasets.running import recorded_folder
from rlprune.graph.types import FloatArray
from rlprune.recording.model_dir import load_model_dir
from rlprune.sensitivity.energy import loss_curve, shape_profiles
from rlprune.sensitivity.predicted import CurveModel, default_curves, energy_curve

EVERY = sorted(path.parent for path in recorded_folder().glob("*/graph.json"))


@cache
def recorded(path: Path) -> Example:
    model = load_model_dir(path)
    profiles = model.profiles
    assert profiles.energy_loss is not None and profiles.profiled
    curve = loss_curve(profiles, model.space)
    return Example(path.name, model.space, profiles.energy_loss, curve)


def others(left_out: Path) -> CurveModel:
    return fit_curves([recorded(path) for path in EVERY if path != left_out])


def agreement(one: Example, predicted: FloatArray) -> float:
    """Rank correlation with what was measured, over groups and levels that prune."""
    below = np.arange(one.loss.shape[1]) < one.space.option_count[:, None] - 1
    return float(spearmanr(predicted[below], one.loss[below])[0])


def test_networks_left_out_are_predicted_better_than_by_the_energy_that_goes() -> None:
    ours, shapes, energy = [], [], []
    for path in EVERY[::5]:
        one, model = recorded(path), others(path)
        ours.append(agreement(one, model.curve(one.space.graph, one.space.settings, one.share)))
        shapes.append(agreement(one, model.curve(one.space.graph, one.space.settings, None)))
        energy.append(agreement(one, energy_curve(one.space.graph, one.share)))
    assert np.mean(ours) > 0.85 > np.mean(energy)
    assert np.mean(shapes) > np.mean(energy) + 0.1


def test_the_shipped_curves_are_of_the_recordings_that_ship() -> None:
    model = default_curves()
    assert model.trained_on == tuple(path.name for path in EVERY)
    again = fit_curves([recorded(path) for path in EVERY])
    np.testing.assert_allclose(again.weights, model.weights, rtol=1e-3, atol=1e-4)


def made(widths: list[int]) -> Example:
    """Losses that are what energy says, times a power of the group's width."""
    graph = chain_graph(widths)
    space = channel_space(graph)
    share = (1.0 - space.shares) ** 2
    loss = energy_curve(graph, share) * (graph.widths[:, None] / 64.0) ** -0.7
    return Example(str(widths), space, share, loss)


def test_a_factor_that_follows_from_the_traits_is_learned_up_to_scale() -> None:
    rng = np.random.default_rng(0)
    seen = [made([int(8 * n) for n in rng.integers(2, 17, 6)]) for _ in range(30)]
    scaled = [replace(one, loss=one.loss * (1 + scale)) for scale, one in enumerate(seen)]
    model = fit_curves(scaled)
    new = made([40, 72, 104, 64, 96])
    graph, settings = new.space.graph, new.space.settings
    below = settings < graph.widths[:, None]

    def error(curve: FloatArray) -> float:
        off = np.log(curve[below] / new.loss[below])
        return float(np.abs(off - off.mean()).mean())

    learned = error(model.curve(graph, settings, new.share))
    assert learned < 0.5 * error(energy_curve(graph, new.share))


def test_dead_units_cost_nothing() -> None:
    task = random_task(1)
    share = np.where(task.space.settings == task.graph.widths[:, None], 0.0, 0.5)
    share[0] = 0.0
    blind = replace(task.profiles, measured_loss=None, energy_loss=share)
    curve = loss_curve(blind, task.space)
    assert (curve[0] == 0.0).all() and (curve[1:, 0] > 0.0).any()


def test_a_network_like_none_on_record_still_has_finite_curves() -> None:
    graph = chain_graph([8192, 16, 16384, 4096])
    space = channel_space(graph)
    curve = loss_curve(shape_profiles(space), space)
    assert np.isfinite(curve).all() and (curve[:, 0] > 0.0).all()
    assert curve.max() < 1e3


def test_curves_outlive_a_file_and_others_are_refused(tmp_path: Path) -> None:
    model = default_curves()
    save(model, tmp_path / "curves.json")
    assert CurveModel.load(tmp_path / "curves.json") == model
    data = json.loads((tmp_path / "curves.json").read_text())
    data["traits"] = data["traits"][:-1]
    (tmp_path / "curves.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="other traits"):
        CurveModel.load(tmp_path / "curves.json")
