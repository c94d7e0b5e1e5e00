"""A plan carried out: what is written runs, keeps its types, and says how far it moved."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from calibrated import own_images, single_outputs, traced
from onnx import TensorProto, helper, numpy_helper
from onnx_oracle import Net, numbers_in_weights
from small_onnx import small_onnx
from typer.testing import CliRunner

import rlprune
from rlprune.cli.app import app
from rlprune.errors import AccuracyWarning
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.runtime import get_runtime
from rlprune.schemes import removal_of
from rlprune.sensitivity.correct import Correction, carry_out, solve
from rlprune.sensitivity.divergence import judged_outputs
from rlprune.sensitivity.evaluate import Evaluator
from rlprune.sensitivity.fit import fit_inputs

RUNTIME = get_runtime()
RNG = np.random.default_rng(0)


def halved(trace: OnnxTrace) -> np.ndarray:
    return np.maximum(1, trace.graph.widths // 2)


def in_type(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """The model with its weights, input and output in another float type."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in made.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = kind
    del made.graph.value_info[:]
    return made


def with_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """float16 inside, float32 at both ends, as converters write it."""
    made = in_type(model, TensorProto.FLOAT16)
    graph = made.graph
    for value, name in ((graph.input[0], "half_in"), (graph.output[0], "half_out")):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            for names in (node.input, node.output):
                for place, own in enumerate(names):
                    if own == value.name:
                        names[place] = name
    inside = list(graph.node)
    del graph.node[:]
    cast_in = helper.make_node("Cast", [graph.input[0].name], ["half_in"], to=TensorProto.FLOAT16)
    cast_out = helper.make_node("Cast", ["half_out"], [graph.output[0].name], to=TensorProto.FLOAT)
    graph.node.extend([cast_in, *inside, cast_out])
    return made


@pytest.mark.parametrize("form", ["float16", "float16 inside", "bfloat16", "double", "float32"])
@pytest.mark.parametrize("given", [True, False])
def test_what_is_written_keeps_its_types_and_runs(form: str, given: bool) -> None:
    model = {
        "float16": lambda: in_type(small_onnx(), TensorProto.FLOAT16),
        "float16 inside": lambda: with_casts(small_onnx()),
        "bfloat16": lambda: in_type(small_onnx(), TensorProto.BFLOAT16),
        "double": lambda: in_type(small_onnx(), TensorProto.DOUBLE),
        "float32": small_onnx,
    }[form]()
    if form == "bfloat16":
        model.opset_import[0].version, model.ir_version = 22, 10
    trace = trace_onnx(model)
    x = RNG.standard_normal((48, 3, 16, 16)).astype(np.float32)
    found = carry_out(trace, halved(trace), {"x": x} if given else None)
    onnx.checker.check_model(found.model, full_check=True)
    if form not in ("double", "bfloat16"):  # ONNX Runtime has no such kernels
        session = ort.InferenceSession(found.model.SerializeToString())
        kind = np.float16 if form == "float16" else np.float32
        assert session.run(None, {"x": x[:1].astype(kind)})[0].dtype == kind
    before = {t.name: t.data_type for t in trace.model.graph.initializer}
    for tensor in found.model.graph.initializer:
        assert tensor.data_type == before.get(tensor.name, tensor.data_type)
    assert found.inputs and found.moved is not None
    cut_only = carry_out(trace, halved(trace), "none")
    assert not cut_only.inputs and cut_only.moved is not None
    if not given:  # on the same inputs
        assert found.moved.divergence < cut_only.moved.divergence


def test_a_weight_that_several_layers_share_stays_one_and_the_file_grows_by_nothing() -> None:
    net = Net(1, 3, 8, 8)
    x = net.conv("x", 3, 16, 3)
    weight, bias = net.weight(16, 16, 3, 3), net.weight(16)
    for _ in range(3):
        x = net.add("Relu", net.add("Conv", x, weight, bias, pads=[1] * 4))
    trace = trace_onnx(net.model(net.head(x, 16)))

    def count(model: onnx.ModelProto) -> int:
        return sum(int(np.prod(t.dims)) for t in model.graph.initializer)

    x = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    cut_only = carry_out(trace, halved(trace), "none").model
    for given in (None, x):
        full = carry_out(trace, halved(trace), given).model
        assert count(full) == count(cut_only) < count(trace.model)
        assert sum(weight in node.input for node in full.graph.node) == 3


@pytest.mark.parametrize("tail", ["Identity", "Reshape", "Squeeze", "Log", "spelt", "ArgMax"])
def test_a_softmax_is_seen_through_what_only_moves_its_answers(tail: str) -> None:
    ended = small_onnx()
    graph = ended.graph
    graph.node[-1].output[0] = "logits"
    output, opset = graph.output[0], ended.opset_import[0]
    opset.version = max(opset.version, 13)
    graph.initializer.append(numpy_helper.from_array(np.array([1, 10, 1]), "shape"))
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last"))
    extra = {
        "Identity": [helper.make_node("Identity", ["p"], [output.name])],
        "Reshape": [helper.make_node("Reshape", ["p", "shape"], [output.name])],
        "Squeeze": [
            helper.make_node("Unsqueeze", ["p", "last"], ["u"]),
            helper.make_node("Squeeze", ["u", "last"], [output.name]),
        ],
        "Log": [helper.make_node("Log", ["p"], [output.name])],
        "ArgMax": [helper.make_node("ArgMax", ["p"], [output.name], axis=1)],
    }
    if tail == "spelt":
        graph.node.extend(
            [
                helper.make_node("Exp", ["logits"], ["exp"]),
                helper.make_node("ReduceSum", ["exp", "last"], ["sum"]),
                helper.make_node("Div", ["exp", "sum"], [output.name]),
            ]
        )
    else:
        graph.node.append(helper.make_node("Softmax", ["logits"], ["p"], axis=1))
        graph.node.extend(extra[tail])
    kind = TensorProto.INT64 if tail == "ArgMax" else TensorProto.FLOAT
    shape = {"Reshape": (1, 10, 1), "ArgMax": (1, 1)}.get(tail, (1, 10))
    output.CopyFrom(helper.make_tensor_value_info(output.name, kind, shape))
    [judged] = judged_outputs(ended)
    assert judged.kind == "logits" and judged.tensor == "logits"
    plain, seen = trace_onnx(small_onnx()), trace_onnx(ended)
    x = RNG.standard_normal((32, 3, 16, 16)).astype(np.float32)
    wanted, found = (
        Evaluator(trace, fit_inputs({"x": x}, None, trace), runtime=RUNTIME).evaluate(halved(plain))
        for trace in (plain, seen)
    )
    assert found.divergence == pytest.approx(wanted.divergence, rel=1e-3)
    assert found.agreement == wanted.agreement


def two_outputs() -> OnnxTrace:
    """Boxes in pixels and scores between 0 and 1, and a class map."""
    net = Net("N", 3, 8, 8)
    body = net.add("Relu", net.conv("x", 3, 12, 3))
    model = net.model(net.head(net.conv(body, 12, 8, 1), 8))
    model.graph.node.extend(
        [
            helper.make_node("Conv", [body, "boxes.w"], ["boxes"]),
            helper.make_node("Conv", [body, "scores.w"], ["raw"]),
            helper.make_node("Sigmoid", ["raw"], ["scores"]),
        ]
    )
    for name, scale in (("boxes.w", 300.0), ("scores.w", 1.0)):
        weight = (scale * RNG.standard_normal((4, 12, 1, 1))).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
        made = name.removesuffix(".w")
        shape = ["N", 4, None, None]
        model.graph.output.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, shape))
    return trace_onnx(model)


def test_outputs_of_several_kinds_are_judged_each_by_its_own() -> None:
    trace = two_outputs()
    kinds = {one.output: one.kind for one in judged_outputs(trace.model)}
    assert kinds["boxes"] == "values" and kinds["scores"] == "sigmoid"
    found = carry_out(trace, halved(trace), RNG.standard_normal((40, 3, 8, 8)).astype(np.float32))
    assert found.moved is not None and 0.0 < found.moved.divergence < 10.0
    source = rlprune.CalibrationData("made-up", outputs=("boxes=values",))
    alone = carry_out(trace, halved(trace), source)
    assert alone.moved is not None and alone.moved.agreement is None


def test_states_lengths_and_rates_are_fed_by_name() -> None:
    """An image, a state with its batch on the second axis, and a rate without one."""
    net = Net("N", 3, 8, 8)
    body = net.add("Relu", net.conv("x", 3, 8, 3))
    model = net.model(net.head(net.conv(body, 8, 6, 1), 6))
    graph = model.graph
    last = graph.output[0].name
    graph.input.extend(
        [
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, "N", 4]),
            helper.make_tensor_value_info("sr", TensorProto.INT64, []),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Cast", ["sr"], ["rate"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["state", "rate"], ["next"]),
        ]
    )
    graph.output.append(helper.make_tensor_value_info("next", TensorProto.FLOAT, [2, "N", 4]))
    trace = trace_onnx(model, input_shapes={"state": (2, 1, 4)})
    x = RNG.standard_normal((32, 3, 8, 8)).astype(np.float32)
    state = RNG.standard_normal((2, 32, 4)).astype(np.float32)
    for given in (state, state.transpose(1, 0, 2)[:, :, None]):
        data = {"x": x, "state": given, "sr": np.array(16000)}
        samples = fit_inputs(data, None, trace)
        assert len(samples) == 32 and samples.parts[0].arrays["state"].shape == (32, 2, 4)
        found = carry_out(trace, halved(trace), data)
        assert found.moved is not None and found.inputs
    with pytest.raises(rlprune.errors.CalibrationError, match="no 'state'"):
        fit_inputs({"x": x}, None, trace)
    assert last in {value.name for value in found.model.graph.output}


def test_python_arrays_pairs_and_loaders_and_the_result_told(tmp_path: Path) -> None:
    model = small_onnx()
    plan = rlprune.plan(model, budget_ratio=0.5, device="macs")
    x = RNG.standard_normal((64, 3, 16, 16)).astype(np.float32)
    told: list[Correction] = []
    whole = rlprune.apply(plan, model, calibration=x, on_result=told.append)
    np.save(tmp_path / "x.npy", x)
    for source in ({"x": x}, (x, np.zeros(64, np.int64)), [x[:32], x[32:]], tmp_path / "x.npy"):
        assert rlprune.apply(plan, model, calibration=source) == whole
    assert told[0].moved is not None and told[0].inputs == "64 given inputs"


def test_who_asks_for_no_result_is_warned_where_answers_moved_a_lot() -> None:
    model = small_onnx()
    plan = rlprune.plan(model, budget_ratio=0.2, device="macs")
    with pytest.warns(AccuracyWarning, match=r"^the answers moved a lot \(.*; give inputs"):
        rlprune.apply(plan, model, calibration="none")


def test_where_no_runtime_is_installed_a_model_is_only_cut_and_the_cost_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = small_onnx()
    plan = rlprune.plan(model, budget_ratio=0.5, device="macs")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "rlprune.runtime.ort")
    said = r"^only cut, which costs most of the accuracy: to reconstruct, .*rlprune\[.*\]"
    with pytest.warns(AccuracyWarning, match=said):
        written = rlprune.apply(plan, model)
    assert isinstance(written, onnx.ModelProto)
    assert numbers_in_weights(written) == plan.params
    onnx.save(model, tmp_path / "m.onnx")
    plan.save(tmp_path / "p.json")
    arguments = ["apply", str(tmp_path / "p.json"), str(tmp_path / "m.onnx"), "-o"]
    found = CliRunner().invoke(app, [*arguments, str(tmp_path / "s.onnx")])
    assert found.exit_code == 0 and found.stderr.count("warning: only cut, which costs") == 1
    assert onnx.load(tmp_path / "s.onnx").graph == written.graph


def attention_like() -> onnx.ModelProto:
    """Linear layers of a sequence with and without a bias behind, and a second Add."""
    net = Net(1, 8, 12)
    keys = net.add("MatMul", "x", net.weight(12, 16))
    x = net.add("Relu", net.add("Add", net.weight(16), keys))
    x = net.add("Relu", net.add("MatMul", x, net.weight(16, 20)))
    x = net.add("Add", net.add("MatMul", x, net.weight(20, 16)), net.weight(16))
    x = net.add("Relu", net.add("Add", x, net.weight(16)))
    return net.model(str(net.add("MatMul", x, net.weight(16, 5))))


@pytest.mark.parametrize("model", ["linear", "preact", "se_hardswish", "dense_concat"])
def test_what_is_written_has_exactly_the_parameters_that_the_plan_says(model: str) -> None:
    trace = trace_onnx(attention_like()) if model == "linear" else traced(model)
    plan = rlprune.plan(trace, budget_ratio=0.6, device="macs")
    told: list[Correction] = []
    written = rlprune.apply(plan, trace, on_result=told.append)
    assert isinstance(written, onnx.ModelProto)
    assert told[0].inputs and numbers_in_weights(written) == plan.params


def test_solved_on_made_up_inputs_answers_vary_nearly_as_before() -> None:
    """Least squares alone leaves them paler, the more so the fewer channels stay."""
    trace = traced("vgg_view")
    given = own_images(trace, 192)
    removal = removal_of(trace, np.maximum(1, trace.graph.widths // 4))
    dense = single_outputs(trace.model, given.x).std(0)  # [classes]
    shares = {}
    for made_up in (False, True):
        samples = replace(given, made_up=made_up)
        model = solve(trace, removal, samples, RUNTIME).model
        shares[made_up] = float((single_outputs(model, given.x).std(0) / dense).mean())
    assert shares[False] < 0.9
    assert shares[False] + 0.05 < shares[True] < 1.1
