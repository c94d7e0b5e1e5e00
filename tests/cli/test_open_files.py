"""Files that leave sizes open, from the command line: planned at one size, cut for all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_oracle import Net, run
from open_nets import NETS, older
from typer.testing import CliRunner

import rlprune
from rlprune.cli.app import app
from rlprune.errors import ModelError, PlanMismatchError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import parse, strip
from rlprune.latency.collect import skeleton_models
from rlprune.latency.device import model_batch
from rlprune.latency.types import ModelSubject
from rlprune.runtime.once import run_once

COMMAND = CliRunner()


def command(*words: object) -> str:
    """Standard output of a command that must succeed."""
    done = COMMAND.invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("open") / "fpn.onnx"
    model = older(NETS["fpn"])
    model.metadata_props.add(key="classes", value="cat dog")
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def plan(file: Path) -> Path:
    path = file.with_name("plan.json")
    words = ("--device", "macs", "--budget-ratio", "0.6", "--input-shape", "1x3x50x38")
    command("plan", file, *words, "--policy", "knapsack", "-o", path)
    return path


def test_what_apply_writes_runs_at_every_size_and_keeps_names_and_metadata(
    file: Path, plan: Path
) -> None:
    output = file.with_name("pruned.onnx")
    command(
        "apply", plan, file, "-o", output, "--calibration", "none", "--input-shape", "1x3x50x38"
    )
    before, after = onnx.load(file), onnx.load(output)
    assert after.graph.input[0].type == before.graph.input[0].type
    for one, other in zip(before.graph.output, after.graph.output, strict=True):
        named = {dim.dim_param for dim in one.type.tensor_type.shape.dim}
        kept = [dim for dim in other.type.tensor_type.shape.dim if not dim.dim_value]
        assert kept and {dim.dim_param for dim in kept} <= named
    rng = np.random.default_rng(0)
    for size in ((1, 3, 50, 38), (2, 3, 33, 47), (3, 3, 26, 22)):
        x = rng.standard_normal(size).astype(np.float32)
        shapes = [[output.shape for output in run(model, [x])] for model in (before, after)]
        assert shapes[0] == shapes[1]
    noted = {entry.key: entry.value for entry in after.metadata_props}
    assert noted["classes"] == "cat dog"
    made = rlprune.PruningPlan.load(plan)
    assert noted["rlprune.graph"] == made.fingerprint
    assert noted["rlprune.device"] == "macs"
    assert float(noted["rlprune.budget_ms"]) == made.budget_ms
    assert noted["rlprune.version"] == rlprune.__version__


def test_a_plan_made_at_one_size_is_applied_at_another(file: Path, plan: Path) -> None:
    outputs = [file.with_name(f"{size}.onnx") for size in ("1x3x50x38", "4x3x64x96")]
    for output in outputs:
        command(
            "apply", plan, file, "-o", output, "--calibration", "none", "--input-shape", output.stem
        )
    x = np.random.default_rng(0).standard_normal((2, 3, 40, 40)).astype(np.float32)
    for one, other in zip(*(run(onnx.load(output), [x]) for output in outputs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_pruned_file_is_traced_again_at_the_sizes_it_was_analysed_at(
    file: Path, plan: Path
) -> None:
    output = file.with_name("again.onnx")
    command(
        "apply", plan, file, "-o", output, "--calibration", "none", "--input-shape", "1x3x50x38"
    )
    found = json.loads(command("trace", output, "--json"))
    assert found["input_shapes"] == [[1, 3, 50, 38]]
    assert found["macs"] == rlprune.PruningPlan.load(plan).macs


def test_a_plan_for_other_groups_is_refused_and_the_group_is_named(file: Path, plan: Path) -> None:
    other = older(NETS["fcn"])
    made = rlprune.PruningPlan.load(plan)
    trace = rlprune.trace(other, input_shapes={"x": (1, 3, 16, 24)})
    with pytest.raises(PlanMismatchError, match=r"plan is for graph .* groups, the model"):
        rlprune.apply(made, trace)


def test_what_cannot_stay_open_is_closed_and_said() -> None:
    net = Net("n", 3, "h", "w")
    flat = net.add("Flatten", net.add("Relu", net.conv("x", 3, 8)))
    model = net.model(net.add("Gemm", flat, net.weight(8 * 36, 10), net.weight(10)))
    trace = rlprune.trace(model, input_shapes={"x": (1, 3, 6, 6)})
    assert len(trace.normal.closed) == 2
    assert "input 'x' stays 6 long on axis 2" in trace.normal.closed[0]
    assert "Gemm" in trace.normal.closed[0]
    shape = trace.model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["n", 3, 6, 6]


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_bounds_keep_the_integer_type_of_the_file(kind: str) -> None:
    def told(*values: int) -> str:
        return str(net.constant(values, np.dtype(kind)))

    net = Net(2, 3, 8, 8)
    x = net.add("Relu", net.conv("x", 3, 16))
    low = net.add("Slice", x, told(0), told(8), told(1), told(1))
    high = net.add("Slice", x, told(8), told(16), told(1), told(1))
    model = net.model(net.head(net.add("Mul", low, high), 8))
    plan = rlprune.plan(model, device="macs", budget_ratio=0.5, round_to=1, policy="knapsack")
    pruned = rlprune.apply(plan, model)
    onnx.checker.check_model(pruned, full_check=True)
    types = {t.name: t.data_type for t in pruned.graph.initializer}
    expected = getattr(TensorProto, kind.upper())
    slices = [node for node in pruned.graph.node if node.op_type == "Slice"]
    assert {types[name] for node in slices for name in node.input[1:]} == {expected}


def test_a_cut_model_that_does_not_run_is_refused() -> None:
    net = Net(1, 3, 8, 8)
    trace = rlprune.trace(net.model(net.head(net.add("Relu", net.conv("x", 3, 8)), 8)))
    run_once(trace, trace.model)
    other = onnx.ModelProto()
    other.CopyFrom(trace.model)
    other.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, [1, 3, 4, 4]))
    with pytest.raises(ModelError, match="does not run"):
        run_once(trace, other)


@pytest.mark.parametrize("name", ["fpn", "tokens", "rows"])
def test_a_skeleton_is_traced_and_measured_at_the_sizes_given(name: str) -> None:
    net = NETS[name]
    size = (4, *net.build()[1][0].shape[1:])
    trace = rlprune.trace(older(net), input_shapes={"x": size})
    skeleton = strip(trace.model)
    assert trace_onnx(parse(skeleton)).graph.fingerprint == trace.graph.fingerprint
    assert model_batch(parse(skeleton)) == 4
    keeps = tuple(int(width) for width in np.maximum(1, trace.graph.widths // 2))
    measured = skeleton_models(lambda _: skeleton)(ModelSubject(trace.graph.fingerprint, keeps))
    dims = measured.graph.input[0].type.tensor_type.shape.dim
    assert tuple(dim.dim_value for dim in dims) == size
    assert len(run(measured, [np.zeros(size, dtype=np.float32)])) == len(measured.graph.output)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_a_cut_keeps_the_float_type_of_the_file(kind: type) -> None:
    net = Net("n", 3, 8, 8)
    model = net.model(net.head(net.add("Relu", net.conv("x", 3, 16)), 16))
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(kind)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = elem
    plan = rlprune.plan(model, device="macs", budget_ratio=0.5, round_to=1, policy="knapsack")
    pruned = rlprune.apply(plan, model)
    onnx.checker.check_model(pruned, full_check=True)
    assert {tensor.data_type for tensor in pruned.graph.initializer} == {elem}
    ends = (*pruned.graph.input, *pruned.graph.output)
    assert {value.type.tensor_type.elem_type for value in ends} == {elem}
