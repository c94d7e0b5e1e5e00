"""Draws the tutorial's network: kept channels, and measured latency against the budget.

The network is the tutorial's, trained as its page says; seven plans are made for this machine,
applied and measured. The figures are printed as well; the picture is docs/images/measured.png.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
PAGE, PICTURE = ROOT / "docs" / "tutorial.md", ROOT / "docs" / "images" / "measured.png"
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHOWN = 0.5
"""The budget whose plan is drawn."""
FILE = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```", re.M | re.S)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, code in FILE.findall(PAGE.read_text(encoding="utf-8")):
            (folder / file).write_text(code, encoding="utf-8")
        run(folder, sys.executable, "train.py")
        asked = [word for budget in BUDGETS for word in ("--budget-ratio", str(budget))]
        calibrated = ("--calibration", "calib.npz")
        rlprune(folder, "plan", "digits.onnx", *asked, *calibrated, "-o", "plans")
        files = []
        for budget in BUDGETS:
            files.append(f"{budget}.onnx")
            plan = f"plans/{budget}.json"
            rlprune(folder, "apply", plan, "digits.onnx", *calibrated, "-o", files[-1])
        rows = json.loads(rlprune(folder, "measure", "digits.onnx", *files, "--json"))["models"][1:]
        print(run(folder, sys.executable, "accuracy.py", "digits.onnx", *files))
        draw(json.loads((folder / "plans" / f"{SHOWN}.json").read_text()), rows)


def run(folder: Path, *words: str) -> str:
    """What a command printed; raises `CalledProcessError` where it fails."""
    done = subprocess.run(words, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def rlprune(folder: Path, *words: str) -> str:
    return run(folder, str(Path(sys.executable).with_name("rlprune")), *words)


def draw(plan: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Two panels: one plan's channels, and every plan's latency with its 90 % interval."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    names = [group["name"] for group in plan["groups"]]
    left.bar(names, [group["width"] for group in plan["groups"]], color="#d5dbe3", label="original")
    left.bar(names, [group["keep"] for group in plan["groups"]], color="#2f6db5", label="kept")
    left.set(
        xlabel="channel group", ylabel="channels", title=f"Plan for {SHOWN:.0%} of the latency"
    )
    left.legend(frameon=False)

    ratios = [row["ratio_to_first"] for row in rows]
    for budget, row in zip(BUDGETS, rows, strict=True):
        print(f"budget {budget:.0%}: measured {row['ratio_to_first']:.3f}")
    low, high = zip(*(row["ratio_interval"] for row in rows), strict=True)
    errors = [
        [r - at for r, at in zip(ratios, low, strict=True)],
        [at - r for r, at in zip(ratios, high, strict=True)],
    ]
    right.plot((0.2, 1), (0.2, 1), color="#999999", linestyle="--", label="budget")
    right.errorbar(BUDGETS, ratios, errors, fmt="o", color="#2f6db5", label="measured, 90 %")
    right.set(xlabel="latency budget (share of the original)", ylabel="measured latency (share)")
    right.set_title("Measured against budget")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=110)
    print(f"wrote {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
