"""Trains what `--policy learned` and `--policy corrected` mean, and writes the card beside it.

The honest score comes from leaving every recorded model out once, a fold of them at a time:
policies are trained on the others (some of which only choose), and planned zero-shot on those left
out. Offset and correction are both trained; the mode that plans better on the models left out
becomes the default. The policy that ships is then trained on all models but those that choose.
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

from rlprune.policy import DATA
from rlprune.policy.artifact import PolicyArtifact, Score
from rlprune.policy.base import Policy
from rlprune.policy.baselines import GlobalMagnitudePolicy, PlainUniformPolicy, UniformPolicy
from rlprune.policy.corrected import TELLING_LOSS, CorrectedKnapsackPolicy, fit_corrected
from rlprune.policy.learned import LearnedPolicy
from rlprune.store import open_store
from rlprune.task.episode import ActionMode
from rlprune.training.cluster import ray_session
from rlprune.training.imagined import PREFIX
from rlprune.training.population import Member, network_of, run_population
from rlprune.training.run import ACTIONS, load_models, population_configs, training_tasks
from rlprune.training.select import (
    SCORE_SHARES,
    NamedTask,
    Outcome,
    outcomes,
    relative_gain,
    score,
)

CHOOSER_EVERY = 6
"""One model in so many only chooses; a single one would choose by luck."""

DATA_FREE = ", data-free"
"""How names end where no measured loss was shown; the knapsack beside them sees none either."""

Results = dict[str, list[Outcome]]
"""By policy: what it planned of models it was not trained on."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recorded", type=Path, default=DATA / "recorded")
    parser.add_argument("--more", type=Path, action="append", default=[], help="further models")
    parser.add_argument("--store", help="URL of the store with the devices' measurements")
    parser.add_argument("--device", action="append", default=[], help="beside macs; repeat")
    parser.add_argument("--imagined", type=int, default=3, help="devices that do not exist")
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--steps", type=int, default=120_000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--folds", type=int, default=5, help="models are left out in so many folds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=DATA)
    options = parser.parse_args(argv)
    started = time.monotonic()
    models = load_models([options.recorded, *options.more])
    catalogue.recorded_families(models)  # refuses what is held out
    with closing(open_store(options.store)) as store:
        tasks, skipped = training_tasks(
            models, store=store, devices=options.device, imagined=options.imagined
        )
    print(f"{len(models)} models, {len(tasks)} tasks; {len(skipped)} more were never measured")
    names = sorted(models)
    with ray_session(None), tempfile.TemporaryDirectory() as scratch:
        unseen: Results = {}
        for fold in range(options.folds):
            left_out = set(names[fold :: options.folds])
            choosers = choosing(names, left_out)
            members = train_on(tasks, left_out, choosers, options, Path(scratch) / f"fold-{fold}")
            held = [named for named in tasks if named.model in left_out]
            fitted = fit(tasks, left_out, options.seed)
            policies: dict[str, Policy] = {"uniform": UniformPolicy()}
            policies["uniform-plain"] = PlainUniformPolicy()
            policies |= {"global": GlobalMagnitudePolicy(), "corrected": fitted}
            policies |= {f"learned ({action})": best_of(members, action) for action in ACTIONS}
            for name, policy in policies.items():
                unseen.setdefault(name, []).extend(outcomes(policy, held))
                unseen.setdefault(f"{name}{DATA_FREE}", []).extend(outcomes(policy, blind(held)))
            own = {n: [r for r in rs if r.model in left_out] for n, rs in unseen.items()}
            print_row(f"without {', '.join(sorted(left_out))}", own)
        print_row("all left-out models", unseen)
        action = max(ACTIONS, key=lambda mode: relative_gain(unseen[f"learned ({mode})"]))
        choosers = choosing(names, set())
        members = train_on(tasks, set(), choosers, options, Path(scratch) / "final", (action,))
    final = best_of(members, action)
    chosen_on = [named for named in tasks if named.model in choosers]
    held_out = score(unseen[f"learned ({action})"], seed=options.seed)
    artifact = replace(
        final.artifact,
        validation=score(outcomes(final, chosen_on), seed=options.seed),
        provenance={
            "made_by": "scripts/train_default_policy",
            "trained_on": [name for name in names if name not in choosers],
            "chosen_on": sorted(choosers),
            "devices": sorted({named.task.tables.device for named in tasks}),
            "steps": options.steps,
            "agents": options.agents,
            "left_out": asdict(held_out),
        },
    )
    shutil.rmtree(options.out / "default", ignore_errors=True)
    artifact.save(options.out / "default")
    fit(tasks, set(), options.seed).save(options.out / "corrected.json")
    minutes = (time.monotonic() - started) / 60
    write_card(options.out / "default", artifact, tasks, unseen, action, minutes)
    print(f"wrote {options.out / 'default'} ({action}) in {minutes:.1f} min")
    return 0


def choosing(names: Sequence[str], left_out: set[str]) -> set[str]:
    """The models, of those not left out, that choose the best round and are not trained on."""
    return set([name for name in names if name not in left_out][::CHOOSER_EVERY])


def train_on(
    tasks: Sequence[NamedTask],
    left_out: set[str],
    choosers: set[str],
    options: argparse.Namespace,
    directory: Path,
    actions: Sequence[ActionMode] = ACTIONS,
) -> list[Member]:
    """A population on every model but those left out and those that choose."""
    seen = [named.task for named in tasks if named.model not in left_out | choosers]
    return run_population(
        seen,
        [named for named in tasks if named.model in choosers],
        population_configs(
            options.agents,
            actions,
            round_steps=options.steps // options.rounds,
            seed=options.seed,
        ),
        steps=options.steps,
        rounds=options.rounds,
        directory=directory,
        run_id="default",
        seed=options.seed,
        on_round=lambda done, total, gain: print(
            f"  round {done}/{total}, best {gain:+.1%}", file=sys.stderr, flush=True
        ),
    )


def best_of(members: Sequence[Member], action: ActionMode) -> LearnedPolicy:
    """The best round's policy of one action mode, by the models that choose."""
    own = [m for m in members if m.config.action == action and m.best_round]
    best = max(own, key=lambda member: member.best_gain)
    return LearnedPolicy(PolicyArtifact(network_of(best), action, best.config.seed))


def blind(tasks: Sequence[NamedTask]) -> list[NamedTask]:
    """The same without measured losses."""
    return [NamedTask(named.model, named.task.data_free) for named in tasks]


def fit(tasks: Sequence[NamedTask], left_out: set[str], seed: int) -> CorrectedKnapsackPolicy:
    """The corrected knapsack on every model but those left out, on devices that exist."""
    seen = [
        named
        for named in tasks
        if named.model not in left_out and not named.task.tables.device.startswith(PREFIX)
    ]
    return fit_corrected(
        [named.task for named in seen],
        names=sorted({named.model for named in seen}),
        seed=seed,
    )


def print_row(title: str, results: Results) -> None:
    cells = [f"{name} {relative_gain(own):+.1%}" for name, own in results.items()]
    print(f"{title}: share of the knapsack's loss saved: {', '.join(cells)}", flush=True)


def write_card(
    directory: Path,
    artifact: PolicyArtifact,
    tasks: Sequence[NamedTask],
    unseen: Results,
    action: ActionMode,
    minutes: float,
) -> None:
    """`card.md` for people and `card.json` for programs, with the same figures."""
    rows = {name: score(own) for name, own in unseen.items()}
    models = sorted({named.model for named in tasks})
    each = {
        model: {
            name: relative_gain([r for r in own if r.model == model])
            for name, own in unseen.items()
        }
        for model in models
    }
    data = {
        "action": action,
        "provenance": dict(artifact.provenance),
        "validation": asdict(artifact.validation) if artifact.validation else None,
        "left_out": {name: asdict(row) for name, row in rows.items()},
        "left_out_by_model": each,
        "budget_shares": list(SCORE_SHARES),
        "telling_loss": list(TELLING_LOSS),
        "minutes": round(minutes, 1),
    }
    (directory / "card.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    ours = rows[f"learned ({action})"]
    peer = rows["corrected"]
    earned = "beats" if ours.saved_ratio > peer.saved_ratio else "does not beat"
    clear = "is" if ours.saved_low > 0 else "is not"
    lines = [
        "# The default policy",
        "",
        f"PPO (stable-baselines3), action mode `{action}`, network {list(artifact.network.sizes)}, "
        f"made by `scripts/train_default_policy` in {minutes:.0f} minutes.",
        "",
        f"- Trained on {', '.join(artifact.provenance['trained_on'])}; chosen among "
        f"{artifact.provenance['agents']} agents on {', '.join(artifact.provenance['chosen_on'])}.",
        f"- Devices: {', '.join(artifact.provenance['devices'])}.",
        "",
        "## How such policies do on models they have not seen",
        "",
        "Every model was left out once; policies were trained and chosen on others. Figures "
        "are the recorded objective's (surrogates of recorded evaluations), not live evaluations; "
        "the interval is a 90 % bootstrap over models, then cells. Gain is the knapsack's loss "
        "minus the policy's, at budgets `least + b (base - least)`, b in 0.1, 0.15 .. 0.9; those "
        f"where the knapsack loses less than {TELLING_LOSS[0]} nats (nothing to win) or more than "
        f"{TELLING_LOSS[1]} (next to guessing) are left out.",
        "",
        "| policy | share of the knapsack's loss saved | 90 % interval | gain [nats] "
        "| 90 % interval | groups that differ from the reference |",
        "| --- | --- | --- | --- | --- | --- |",
        *(table_row(name, row) for name, row in rows.items()),
        "",
        "Rows that end in data-free saw no measured loss, and are held against the knapsack that "
        "sees none either, by the foretold curves of `scripts/fit_curves`, which saw these models.",
        "",
        f"The learned policy's gain {clear} clearly above zero, and it {earned} the corrected "
        "knapsack here.",
        "",
        "Share of the knapsack's loss saved, by the model left out:",
        "",
        "| model | " + " | ".join(rows) + " |",
        "| --- |" + " --- |" * len(rows),
        *(
            f"| {model} | " + " | ".join(f"{saved:+.1%}" for saved in own.values()) + " |"
            for model, own in each.items()
        ),
        "",
    ]
    (directory / "card.md").write_text("\n".join(lines), encoding="utf-8")


def table_row(name: str, row: Score) -> str:
    return (
        f"| {name} | {row.saved_ratio:+.1%} | {row.saved_low:+.1%} .. {row.saved_high:+.1%} "
        f"| {row.gain:+.3f} | {row.gain_low:+.3f} .. {row.gain_high:+.3f} "
        f"| {row.differs_ratio:.0%} |"
    )


if __name__ == "__main__":
    raise SystemExit(main())
