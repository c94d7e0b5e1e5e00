"""What of the policy's design matters: the same training with one thing left out at a time.

    scripts/bench_ablations [--quick] [--seed N] [--json FILE] [--only NAME ...] [--seeds N]
                            [--steps N] [--recorded DIR] [--judged DIR] [--store URL] [--device KEY]

Every variant is trained on the recorded networks but some, which choose the round, and plans for
networks of families that no training saw (`scripts/record_zoo --held-out` records them). Figures
are the share of the knapsack's loss that is saved there, by the recorded objective, with a 90 %
interval over networks and their budgets.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_rows import Row, write_rows
from train_default_policy import choosing

from rlprune.cluster import ray_session
from rlprune.policy import DATA
from rlprune.policy.artifact import PolicyArtifact
from rlprune.policy.base import Policy
from rlprune.policy.learned import LearnedPolicy
from rlprune.store import open_store
from rlprune.training.population import network_of, run_population
from rlprune.training.ppo import AgentConfig
from rlprune.training.run import load_models, population_configs, training_tasks
from rlprune.training.select import NamedTask, outcomes, policy_score

REFERENCE = ("reference_", "plan_", "later_keep", "loss_to_go", "kept_delta", "last_delta")
PRICE = ("reference_price", "price", "grow_value", "shrink_value")
DEVICE = ("overhead_share", "weightless_share", "dense_rate", "depthwise_rate", "linear_rate")
DEVICE += ("reversal", "jump", "interval")
PROFILE = ("loss_least", "loss_25", "loss_50", "loss_75", "energy_", "log_loss_scale", "later_loss")

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "correction": {"action": "correction"},
    "raw ratio": {"action": "ratio"},
    "no reference": {"action": "correction", "blind": REFERENCE},
    "no shadow price": {"action": "correction", "blind": PRICE},
    "no device": {"action": "correction", "blind": DEVICE},
    "no profile": {"action": "correction", "blind": PROFILE},
    "raw ratio, terminal reward": {"action": "ratio", "env": {"terminal_reward": True}},
}
"""What each differs in. A correction's reward is terminal as it is: only its last step has a plan.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, one seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=2, help="agents of every variant")
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--synthetic", type=int, default=3)
    parser.add_argument("--recorded", type=Path, default=DATA / "recorded")
    parser.add_argument(
        "--judged", type=Path, default=Path("~/.cache/rlprune/recorded_held_out").expanduser()
    )
    parser.add_argument("--store", help="URL of the store with the devices' measurements")
    parser.add_argument("--device", action="append", default=[], help="beside macs; repeat")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.seeds, options.rounds = options.steps // 10, 1, 2
    with closing(open_store(options.store)) as store:
        tasks, _ = training_tasks(
            load_models([options.recorded]),
            store=store,
            devices=options.device,
            synthetic=options.synthetic,
        )
        judged, _ = training_tasks(
            load_models([options.judged]), store=store, devices=options.device
        )
    names = sorted({named.model for named in tasks})
    choosers = choosing(names, set())
    print(
        f"load average {os.getloadavg()[0]:.1f}, seed {options.seed}; trained on "
        f"{len(names) - len(choosers)} networks; chosen on {', '.join(sorted(choosers))}; "
        f"judged on {', '.join(sorted({named.model for named in judged}))}"
    )
    seen = [named for named in tasks if named.model not in choosers]
    rows: list[Row] = []
    with ray_session(None), tempfile.TemporaryDirectory() as scratch:
        for variant in options.only:
            policy = train(
                variant, seen, [n for n in tasks if n.model in choosers], options, scratch
            )
            rows += judge(variant, policy, judged)
    if options.json:
        write_rows(options.json, rows)


def train(
    variant: str,
    seen: list[NamedTask],
    choosing: list[NamedTask],
    options: argparse.Namespace,
    scratch: str,
) -> Policy:
    """The best round of all seeds' agents, by the networks that choose."""
    began = time.monotonic()
    action = VARIANTS[variant]["action"]
    made = population_configs(
        options.seeds, round_steps=options.steps // options.rounds, seed=options.seed
    )
    configs: list[AgentConfig] = [
        replace(made[0], seed=config.seed, **VARIANTS[variant]) for config in made
    ]
    members = run_population(
        [named.task for named in seen],
        choosing,
        configs,
        steps=options.steps,
        rounds=options.rounds,
        directory=Path(scratch) / variant.replace(" ", "-"),
        run_id=variant,
    )
    best = max((m for m in members if m.best_round), key=lambda member: member.best_gain)
    print(
        f"  {variant}: {time.monotonic() - began:.0f} s, best {best.best_gain:+.1%} on those "
        f"that choose, in round {best.best_round}; {best.history[-1]['train_gain']:+.1%} on those "
        "trained on",
        flush=True,
    )
    return LearnedPolicy(PolicyArtifact(network_of(best), action, best.config.seed))


def judge(name: str, policy: Policy, judged: list[NamedTask]) -> list[Row]:
    found = policy_score(outcomes(policy, judged))
    print(
        f"{name:26} saves {found.saved_ratio:+7.1%} [{found.saved_low:+.1%}, "
        f"{found.saved_high:+.1%}] of the knapsack's loss, {found.gain:+.4f} nats, "
        f"{found.differs_ratio:.0%} of the groups differ",
        flush=True,
    )
    interval = (found.saved_low, found.saved_high)
    n = len(found.models)
    return [Row(f"ablation/{name}", found.saved_ratio, "", None, "max", n, interval)]


if __name__ == "__main__":
    main()
