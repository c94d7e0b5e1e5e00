"""Draws the README's picture: what plans lose against what finding them costs.

From the kept rows of `scripts/bench experience` (results/experience.jsonl), of the networks and
budgets that all methods are kept of; nothing is measured. Losses are over those of plans by a fully
measured profile, geometric means over networks with 90 % intervals. The figures are printed as
well; the picture is docs/images/search.png.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from benchmarks.parts.experience_plans import CALIBRATION, LONGER, PEER_COUNT
from benchmarks.parts.experience_rows import BLIND, bootstrapped
from rlprune.planning.effort import EFFORTS, EVALUATION, PASSED, Effort

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "scripts" / "benchmarks" / "results" / "experience.jsonl"
PICTURE = ROOT / "docs" / "images" / "search.png"
LOSS = re.compile(r"experience\.(.+)\.b([\d.]+)\.(\w+)\.loss")
SEARCHES = {"instant": "instant", "quick": "quick", "race16": "", "race40": ""}
"""Ours, and what users call them."""


def price(effort: Effort) -> float:
    """Evaluations of a search of a small network."""
    return sum(effort.images_by(PASSED[1])) / EVALUATION


def kept() -> dict[tuple[str, str], dict[str, float]]:
    """Losses by method, of every (network, budget)."""
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for line in ROWS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if match := LOSS.fullmatch(row["name"]):
            net, budget, method = match.groups()
            found[net, budget][method] = row["value"]
    return found


def main() -> None:
    needed = {*SEARCHES, "evolution", "profile", *BLIND}
    cells = {cell: own for cell, own in kept().items() if needed <= own.keys()}
    nets = list(dict.fromkeys(net for net, _ in cells))

    def over(method: str) -> tuple[float, tuple[float, float]]:
        """A method's loss over the profile's, and its interval."""
        pairs = [
            np.log([own[method] / own["profile"] for (of, _), own in cells.items() if of == net])
            for net in nets
        ]
        mean, ends = bootstrapped(pairs)
        return float(np.exp(mean)), (float(np.exp(ends[0])), float(np.exp(ends[1])))

    for losses in cells.values():
        losses["blind"] = min(losses[method] for method in BLIND)
    efforts = {**EFFORTS, **LONGER}
    prices = {name: price(efforts[name]) for name in SEARCHES}
    prices["evolution"] = PEER_COUNT * CALIBRATION / EVALUATION
    found = {name: over(name) for name in (*prices, "blind")}
    print(f"{len(cells)} cells of {', '.join(nets)}; losses over the profile's")
    for name, (mean, ends) in found.items():
        at = f"{prices[name]:.1f} evaluations" if name in prices else "none"
        print(f"{name}: {mean:.2f} [{ends[0]:.2f}, {ends[1]:.2f}] at {at}")

    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    axes.axhline(1.0, color="#999999", linestyle="--")
    beside = "every option measured: 30 to 110 evaluations"
    axes.text(640, 1.03, beside, color="#666666", ha="right")
    middle, ends = found["blind"]
    axes.axhspan(*ends, color="#eeeeee")
    axes.text(0.2, middle, "nothing learned or evaluated", color="#666666", va="center")
    x = [prices[name] for name in SEARCHES]
    y = [found[name][0] for name in SEARCHES]
    axes.errorbar(x, y, _errors([found[name] for name in SEARCHES]), color="#2f6db5", marker="o")
    for name, label in SEARCHES.items():
        left = name == "instant"
        spot, by = (prices[name], found[name][0]), (6 if left else -5, -13)
        side = "left" if left else "right"
        axes.annotate(label, spot, by, textcoords="offset points", ha=side)
    rival, place = found["evolution"], prices["evolution"]
    axes.errorbar([place], [rival[0]], _errors([rival]), color="#b5552f", marker="s")
    axes.annotate("evolution", (place, rival[0]), (-62, -4), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlim=(0.15, 700))
    axes.set(xlabel="evaluations of 1,000 images", ylabel="loss of the plan, over the profile's")
    ticks = (0.8, 1.0, 1.5, 2.0, 2.5)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks((0.3, 1, 10, 100, 400), ("0.3", "1", "10", "100", "400"))
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=110)
    print(f"wrote {PICTURE.relative_to(ROOT)}")


def _errors(found: list[tuple[float, tuple[float, float]]]) -> list[list[float]]:
    """Below and above."""
    return [
        [mean - low for mean, (low, _) in found],
        [high - mean for mean, (_, high) in found],
    ]


if __name__ == "__main__":
    main()
