"""int8 and bf16 against f32: latency, accuracy, and whether int8 plans are predicted well.

    scripts/bench int8 [--models NAME ...] [--plans N] [--quick] [--seed N] [--json FILE]

Networks as they are, and plans of theirs that nothing was fitted to, on this machine, one thread.

- `int8.NET.latency_ratio.RUNTIME`: unpruned latency in int8 over f32 of the same runtime, the two
  measured in turns; `openvino_bf16` is bf16 over f32.
- `int8.NET.accuracy_drop`: points of accuracy that quantising costs on `test_reward`; scales are
  from 256 images of `train_calib`.
- `int8.NET.aware`: points that are lost in int8 against the network as it is in float, after an
  epoch of quantisation-aware training at a tenth of `finetune`'s rate on 10,000 images, the network
  teaching itself; `int8.NET.longer`: after the same epoch without rounding, and quantising then.
- `int8.predicted_within_10pct`: share of unseen plans whose int8 latency on ONNX Runtime, over the
  unpruned network's in int8, is predicted to within 10 % of the measured one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from scipy.stats import beta

from benchmarks.harness import Bench, Row
from datasets import catalogue
from datasets.pack import CifarPack, shared_data
from rlprune.constraints import Constraints, bind
from rlprune.errors import MissingExtraError
from rlprune.finetuning.augment import flipped_and_shifted
from rlprune.finetuning.batches import Batch
from rlprune.finetuning.fake_quantise import fake_quantised
from rlprune.finetuning.int8 import aware_config
from rlprune.finetuning.loop import TrainConfig, fit
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.sizes import at_sizes
from rlprune.latency.choose import calibration_plans
from rlprune.latency.collect import measure_subjects, trace_models
from rlprune.latency.measure import MeasureConfig, measure
from rlprune.latency.types import BF16, F32, INT8, Arithmetic, ModelSubject
from rlprune.planning.local import device_task, which_device
from rlprune.planning.tables import latency_model
from rlprune.precision import SCALED_COUNT, quantised
from rlprune.runtime import get_runtime
from rlprune.schemes import space_of, unpruned_settings
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.energy import energy_profiles
from rlprune.store import open_store

NETS = ("cifar10_resnet20", "vgg", "mobilenetv2")
HURT = ("densenet",)
"""Of the zoo plain int8 costs DenseNet most."""
TRAINED_COUNT = 10_000
PLANS = 100
NEAR = 0.10
RUNS = (("ort", INT8), ("openvino", INT8), ("openvino", BF16))
IN_INT8 = Arithmetic(INT8)


def ratio_rows(name: str, pack: CifarPack) -> Iterator[Row]:
    """Unpruned latency in each precision over f32's."""
    trace = catalogue.traced(catalogue.load(name, pack=pack))
    model_of = trace_models(trace)
    settings = tuple(int(value) for value in unpruned_settings(trace.graph))
    for runtime_name, precision in RUNS:
        try:
            runtime = get_runtime(runtime_name)
        except MissingExtraError:
            continue
        if runtime.refusal(precision):
            continue
        subject = ModelSubject(trace.graph.fingerprint, settings, precision=precision)
        [found] = measure(
            [(subject, model_of(subject))],
            device=runtime_name,
            runtime=runtime,
            control=at_sizes(trace.model),
            control_precision=F32,
            config=MeasureConfig(session_count=24),
        )
        if found.status == "failed":
            raise SystemExit(f"{name} on {runtime_name} in {precision}: {found.reason}")
        end = runtime_name if precision == INT8 else f"{runtime_name}_{precision}"
        ratio, count = found.control_ratio, len(found.session_ms)
        full = f"int8.{name}.latency_ratio.{end}"
        yield Row(full, ratio, "ratio", None, "min", count, found.ratio_interval)


def accuracy_rows(name: str, pack: CifarPack) -> Iterator[Row]:
    """What quantising costs, image by image on the same images."""
    net = catalogue.load(name, pack=pack)
    model = at_sizes(catalogue.traced(net).model)
    right = [_right(one, net, pack) for one in (model, _in_int8(model, net, pack))]
    yield _lost(f"int8.{name}.accuracy_drop", right[0] - right[1])


def aware_rows(name: str, pack: CifarPack, seed: int) -> Iterator[Row]:
    """What int8 costs after an epoch of training with its rounding, and of training without."""
    net = catalogue.load(name, pack=pack)
    pixels, labels = pack.pixels("train")
    apart = np.setdiff1d(np.arange(len(labels)), pack.splits["train_calib"])
    used = np.random.default_rng([seed, 4]).permutation(apart)[:TRAINED_COUNT]
    images = CalibrationSet.single(net.preprocess(pixels[used]), labels[used].astype(np.int64))
    scaled = Batch(torch.from_numpy(_scaled(net, pack)), None, SCALED_COUNT)
    config = aware_config(
        TrainConfig(epoch_count=1, learning_rate=0.05, distill_temperature=4.0, seed=seed)
    )
    before = _right(at_sizes(catalogue.traced(net).model), net, pack)
    for end in ("aware", "longer"):
        module = deepcopy(net.module)
        rounding = fake_quantised(module, [scaled]) if end == "aware" else nullcontext()
        with rounding:
            fit(module, images, config, augment=flipped_and_shifted, teacher=net.module)
        model = at_sizes(catalogue.traced(replace(net, module=module)).model)
        after = _right(_in_int8(model, net, pack), net, pack)
        yield _lost(f"int8.{name}.{end}", before - after)


def _scaled(net: catalogue.Loaded, pack: CifarPack) -> NDArray[np.float32]:
    """What scales are taken from."""
    pixels, _ = pack.pixels("train")
    return net.preprocess(pixels[np.sort(pack.splits["train_calib"])[:SCALED_COUNT]])


def _in_int8(model: onnx.ModelProto, net: catalogue.Loaded, pack: CifarPack) -> onnx.ModelProto:
    [fed] = [value.name for value in model.graph.input]
    return quantised(model, ({fed: one[None]} for one in _scaled(net, pack)))


def _right(model: onnx.ModelProto, net: catalogue.Loaded, pack: CifarPack) -> NDArray[np.float64]:
    """Of each image of `test_reward` whether a file is right (1) or wrong (0)."""
    [fed] = [value.name for value in model.graph.input]
    pixels, labels = pack.pixels("test")
    kept = np.sort(pack.splits["test_reward"])
    with closing(get_runtime().load(model.SerializeToString())) as session:
        answers = [session.run({fed: x[None]})[0] for x in net.preprocess(pixels[kept])]
    found = np.concatenate(answers).argmax(1)
    return np.asarray(found == labels[kept], np.float64)


def _lost(name: str, lost: NDArray[np.float64]) -> Row:
    """In points, with the 90 % interval over images."""
    drop = 100.0 * float(lost.mean())
    half = 164.5 * float(lost.std(ddof=1)) / np.sqrt(len(lost))
    return Row(name, drop, "points", 0.5, "min", len(lost), (drop - half, drop + half))


def plans_apart(trace: OnnxTrace, count: int, seed: int, work: Path) -> list[float]:
    """Predicted over measured of unseen int8 plans, less one; what the device's latency model asks
    for is measured first, and kept in the folder."""
    device, runtime = which_device("ort", trace.graph)
    assert runtime is not None
    bound = bind(trace.graph, Constraints(), round_to=8)
    space = space_of(trace.graph, bound)
    work.mkdir(parents=True, exist_ok=True)
    store = open_store(f"sqlite:///{work / 'latency.db'}")
    task = device_task(
        trace, space, energy_profiles(trace, space), store, device, runtime, arithmetic=IN_INT8
    )
    seen = latency_model(store, device, IN_INT8).attempts[trace.graph.fingerprint]
    plans = calibration_plans(task.space, count=count + len(seen), seed=seed + 1000)
    fresh = [plan for plan in plans if tuple(plan.tolist()) not in seen][:count]
    subjects = [
        ModelSubject(trace.graph.fingerprint, tuple(plan.tolist()), precision=INT8)
        for plan in fresh
    ]
    measured = measure_subjects(
        subjects, model_of=trace_models(trace), device=device, runtime=runtime
    )
    base_ms = task.base_ms
    apart = []
    for plan, one in zip(fresh, measured, strict=True):
        if one.status == "ok":
            choice = task.space.choice_of(plan)
            predicted = float(task.tables.latency_ms(choice[None])[0]) / base_ms
            apart.append(predicted / one.control_ratio - 1.0)
    return apart


def predicted_rows(
    names: tuple[str, ...], pack: CifarPack, count: int, seed: int, work: Path
) -> Iterator[Row]:
    """Of each network, and of all."""
    every: list[float] = []
    for place, name in enumerate(names):
        own = count // len(names) + (place < count % len(names))
        trace = catalogue.traced(catalogue.load(name, pack=pack))
        apart = plans_apart(trace, own, seed, work)
        every += apart
        yield _share(f"int8.{name}.predicted_within_10pct", apart, None)
    yield _share("int8.predicted_within_10pct", every, 0.9)


def _share(name: str, apart: list[float], target: float | None) -> Row:
    """With the 90 % interval of Clopper and Pearson."""
    near, count = sum(abs(one) <= NEAR for one in apart), len(apart)
    low = beta.ppf(0.05, near, count - near + 1) if near else 0.0
    high = beta.ppf(0.95, near + 1, count - near) if near < count else 1.0
    return Row(name, near / count, "share", target, "max", count, (float(low), float(high)))


def main() -> None:
    bench = Bench("int8", __doc__)
    add = bench.parser.add_argument
    add("--models", nargs="+", default=list(NETS), metavar="NAME")
    add("--aware", nargs="*", default=list(HURT), metavar="NAME", help="trained for int8")
    add("--plans", type=int, default=PLANS, help="unseen plans, of all networks together")
    add("--work", type=Path, default=Path("build/int8"), help="folder of what is measured")
    options = bench.parse()
    names = tuple(options.models[:1] if options.quick else options.models)
    count = 10 if options.quick else options.plans
    pack = CifarPack(shared_data(options.shared))
    with bench.measuring():
        for name in names:
            bench.cell(f"{name}/ratio", partial(ratio_rows, name, pack))
            bench.cell(f"{name}/accuracy", partial(accuracy_rows, name, pack))
        for name in () if options.quick else options.aware:
            bench.cell(f"{name}/accuracy", partial(accuracy_rows, name, pack))
            bench.cell(f"{name}/aware", partial(aware_rows, name, pack, options.seed))
        cell = "predicted of " + " ".join(names)
        again = bench.is_again(cell)
        with tempfile.TemporaryDirectory() if again else nullcontext(options.work) as work:
            how = (names, pack, count, options.seed, Path(work))
            bench.cell(cell, partial(predicted_rows, *how))


if __name__ == "__main__":
    main()
