"""Fine-tuning with a loss, a metric and a loader of the user's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_tasks
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import rlprune
from rlprune.cli.app import app
from rlprune.errors import InputError
from rlprune.finetuning.batches import LoaderBatches
from rlprune.finetuning.loop import TrainConfig, fit
from rlprune.finetuning.objective import Objective, divergence
from rlprune.finetuning.run import FinetuneReport, finetune, training_device
from rlprune.plans import PruningPlan

CONFIG = TrainConfig(epoch_count=3, learning_rate=0.05, distill_weight=0.25, seed=1)


@pytest.fixture(scope="module")
def net() -> torch.nn.Module:
    """Trained; regression of three numbers from an image and a vector."""
    module = tiny_tasks.two_inputs()
    fit(
        module,
        tiny_tasks.loader(),
        TrainConfig(epoch_count=8, learning_rate=0.05),
        loss=tiny_tasks.squared,
    )
    return module


@pytest.fixture(scope="module")
def plan(net: torch.nn.Module) -> PruningPlan:
    image, side, _ = tiny_tasks.samples(1)
    return rlprune.plan(
        net, example_inputs=(image, side), device="macs", budget_ratio=0.4, policy="uniform"
    )


def ask(out: Path, **other: Any) -> dict[str, Any]:
    train, held = tiny_tasks.loaders()
    return {
        "data": train,
        "validation": held,
        "out": out,
        "config": CONFIG,
        "loss": tiny_tasks.squared,
        "metric": tiny_tasks.closeness,
        "distill_loss": tiny_tasks.squared,
        **other,
    }


@pytest.fixture(scope="module")
def tuned(
    net: torch.nn.Module, plan: PruningPlan, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FinetuneReport, Path]:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("own") / "tuned"
    return finetune(net, plan, **ask(out)), out


def test_a_regression_with_two_inputs_wins_back_what_the_cut_lost(
    plan: PruningPlan, tuned: tuple[FinetuneReport, Path]
) -> None:
    report, out = tuned
    assert report.judged_by == "metric"
    assert report.tuned.loss < report.cut.loss and report.tuned.accuracy > report.cut.accuracy
    assert (report.image_count, report.validation_count) == (96, 32)
    small = rlprune.apply(
        plan, tiny_tasks.two_inputs(), example_inputs=tiny_tasks.samples(1)[:2], calibration="none"
    )
    small.load_state_dict(load_file(out / "weights.safetensors"))
    with torch.no_grad():
        for inputs, wanted in tiny_tasks.loader(shuffle=False, count=32):
            apart = small.eval()(*inputs) - wanted
            assert float(apart.abs().mean()) < 1.0
    onnx.checker.check_model(onnx.load(out / "model.onnx"), full_check=True)


class Killed(BaseException):
    pass


def killed_at(step: int) -> Callable[[str, int, int], None]:
    def tell(what: str, done: int, total: int) -> None:
        if done == step:
            raise Killed

    return tell


def test_a_shuffling_loader_goes_on_bit_for_bit(
    net: torch.nn.Module,
    plan: PruningPlan,
    tuned: tuple[FinetuneReport, Path],
    tmp_path: Path,
) -> None:
    """Its order is drawn again from torch's own generator; dropout's draws are restored."""
    given = ask(tmp_path, checkpoint_sec=0.0)
    for step in (4, 12):  # 6 steps an epoch: within the first, and after the second
        with pytest.raises(Killed):
            finetune(net, plan, **given, on_progress=killed_at(step))
        torch.rand(7)  # another process has drawn other numbers
    report = finetune(net, plan, **given)
    assert report == replace(tuned[0], seconds=report.seconds)
    ours, theirs = (load_file(out / "weights.safetensors") for out in (tmp_path, tuned[1]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_is_of_one_loss(
    net: torch.nn.Module, plan: PruningPlan, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        finetune(net, plan, **ask(tmp_path, checkpoint_sec=0.0), on_progress=killed_at(4))
    with pytest.raises(InputError, match="another run"):
        finetune(net, plan, **ask(tmp_path, loss=torch.nn.functional.l1_loss))


def test_inputs_may_be_named_arrays_of_an_iterable_without_a_length(
    net: torch.nn.Module, plan: PruningPlan, tmp_path: Path
) -> None:
    """Nothing chooses an epoch: the last is written, scored on the training data."""
    given = ask(tmp_path, data=tiny_tasks.Named(), validation=None, metric=None)
    report = finetune(net, plan, **given)
    assert report.judged_by == "loss" and report.tuned.accuracy == -report.tuned.loss
    assert (report.image_count, report.validation_count, report.chosen_epoch) == (48, 0, 3)
    assert report.tuned.loss < report.cut.loss


def test_without_a_way_to_compare_answers_a_loss_of_ones_own_is_not_distilled(
    net: torch.nn.Module, plan: PruningPlan, tmp_path: Path
) -> None:
    report = finetune(net, plan, **ask(tmp_path / "a", config=None, distill_loss=None))
    assert report.config.distill_weight == 0.0
    with pytest.raises(InputError, match="give distill_loss"):
        finetune(net, plan, **ask(tmp_path / "b", distill_loss=None))
    assert not (tmp_path / "b").exists()


def test_divergence_refuses_what_are_no_logits() -> None:
    logits = torch.zeros(4, 3)
    assert divergence(logits, logits, 4.0).item() == 0.0
    for other in (torch.zeros(4, 2), torch.zeros(4), (logits, logits)):
        with pytest.raises(InputError, match="matches logits"):
            divergence(logits, other, 4.0)


def test_pixels_with_classes_are_a_classification() -> None:
    """A segmentation's accuracy is of pixels; losses are means over pixels."""
    outputs = torch.zeros(2, 3, 4, 4)
    outputs[:, 1] = 1.0
    classes = torch.ones(2, 4, 4, dtype=torch.int64)
    classes[0, 0] = 2
    objective = Objective(distill_weight=0.5)
    assert objective.good(outputs, classes, 0.0, 2) == pytest.approx(2 * 28 / 32)
    one = objective.trained(outputs[:, :, 0, 0], classes[:, 0, 0], outputs[:, :, 0, 0])
    many = objective.trained(outputs[:, :, :1, :1], classes[:, :1, :1], outputs[:, :, :1, :1])
    assert one.item() == pytest.approx(many.item())


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (iter([]), "epoch by epoch"),
        ([], "gives no batches"),
        ([torch.zeros(4, 2)], "not a pair"),
        ([("words", 1)], "without a tensor"),
        (7, "a int cannot be gone through"),
    ],
)
def test_a_loader_that_cannot_be_used_is_refused(loader: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        batches = LoaderBatches(loader, torch.device("cpu"))
        assert batches.step_count
        list(batches.whole())


def test_a_loader_that_gives_less_than_it_says_is_refused() -> None:
    class Short(list[Any]):
        def __len__(self) -> int:
            return 5

    module = tiny_tasks.two_inputs()
    given = Short(tiny_tasks.loader(count=32))
    with pytest.raises(InputError, match="gave 2 batches, not 5"):
        fit(module, given, CONFIG, loss=tiny_tasks.squared)


def test_images_that_are_not_augmented_are_shown_to_the_teacher_once() -> None:
    from rlprune.sensitivity.calibration import CalibrationSet

    rng = np.random.default_rng(0)
    images = CalibrationSet.single(
        rng.standard_normal((300, 1, 8, 8)).astype(np.float32), rng.integers(0, 3, 300)
    )
    seen: list[int] = []

    class Teacher(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            out: torch.Tensor = super().forward(x)
            return out

    module, teacher = (
        kind(torch.nn.Flatten(), torch.nn.Linear(64, 3)) for kind in (torch.nn.Sequential, Teacher)
    )
    config = TrainConfig(epoch_count=4, batch_size=50, learning_rate=0.01)
    fit(module, images, config, teacher=teacher)
    assert sum(seen) == 50 + 300
    seen.clear()
    fit(module, images, config, teacher=teacher, augment=lambda x, generator: x)
    assert sum(seen) == 4 * 300


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("cuda", "no CUDA device here; give cpu"),
        ("cuda:1", "no CUDA device here; give cpu"),
        ("tpu", "no device 'tpu' to train on; give auto, cpu, cuda"),
    ],
)
def test_a_device_that_is_not_here_is_refused(
    asked: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=words):
        training_device(asked)
    assert training_device("auto") == torch.device("cpu") == training_device("cpu")


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert training_device("auto") == torch.device("cuda")
    assert training_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="no cuda:2 here, there are 2"):
        training_device("cuda:2")


def command(plan: PruningPlan, folder: Path) -> dict[str, str]:
    plan.save(folder / "plan.json")
    return {
        "--module": "tiny_tasks:two_inputs",
        "--loader": "tiny_tasks:loaders",
        "--loss": "tiny_tasks:squared",
        "-o": str(folder / "out"),
        "--epochs": "2",
        "--torch-device": "cpu",
    }


def invoke(folder: Path, options: dict[str, str], *flags: str) -> Any:
    words = [word for pair in options.items() for word in pair]
    return CliRunner().invoke(app, ["finetune", str(folder / "plan.json"), *words, *flags])


def test_the_command_takes_them_by_name(
    plan: PruningPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(tiny_tasks.__file__).parent)
    options = command(plan, tmp_path)
    result = invoke(
        tmp_path, {**options, "--metric": "tiny_tasks:closeness", "--distill-loss": "logits"}
    )
    assert result.exit_code == 0, result.output
    assert "metric" in result.stdout and "same 32 samples" in result.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["judged_by"] == "metric" and report["config"]["distill_weight"] == 0.5
    lonely = {**options, "--loader": "tiny_tasks:lonely", "-o": str(tmp_path / "lonely")}
    result = invoke(tmp_path, lonely)
    assert result.exit_code == 0, result.output
    assert "epoch 2 of 2, the last one" in result.stdout and "accuracy" not in result.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--loss": "tiny_tasks"}, "loss 'tiny_tasks': give package.module:name"),
        ({"--loss": "tiny_tasks:nothing"}, "AttributeError"),
        ({"--loss": "tiny_tasks:faulty"}, "RuntimeError: shapes differ (tiny_tasks.py line"),
        ({"--loss": "tiny_tasks:no_scalar"}, "loss returned float32[32, 3] or"),
        ({"--metric": "tiny_tasks:words"}, "metric: its result is no number"),
        ({"--metric": "tiny_tasks:__doc__"}, "is a str, not a function"),
        ({"--loader": "tiny_tasks:broken"}, "OSError: no such disk"),
        ({"--loader": "tiny_tasks:three"}, "returned 3 things"),
        ({"--loader": "tiny_tasks:used_up"}, "epoch by epoch"),
        ({"--loader": "tiny_tasks:not_pairs"}, "not a pair (inputs, targets)"),
        ({"--validation": "held.npz"}, "--validation goes with --data"),
        ({"--batch-size": "32"}, "--batch-size goes with --data"),
        ({"--augment": "flip"}, "a loader augments by itself"),
        ({"--label-smoothing": "0.1"}, "label smoothing is of cross-entropy"),
        ({"--distill": "0.5"}, "give distill_loss"),
        ({"--torch-device": "cuda"}, "no CUDA device here; give cpu"),
    ],
)
def test_what_is_refused_is_told_in_one_line(
    plan: PruningPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    words: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(Path(tiny_tasks.__file__).parent)
    result = invoke(tmp_path, {**command(plan, tmp_path), **change})
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and any(word in errors[0] for word in words.split(" or")), result.stderr
    assert "Traceback" not in result.stderr and not result.stdout


def test_data_or_loader_one_of_them(plan: PruningPlan, tmp_path: Path) -> None:
    options = command(plan, tmp_path)
    for wrong in ({**options, "--data": "train.npz"}, {"--module": "m:f", "-o": str(tmp_path)}):
        result = invoke(tmp_path, wrong)
        assert result.exit_code == 2 and "give --data or --loader" in result.stderr
