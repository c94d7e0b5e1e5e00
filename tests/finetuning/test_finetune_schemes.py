"""Fine-tuning starts from all that a plan takes out: channels, taps of kernels, blocks."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from torch_parts import Head, conv_bn, randomise

import rlprune
from rlprune.finetuning.loop import TrainConfig
from rlprune.graph.from_onnx import trace_onnx
from rlprune.runtime import get_runtime


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(width, width, 5), conv_bn(width, width, act=False))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.act(x + self.body(x)))


def residual(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(conv_bn(1, 8), *(Block(8) for _ in range(4)), Head(8))
    randomise(module)
    return module


def test_finetune_carries_out_every_scheme_and_its_weights_load_into_the_same_plan(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((96, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "train.npz", x=x, y=rng.integers(10, size=96))
    module, example = residual(0), torch.from_numpy(x[:1])
    plan = rlprune.plan(
        module,
        example_inputs=example,
        device="macs",
        budget_ratio=0.04,
        min_keep_ratio=0.6,
        schemes="channels,shapes,blocks",
    )
    left = {entry.scheme for entry in plan.groups if entry.keep != entry.width}
    assert left == {"channel", "shape", "block"}

    report = rlprune.finetune(
        module,
        plan,
        tmp_path / "train.npz",
        out=tmp_path / "tuned",
        config=TrainConfig(epoch_count=1, batch_size=16),
    )

    assert (report.macs, report.params) == (plan.macs, plan.params)
    tuned = trace_onnx(tmp_path / "tuned" / "model.onnx", input_shapes={"input.1": [1, 1, 8, 8]})
    assert tuned.graph.macs(tuned.graph.widths) == plan.macs
    assert "Pad" not in {node.op_type for node in tuned.model.graph.node}
    other = rlprune.apply(plan, residual(1), example_inputs=example, calibration="none").eval()
    load_model(other, str(tmp_path / "tuned" / "weights.safetensors"))
    session = get_runtime().load((tmp_path / "tuned" / "model.onnx").read_bytes())
    [expected] = session.run({session.input_names[0]: x})
    with torch.no_grad():
        torch.testing.assert_close(other(torch.from_numpy(x)).numpy(), expected)
