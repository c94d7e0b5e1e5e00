"""`--input-value`, and outputs that would replace a model's external data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import Rlprune, answer, refusal
from onnx import TensorProto, helper
from onnx_oracle import Net, run
from small_onnx import small_onnx

MACS = ("--budget-ratio", 0.5, "--device", "macs", "--policy", "knapsack", "--round-to", 1)


def by_rate() -> onnx.ModelProto:
    """A network whose end depends on the graph input `sr`."""
    net = Net(1, 3, 8, 8)
    x = net.add("Relu", net.conv("x", 3, 16))
    x = net.add("Relu", net.conv(x, 16, 24))
    bodies = [
        helper.make_graph(
            [helper.make_node("Mul" if loud else "Add", [x, x], ["z"])],
            "body",
            [],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        )
        for loud in (True, False)
    ]
    condition = net.add("Equal", "sr", net.constant(np.int64(16000), np.int64))
    x = net.add("If", condition, then_branch=bodies[0], else_branch=bodies[1])
    model = net.model(net.head(net.conv(x, 24, 12), 12))
    model.graph.input.append(helper.make_tensor_value_info("sr", TensorProto.INT64, [1]))
    return model


def test_trace_plan_apply_and_measure_take_an_input_value(rlprune: Rlprune, folder: Path) -> None:
    onnx.save(by_rate(), "rate.onnx")
    given = ("--input-value", "sr=16000")
    assert len(answer(rlprune("trace", "rate.onnx", *given, "--json"))["groups"]) == 3
    stays = rlprune("trace", "rate.onnx").stdout
    assert "sr=VALUE" in stays and "conv1" not in stays
    partly = rlprune("plan", "rate.onnx", *MACS, "-o", "partly.json", "--json")
    assert "sr=VALUE" in partly.stderr and "not counted" in partly.stderr
    answer(rlprune("plan", "rate.onnx", *given, *MACS, "-o", "plan.json", "--json"))
    done = rlprune("apply", "plan.json", "rate.onnx", *given, "-o", "small.onnx")
    assert done.exit_code == 0, done.output
    small = onnx.load("small.onnx")
    assert [value.name for value in small.graph.input] == ["x"]
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    assert run(small, [image])[0].shape == (1, 10)
    rows = answer(rlprune("measure", "rate.onnx", *given, "--json"))["models"]
    assert rows[0]["status"] != "failed", rows


@pytest.mark.parametrize(
    ("value", "word"),
    [("sr", "no NAME=VALUE"), ("sr=fast", "no number"), ("=3", "no NAME=VALUE")],
)
def test_a_value_that_is_none_is_refused(
    rlprune: Rlprune, folder: Path, value: str, word: str
) -> None:
    onnx.save(by_rate(), "rate.onnx")
    result = rlprune("trace", "rate.onnx", "--input-value", value)
    assert result.exit_code == 2 and word in " ".join(result.stderr.split())
    line = refusal(
        rlprune("trace", "rate.onnx", "--input-value", "sr=0.5"), folder, also=("rate.onnx",)
    )
    assert "'sr'" in line


def test_no_output_replaces_external_data(rlprune: Rlprune, folder: Path) -> None:
    made = small_onnx()
    onnx.save(made, "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    (folder / "link.data").symlink_to("e.data")
    (folder / "other").mkdir()
    (folder / "other" / "m.onnx").symlink_to("../e.onnx")
    before = Path("e.data").read_bytes()
    assert rlprune("plan", "e.onnx", *MACS, "-o", "plan.json").exit_code == 0
    also = ("e.onnx", "e.data", "link.data", "other")
    for output in ("e.data", "link.data", "other/../e.data"):
        for command in (
            ("plan", "e.onnx", *MACS, "-o", output),
            ("plan", "other/m.onnx", *MACS, "-o", output),
            ("apply", "plan.json", "e.onnx", "-o", output),
        ):
            line = refusal(rlprune(*command), folder, also=also)
            assert "is read by this command" in line
    assert Path("e.data").read_bytes() == before
