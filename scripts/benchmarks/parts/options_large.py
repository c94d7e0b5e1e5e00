"""EfficientNet-Lite0 at 224 pixels, of `options`: planned, cut, measured, compared, not trained.

Its ImageNet weights come in a package, as `real_models` tells. Plans are made from made-up images
and crops of scikit-learn's two photographs, in equal parts, and judged on other made-up images and
other crops of the same photographs, by the share of answers that are the unpruned network's. Two
photographs tell little: from made-up images and one of them, at 0.75 of the latency with all
options, 67 % of the answers on its other crops were kept and none on crops of the other one.
What was cut is quantised, too, and measured beside the unpruned network in f32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.harness import Row
from benchmarks.parts import options_plans, real_inputs
from benchmarks.parts.options_plans import Ratio, Run
from benchmarks.real_models import efficientnet_lite
from rlprune.files import write_atomic
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.sizes import at_sizes
from rlprune.latency.measure import measure
from rlprune.latency.types import INT8, ModelSubject
from rlprune.planning import PlanRequest, which_device
from rlprune.runtime import get_runtime
from rlprune.runtime.base import Array
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.correct import carry_out
from rlprune.sensitivity.evaluate import Evaluator
from rlprune.sensitivity.fit import fit_inputs
from rlprune.sensitivity.made_up import made_up_inputs
from rlprune.sensitivity.quantised import in_int8

NAME = "efficientnet_lite0"
BUDGETS = (0.75, 0.5)
ARMS = ("channels", "all")
CALIBRATION, JUDGED = 128, 192
"""Images of both sources together, and of each."""


@dataclass(frozen=True, slots=True)
class Large:
    """One plan of it."""

    budget: float
    arm: str
    packages: Path | None
    """Unpacked wheels; None where the packages are installed."""

    @property
    def name(self) -> str:
        return f"{NAME}.b{self.budget:g}.{self.arm}"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a plan."""

    ratio: Ratio
    made_up: float
    """Share (0-1) of answers on made-up images that are the unpruned network's."""
    photographs: float
    """The same on crops of photographs."""
    int8: Result | None = None
    """Of the same network, quantised; latency as a share of the unpruned network's in f32."""


def rows(large: Large, run: Run) -> Iterator[Row]:
    """Latency and agreement; none where the package is absent."""
    found = result(large, run)
    if found is None:
        print(f"{large.name}: skipped, its package is not installed", flush=True)
        return
    told = {f"options.{large.name}": found, f"options.{large.name}.int8": found.int8}
    for name, one in told.items():
        if one is None:
            continue
        target = large.budget if one is found else None
        value, interval = one.ratio.value, one.ratio.interval
        yield Row(f"{name}.latency", value, "of base", target, "min", 1, interval)
        for what in ("made_up", "photographs"):
            share = 100 * getattr(one, what)
            yield Row(f"{name}.same.{what}", share, "%", None, "max", JUDGED, None)


def is_known(large: Large, run: Run) -> bool:
    """Whether it is kept."""
    return _file(large, run).exists()


def result(large: Large, run: Run) -> Result | None:
    """What became of a plan, kept or made now."""
    file = _file(large, run)
    if file.exists():
        return _read(json.loads(file.read_text()))
    trace = traced(large.packages)
    if trace is None:
        return None
    arm = options_plans.ARMS[large.arm]
    request = PlanRequest.of(
        device="ort",
        budget_ratio=large.budget,
        policy=arm.policy,
        schemes=arm.schemes,
        certify=True,
    )
    given = inputs(trace, seed=0, count=CALIBRATION // 2)
    both = fit_inputs(
        {"x": np.concatenate(list(given.values()))}, None, trace, source="photographs and made up"
    )
    plan = options_plans.made(trace, request, both, run, name=NAME)
    file.parent.mkdir(parents=True, exist_ok=True)
    plan.save(file.with_name(f"{large.name}.plan.json"))
    cut = carry_out(trace, plan.keeps, both, plan.schemes)
    small = in_int8(trace, cut).model
    int8 = _result(trace, small, _beside_f32(trace, small))
    found = _result(trace, cut.model, options_plans.certified(plan), int8)
    write_atomic(file, json.dumps(asdict(found)).encode())
    print(f"{large.name}: {found}; {plan.note}", flush=True)
    return found


@lru_cache(maxsize=1)
def traced(packages: Path | None) -> OnnxTrace | None:
    """The network; None where its package is absent."""
    content = efficientnet_lite(packages)
    return None if content is None else trace_onnx(content)


def inputs(trace: OnnxTrace, *, seed: int, count: int) -> dict[str, Array]:
    """So many images of either source."""
    made = made_up_inputs(trace, count, seed=seed, runtime=get_runtime())
    crops = [real_inputs.photo_crops(count // 2, seed, half=half) for half in (0, 1)]
    return {
        "made_up": np.asarray(made.arrays["x"], np.float32),
        "photographs": (np.concatenate(crops) - 127) / np.float32(128),
    }


def _result(
    trace: OnnxTrace, model: onnx.ModelProto, ratio: Ratio, int8: Result | None = None
) -> Result:
    """A model judged on other images than its plan was made from."""
    same = {
        name: _judge(trace, images).evaluate_model(model).agreement
        for name, images in inputs(trace, seed=1000, count=JUDGED).items()
    }
    return Result(ratio, same["made_up"], same["photographs"], int8)


def _beside_f32(trace: OnnxTrace, model: onnx.ModelProto) -> Ratio:
    """A quantised model's latency, as a share of the unpruned network's in f32."""
    device, runtime = which_device("ort", trace.graph)
    assert runtime is not None
    subject = ModelSubject(trace.graph.fingerprint, (), precision=INT8)
    pairs = [(subject, at_sizes(model))]
    [found] = measure(pairs, device=device, runtime=runtime, control=at_sizes(trace.model))
    return Ratio.of(found)


def _read(told: dict[str, Any]) -> Result:
    own = told.get("int8")
    return Result(
        Ratio.read(told["ratio"]), told["made_up"], told["photographs"], own and _read(own)
    )


def _judge(trace: OnnxTrace, images: Array) -> Evaluator:
    given: CalibrationSet = fit_inputs({"x": images}, None, trace)
    return Evaluator(trace, given, runtime=get_runtime(), reconstruct=False)


def _file(large: Large, run: Run) -> Path:
    return run.work / "large" / f"{large.name}.json"
