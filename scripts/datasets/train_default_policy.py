"""Trains what `--policy learned` means, and writes the card beside it.

    scripts/data train_default_policy [--recorded DIR] [--more DIR] [--store URL] [--device KEY]
                                      [--agents N] [--steps N] [--rounds N] [--folds N] [--seed N]

The honest score comes from leaving every recorded model out once, a fold of them at a time:
policies are trained on the others (some of which only choose), and plan zero-shot for those left
out. The policy that ships is then trained on all models but those that choose.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

from datasets import catalogue
from datasets.running import recorded_folder, stoppable
from rlprune.cluster import ray_session
from rlprune.policy import DEFAULT_ARTIFACT, Policy, get_policy
from rlprune.policy.artifact import PolicyArtifact
from rlprune.policy.learned import LearnedPolicy
from rlprune.store import open_store
from rlprune.training.population import Member, network_of, run_population
from rlprune.training.run import load_models, population_configs, training_tasks
from rlprune.training.select import (
    SCORE_SHARES,
    NamedTask,
    TaskResult,
    outcomes,
    policy_score,
    relative_gain,
)

CHOOSER_EVERY = 6
"""One model in so many only chooses; a single one would choose by luck."""

DATA_FREE = ", data-free"
"""How names end where no measured loss was shown; the knapsack beside them sees none either."""

Results = dict[str, list[TaskResult]]
"""By policy: what it planned of models it was not trained on."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recorded", type=Path, help="what ships by default")
    parser.add_argument("--more", type=Path, action="append", default=[], help="further models")
    parser.add_argument("--store", help="URL of the store with the devices' measurements")
    parser.add_argument("--device", action="append", default=[], help="beside macs; repeat")
    parser.add_argument("--synthetic", type=int, default=3, help="devices that do not exist")
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--steps", type=int, default=120_000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--folds", type=int, default=5, help="models are left out in so many folds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=DEFAULT_ARTIFACT)
    with stoppable():
        make(parser.parse_args())


def make(options: argparse.Namespace) -> None:
    started = time.monotonic()
    models = load_models([options.recorded or recorded_folder(), *options.more])
    catalogue.recorded_families(models)  # refuses what is held out
    with closing(open_store(options.store)) as store:
        tasks, skipped = training_tasks(
            models, store=store, devices=options.device, synthetic=options.synthetic
        )
    print(f"{len(models)} models, {len(tasks)} tasks; {len(skipped)} more were never measured")
    names = sorted(models)
    with ray_session(None), tempfile.TemporaryDirectory() as scratch:
        unseen: Results = {}
        for fold in range(options.folds):
            left_out = set(names[fold :: options.folds])
            members = train_on(tasks, left_out, options, Path(scratch) / f"fold-{fold}")
            held = [named for named in tasks if named.model in left_out]
            blind = [NamedTask(named.model, named.task.data_free) for named in held]
            policies: dict[str, Policy] = {
                name: get_policy(name) for name in ("uniform", "uniform-plain", "global")
            }
            policies["learned"] = best_of(members)
            for name, policy in policies.items():
                unseen.setdefault(name, []).extend(outcomes(policy, held))
                unseen.setdefault(f"{name}{DATA_FREE}", []).extend(outcomes(policy, blind))
            own = {n: [r for r in rs if r.model in left_out] for n, rs in unseen.items()}
            print_row(f"without {', '.join(sorted(left_out))}", own)
        print_row("all left-out models", unseen)
        members = train_on(tasks, set(), options, Path(scratch) / "final")
    final, choosers = best_of(members), choosing(names, set())
    chosen_on = [named for named in tasks if named.model in choosers]
    artifact = replace(
        final.artifact,
        validation=policy_score(outcomes(final, chosen_on), seed=options.seed),
        provenance={
            "made_by": "scripts/data train_default_policy",
            "trained_on": [name for name in names if name not in choosers],
            "chosen_on": sorted(choosers),
            "devices": sorted({named.task.tables.device for named in tasks}),
            "steps": options.steps,
            "agents": options.agents,
            "left_out": asdict(policy_score(unseen["learned"], seed=options.seed)),
        },
    )
    shutil.rmtree(options.out, ignore_errors=True)
    artifact.save(options.out)
    minutes = (time.monotonic() - started) / 60
    write_card(options.out, artifact, unseen, minutes)
    print(f"wrote {options.out} in {minutes:.1f} min")


def choosing(names: Sequence[str], left_out: set[str]) -> set[str]:
    """The models, of those not left out, that choose the best round and are not trained on."""
    return set([name for name in names if name not in left_out][::CHOOSER_EVERY])


def train_on(
    tasks: Sequence[NamedTask], left_out: set[str], options: argparse.Namespace, directory: Path
) -> list[Member]:
    """A population on every model but those left out and those that choose."""
    choosers = choosing(sorted({named.model for named in tasks}), left_out)
    round_steps = options.steps // options.rounds

    def told(done: int, total: int, gain: float) -> None:
        print(f"  round {done}/{total}, best {gain:+.1%}", file=sys.stderr, flush=True)

    return run_population(
        [named.task for named in tasks if named.model not in left_out | choosers],
        [named for named in tasks if named.model in choosers],
        population_configs(options.agents, round_steps=round_steps, seed=options.seed),
        steps=options.steps,
        rounds=options.rounds,
        directory=directory,
        run_id="default",
        on_round=told,
    )


def best_of(members: Sequence[Member]) -> LearnedPolicy:
    """The best round's policy, by the models that choose."""
    best = max((m for m in members if m.best_round), key=lambda member: member.best_gain)
    return LearnedPolicy(PolicyArtifact(network_of(best), best.config.action, best.config.seed))


def print_row(title: str, results: Results) -> None:
    cells = [f"{name} {relative_gain(own):+.1%}" for name, own in results.items()]
    print(f"{title}: share of the knapsack's loss saved: {', '.join(cells)}", flush=True)


def write_card(directory: Path, artifact: PolicyArtifact, unseen: Results, minutes: float) -> None:
    """`card.md` for people and `card.json` for programs, with the same figures."""
    rows = {name: policy_score(own) for name, own in unseen.items()}
    models = sorted({result.model for result in unseen["learned"]})
    data = {
        "action": artifact.action,
        "provenance": dict(artifact.provenance),
        "validation": asdict(artifact.validation) if artifact.validation else None,
        "left_out": {name: asdict(row) for name, row in rows.items()},
        "left_out_by_model": {
            model: {
                name: relative_gain([r for r in own if r.model == model])
                for name, own in unseen.items()
            }
            for model in models
        },
        "budget_shares": list(SCORE_SHARES),
        "minutes": round(minutes, 1),
    }
    (directory / "card.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    table = [
        f"| {name} | {row.saved_ratio:+.1%} | {row.saved_low:+.1%} .. {row.saved_high:+.1%} | "
        f"{row.gain:+.3f} | {row.gain_low:+.3f} .. {row.gain_high:+.3f} | {row.differs_ratio:.0%} |"
        for name, row in rows.items()
    ]
    named = ("trained_on", "chosen_on", "devices")
    lists = {key: ", ".join(artifact.provenance[key]) for key in named}
    clear = "is" if rows["learned"].saved_low > 0 else "is not"
    card = CARD.format(a=artifact, minutes=minutes, rows="\n".join(table), clear=clear, **lists)
    (directory / "card.md").write_text(card, encoding="utf-8")


CARD = """# The default policy

PPO (stable-baselines3), action mode `{a.action}`, network {a.network.sizes}, made by `scripts/data
train_default_policy` in {minutes:.0f} minutes.

- Trained on {trained_on}; chosen among {a.provenance[agents]} agents on {chosen_on}.
- Devices: {devices}.

## How such policies do on models they have not seen

Every model was left out once; policies were trained and chosen on others. Figures are the recorded
objective's (surrogates of recorded evaluations), not live evaluations; the interval is a 90 %
bootstrap over models, then cells. Gain is the knapsack's loss minus the policy's, at budgets
`least + b (base - least)`, b in 0.1, 0.15 .. 0.9; budgets at which the knapsack loses next to
nothing, or so much that plans are next to guessing, are left out. By model: `card.json`.

| policy | knapsack's loss saved | 90 % | gain [nats] | 90 % | groups that differ from it |
| --- | --- | --- | --- | --- | --- |
{rows}

Rows that end in data-free saw no measured loss, and are held against the knapsack that sees none
either, by the predicted curves of `scripts/data fit_curves`, which saw these models.

The learned policy's gain {clear} clearly above zero.
"""


if __name__ == "__main__":
    main()
