"""`apply` in int8: cut, reconstructed, quantised, and how far answers moved before and after."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from small_onnx import small_onnx

import rlprune
from rlprune.constraints import Constraints
from rlprune.errors import InputError
from rlprune.plans import PruningPlan
from rlprune.precision import is_quantised
from rlprune.runtime import get_runtime
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.evaluate import Evaluator

X = np.random.default_rng(0).standard_normal((64, 3, 16, 16)).astype(np.float32)
CALIBRATION = {"x": X}


@pytest.fixture(scope="module")
def plan() -> PruningPlan:
    made = rlprune.plan(small_onnx(), device="macs", budget_ratio=0.6, precision="int8")
    assert made.precision == "int8"
    return made


def initializers(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def test_precision_is_the_plans_unless_said(plan: PruningPlan) -> None:
    told = []
    small = rlprune.apply(plan, small_onnx(), calibration=CALIBRATION, on_result=told.append)
    first = plan.groups[0].keep
    assert is_quantised(small) and initializers(small)["w1_quantized"][0] == first
    assert told[0].moved is not None and told[0].quantised is not None
    assert told[0].quantised.divergence == pytest.approx(told[0].moved.divergence, abs=0.05)
    assert "after quantisation to int8" in told[0].told()[-1]
    plain = rlprune.apply(plan, small_onnx(), calibration=CALIBRATION, precision="f32")
    assert not is_quantised(plain)
    in_f32 = replace(plan, precision="f32")
    assert is_quantised(
        rlprune.apply(in_f32, small_onnx(), calibration=CALIBRATION, precision="int8")
    )


def test_made_up_inputs_do_where_there_are_none(plan: PruningPlan) -> None:
    assert is_quantised(rlprune.apply(plan, small_onnx()))


def test_layers_kept_in_float_are_the_plans_unless_said(plan: PruningPlan) -> None:
    kept = replace(plan, constraints=Constraints(8, keep_float=("conv2",)))
    small = rlprune.apply(kept, small_onnx(), calibration=CALIBRATION)
    assert "w2" in initializers(small) and "w1" not in initializers(small)
    other = rlprune.apply(kept, small_onnx(), calibration=CALIBRATION, keep_float=["conv1"])
    assert "w1" in initializers(other) and "w2" not in initializers(other)


def test_what_does_not_go_together_is_refused(plan: PruningPlan) -> None:
    with pytest.raises(InputError, match="no precision 'int4'; give f32, bf16, int8"):
        rlprune.apply(plan, small_onnx(), precision="int4")
    with pytest.raises(InputError, match="keep_float goes with precision int8"):
        rlprune.apply(plan, small_onnx(), precision="f32", keep_float=["conv1"])
    with pytest.raises(InputError, match="keep_float goes with precision int8"):
        rlprune.plan(small_onnx(), device="macs", budget_ratio=0.6, keep_float="conv1")


def test_what_is_only_cut_has_scales_from_made_up_inputs(plan: PruningPlan) -> None:
    told = []
    small = rlprune.apply(plan, small_onnx(), calibration="none", on_result=told.append)
    assert is_quantised(small) and told[0].note == "only cut"


def test_a_module_stays_in_float() -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 8, 3), torch.nn.Flatten()
    )
    example = torch.zeros(1, 3, 8, 8)
    made = rlprune.plan(
        net, example_inputs=example, device="macs", budget_ratio=0.6, precision="int8"
    )
    small = rlprune.apply(made, net, example_inputs=example)
    assert isinstance(small, torch.nn.Module)
    with pytest.raises(InputError, match="a module stays in float"):
        rlprune.apply(made, net, example_inputs=example, precision="int8")


def test_plans_are_evaluated_as_they_will_run() -> None:
    """Candidates of an int8 plan are judged after quantisation; the unpruned network is not."""
    trace, runtime = rlprune.trace(small_onnx()), get_runtime()
    images = CalibrationSet.single(X)
    plain = Evaluator(trace, images, runtime=runtime)
    as_run = Evaluator(trace, images, runtime=runtime, int8=True)
    whole = trace.graph.widths
    assert plain.evaluate(whole).divergence == pytest.approx(0.0, abs=1e-9)
    moved = as_run.evaluate(whole)
    assert 1e-6 < moved.divergence < 0.01
    half = whole // 2
    model = as_run.as_run(as_run.corrected_model(half))
    assert is_quantised(model)
    assert as_run.evaluate(half).divergence == pytest.approx(plain.evaluate_model(model).divergence)
    kept = Evaluator(trace, images, runtime=runtime, int8=True, keep_float=["*"])
    assert not {"w1_quantized", "w2_quantized"} & set(
        initializers(kept.as_run(kept.corrected_model(half)))
    )


def test_plans_in_int8_are_evaluated_as_they_run() -> None:
    made = rlprune.plan(
        small_onnx(),
        device="macs",
        budget_ratio=0.6,
        precision="int8",
        calibration=CALIBRATION,
    )
    assert made.candidates and all(one.divergence for one in made.candidates)
