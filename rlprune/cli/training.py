"""`record` and `train`: what models lose, and a policy from it."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlprune.cli.frame import (
    InputShapes,
    Json,
    Seed,
    check_name,
    print_json,
    print_line,
    print_table,
    progress,
    stoppable,
)
from rlprune.cli.inputs import InputValues
from rlprune.cli.models import Model, load_trace
from rlprune.errors import InputError

if TYPE_CHECKING:
    from rlprune.recording.evaluations import Evaluations

StoreUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="Store with the devices' measurements.")
]


def record(
    model: Model,
    calibration: Annotated[
        Path,
        typer.Option(
            metavar="FILE.npz",
            show_default=False,
            help="Images `x` and classes `y`: the profile is measured on one half of them, plans "
            "are judged on the other.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder of recorded models; the one in your data folder if left out.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Of the model's folder in DIR; as the file is called if left out."),
    ] = None,
    evaluations: Annotated[int, typer.Option(min=1, help="Plans to evaluate, in all.")] = 300,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes of Ray; 0 evaluates in this process.")
    ] = 0,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Device whose latencies plans are proposed by, beside macs; repeat."),
    ] = None,
    store: StoreUrl = None,
    policy: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            help="Proposes plans, too: learned, or a trained policy's directory.",
        ),
    ] = "learned",
    round_to: Annotated[int, typer.Option(min=1, help="Keep counts are multiples of this.")] = 8,
    input_shape: InputShapes = None,
    input_value: InputValues = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Record what plans of a model lose, for `train`.

    An interrupted recording loses its running batch; the same command goes on, and one with more
    --evaluations adds to it.
    """
    import platformdirs

    from rlprune.policy import get_policy
    from rlprune.recording.record import RecordConfig, proposal_tables, record_model
    from rlprune.sensitivity.fit import load_calibration
    from rlprune.store import open_store

    folder = output or platformdirs.user_data_path("rlprune") / "tasks"
    name = check_name(model.stem if name is None else name)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder to record in")
    proposing = get_policy(policy)
    traced = load_trace(model, input_shape, input_value)
    profile_images, objective_images = load_calibration(calibration, traced).halves(seed=seed)
    with closing(open_store(store)) as opened:
        tables = proposal_tables(traced, device or (), store=opened, round_to=round_to)
    recording = folder / name

    def kept() -> str:
        batch = f"{recording} keeps all but the running batch, " if recording.exists() else ""
        return f"{batch}the same command goes on"

    with stoppable(kept), progress() as on_progress:
        recorded = record_model(
            recording,
            traced,
            profile_images,
            objective_images,
            config=RecordConfig(
                evaluation_count=evaluations,
                round_to=round_to,
                worker_count=workers,
                seed=seed,
            ),
            tables=tables,
            policy=proposing,
            provenance={
                "name": name,
                "weights": model.name,
                "weights_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
                "images": f"{calibration.name}, halved",
            },
            on_progress=on_progress,
        )
    assert recorded.evaluations is not None
    _print_recorded(recording, recorded.evaluations, as_json)


def _print_recorded(directory: Path, found: Evaluations, as_json: bool) -> None:
    import numpy as np

    rows = []
    for source in dict.fromkeys(found.source.tolist()):
        loss = found.loss[found.source == source]
        rows.append((source, len(loss), float(loss.min()), float(np.median(loss))))
    if as_json:
        columns = ("source", "plan_count", "least_loss", "median_loss")
        sources = [dict(zip(columns, row, strict=True)) for row in rows]
        figures = {"plan_count": len(found.loss), "base_loss": found.base_loss, "sources": sources}
        print_json({"directory": str(directory), **figures, "about": found.about})
        return
    print_table(
        ("proposed by", "plans", "least loss", "median loss"),
        [
            (source, str(count), f"{least:.3f}", f"{median:.3f}")
            for source, count, least, median in rows
        ],
    )
    print_line(
        f"{directory}: {len(found.loss)} plans, the unpruned model loses {found.base_loss:.3f}; "
        f"`rlprune train --tasks {directory.parent} -o POLICY_DIR` learns from it"
    )


def train(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="POLICY_DIR", show_default=False)
    ],
    tasks: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of recorded models; the one in your data folder if left out.",
        ),
    ] = None,
    agents: Annotated[int, typer.Option(min=1, help="Agents, each in a process of its own.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Environment steps of each agent.")] = 500_000,
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDR", help="A running Ray cluster; else one is started.")
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="Device whose latencies in the store to train on, beside macs; repeat."),
    ] = None,
    store: StoreUrl = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(help="Model that chooses the winner and is not trained on; repeat."),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a policy with PPO on Ray.

    Writes the agent that plans best for models that none of them was trained on. An interrupted run
    goes on from its checkpoints when the same command is given again.
    """
    import platformdirs

    from rlprune.store import open_store
    from rlprune.training import model_dirs, train

    folder = tasks or platformdirs.user_data_path("rlprune") / "tasks"

    with closing(open_store(store)) as opened, progress() as on_progress:
        summary = train(
            model_dirs(folder),
            out=output,
            store=opened,
            devices=device or (),
            validation=validation or (),
            agents=agents,
            steps=steps,
            ray_address=ray_address,
            seed=seed,
            on_progress=on_progress,
        )
    if as_json:
        print_json({**asdict(summary), "directory": str(summary.directory)})
        return
    print_table(
        ("agent", "alive", "best round", "share of the knapsack's loss saved"),
        [
            (
                f"{agent['action']} (seed {agent['seed']})",
                "yes" if agent["alive"] else "died",
                str(agent["best_round"]),
                "none" if agent["best_gain"] is None else f"{agent['best_gain']:+.1%}",
            )
            for agent in summary.agents
        ],
    )
    print_line(
        f"{summary.directory}: {summary.policy}, chosen on {', '.join(summary.validation_models)}, "
        f"where it saves {summary.relative_gain:+.1%} of the knapsack's loss"
    )
