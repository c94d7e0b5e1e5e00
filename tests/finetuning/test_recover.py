"""`finetune`: what was cut is won back, and an interruption changes nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_net
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import rlprune
from rlprune.cli.app import app
from rlprune.errors import InputError, PlanMismatchError
from rlprune.finetuning.loop import TrainConfig, fit, rate_at
from rlprune.finetuning.objective import Objective
from rlprune.finetuning.run import FinetuneReport, finetune, usual_distill_weight
from rlprune.finetuning.scoring import score
from rlprune.finetuning.user_code import load_module
from rlprune.graph.from_onnx import trace_onnx
from rlprune.plans import PruningPlan
from rlprune.runtime import get_runtime
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.evaluate import Evaluator

CONFIG = TrainConfig(epoch_count=3, batch_size=32, learning_rate=0.05, distill_weight=0.5, seed=1)


@dataclass(frozen=True)
class Rig:
    """A trained net, a plan for it, and digits on disk."""

    folder: Path
    module: torch.nn.Module
    plan: PruningPlan
    held: CalibrationSet

    @property
    def files(self) -> dict[str, Any]:
        return {"data": self.folder / "train.npz", "validation": self.folder / "held.npz"}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("rig")
    bunch = load_digits()
    x = (bunch.images[:, None] / 8 - 1).astype(np.float32)
    y = bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(y))
    train, held = (CalibrationSet.single(x[part], y[part]) for part in (order[:1200], order[1200:]))
    for name, part in (("train", train), ("held", held)):
        np.savez(folder / f"{name}.npz", x=part.x, y=part.y)
    module = tiny_net.make()
    fit(module, train, TrainConfig(epoch_count=6, batch_size=32, learning_rate=0.1))
    save_file(module.state_dict(), folder / "net.safetensors")
    plan = rlprune.plan(
        module,
        example_inputs=torch.from_numpy(x[:1]),
        device="macs",
        budget_ratio=0.25,
        policy="uniform",
    )
    plan.save(folder / "plan.json")
    return Rig(folder, module, plan, held)


@pytest.fixture(scope="module")
def tuned(rig: Rig) -> tuple[FinetuneReport, Path]:
    """A run that nothing interrupted."""
    out = rig.folder / "tuned"
    return finetune(rig.module, rig.plan, **rig.files, out=out, config=CONFIG), out


def test_fine_tuning_wins_back_what_the_cut_lost(
    rig: Rig, tuned: tuple[FinetuneReport, Path]
) -> None:
    report, out = tuned
    assert report.cut.accuracy < report.tuned.accuracy <= 1.0
    assert report.cut.loss > 1.5 * report.unpruned.loss
    assert report.tuned.accuracy > report.unpruned.accuracy - 0.1
    assert report.chosen_epoch in (1, 2, 3)
    assert [record.epoch for record in report.epochs] == [1, 2, 3]
    assert (report.image_count, report.validation_count) == (1200, 597)
    assert sorted(path.name for path in out.iterdir()) == [
        "model.onnx", "report.json", "weights.safetensors",
    ]  # fmt: skip
    written = json.loads((out / "report.json").read_text())
    assert written["tuned"]["accuracy"] == report.tuned.accuracy


def test_what_is_written_is_the_chosen_epoch(rig: Rig, tuned: tuple[FinetuneReport, Path]) -> None:
    """The weights fit the module that `apply` cuts; the ONNX file computes the same."""
    report, out = tuned
    small = rlprune.apply(rig.plan, rig.module, example_inputs=torch.from_numpy(rig.held.x[:1]))
    small.load_state_dict(load_file(out / "weights.safetensors"))
    assert score(small, rig.held) == report.tuned
    model = onnx.load(out / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    images = CalibrationSet.single(rig.held.x, rig.held.y)
    found = Evaluator(trace_onnx(model), images, runtime=get_runtime(), reconstruct=False).base
    assert found.accuracy == report.tuned.accuracy
    assert found.loss == pytest.approx(report.tuned.loss, abs=1e-4)


class Killed(BaseException):
    pass


def killed_at(step: int) -> Callable[[str, int, int], None]:
    def tell(what: str, done: int, total: int) -> None:
        if done == step:
            raise Killed

    return tell


def test_killed_in_mid_epoch_it_goes_on_bit_for_bit(
    rig: Rig, tuned: tuple[FinetuneReport, Path], tmp_path: Path
) -> None:
    ask = {**rig.files, "out": tmp_path, "config": CONFIG, "checkpoint_sec": 0.0}
    for step in (20, 50):  # 37 steps an epoch
        with pytest.raises(Killed):
            finetune(rig.module, rig.plan, **ask, on_progress=killed_at(step))
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    lines: list[str] = []
    report = finetune(rig.module, rig.plan, **ask, on_line=lines.append)
    assert any("going on from" in line for line in lines)
    assert report == replace(tuned[0], seconds=report.seconds)
    same_weights(tmp_path, tuned[1])


def same_weights(first: Path, second: Path) -> None:
    ours, theirs = (load_file(out / "weights.safetensors") for out in (first, second))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def command(rig: Rig, out: Path) -> list[str]:
    return [
        "finetune", str(rig.folder / "plan.json"), "--module", "tiny_net:make",
        "--weights", str(rig.folder / "net.safetensors"), "--data", str(rig.files["data"]),
        "--validation", str(rig.files["validation"]), "-o", str(out), "--epochs", "3",
        "--batch-size", "32", "--learning-rate", "0.05", "--distill", "0.5", "--seed", "1",
    ]  # fmt: skip


def test_the_command_killed_for_good_ends_with_the_same_weights(
    rig: Rig, tuned: tuple[FinetuneReport, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(tiny_net.__file__).parent)
    program = "import sys; from rlprune.cli import main; main()"
    child = subprocess.Popen(
        [sys.executable, "-c", program, *command(rig, tmp_path / "out")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "checkpoint.safetensors").exists() and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    result = CliRunner().invoke(app, [*command(rig, tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["tuned"]["accuracy"] == tuned[0].tuned.accuracy
    assert "pruned, not trained: accuracy" in result.stderr
    same_weights(tmp_path / "out", tuned[1])


def test_a_checkpoint_of_other_settings_is_refused(rig: Rig, tmp_path: Path) -> None:
    ask = {**rig.files, "out": tmp_path, "checkpoint_sec": 0.0}
    with pytest.raises(Killed):
        finetune(rig.module, rig.plan, **ask, config=CONFIG, on_progress=killed_at(2))
    with pytest.raises(InputError, match="another run"):
        finetune(rig.module, rig.plan, **ask, config=replace(CONFIG, seed=2))
    (tmp_path / "checkpoint.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged; delete it"):
        finetune(rig.module, rig.plan, **ask, config=CONFIG)


def test_where_no_epoch_is_better_the_untrained_cut_is_kept(rig: Rig, tmp_path: Path) -> None:
    ruinous = TrainConfig(epoch_count=1, batch_size=512, learning_rate=30.0, warmup_ratio=0.0)
    report = finetune(rig.module, rig.plan, **rig.files, out=tmp_path, config=ruinous)
    assert report.chosen_epoch is None and report.tuned == report.cut


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_teacher_draws_the_answers_towards_its_own(rig: Rig, optimizer: str) -> None:
    """At full weight labels do not count; the teacher stays as it was, dropout off."""
    unlabelled = CalibrationSet.single(rig.held.x, np.zeros_like(rig.held.y))
    config = TrainConfig(
        epoch_count=4,
        batch_size=32,
        optimizer=optimizer,  # type: ignore[arg-type]
        learning_rate=0.1 if optimizer == "sgd" else 0.01,
        distill_weight=1.0,
    )
    teacher = rig.module.train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = tiny_net.make()
    fit(student, unlabelled, config, teacher=teacher)
    assert teacher.training
    teacher.eval()
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name])
    with torch.no_grad():
        inputs = torch.from_numpy(unlabelled.x)
        apart = [
            torch.nn.functional.mse_loss(net(inputs).softmax(1), teacher(inputs).softmax(1))
            for net in (student, tiny_net.make().eval())
        ]
    assert apart[0] < 0.7 * apart[1]


def test_distillation_adds_the_gradient_of_the_softened_difference() -> None:
    """With temperature T the gradient of T^2 KL by the logits is T (softmax_s - softmax_t) / N."""
    torch.manual_seed(0)
    objective = Objective(distill_weight=0.75, distill_temperature=2.0)
    logits = torch.randn(4, 5, requires_grad=True)
    y = torch.tensor([0, 1, 2, 3])
    teacher = torch.nn.Linear(3, 5)
    inputs = torch.randn(4, 3)
    objective.trained(logits, y, teacher(inputs).detach()).backward()
    hard = logits.softmax(1) - torch.nn.functional.one_hot(y, 5)
    soft = 2.0 * ((logits / 2).softmax(1) - (teacher(inputs) / 2).softmax(1))
    assert logits.grad is not None
    assert torch.allclose(logits.grad, (0.25 * hard + 0.75 * soft) / 4, atol=1e-6)


def test_a_factory_draws_the_same_weights_for_the_same_seed() -> None:
    """Or a run from random weights could not go on from its checkpoint."""
    before = torch.get_rng_state()
    one, same, other = (load_module("tiny_net:fresh", seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one.weight, same.weight) and not torch.equal(one.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_finished_run_is_not_written_over(rig: Rig, tmp_path: Path) -> None:
    config = TrainConfig(epoch_count=1, batch_size=32)
    finetune(rig.module, rig.plan, rig.files["data"], out=tmp_path, config=config)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="holds a finished run"):
        finetune(rig.module, rig.plan, rig.files["data"], out=tmp_path, config=config)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_an_untrained_network_does_not_teach() -> None:
    trace = rlprune.trace(tiny_net.make(), torch.zeros(1, 1, 8, 8))
    trained = rlprune.plan(trace, device="macs", budget_ratio=0.5)
    untrained = rlprune.plan(trace, device="macs", budget_ratio=0.5, at_init="synflow")
    assert usual_distill_weight(trained, own_loss=False) == TrainConfig().distill_weight == 0.5
    assert usual_distill_weight(trained, own_loss=True) == 0.0
    assert usual_distill_weight(untrained, own_loss=False) == 0.0


def test_weights_that_lie_in_the_folder_are_not_written_over(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"mine")
    with pytest.raises(InputError, match="would be written over"):
        finetune(rig.module, rig.plan, rig.files["data"], out=tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


def test_the_rate_rises_and_falls_along_half_a_cosine() -> None:
    config = TrainConfig(warmup_ratio=0.1)
    rates = [rate_at(step, 100, config) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[50] == pytest.approx(0.5) and rates[99] < 0.001
    assert max(rates) > 0.97 and all(a > b for a, b in pairwise(rates[10:]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--module": "tiny_net"}, "give package.module:factory"),
        ({"--module": "no_such_code:make"}, "ModuleNotFoundError"),
        ({"--module": "tiny_net:number"}, "returned a int"),
        ({"--module": "tiny_net:leave"}, "SystemExit: 7"),
        ({"--weights": "nothing.safetensors"}, "weights nothing.safetensors"),
        ({"--weights": "plan"}, "not a safetensors file"),
        ({"--data": "nothing.npz"}, "cannot read data nothing.npz"),
        ({"--data": "few"}, "too few"),
        ({"--data": "wide"}, "does not run on the example inputs"),
        ({"--validation": "wide"}, "the model takes"),
        ({"--validation": "other"}, "classes 0..10"),
        ({"--augment": "rotate"}, "no augment 'rotate'"),
        ({"--optimizer": "lion"}, "no optimizer 'lion'"),
        ({"--learning-rate": "nan"}, "learning_rate is nan"),
        ({"--learning-rate": "1e30"}, "training diverged"),
    ],
)
def test_what_is_refused_is_told_in_one_line(
    rig: Rig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    words: str,
) -> None:
    monkeypatch.chdir(Path(tiny_net.__file__).parent)
    x, y = rig.held.x, rig.held.y
    files = {"few": (x[:4], y[:4]), "wide": (np.tile(x, (1, 3, 1, 1)), y), "other": (x, y % 11)}
    files["other"][1][0] = 10
    ask = command(rig, tmp_path / "out")
    [(option, value)] = change.items()
    if value in files:
        np.savez(tmp_path / "given.npz", x=files[value][0], y=files[value][1])
        value = str(tmp_path / "given.npz")
    elif value == "plan":
        value = str(rig.folder / "plan.json")
    if option in ask:
        ask[ask.index(option) + 1] = value
    else:
        ask += [option, value]
    result = CliRunner().invoke(app, ask)
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0], result.stderr
    assert "Traceback" not in result.stderr and not result.stdout


def test_the_door_is_rlprune_finetune(rig: Rig, tmp_path: Path) -> None:
    other = replace(rig.plan, fingerprint="0" * 64, groups=rig.plan.groups[1:])
    with pytest.raises(PlanMismatchError):
        rlprune.finetune(rig.module, other, rig.files["data"], out=tmp_path)
    assert list(tmp_path.iterdir()) == []
