"""Our groups beside Torch-Pruning's, group for group; where they differ, why."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning
from topologies import TOPOLOGIES
from torch import Tensor, nn
from torch_nets import TRANSFORMERS, Plain, Separable, built

import rlprune

NETS = {
    "plain": lambda: built(Plain),
    "separable": lambda: built(Separable),
    **TOPOLOGIES,
    **TRANSFORMERS,
}
SAME = (
    *("plain", "separable", "vgg_flatten", "vgg_view", "resnet_b", "mobilenet_v2", "dense_concat"),
    *("se_sigmoid", "se_hardswish", "se_linear", "grouped_conv", "inception", "keywords_1d"),
    *("unet", "preact"),
)

Layer = tuple[str, str, int]
"""Module, `in` or `out`, and how many of its channels a group owns."""
Partition = set[frozenset[Layer]]


def per_group(part: nn.Module, side: str, count: int) -> int:
    """Channels as the weight lists them: a grouped convolution reads so many per group."""
    groups = getattr(part, "groups", 1)
    return count // groups if side == "in" and count >= groups > 1 else count


class TorchPruning:
    """Torch-Pruning's dependency graph of a copy of `module`."""

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.module = copy.deepcopy(module).requires_grad_(True)
        self.inputs = inputs
        self.names = {part: name for name, part in self.module.named_modules()}
        self.graph = torch_pruning.DependencyGraph().build_dependency(self.module, inputs)

    def groups(self) -> dict[frozenset[Layer], Any]:
        """Its groups but those of the last layer, whose outputs are the net's."""
        last = [p for p in self.module.modules() if isinstance(p, nn.Linear | nn.Conv2d)][-1:]
        roots = [nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear]
        found = {}
        for group in self.graph.get_all_groups(ignored_layers=last, root_module_types=roots):
            counts: dict[tuple[str, str], set[int]] = {}
            for dependency, indices in group:
                part = dependency.target.module
                if part not in self.names:
                    continue
                handler = dependency.handler.__name__
                side = "in" if "_in" in handler and "depthwise" not in handler else "out"
                counts.setdefault((self.names[part], side), set()).update(indices)
            layers = frozenset(
                (name, side, per_group(self.module.get_submodule(name), side, len(own)))
                for (name, side), own in counts.items()
            )
            found[layers] = group
        return found

    def halve(self, layers: frozenset[Layer]) -> Tensor:
        """What the net computes without the first half of this group."""
        root = self.groups()[layers][0]
        half = list(range(len(root.idxs) // 2))
        self.graph.get_pruning_group(root.dep.target.module, root.dep.handler, half).prune()
        with torch.no_grad():
            output: Tensor = self.module(*self.inputs)
        return output


def theirs(name: str) -> Partition:
    module, inputs = NETS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return set(TorchPruning(module, inputs).groups())


def ours(name: str) -> tuple[Partition, Any]:
    module, inputs = NETS[name]()
    trace = rlprune.trace(module, inputs)
    partition = set()
    for group in trace.graph.groups:
        layers = set()
        for member in group.members:
            path, _, kind = member.tensor.rpartition(".")
            if kind == "weight":
                part = module.get_submodule(path)
                first = (member.axis == 0) != isinstance(part, nn.ConvTranspose2d)
                layers.add((path, "out" if first else "in", group.width * member.repeat))
        partition.add(frozenset(layers))
    return partition, trace


@pytest.mark.parametrize("name", SAME)
def test_groups_are_theirs(name: str) -> None:
    assert ours(name)[0] == theirs(name)


def has_norm(layers: frozenset[Layer]) -> bool:
    return any(".norm" in f".{name}" for name, _, _ in layers)


@pytest.mark.parametrize("name", ["vit_packed", "vit_separate", "convnext"])
def test_only_channels_under_layernorm_are_held_and_heads_are_whole(name: str) -> None:
    """Theirs cuts the stream too, which changes what LayerNorm computes of the channels left."""
    partition, trace = ours(name)
    others = theirs(name)
    assert partition <= others
    assert others - partition == {layers for layers in others if has_norm(layers)}
    assert {h.reason.split()[0] for h in trace.graph.held} == {"LayerNormalization", "graph"}
    # Torch-Pruning cuts single channels out of heads unless it is told num_heads.
    heads = [group.width for group in trace.graph.groups if "attention" in group.name]
    assert set(heads) <= {4}


@pytest.mark.parametrize(
    "name",
    [n for n in TRANSFORMERS if n.startswith(("vit_torch", "encoder"))],
)
def test_heads_of_torchs_attention_are_groups_of_ours_alone(name: str) -> None:
    """Theirs cuts `nn.MultiheadAttention` only together with the stream, under LayerNorm."""
    partition, trace = ours(name)
    others = theirs(name)
    heads = {layers for layers in partition if any("out_proj" in n for n, _, _ in layers)}
    mlps = {
        layers for layers in partition if any("mlp" in n or "linear" in n for n, _, _ in layers)
    }
    assert len(heads) == len(mlps) == 2 and mlps <= others
    assert all(g.width == 4 for g in trace.graph.groups if g.members[0].tensor.endswith("in_proj"))
    # The layer that makes keys and values is read by the attention alone; theirs ties it to the
    # stream, for it takes query, key and value to be one.
    assert all("widen" in str(layers) for layers in partition - others - heads)
    stream = others - partition
    assert all("attention" in str(layers) or "self_attn" in str(layers) for layers in stream)


def test_padded_shortcuts_offer_groups_of_ours_alone() -> None:
    """Theirs does not follow channels into a padded sum, and so holds two stages of three."""
    partition, others = ours("resnet_a")[0], theirs("resnet_a")
    assert others < partition
    assert len(partition - others) == 2


@pytest.mark.parametrize("name", ["c2f", "channel_slice"])
def test_groups_of_theirs_that_are_not_ours_break_the_net(name: str) -> None:
    """Slices and parts of channels."""
    partition = ours(name)[0]
    module, inputs = NETS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = [layers for layers in theirs(name) if layers not in partition]
        assert wrong
        for layers in wrong:
            with pytest.raises((RuntimeError, IndexError)):  # shapes that do not fit
                TorchPruning(module, inputs).halve(layers)


def test_a_depthwise_layer_of_two_outputs_per_input_ties_both_as_theirs_does_not() -> None:
    """Theirs takes inputs away alone, and the layer no longer fits what it reads."""
    partition, others = ours("depth_multiplier")[0], theirs("depth_multiplier")
    tied = {("stem.0", "out", 16), ("depth.0", "out", 32), ("point.0", "in", 32)}
    assert any(tied <= layers for layers in partition)
    module, inputs = NETS["depth_multiplier"]()
    alone = next(layers for layers in others if ("stem.0", "out", 16) in layers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError):
            TorchPruning(module, inputs).halve(alone)


def test_channel_shuffle_has_groups_where_theirs_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        theirs("channel_shuffle")
    partition, trace = ours("channel_shuffle")
    assert len(partition) == len(trace.graph.groups) > 0
    assert np.all(trace.graph.widths > 1)
