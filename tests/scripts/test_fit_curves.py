"""The curves that ship are those that the documented command makes of the recordings that ship."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.fit_curves import example, excesses, fit_curves
from datasets.running import recorded_folder
from rlprune.sensitivity.predicted import DEFAULT_CURVES, CurveModel
from rlprune.solver.task import PruningTask
from rlprune.store import open_store
from rlprune.training.run import load_models, training_tasks


def recorded_tasks(folder: Path) -> dict[str, PruningTask]:
    models = load_models([recorded_folder()])
    store = open_store(f"sqlite:///{folder}/latency.db")
    named, _ = training_tasks(models, store=store, devices=[])
    return {one.model: one.task for one in named}


def test_shipped_curves_are_fitted_to_the_shipped_recordings(tmp_path: Path) -> None:
    tasks = recorded_tasks(tmp_path)
    made = fit_curves([example(name, tasks[name]) for name in sorted(tasks)])
    shipped = CurveModel.load(DEFAULT_CURVES)
    for task in tasks.values():
        share = task.profiles.energy_loss
        assert np.allclose(
            made.curve(task.graph, task.space.settings, share),
            shipped.curve(task.graph, task.space.settings, share),
            rtol=1e-4,
        )
    # On what they were fitted to they lose less than weight energy alone, of all methods the next.
    small = sorted(tasks, key=lambda name: tasks[name].site_count)[:8]
    found = [excesses(tasks[name], shipped) for name in small]
    predicted, energy = (np.mean([own[name] for own in found]) for name in ("predicted", "energy"))
    assert predicted < energy
