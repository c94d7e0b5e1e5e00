"""Made-up inputs fit every graph input, and their scale is found from the first layer."""

from __future__ import annotations

from itertools import islice

import numpy as np
import onnx
import pytest
from calibrated import traced
from onnx import TensorProto, helper, numpy_helper

from rlprune.graph.from_onnx import trace_onnx
from rlprune.runtime import get_runtime
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.evaluate import Evaluator
from rlprune.sensitivity.made_up import PIXEL_SCALES, made_up_inputs
from rlprune.sensitivity.scenes import random_scenes
from rlprune.sensitivity.sources import made_up_sets

RNG = np.random.default_rng(0)


def _net(scale_of_input: float, *, norm: bool, layout: str = "nchw") -> onnx.ModelProto:
    """A convolution whose weights were trained on inputs of this deviation, and a second one."""
    first = RNG.standard_normal((16, 3, 3, 3)).astype(np.float32)
    first -= first.mean((1, 2, 3), keepdims=True)
    deviation = np.sqrt((first**2).sum((1, 2, 3))) * scale_of_input
    nodes = []
    weights = {"w2": RNG.standard_normal((8, 16, 3, 3)).astype(np.float32)}
    shape = ["n", 3, 32, 32] if layout == "nchw" else ["n", 32, 32, 3]
    source = "x"
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]))
        source = "t"
    if norm:
        weights |= {"w1": first, "g": np.ones(16, np.float32), "b": np.zeros(16, np.float32)}
        weights |= {"m": np.zeros(16, np.float32), "v": (deviation**2).astype(np.float32)}
        nodes.append(helper.make_node("Conv", [source, "w1"], ["c"], name="c1"))
        nodes.append(helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["a"]))
    else:
        weights["w1"] = first / deviation[:, None, None, None].astype(np.float32)
        nodes.append(helper.make_node("Conv", [source, "w1"], ["a"], name="c1"))
    nodes.append(helper.make_node("Relu", ["a"], ["r"]))
    nodes.append(helper.make_node("Conv", ["r", "w2"], ["z"], name="c2"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 8, 28, 28])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_the_scale_of_pixels_is_found_from_the_first_layer(norm: bool, layout: str) -> None:
    pixels = random_scenes(64, 32, 32, np.random.default_rng(1)).astype(np.float64)
    # What a random zero-sum filter answers depends on how neighbours differ, not on the mean.
    within = np.sqrt(np.mean([p.reshape(-1, 3).var(0).sum() for p in pixels]) / 3)
    for scale in (scale for scale in PIXEL_SCALES if len(scale.mean) == 1):
        trace = trace_onnx(_net(float(within * scale.factor), norm=norm, layout=layout))
        made = made_up_inputs(trace, 32, runtime=get_runtime())
        spread = float(made.arrays["x"].std())
        wanted = float(pixels.std() * scale.factor)
        assert 1 / 3 < spread / wanted < 3, (scale.name, made.kind)
    assert made.arrays["x"].shape == ((32, 3, 32, 32) if layout == "nchw" else (32, 32, 32, 3))


def test_the_same_seed_gives_the_same_inputs_and_another_others() -> None:
    trace = trace_onnx(_net(1.0, norm=True))
    first, again, other = (made_up_inputs(trace, 8, seed=seed).arrays["x"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_every_input_of_every_type_gets_values_it_can_take() -> None:
    table = RNG.standard_normal((11, 4)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["m", "last"], ["mm"]),
            helper.make_node("Mul", ["e", "mm"], ["masked"]),
            helper.make_node("ReduceMean", ["state"], ["s"], keepdims=0),
            helper.make_node("Add", ["masked", "s"], ["sum"]),
            helper.make_node("MatMul", ["sum", "w"], ["z"]),
        ],
        "net",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 6]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, ["n", 6]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT16, [2, 1, 5]),
        ],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 6, 3])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(RNG.standard_normal((4, 3)).astype(np.float32), "w"),
        ],
    )
    graph.node[4].output[0] = "s16"
    graph.node.insert(5, helper.make_node("Cast", ["s16"], ["s"], to=TensorProto.FLOAT))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made = made_up_inputs(trace_onnx(model), 40)
    ids, mask, state = (made.arrays[name] for name in ("ids", "mask", "state"))
    assert ids.dtype == np.int64 and ids.shape == (40, 6) and ids.min() >= 0 and ids.max() == 10
    assert mask.dtype == np.bool_ and mask.all()
    assert state.dtype == np.float16 and state.shape == (40, 2, 1, 5)


def test_a_classifiers_inputs_are_of_all_classes_that_it_sees() -> None:
    trace = traced("vgg_view")
    [plain] = islice(made_up_sets(trace, get_runtime(), choose=False), 1)
    [chosen] = islice(made_up_sets(trace, get_runtime()), 1)
    assert len(plain) == len(chosen) == 1152

    def of_rare_classes(samples: CalibrationSet) -> int:
        """How many are of another class than the commonest."""
        judge = Evaluator(trace, samples, runtime=get_runtime(), reconstruct=False)
        classes = judge.top_classes()
        assert classes is not None
        return len(classes) - int(np.bincount(classes).max())

    assert of_rare_classes(chosen) > 1.5 * of_rare_classes(plain) > 0
    [again] = islice(made_up_sets(trace, get_runtime()), 1)
    assert again.digest == chosen.digest
