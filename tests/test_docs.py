"""Every code block of the README and of the pages in docs/ runs, in order, as it stands there.

`pages.py` says what running a page means and what is replaced to keep it short.
"""

from __future__ import annotations

import re
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from pages import Setting, blocks, run_page
from small_onnx import small_onnx

ROOT = Path(__file__).parent.parent
PAGES = [
    page.relative_to(ROOT).as_posix()
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
]


def model_and_inputs(folder: Path) -> None:
    """`model.onnx`, `other.onnx` and `inputs.npz`, which fits both."""
    for seed, name in enumerate(("model", "other")):
        onnx.save(small_onnx(widths=(16, 32), seed=seed), folder / f"{name}.onnx")
    images(folder / "inputs.npz", (64, 3, 16, 16))
    images(folder / "images.npz", (64, 3, 16, 16))


def images(path: Path, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    np.savez(path, x=x, y=np.arange(shape[0]) % 10)


def the_tutorials_network(folder: Path) -> None:
    """What the README takes from the tutorial, not trained."""
    import torch

    made = dict(FILE.findall((ROOT / "docs/tutorial.md").read_text(encoding="utf-8")))
    names: dict[str, Any] = {}
    exec(compile(made["mynet.py"], "mynet.py", "exec"), names)
    net, example = names["digits"]().eval(), (torch.zeros(1, 1, 16, 16),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(net, example, "digits.onnx", dynamo=False)
    images(folder / "calib.npz", (40, 1, 16, 16))


def a_module_to_tune(folder: Path) -> None:
    import torch
    from safetensors.torch import save_model

    from rlprune import plan

    (folder / "mynets.py").write_text(
        "from torch import nn\n"
        "def resnet20():\n"
        "    conv = nn.Conv2d(3, 16, 3, padding=1)\n"
        "    pool = nn.AdaptiveAvgPool2d(1)\n"
        "    return nn.Sequential(conv, nn.ReLU(), pool, nn.Flatten(), nn.Linear(16, 10))\n"
    )
    net = import_module("mynets").resnet20()
    save_model(net, str(folder / "resnet20.safetensors"))
    example = torch.zeros(1, 3, 8, 8)
    plan(net, example_inputs=example, device="macs", budget_ratio=0.6).save(folder / "plan.json")
    images(folder / "train.npz", (80, 3, 8, 8))
    images(folder / "held.npz", (40, 3, 8, 8))


def reloaded_is_what_was_saved(names: dict[str, Any]) -> None:
    plan, measured = names["plan"], names["measured"]
    assert names["again"].state_dict().keys() == names["small"].state_dict().keys()
    assert any(entry.keep < entry.width for entry in plan.groups)
    assert measured.graph.macs(measured.graph.widths) == plan.macs


def planned_smaller(names: dict[str, Any]) -> None:
    graph = names["trace"].graph
    assert names["plan"].params < 0.6 * graph.params(graph.widths)


SETTINGS = {
    "README.md": Setting(the_tutorials_network),
    "docs/faster.md": Setting(model_and_inputs),
    "docs/howto/calibration.md": Setting(model_and_inputs),
    "docs/howto/effort.md": Setting(model_and_inputs),
    "docs/howto/deploy.md": Setting(
        model_and_inputs, ((r'"KEY"', '"macs"'),), server="127.0.0.1:50051"
    ),
    "docs/howto/finetune.md": Setting(a_module_to_tune),
    "docs/howto/plan_before_training.md": Setting(
        lambda folder: images(folder / "train.npz", (40, 3, 32, 32)), check=planned_smaller
    ),
    "docs/howto/torch.md": Setting(check=reloaded_is_what_was_saved),
    "docs/tutorial.md": Setting(
        # Fewer images to train, to measure sensitivity and to test on.
        replaced=(
            (r"order\[:1000\]", "order[:200]"),
            (r"order\[1000:1400\]", "order[1000:1060]"),
            (r"order\[1400:\]", "order[1700:]"),
        )
    ),
    "docs/howto/precision.md": Setting(
        model_and_inputs,
        # The tests' network is small: in int8 nothing may be faster than it is.
        ((r"--budget-ratio 0.95", "--device macs --budget-ratio 0.8"),),
    ),
    "docs/howto/several_budgets.md": Setting(model_and_inputs),
    "docs/howto/train_policy.md": Setting(
        model_and_inputs,
        # No policy is trained here, so the one that ships stands for it.
        ((r"--evaluations \d+", "--evaluations 2"), (r"--policy my-policy", "--policy learned")),
    ),
}
FILE = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```", re.M | re.S)


@pytest.mark.parametrize("name", [name for name in PAGES if blocks(ROOT / name)])
def test_the_blocks_of_a_page_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mynets", raising=False)  # another test's
    before = set(sys.modules)
    try:
        run_page(ROOT / name, folder, SETTINGS.get(name, Setting()))
    finally:
        for module in set(sys.modules) - before:
            if (folder / f"{module}.py").exists():  # the next page has another of that name
                del sys.modules[module]
