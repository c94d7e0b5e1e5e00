"""Every operator can be measured by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from rlprune.errors import InputError
from rlprune.latency.measure import random_inputs
from rlprune.latency.operators import (
    canary_model,
    operator_model,
)
from rlprune.latency.types import OperatorSpec
from rlprune.runtime import get_runtime

WINDOW = {"kernel": (3, 3), "stride": (2, 2), "pads": (1, 1, 1, 1), "dilation": (1, 1)}
SPECS = [
    (OperatorSpec("conv", "", 3, 16, (8, 8), (4, 4), **WINDOW), (1, 16, 4, 4)),
    (OperatorSpec("conv", "", 8, 16, (8, 8), (4, 4), **WINDOW, groups=4), (1, 16, 4, 4)),
    (OperatorSpec("conv", "", 8, 12, (9,), (9,), (3,), (1,), (1, 1), (1,)), (1, 12, 9)),
    (OperatorSpec("depthwise_conv", "", 8, 8, (8, 8), (4, 4), **WINDOW, groups=0), (1, 8, 4, 4)),
    (OperatorSpec("conv_transpose", "", 8, 4, (4, 4), (8, 8), (2, 2), (2, 2)), (1, 4, 8, 8)),
    (OperatorSpec("linear", "", 24, 10, (), ()), (1, 10)),
    (OperatorSpec("linear", "", 24, 10, (7,), (7,)), (1, 7, 10)),
    (OperatorSpec("matmul", "", 16, 7, (3, 7), (3, 7)), (1, 3, 7, 7)),
    (OperatorSpec("norm", "layer", 24, 24, (7,), (7,)), (1, 7, 24)),
    (OperatorSpec("norm", "batch", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
    (OperatorSpec("norm", "instance", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
    (OperatorSpec("activation", "relu6", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
    (OperatorSpec("activation", "silu", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
    (OperatorSpec("activation", "prelu", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
    (OperatorSpec("activation", "hardswish", 8, 8, (), ()), (1, 8)),
    (OperatorSpec("activation", "never heard of", 8, 8, (4,), (4,)), (1, 8, 4)),
    (OperatorSpec("add", "", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
    (OperatorSpec("mul", "", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
    (OperatorSpec("concat", "", 9, 9, (4, 4), (4, 4)), (1, 9, 4, 4)),
    (OperatorSpec("concat", "", 1, 1, (4, 4), (4, 4)), (1, 1, 4, 4)),
    (OperatorSpec("pool", "max", 8, 8, (8, 8), (4, 4), **WINDOW), (1, 8, 4, 4)),
    (OperatorSpec("pool", "average", 8, 8, (8,), (4,), (2,), (2,)), (1, 8, 4)),
    (OperatorSpec("global_pool", "average", 8, 8, (4, 4), ()), (1, 8, 1, 1)),
    (OperatorSpec("pad", "", 8, 20, (4, 4), (5, 4)), (1, 20, 5, 4)),
    (OperatorSpec("slice", "", 8, 8, (9, 8), (5, 4)), (1, 8, 5, 4)),
    (OperatorSpec("slice", "", 16, 6, (4, 4), (4, 4)), (1, 6, 4, 4)),
    (OperatorSpec("resize", "linear", 8, 8, (4, 4), (8, 8)), (1, 8, 8, 8)),
    (OperatorSpec("softmax", "", 8, 8, (4,), (4,)), (1, 4, 8)),
    (OperatorSpec("layout", "transpose", 8, 8, (4, 5), (4, 5)), (1, 4, 5, 8)),
    (OperatorSpec("kind of the future", "", 8, 8, (4, 4), (4, 4)), (1, 8, 4, 4)),
]


@pytest.mark.parametrize(("spec", "shape"), SPECS, ids=lambda value: getattr(value, "kind", ""))
def test_every_kind_makes_a_model_that_runs(spec: OperatorSpec, shape: tuple[int, ...]) -> None:
    model = operator_model(spec)
    onnx.checker.check_model(model)
    session = get_runtime().load(model.SerializeToString())
    (output,) = session.run(random_inputs(model))
    assert output.shape == shape
    assert np.all(np.isfinite(output))


def test_equal_specs_give_equal_models() -> None:
    spec = SPECS[0][0]
    assert operator_model(spec) == operator_model(replace(spec))
    assert canary_model() == canary_model()


def test_an_operators_key_is_canonical() -> None:
    spec = SPECS[0][0]
    assert OperatorSpec.from_key(spec.key()) == spec
    for damaged in ("", "{}", '{"kind": "conv"}', "[1]"):
        with pytest.raises(InputError):
            OperatorSpec.from_key(damaged)
