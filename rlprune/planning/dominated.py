"""Options that lose accuracy and save no time, left out of a planning task.

In int8 a narrower layer may be slower than a wider one: 16 channels narrowed to 12 took 1.5 times
as long in ONNX Runtime. Solvers look at cost and loss of every option, but a policy that prunes all
layers alike would walk into such a cliff.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from rlprune.graph.types import FloatArray, IntArray
from rlprune.latency.tables import LatencyTables
from rlprune.schemes import Space
from rlprune.sensitivity.types import GroupProfiles
from rlprune.solver.task import PruningTask

Options = tuple[tuple[int, ...], ...]
"""Of every site the options that are left, ascending."""


def paying_options(task: PruningTask) -> Options:
    """Of every ordered site the options that no wider one is as fast as, whether all other sites
    are whole or as narrow as can be; the last one always is. Sites without an order keep all."""
    ms = [
        _alone(task, others) for others in (task.space.unpruned, np.zeros_like(task.option_count))
    ]
    return tuple(
        tuple(
            option
            for option in range(count)
            if not ordered or any(_is_less(own[site], option, count) for own in ms)
        )
        for site, (count, ordered) in enumerate(
            zip(task.option_count.tolist(), task.space.ordered.tolist(), strict=True)
        )
    )


def _is_less(ms: FloatArray, option: int, count: int) -> bool:
    return option == count - 1 or bool(ms[option] < ms[option + 1 : count].min())


def _alone(task: PruningTask, others: IntArray) -> FloatArray:
    """Latency [S, L] with one site at each of its options, the others as given [S]."""
    sites, longest = task.site_count, task.space.settings.shape[1]
    choices = np.tile(others, (sites * longest, 1))
    site, option = np.divmod(np.arange(sites * longest), longest)
    choices[np.arange(len(choices)), site] = np.minimum(option, task.option_count[site] - 1)
    return task.tables.latency_ms(choices).reshape(sites, longest)


def restricted(
    task: PruningTask, options: Options, tables_of: Callable[[Space], LatencyTables]
) -> PruningTask:
    """The task with these options only; itself where they are all."""
    if [len(own) for own in options] == task.option_count.tolist():
        return task
    sites = tuple(
        replace(
            site,
            values=tuple(site.values[option] for option in own),
            shares=tuple(site.shares[option] for option in own),
        )
        for site, own in zip(task.space.sites, options, strict=True)
    )
    space = Space(task.graph, sites)
    return PruningTask(space, tables_of(space), _profiles(task.profiles, options), task.objective)


def _profiles(profiles: GroupProfiles, options: Options) -> GroupProfiles:
    longest = max(map(len, options))

    def taken(curve: FloatArray | None) -> FloatArray | None:
        return None if curve is None else _taken(curve, options, longest)

    return replace(
        profiles,
        levels=_taken(profiles.levels, options, longest),
        level_count=np.array([len(own) for own in options], dtype=np.int64),
        energy_loss=taken(profiles.energy_loss),
        measured_loss=taken(profiles.measured_loss),
        initial_loss=taken(profiles.initial_loss),
        predicted_loss=taken(profiles.predicted_loss),
    )


def _taken(values: Any, options: Options, longest: int) -> Any:
    """Columns of values [..., S, L] by site, padded by the last one of each."""
    padded = np.array([[*own, *[own[-1]] * (longest - len(own))] for own in options])
    return values[..., np.arange(len(options))[:, None], padded]
