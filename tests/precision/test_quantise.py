"""int8: what is quantised, how near its answers stay, and that nothing else happens."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_nets import conv_net
from small_onnx import small_onnx

import rlprune
from rlprune.constraints import float_nodes
from rlprune.errors import InputError, ModelError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.precision import is_quantised, quantised, with_made_up_scales
from rlprune.runtime import get_runtime

RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 3, 16, 16)).astype(np.float32)
FEEDS = [{"x": one[None]} for one in X]


def answers(model: onnx.ModelProto, runtime: str = "ort") -> np.ndarray:
    session = get_runtime(runtime).load(model.SerializeToString())
    return np.concatenate([np.array(session.run(fed)[0]) for fed in FEEDS])


def float_weights(model: onnx.ModelProto) -> set[str]:
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    large = {tensor.name for tensor in model.graph.initializer if np.prod(tensor.dims) > 64}
    return {name for name in large if kinds[name] == onnx.TensorProto.FLOAT}


def with_batch_norm() -> onnx.ModelProto:
    """As exported in training mode: the BatchNorm is still there."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, bias=False),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(1),
        torch.nn.Linear(16, 10),
    ).eval()
    file = io.BytesIO()
    how = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, torch.zeros(1, 3, 16, 16), file, dynamo=False, input_names=["x"], **how
        )
    return onnx.load_model_from_string(file.getvalue())


@pytest.mark.parametrize("runtime", ["ort", "openvino"])
@pytest.mark.parametrize("make", [small_onnx, with_batch_norm, lambda: conv_net((16, 32))])
def test_answers_stay_within_a_few_per_cent_of_their_spread(make, runtime: str) -> None:
    model = make()
    made = quantised(model, FEEDS)
    before, after = answers(model), answers(made, runtime)
    assert np.abs(after - before).max() < 0.06 * np.ptp(before)
    assert not float_weights(made)
    onnx.checker.check_model(made)
    assert {one.domain for one in made.opset_import} == {""}


def test_weights_have_a_scale_per_channel_and_activations_are_unsigned() -> None:
    made = quantised(small_onnx(), FEEDS)
    kept = {tensor.name: tensor for tensor in made.graph.initializer}
    assert list(kept["w1_scale"].dims) == [32]
    assert kept["w1_quantized"].data_type == onnx.TensorProto.INT8
    assert kept["x_zero_point"].data_type == onnx.TensorProto.UINT8
    assert not onnx.numpy_helper.to_array(kept["w1_zero_point"]).any()


def test_made_up_scales_need_no_data_and_give_the_same_operators() -> None:
    made, real = with_made_up_scales(small_onnx()), quantised(small_onnx(), FEEDS)
    assert [node.op_type for node in made.graph.node] == [node.op_type for node in real.graph.node]
    assert made == with_made_up_scales(small_onnx())
    assert np.isfinite(answers(made)).all()


def test_what_is_named_stays_in_float() -> None:
    trace = trace_onnx(small_onnx())
    for pattern in ("conv2", "w2", "con?2"):
        kept = float_nodes(trace.graph, [pattern])
        made = quantised(trace.model, FEEDS, keep_float=kept)
        assert float_weights(made) == {"w2"}, pattern


def test_what_the_optimiser_fuses_is_found_by_its_old_name() -> None:
    model = with_batch_norm()
    [conv] = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert float_weights(quantised(model, FEEDS, keep_float=[conv]))


def test_a_pattern_that_matches_nothing_is_refused_with_near_names() -> None:
    with pytest.raises(InputError, match=r"matches no layer; near names: .*conv1") as refused:
        rlprune.quantize(small_onnx(), calibration={"x": X}, keep_float=["convv1"])
    assert refused.value.field == "keep_float"


def test_the_model_and_the_process_are_left_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = small_onnx()
    before, handlers = model.SerializeToString(), list(logging.root.handlers)
    quantised(model, FEEDS)
    assert model.SerializeToString() == before
    assert logging.root.handlers == handlers and logging.root.manager.disable == 0
    assert not any(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_what_onnxruntime_refuses_is_refused_in_one_line() -> None:
    model = small_onnx()
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="cannot be quantised") as refused:
        with_made_up_scales(model)
    assert "\n" not in str(refused.value)


def test_quantize_tells_how_far_answers_moved_and_refuses_what_is_quantised() -> None:
    told = []
    made = rlprune.quantize(small_onnx(), calibration={"x": X}, on_result=told.append)
    assert is_quantised(made)
    assert told[0].quantised.divergence < 0.05 and told[0].quantised.agreement > 0.8
    with pytest.raises(InputError, match="quantised already"):
        rlprune.quantize(made, calibration={"x": X})


def test_without_data_scales_come_from_made_up_inputs() -> None:
    told = []
    assert is_quantised(rlprune.quantize(small_onnx(), on_result=told.append))
    assert told[0].quantised is not None
    with pytest.raises(InputError, match="int8 needs weights, and inputs"):
        rlprune.quantize(small_onnx(), calibration="none")
