"""`finetune` of a plan for int8: what is written is quantised, and trained for it where that
loses."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_net
import tiny_tasks
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import rlprune
from rlprune.cli.app import app
from rlprune.constraints import Constraints
from rlprune.errors import InputError
from rlprune.finetuning.checkpoint import Accuracy
from rlprune.finetuning.int8 import loses_much
from rlprune.finetuning.int8_file import Judged
from rlprune.finetuning.loop import TrainConfig, fit
from rlprune.finetuning.objective import Objective
from rlprune.finetuning.run import FinetuneReport, finetune
from rlprune.finetuning.scoring import score
from rlprune.graph.from_onnx import trace_onnx
from rlprune.plans import PruningPlan
from rlprune.precision import is_quantised
from rlprune.runtime import get_runtime
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.evaluate import Evaluator

CONFIG = TrainConfig(epoch_count=5, batch_size=32, learning_rate=0.01, distill_weight=0.5, seed=1)
FILES = ["model-float.onnx", "model.onnx", "report.json", "weights.safetensors"]


@dataclass(frozen=True)
class Rig:
    """A trained net, an int8 plan for it, and digits on disk."""

    folder: Path
    module: nn.Module
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
        budget_ratio=0.6,
        policy="uniform",
    )
    plan = replace(plan, precision="int8")
    plan.save(folder / "plan.json")
    return Rig(folder, module, plan, held)


@pytest.fixture(scope="module")
def hurt(rig: Rig) -> Rig:
    """The same function, of images with a second channel that is always 0; weights that read it are
    large, and int8 has one scale for them and the others."""
    folder = rig.folder / "hurt"
    folder.mkdir()
    for name in ("train", "held"):
        with np.load(rig.folder / f"{name}.npz") as given:
            x = np.concatenate([given["x"], np.zeros_like(given["x"])], axis=1)
            np.savez(folder / f"{name}.npz", x=x, y=given["y"])
    conv = nn.Conv2d(2, 16, 3, padding=1)
    state = {name: tensor.clone() for name, tensor in rig.module.state_dict().items()}
    weight = state["0.weight"]
    state["0.weight"] = torch.cat([weight, 60 * weight.abs().amax((1, 2, 3), True) + 0 * weight], 1)
    module = nn.Sequential(conv, *list(tiny_net.make().children())[1:])  # type: ignore[call-overload]
    module.load_state_dict(state)
    plan = rlprune.plan(
        module,
        example_inputs=torch.from_numpy(x[:1]),
        device="macs",
        budget_ratio=0.6,
        policy="uniform",
    )
    held = CalibrationSet.single(x, rig.held.y)
    return Rig(folder, module, replace(plan, precision="int8"), held)


def accuracy_of(path: Path, images: CalibrationSet) -> float:
    """Of an ONNX file."""
    model = onnx.load(path)
    given = CalibrationSet.single(images.x, images.y)
    judge = Evaluator(trace_onnx(onnx.load(path.parent / FILES[0])), given, runtime=get_runtime(),
                      reconstruct=False)  # fmt: skip
    return float(judge.evaluate_model(model).accuracy)


def test_what_is_written_is_quantised_and_the_float_file_stands_beside_it(
    rig: Rig, tmp_path: Path
) -> None:
    lines: list[str] = []
    report = finetune(
        rig.module, rig.plan, **rig.files, out=tmp_path, config=CONFIG, on_line=lines.append
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    made = report.quantisation
    assert made is not None and made.written == "plain" and made.aware is None and not made.epochs
    assert is_quantised(onnx.load(tmp_path / "model.onnx"))
    assert not is_quantised(onnx.load(tmp_path / "model-float.onnx"))
    assert accuracy_of(tmp_path / "model.onnx", rig.held) == made.score.accuracy
    assert accuracy_of(tmp_path / "model-float.onnx", rig.held) == made.in_float.accuracy
    assert made.in_float.accuracy == report.tuned.accuracy
    assert made.lost == pytest.approx(made.in_float.accuracy - made.plain.accuracy)
    small = rlprune.apply(
        replace(rig.plan, precision="f32"), rig.module,
        example_inputs=torch.from_numpy(rig.held.x[:1]),
    )  # fmt: skip
    small.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert score(small, rig.held) == report.tuned
    assert any(line.startswith("in int8: accuracy") for line in lines)
    written = json.loads((tmp_path / "report.json").read_text())["quantisation"]
    assert written["plain"]["accuracy"] == made.plain.accuracy and written["written"] == "plain"


@pytest.fixture(scope="module")
def helped(hurt: Rig) -> tuple[FinetuneReport, Path]:
    """A run that nothing interrupted, of a net that int8 hurts."""
    out = hurt.folder / "helped"
    return finetune(hurt.module, hurt.plan, **hurt.files, out=out, config=CONFIG), out


def test_a_net_that_int8_hurts_is_helped(hurt: Rig, helped: tuple[FinetuneReport, Path]) -> None:
    report, out = helped
    made = report.quantisation
    assert made is not None and made.aware is not None
    assert made.lost > 0.02 and made.lost > made.lost_error > 0
    assert made.written == "aware" and len(made.epochs) == 1
    assert made.aware.accuracy > made.plain.accuracy + made.lost / 2
    assert accuracy_of(out / "model.onnx", hurt.held) == made.score.accuracy == made.aware.accuracy
    assert sorted(path.name for path in out.iterdir()) == FILES
    names = load_file(out / "weights.safetensors").keys()
    assert names == hurt.module.state_dict().keys()
    assert made.config is not None and made.config.learning_rate == pytest.approx(0.001)


def test_it_is_left_out_where_nobody_wants_it(
    hurt: Rig, helped: tuple[FinetuneReport, Path], tmp_path: Path
) -> None:
    other, _ = helped
    ask = {**hurt.files, "out": tmp_path, "config": CONFIG}
    report = finetune(hurt.module, hurt.plan, **ask, quantisation_aware="never")
    made = report.quantisation
    assert made is not None and other.quantisation is not None
    assert made.aware is None and made.plain == other.quantisation.plain


class Killed(BaseException):
    pass


def test_killed_in_either_part_it_goes_on_bit_for_bit(
    hurt: Rig, helped: tuple[FinetuneReport, Path], tmp_path: Path
) -> None:
    whole, out = helped
    ask = {**hurt.files, "out": tmp_path, "config": CONFIG, "checkpoint_sec": 0.0}
    for what, at in (("training", 50), ("training for int8", 20)):

        def tell(part: str, done: int, total: int, what: str = what, at: int = at) -> None:
            if (part, done) == (what, at):
                raise Killed

        with pytest.raises(Killed):
            finetune(hurt.module, hurt.plan, **ask, on_progress=tell)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-int8.safetensors", "checkpoint.safetensors",
    ]  # fmt: skip
    lines: list[str] = []
    report = finetune(hurt.module, hurt.plan, **ask, on_line=lines.append)
    assert not any(line.startswith("epoch 5 of 5") for line in lines)
    assert report == replace(whole, seconds=report.seconds)
    ours, theirs = (load_file(one / "weights.safetensors") for one in (tmp_path, out))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [(tmp_path / name).read_bytes() for name in FILES[:2]] == [
        (out / name).read_bytes() for name in FILES[:2]
    ]


def test_where_training_for_int8_does_not_help_the_plain_file_is_written(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a ruinous rate no epoch is better."""
    monkeypatch.setattr("rlprune.finetuning.int8.RATE_SHARE", 3000.0)
    ask = {**rig.files, "out": tmp_path, "config": CONFIG}
    report = finetune(rig.module, rig.plan, **ask, quantisation_aware="always")
    made = report.quantisation
    assert made is not None and made.written == "plain" and made.aware is not None
    assert accuracy_of(tmp_path / "model.onnx", rig.held) == made.plain.accuracy
    assert accuracy_of(tmp_path / "model-float.onnx", rig.held) == made.in_float.accuracy


def test_layers_that_the_plan_keeps_in_float_stay_so(rig: Rig, tmp_path: Path) -> None:
    plan = replace(rig.plan, constraints=Constraints(keep_float=("3.*", "0.*")))
    ask = {**rig.files, "out": tmp_path / "out", "config": CONFIG, "quantisation_aware": "always"}
    finetune(rig.module, plan, **ask)
    model = onnx.load(tmp_path / "out" / "model.onnx")
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    weights = [kinds[node.input[1]] for node in model.graph.node if node.op_type == "Conv"]
    assert weights == [onnx.TensorProto.FLOAT] * 2
    assert onnx.TensorProto.INT8 in kinds.values()  # the linear layer
    with pytest.raises(InputError, match="nothing_of_the_kind"):
        other = replace(plan, constraints=Constraints(keep_float=("nothing_of_the_kind",)))
        finetune(rig.module, other, **{**ask, "out": tmp_path / "other"})
    assert not (tmp_path / "other").exists()


def test_own_tasks_are_judged_by_their_own_metric(tmp_path: Path) -> None:
    """Two inputs, a loss, a metric and a loader of the user's own."""
    net = tiny_tasks.two_inputs()
    plan = rlprune.plan(
        net, example_inputs=tiny_tasks.samples(1)[:2], device="macs", budget_ratio=0.7
    )
    report = finetune(
        net,
        replace(plan, precision="int8"),
        tiny_tasks.loader(shuffle=True),
        validation=tiny_tasks.loader(shuffle=False, count=32),
        loss=tiny_tasks.squared,
        metric=tiny_tasks.closeness,
        out=tmp_path / "out",
        config=TrainConfig(epoch_count=2, learning_rate=0.01, distill_weight=0.0),
        quantisation_aware="always",
    )
    made = report.quantisation
    assert made is not None and made.aware is not None
    assert made.in_float.accuracy == pytest.approx(report.tuned.accuracy, abs=0.02)
    assert made.plain.accuracy == pytest.approx(made.in_float.accuracy, abs=0.1)


class Fixed(nn.Module):
    """Its export has the example's batch of one in it, and its answers lie in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net.make()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        made = self.net(x)
        return {"twice": 2 * made, "once": made.reshape(5, x.shape[0] * 2).reshape(-1, 10)}


def test_files_that_take_no_batches_are_judged_one_by_one(rig: Rig, tmp_path: Path) -> None:
    net = Fixed()
    plan = rlprune.plan(
        net, example_inputs=torch.from_numpy(rig.held.x[:1]), device="macs", budget_ratio=0.7
    )
    x, y = torch.from_numpy(rig.held.x[:64]), torch.from_numpy(rig.held.labels[:64])
    report = finetune(
        net,
        replace(plan, precision="int8"),
        [(x[:32], y[:32]), (x[32:], y[32:])],
        loss=lambda outputs, wanted: nn.functional.cross_entropy(outputs["once"], wanted),
        out=tmp_path / "out",
        config=TrainConfig(epoch_count=1, learning_rate=0.01, distill_weight=0.0),
    )
    made = report.quantisation
    assert made is not None and report.judged_by == "loss"
    assert made.plain.loss == pytest.approx(made.in_float.loss, rel=0.1)


def judged(each: list[float], loss: float = 1.0) -> Judged:
    return Judged(Accuracy(loss, float(np.mean(each))), np.array(each), np.ones(len(each)))


def test_half_a_point_is_believed_only_beyond_its_standard_error() -> None:
    """On 100 samples, two lost and one won are a point lost, and its error is 1.7 points."""
    right = [1.0] * 98 + [1.0, 1.0]
    lost = judged([1.0] * 99 + [0.0])
    assert lost.lost_to(judged(right)) == pytest.approx((0.01, 0.01), abs=1e-3)
    mixed, base = judged([0.0, 0.0, 1.0] + [1.0] * 97), judged([1.0, 1.0, 0.0] + [1.0] * 97)
    assert mixed.lost_to(base) == pytest.approx((0.01, 0.0173), abs=1e-3)
    assert not loses_much(mixed, base, Objective())
    many = judged([0.0] * 3 + [1.0] * 97)
    assert loses_much(many, judged(right), Objective())
    assert not loses_much(judged([0.0] * 4 + [1.0] * 996), judged([1.0] * 1000), Objective())
    regress = Objective(loss=nn.functional.l1_loss)
    assert loses_much(judged([-101.0] * 9, 101.0), judged([-100.0] * 9, 100.0), regress)
    assert not loses_much(judged([-100.2] * 9, 100.2), judged([-100.0] * 9, 100.0), regress)


@pytest.mark.parametrize(
    ("options", "precision", "words"),
    [
        (["--quantisation-aware", "perhaps"], "int8", "no quantisation_aware 'perhaps'"),
        (["--quantisation-aware", "always"], "f32", "the plan is in f32"),
    ],
)
def test_what_is_refused_is_told_in_one_line(
    rig: Rig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    precision: str,
    words: str,
) -> None:
    monkeypatch.chdir(Path(tiny_net.__file__).parent)
    replace(rig.plan, precision=precision).save(tmp_path / "plan.json")
    asked = [
        "finetune", str(tmp_path / "plan.json"), "--module", "tiny_net:make",
        "--weights", str(rig.folder / "net.safetensors"), "--data", str(rig.files["data"]),
        "-o", str(tmp_path / "out"), *options,
    ]  # fmt: skip
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0], result.stderr
    assert not (tmp_path / "out").exists()
