"""`train`: a policy from recorded models."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rlprune.cli.frame import Json, print_json, print_line, print_table, progress


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
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="Store with the devices' measurements.")
    ] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option(help="Model that chooses the winner and is not trained on; repeat."),
    ] = None,
    seed: int = 0,
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
