"""`train`: from recorded models and the store's latency tables to a policy artifact.

Everything that latency enters by is `training_tasks`, which asks `rlprune.planning.task_for`, the
same function plans are made from: what devices report changes both.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlprune.errors import InputError, NotFoundError
from rlprune.latency.types import MACS_DEVICE
from rlprune.mdp.episode import ActionMode
from rlprune.mdp.objective import LEAST_RECORDS, AdditiveObjective
from rlprune.mdp.observe import OBSERVATION_VERSION
from rlprune.planning import latency_model, task_for
from rlprune.policy.artifact import PolicyArtifact, Score
from rlprune.policy.learned import LearnedPolicy
from rlprune.recording.model_dir import RecordedModel, load_model_dir, objective_of
from rlprune.solver.task import PruningTask
from rlprune.training.select import NamedTask, outcomes, relative_gain, score
from rlprune.training.synthetic_devices import synthetic_tables

if TYPE_CHECKING:
    from rlprune.store import Store
    from rlprune.training.population import Member
    from rlprune.training.ppo import AgentConfig

OnProgress = Callable[[str, int, int], None]
"""(what is being done, how much is done, of how much)."""

ACTIONS: tuple[ActionMode, ...] = ("offset", "correction")


@dataclass(frozen=True)
class TrainSummary:
    """What a training run came to."""

    directory: Path
    """Where the artifact is."""
    policy: str
    """Name with version, as plans will carry it."""
    action: str
    """Of the winner."""
    train_models: tuple[str, ...]
    validation_models: tuple[str, ...]
    devices: tuple[str, ...]
    skipped: tuple[str, ...]
    """`model on device` pairs left out because the device has not measured what they need."""
    validation: Score
    """The winner's; optimistic, because these models chose it."""
    relative_gain: float
    """Share of the knapsack's loss that the winner saves on the validation models."""
    agents: tuple[dict[str, object], ...]
    """Per agent: action, seed, best round and gain, history, whether it lived to the end."""


def model_dirs(path: str | Path) -> list[Path]:
    """The model directories in a folder, by name; the folder itself if it is one.

    Raises:
        InputError: there is none.
    """
    folder = Path(path)
    if (folder / "graph.json").is_file():
        return [folder]
    found = sorted(p.parent for p in folder.glob("*/graph.json"))
    if not found:
        raise InputError(f"no recorded models in {folder}; record some with `rlprune record`")
    return found


def train(
    task_dirs: Sequence[str | Path],
    *,
    out: str | Path,
    store: Store | None = None,
    devices: Sequence[str] = (),
    validation: Sequence[str] = (),
    actions: Sequence[ActionMode] = ACTIONS,
    synthetic: int = 3,
    agents: int = 2,
    steps: int = 500_000,
    rounds: int = 8,
    ray_address: str | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> TrainSummary:
    """Trains a population of agents on Ray and writes the best one's artifact to `out`.

    An interrupted run leaves checkpoints in `out/checkpoints`; the same call goes on from them.

    Args:
        task_dirs: recorded models (`rlprune.recording.model_dir`), or folders of them.
        devices: keys whose tables are read from the store, beside `macs`, which always is.
        validation: names of the models that choose the winner and are not trained on; about a
            quarter of the models, drawn by the seed, if none is named.
        actions: action modes tried, dealt to the agents in turn.
        synthetic: devices that do not exist, trained on beside the real ones.
        agents: size of the population, at least 1 and each in a process of its own.
        steps: environment steps of each agent.

    Raises:
        InputError: fewer than two models, one without evaluations, or an unknown validation model.
        NotFoundError: a device is not in the store, or has not measured what any model needs.
        PolicyError: `out/checkpoints` belongs to another run.
        UnavailableError: no cluster at `ray_address`, or every agent's process died.
        MissingExtraError: the extra `train` is not installed.
    """
    if agents < 1 or steps < 1 or rounds < 1:
        raise InputError(f"agents {agents}, steps {steps} and rounds {rounds} must be at least 1")
    models = load_models(task_dirs)
    chosen = _split(sorted(models), validation, seed)
    tasks, skipped = training_tasks(models, store=store, devices=devices, synthetic=synthetic)
    seen = [named for named in tasks if named.model not in chosen]
    unseen = [named for named in tasks if named.model in chosen]
    if not seen or not unseen:
        raise InputError("the devices have not measured enough models to train and validate on")
    from rlprune.cluster import ray_session
    from rlprune.training.population import network_of, run_population

    directory = Path(out)
    configs = population_configs(agents, actions, round_steps=steps // rounds, seed=seed)
    identity = {
        "models": {name: model.graph.fingerprint for name, model in models.items()},
        "validation": sorted(chosen),
        "devices": sorted({named.task.tables.device for named in tasks}),
        "observation": OBSERVATION_VERSION,
        "settings": [agents, list(actions), steps, rounds, seed],
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    crew = "1 agent" if agents == 1 else f"{agents} agents"

    def on_round(done: int, total: int, gain: float) -> None:
        if on_progress is not None:
            on_progress(f"training {crew}, best {gain:+.1%} of the knapsack", done, total)

    if on_progress is not None:
        on_progress(f"training {crew}", 0, rounds)
    with ray_session(ray_address):
        members = run_population(
            [named.task for named in seen],
            unseen,
            configs,
            steps=steps,
            rounds=rounds,
            directory=directory / "checkpoints",
            run_id=digest,
            seed=seed,
            on_round=on_round,
        )
    winner = max((m for m in members if m.best_round), key=lambda m: m.best_gain)
    artifact = PolicyArtifact(
        network=network_of(winner), action=winner.config.action, seed=winner.config.seed
    )
    results = outcomes(LearnedPolicy(artifact), unseen)
    artifact = replace(
        artifact,
        validation=score(results, seed=seed),
        provenance={
            "trained_on": sorted({named.model for named in seen}),
            "devices": identity["devices"],
            "steps": winner.history[winner.best_round - 1]["steps"],
            "agents": agents,
            "learning_rate": winner.config.learning_rate,
            "ent_coef": winner.config.ent_coef,
        },
    )
    artifact.save(directory)
    shutil.rmtree(directory / "checkpoints")
    assert artifact.validation is not None
    return TrainSummary(
        directory=directory,
        policy=LearnedPolicy.load(directory).name,
        action=artifact.action,
        train_models=tuple(sorted({named.model for named in seen})),
        validation_models=tuple(sorted({named.model for named in unseen})),
        devices=tuple(sorted({named.task.tables.device for named in tasks})),
        skipped=skipped,
        validation=artifact.validation,
        relative_gain=relative_gain(results),
        agents=tuple(_described(member) for member in members),
    )


def load_models(task_dirs: Sequence[str | Path]) -> dict[str, RecordedModel]:
    """Recorded models by directory name.

    Raises:
        InputError: two of one name, or one without evaluations.
    """
    models: dict[str, RecordedModel] = {}
    for path in (found for given in task_dirs for found in model_dirs(given)):
        if path.name in models:
            raise InputError(f"two recorded models are called {path.name!r}; rename one")
        model = load_model_dir(path)
        if model.evaluations is None:
            raise InputError(f"{path} has no evaluations; record them to train on it")
        models[path.name] = model
    return models


def training_tasks(
    models: dict[str, RecordedModel],
    *,
    store: Store | None,
    devices: Sequence[str],
    synthetic: int = 0,
) -> tuple[list[NamedTask], tuple[str, ...]]:
    """Every model on every device, tables as the store has them now; and the pairs left out.

    With `synthetic` further devices that do not exist (`rlprune.training.synthetic_devices`).

    Raises:
        InputError: a model has too few evaluations for an objective.
        NotFoundError: a device is not in the store, or has not measured what any model needs.
    """
    from rlprune.store import open_store

    store = open_store() if store is None else store
    tasks: list[NamedTask] = []
    skipped: list[str] = []
    objectives = {name: objective_of(model) for name, model in models.items()}
    for name, objective in objectives.items():
        if isinstance(objective, AdditiveObjective):  # the knapsack's own belief: nothing to learn
            count = len(evaluations.keeps) if (evaluations := models[name].evaluations) else 0
            raise InputError(
                f"model {name!r} has {count} evaluations, too few to learn from; record at "
                f"least {LEAST_RECORDS} (rlprune record --evaluations), some hundreds are better"
            )
    for device in dict.fromkeys((MACS_DEVICE, *devices)):
        count = len(tasks)
        for name, model in models.items():
            profiles = model.profiles
            if device != MACS_DEVICE and not latency_model(store, device).knows(model.graph):
                skipped.append(f"{name} on {device}")
                continue
            task = task_for(model.graph, profiles, store, device)
            tasks.append(NamedTask(name, replace(task, objective=objectives[name])))
        if len(tasks) == count:
            known = ", ".join(sorted({MACS_DEVICE, *(record.key for record in store.devices())}))
            raise NotFoundError(
                f"device {device!r} has not measured what any of the models needs; known: {known}",
                field="device",
            )
    for seed, (name, model) in itertools.product(range(synthetic), models.items()):
        tables = synthetic_tables(model.graph, model.profiles, seed)
        tasks.append(
            NamedTask(name, PruningTask(model.graph, tables, model.profiles, objectives[name]))
        )
    return tasks, tuple(skipped)


def population_configs(
    agents: int, actions: Sequence[ActionMode], *, round_steps: int, seed: int
) -> list[AgentConfig]:
    """Different seeds, modes in turn, and settings spread around the middle.

    Short rounds get smaller rollouts, so that each round still holds a few updates.
    """
    from rlprune.training.ppo import AgentConfig

    rows, n_steps = AgentConfig.rows, AgentConfig.n_steps
    while rows * n_steps > round_steps // 4 and max(rows, n_steps) > 16:
        rows, n_steps = (rows // 2, n_steps) if rows > n_steps else (rows, n_steps // 2)
    rng = np.random.default_rng([seed, 1])
    configs = []
    for index in range(agents):
        middle = AgentConfig(
            action=actions[index % len(actions)],
            seed=seed * 1000 + index,
            rows=rows,
            n_steps=n_steps,
        )
        first = index < len(actions)  # every mode is tried once with the settings known to work
        configs.append(middle if first else middle.perturbed(rng))
    return configs


def _split(names: Sequence[str], validation: Sequence[str], seed: int) -> set[str]:
    """The models that choose the winner."""
    if len(names) < 2:
        raise InputError(
            f"training needs at least two recorded models, one of them to choose by; found: "
            f"{', '.join(names) or 'none'}; record more with `rlprune record`"
        )
    unknown = sorted(set(validation) - set(names))
    if unknown:
        raise InputError(
            f"no recorded model {unknown[0]!r} to validate on; there are {list(names)}"
        )
    if set(validation) == set(names):
        raise InputError("every model is for validation; leave some to train on")
    if validation:
        return set(validation)
    count = max(1, len(names) // 4)
    return set(np.random.default_rng([seed, 2]).permutation(list(names))[:count].tolist())


def _described(member: Member) -> dict[str, object]:
    return {
        "action": member.config.action,
        "seed": member.config.seed,
        "alive": member.alive,
        "best_gain": member.best_gain if member.best_round else None,
        "best_round": member.best_round,
        "history": member.history,
    }
