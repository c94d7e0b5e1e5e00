"""Structures from public bug reports of other pruners, cut as torch modules.

Each net's pruned module runs, computes what its pruned ONNX twin does, trains a step, and exports
again to the graph that its own trace shows.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import onnx_oracle as oracle
import pytest
import torch
import torch.nn.functional as F
from architectures_recurrent import Keywords, Recogniser
from exports import older_export
from torch import Tensor, nn
from torch_parts import randomise

import rlprune
from rlprune.errors import ModelError
from rlprune.graph import torch_export
from rlprune.graph.from_torch import TorchTrace, trace_torch
from rlprune.graph.torch_call import tensors_in
from rlprune.graph.torch_export import Exporter
from rlprune.surgery.onnx import prune_onnx
from rlprune.surgery.torch import prune_torch


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class GroupedQuery(nn.Module):
    """RMSNorm, then 4 heads of queries over 2 of keys and values (`enable_gqa`), then a gated FFN;
    only the newer exporter knows the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.then = nn.RMSNorm(24), nn.RMSNorm(24)
        self.q, self.k, self.v = nn.Linear(24, 32), nn.Linear(24, 16), nn.Linear(24, 16)
        self.o = nn.Linear(32, 24)
        self.gate, self.up = nn.Linear(24, 40, bias=False), nn.Linear(24, 40, bias=False)
        self.down, self.fc = nn.Linear(40, 24, bias=False), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        y = self.norm(x)
        q, k, v = (f(y).view(b, s, -1, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(b, s, -1))
        y = self.then(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        result: Tensor = self.fc(x.mean(1))
        return result


class OwnGroups(nn.Module):
    """Every channel normalised by itself, as wav2vec 2.0 begins: with a scale, without, in code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv1d(1, 24, 5, 2, bias=False), nn.GroupNorm(24, 24)
        self.b, self.bare = nn.Conv1d(24, 16, 3), nn.GroupNorm(16, 16, affine=False)
        self.c, self.d = nn.Conv1d(16, 20, 1), nn.Conv1d(20, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm(self.a(x)))
        x = F.gelu(self.bare(self.b(x)))
        result: Tensor = self.d(F.group_norm(self.c(x), 20))
        return result


class PartialConv(nn.Module):
    """FasterNet's: a convolution over a quarter of the channels, which it writes over in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dim = channels // 4
        self.conv = nn.Conv2d(self.dim, self.dim, 3, padding=1, bias=False)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.project = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, : self.dim] = self.conv(x[:, : self.dim])
        result: Tensor = x + self.project(torch.relu(self.expand(y)))
        return result


class Split(nn.Module):
    """FasterNet's other kind: its `dim` looks like a width of the layer that is cut."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.dim, self.rest = channels // 4, channels - channels // 4
        self.conv = nn.Conv2d(self.dim, self.dim, 3, padding=1)
        self.out = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, [self.dim, self.rest], 1)
        result: Tensor = self.out(torch.cat((self.conv(a), b), 1))
        return result


class Untraceable(nn.Module):
    """Code that torch.fx cannot follow, for what stands in for a tensor is none; no width in it."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"give a tensor, not {type(x).__name__}")
        return torch.tanh(x)


class Fasternet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 24, 3, padding=1), PartialConv(24)
        self.odd, self.two = Untraceable(), Split(24, 12)
        self.out = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(torch.relu(self.two(self.odd(self.one(self.stem(x))))))
        return result


class CrossAttention(nn.Module):
    """Packed projections over a stream that is held and a memory whose layer is cut; keys and
    values from different layers; all three from a layer that is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.norm = nn.Linear(6, 32), nn.LayerNorm(32)
        self.memory, self.values = nn.Linear(5, 32), nn.Linear(5, 32)
        self.first = nn.MultiheadAttention(32, 4, batch_first=True)
        self.second = nn.MultiheadAttention(32, 2, batch_first=True)
        self.third = nn.MultiheadAttention(32, 4, batch_first=True, bias=False)
        self.fc = nn.Linear(32, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = self.norm(self.query(x))
        keys, values = torch.relu(self.memory(memory)), torch.relu(self.values(memory))
        x = x + self.first(x, keys, keys)[0]
        x = x + self.second(x, keys, values)[0]
        x = x + self.third(keys, keys, keys)[0].mean(1, keepdim=True)
        result: Tensor = self.fc(x)
        return result


class Decoder(nn.Module):
    """Whisper's shape: a decoder layer over what an encoder that is cut gives."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Linear(6, 32), nn.Linear(5, 32)
        self.layer = nn.TransformerDecoderLayer(32, 4, 48, batch_first=True)
        self.fc = nn.Linear(32, 3)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        memory = torch.relu(self.encoder(memory))
        result: Tensor = self.fc(self.layer(self.embed(x), memory))
        return result


class LocalResponse(nn.Module):
    """AlexNet's: the older exporter writes a branch on a rank that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3), nn.LocalResponseNorm(3)
        self.b, self.c = nn.Conv2d(16, 24, 3), nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.c(torch.relu(self.b(self.norm(torch.relu(self.a(x))))))
        return result


Made = tuple[nn.Module, tuple[Tensor, ...]]
NETS: dict[str, Callable[[], Made]] = {
    "grouped_query": lambda: (GroupedQuery(), (noise(2, 6, 24),)),
    "own_groups": lambda: (OwnGroups(), (noise(2, 1, 40),)),
    "fasternet": lambda: (Fasternet(), (noise(2, 3, 8, 8),)),
    "cross_attention": lambda: (CrossAttention(), (noise(1, 7, 6), noise(1, 9, 5))),
    "decoder": lambda: (Decoder(), (noise(2, 7, 6), noise(2, 9, 5))),
    "local_response": lambda: (LocalResponse(), (noise(2, 3, 10, 10),)),
    "recogniser": lambda: (Recogniser(), (noise(1, 3, 16, 16),)),
    "keywords": lambda: (Keywords(), (noise(1, 12, 10),)),
}
PRUNABLE = {
    "recogniser": 0.3,
    "keywords": 0.25,
    "grouped_query": 0.7,
    "own_groups": 0.95,
    "fasternet": 0.6,
    "cross_attention": 0.8,
    "decoder": 0.6,
    "local_response": 0.6,
}
"""Least share of the MACs that goes when every group keeps one unit."""


def made(name: str) -> Made:
    torch.manual_seed(0)
    module, inputs = NETS[name]()
    randomise(module)
    return module.eval(), inputs


def share(trace: TorchTrace) -> float:
    graph = trace.graph
    ones = np.ones_like(graph.widths)
    return 1 - float(graph.macs(ones)) / float(graph.macs(graph.widths))


@pytest.mark.parametrize("name", list(NETS))
def test_pruned_module_equals_its_onnx_twin_trains_and_is_traced_again(name: str) -> None:
    module, inputs = made(name)
    trace = trace_torch(module, inputs)
    assert share(trace) >= PRUNABLE[name]
    widths = trace.graph.widths
    for keeps in (np.maximum(1, widths // 2), np.ones_like(widths)):
        small = prune_torch(trace, keeps)
        twin = prune_onnx(trace.onnx, keeps)
        with torch.no_grad():
            ours = [tensor.numpy() for tensor in tensors_in(small(*inputs))]
        theirs = oracle.run(twin, [tensor.numpy() for tensor in inputs])
        assert oracle.relative_error(ours, theirs) < 1e-4
    loss = torch.stack([t.square().mean() for t in tensors_in(small.train()(*inputs))]).sum()
    loss.backward()
    again = trace_torch(small.eval(), inputs)
    assert float(again.graph.macs(again.graph.widths)) == float(trace.graph.macs(keeps))


@pytest.mark.parametrize("name", ["recogniser", "keywords"])
def test_module_with_recurrent_layers_has_the_fingerprint_of_its_file(name: str) -> None:
    module, inputs = made(name)
    file = older_export(lambda: (module, inputs))
    own, other = trace_torch(module, inputs).graph, rlprune.trace(file).graph
    assert own.fingerprint == other.fingerprint
    assert own.widths.tolist() == other.widths.tolist() and len(own.groups) == 2
    plan = rlprune.plan(file, device="macs", budget_ratio=0.9)
    small = rlprune.apply(plan, module, example_inputs=inputs)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in module.parameters())


def test_what_the_older_exporter_refuses_the_newer_one_writes_under_the_modules_names() -> None:
    module, inputs = made("grouped_query")
    trace = trace_torch(module, inputs)
    assert trace.exporter is Exporter.NEWER
    names = {name for name, _ in module.named_parameters()}
    assert {member.tensor for group in trace.graph.groups for member in group.members} <= names


def test_what_the_older_exporter_takes_it_writes() -> None:
    module, inputs = made("own_groups")
    assert trace_torch(module, inputs).exporter is Exporter.OLDER


class Singular(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.linalg.eigvals(self.a(x).T @ self.a(x)).real
        result: Tensor = self.b(x)
        return result


def test_refusal_of_both_exporters_is_one_line_with_both_reasons() -> None:
    with pytest.raises(ModelError) as refused:
        trace_torch(Singular(), noise(3, 8))
    text = str(refused.value)
    assert "\n" not in text and "older exporter" in text and "newer one" in text
    assert text.count("linalg_eig") == 2


def test_without_onnxscript_the_refusal_says_what_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlprune.graph.from_torch.newer_exporter_missing", lambda: True)
    module, inputs = made("grouped_query")
    with pytest.raises(ModelError, match=r"rms_norm.*needs onnxscript: pip install \"rlprune"):
        trace_torch(module, inputs)


def test_standard_output_stays_clean_where_an_exporter_prints_its_graph(
    capfd: pytest.CaptureFixture[str],
) -> None:
    module, inputs = made("grouped_query")
    trace_torch(module, inputs)
    print("after")
    assert capfd.readouterr().out == "after\n"


def test_standard_output_comes_back_after_a_refusal(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), torch_export.silence():
        subprocess.run([sys.executable, "-c", "print('lost')"], check=True)
        raise RuntimeError
    subprocess.run([sys.executable, "-c", "print('found')"], check=True)
    assert capfd.readouterr().out == "found\n"


class WidthInCode(nn.Module):
    """What no attribute, number or size tells: a width that comes out of a string."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        gain = torch.linspace(0.5, 1.5, int("16"))
        result: Tensor = self.b(x * gain)
        return result


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 8), WidthInCode(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.inner(self.first(x)))
        return result


def test_refusal_to_cut_names_the_part_and_what_to_do() -> None:
    trace = rlprune.trace(Outer().eval(), noise(3, 6))
    assert isinstance(trace, TorchTrace)
    with pytest.raises(ModelError, match=r"'inner' \(WidthInCode\)") as refused:
        prune_torch(trace, np.maximum(1, trace.graph.widths // 2))
    assert "hold='inner.*'" in str(refused.value) and "\n" not in str(refused.value)
    plan = rlprune.plan(trace, device="macs", budget_ratio=1.0, hold="inner.*", round_to=1)
    small = rlprune.apply(plan, trace)
    assert isinstance(small, nn.Module)
    assert small.get_parameter("inner.a.weight").shape[0] == 16


def test_module_of_the_newer_exporter_is_planned_and_applied() -> None:
    module, inputs = made("grouped_query")
    plan = rlprune.plan(module, example_inputs=inputs, device="macs", budget_ratio=0.6, round_to=1)
    small = rlprune.apply(plan, module, example_inputs=inputs)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in module.parameters())
