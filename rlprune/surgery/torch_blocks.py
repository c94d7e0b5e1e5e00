"""Residual branches left out of a torch module, so that nothing of them is computed or kept.

The code of the module that adds a branch to its shortcut is followed by `torch.fx` (as
`surgery.torch_sites` does). The addition is the one without which just those tensors are unread
that the cut ONNX file does without, too. It gives way to its shortcut, and layers that nothing
reads any more go. Where nothing is left of a module it becomes an `nn.Identity`, otherwise a graph
module. Results are checked against the module with the branches' tensors zeroed, which knows
nothing of fx.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from rlprune.errors import ModelError
from rlprune.graph.from_torch import TorchTrace
from rlprune.graph.torch_call import Call, detached_copy, named_tensors, tensors_in
from rlprune.surgery.onnx import weights_read
from rlprune.surgery.torch_check import agree
from rlprune.surgery.torch_cut import Cut
from rlprune.surgery.torch_graph import graph_module
from rlprune.surgery.torch_layers import put
from rlprune.surgery.torch_sites import Sites, own_code, trace_sites

_ADDITIONS = ("add", "iadd", "add_")
_IDLE = ("relu", "relu_", "relu6", "abs", "abs_", "clamp", "clamp_", "hardtanh")
_IDLE_LAYERS = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class _Block:
    """One branch that goes."""

    name: str
    """Of the addition in the trace."""
    gone: frozenset[str]
    """The module's tensors that nothing reads without it."""
    idle: bool
    """Whether an activation behind the addition does nothing then."""


def leave_out(
    small: nn.Module, trace: TorchTrace, left_out: Mapping[str, int], cut: Cut, call: Call
) -> nn.Module:
    """`small`, cut from the traced module and in eval mode, without branches; it is changed.

    Raises:
        ModelError: one cannot be left out, by the name of its addition.
    """
    tensors = _Tensors(small, trace, cut)
    gone = tensors.gone(left_out)
    oracle = detached_copy(small)
    _zero(oracle, gone)
    with torch.no_grad():
        expected = [tensor.clone() for tensor in tensors_in(call.run(oracle))]
    del oracle
    blocks = list(_blocks(trace, left_out, tensors))
    sites = trace_sites(small, call, _may_add)
    found: dict[str, list[tuple[_Block, fx.Node, int]]] = {}
    for block in blocks:
        for path, graph in sites.graphs.items():
            if match := _addition(graph, small.get_submodule(path), path, block, tensors):
                found.setdefault(path, []).append((block, *match))
                break
        else:
            raise _refused(trace, block, sites)
    parts: dict[str, fx.GraphModule] = {}
    for path in sorted(found, key=lambda path: -path.count(".")):  # what is inside first
        parts[path] = _without(small.get_submodule(path), sites.graphs[path], found[path])
        small = put(small, path, parts[path])
    bare = [path for path, part in parts.items() if path and _gives_input(part.graph)]
    for path in bare:
        small = put(small, path, nn.Identity())
    _keep_dense(small)
    if not agree(small, expected, call):
        for path in bare:  # called with more than one argument, or asked for attributes
            small = put(small, path, parts[path])
        if not agree(small, expected, call):
            raise _refused(trace, blocks[0], sites)
    left = {name for name, _ in named_tensors(small)}
    for block in blocks:
        if block.gone & left:
            raise _refused(trace, block, sites)
    _allow_training(small, call)
    return small


class _Tensors:
    """Which of a module's tensors the trace reads, and does not without some branches."""

    def __init__(self, small: nn.Module, trace: TorchTrace, cut: Cut) -> None:
        self._trace = trace
        self.ids = {name: id(tensor) for name, tensor in named_tensors(small)}
        self._places = {name: {_base(p.tensor) for p in cut.places(name)} for name in self.ids}
        self._read = self._alive({})

    def _alive(self, left_out: Mapping[str, int]) -> set[str]:
        read = {_base(name) for name in weights_read(self._trace.onnx, left_out)}
        return {name for name, places in self._places.items() if places & read}

    def gone(self, left_out: Mapping[str, int]) -> frozenset[str]:
        """Names of those that nothing reads without branches."""
        return frozenset(self._read - self._alive(left_out))

    def same(self, names: Iterable[str], block: _Block) -> bool:
        """Whether a block is what these tensors are of; those that others share stay."""
        gone = {self.ids[name] for name in block.gone}
        alive = {self.ids[name] for name in self._read - block.gone}
        return {self.ids[name] for name in self._read.intersection(names)} - alive == gone


def _base(name: str) -> str:
    """The trace gives each reader of a vector its own, NAME#2 and on."""
    stem, _, number = name.rpartition("#")
    return stem if number.isdecimal() else name


def _blocks(trace: TorchTrace, left_out: Mapping[str, int], tensors: _Tensors) -> Iterator[_Block]:
    nodes = {node.name: node for node in trace.onnx.normal.nodes}
    for name, place in left_out.items():
        if nodes[name].op not in ("Add", "Sum"):
            continue  # the activation behind one
        sums = nodes[name].outputs
        idle = any(set(nodes[other].inputs) & set(sums) for other in left_out if other != name)
        yield _Block(name, tensors.gone({name: place}), idle)


def _zero(oracle: nn.Module, gone: frozenset[str]) -> None:
    """A branch whose tensors are zero adds nothing; in place."""
    with torch.no_grad():
        for name, tensor in named_tensors(oracle):
            owner = oracle.get_submodule(name.rpartition(".")[0])
            variance = isinstance(owner, _NormBase) and name.endswith("running_var")
            if name in gone and tensor.is_floating_point() and not variance:
                tensor.zero_()


def _may_add(part: nn.Module) -> bool:
    """Whether a module's code may add a branch to its shortcut."""
    return own_code(part) or isinstance(
        part, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer
    )


def _addition(
    graph: fx.Graph, part: nn.Module, path: str, block: _Block, tensors: _Tensors
) -> tuple[fx.Node, int] | None:
    """The addition that ends a block, and which argument is its shortcut; None where the graph has
    it not."""
    whole = _live(graph, {})
    used = set(_names(whole, part, path))
    if not used.issuperset(block.gone):
        return None
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method") or _name(node) not in _ADDITIONS:
            continue
        for place, shortcut in enumerate(node.args[:2]):
            if len(node.all_input_nodes) < 2 or not isinstance(shortcut, fx.Node):
                continue
            lost = used.difference(_names(_live(graph, {node: shortcut}), part, path))
            if lost and tensors.same(lost, block):
                return node, place
    return None


def _live(graph: fx.Graph, stands_for: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
    """The nodes that the output is made of, some nodes being others."""
    live: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        while waiting:
            node = waiting.pop()
            node = stands_for.get(node, node)
            if node not in live:
                live.add(node)
                waiting += node.all_input_nodes
        # What writes into a value that is read.
        waiting = [
            node
            for node in graph.nodes
            if node not in live
            and node not in stands_for
            and _writes(node)
            and node.args
            and stands_for.get(node.args[0], node.args[0]) in live
        ]
    return live


def _writes(node: fx.Node) -> bool:
    name = _name(node)
    in_place = node.op == "call_method" and name.endswith("_") and not name.endswith("__")
    return name == "setitem" or in_place


def _names(nodes: Iterable[fx.Node], part: nn.Module, path: str) -> Iterator[str]:
    """The tensors, by full name, of the layers and attributes that nodes use."""
    prefix = f"{path}." if path else ""
    for node in nodes:
        if node.op == "call_module":
            for name, _ in named_tensors(part.get_submodule(str(node.target))):
                yield f"{prefix}{node.target}.{name}"
        elif node.op == "get_attr":
            yield f"{prefix}{node.target}"


def _without(
    part: nn.Module, graph: fx.Graph, blocks: list[tuple[_Block, fx.Node, int]]
) -> fx.GraphModule:
    """The part with its additions replaced by their shortcuts, and without what nothing reads."""
    before = _targets(graph)
    for block, node, place in blocks:
        shortcut = node.args[place]  # another one than was found, if that was an addition that went
        assert isinstance(shortcut, fx.Node)
        for user in list(node.users):
            if block.idle and _is_idle(user, part):
                user.replace_all_uses_with(shortcut)
            else:
                _not_in_place(user, part)
        node.replace_all_uses_with(shortcut)
    live = _live(graph, {})
    for node in reversed(list(graph.nodes)):
        if node not in live and node.op != "placeholder":
            graph.erase_node(node)
    left = _targets(graph)
    result = graph_module(part, graph)
    for target in before:
        if not any(_within(one, target) or _within(target, one) for one in left):
            _remove(result, target)
    return result


def _targets(graph: fx.Graph) -> set[str]:
    """The layers and attributes that a graph uses."""
    return {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}


def _within(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.")


def _remove(part: nn.Module, target: str) -> None:
    path, _, name = target.rpartition(".")
    owner = part.get_submodule(path)
    for held in (owner._modules, owner._parameters, owner._buffers):
        held.pop(name, None)


def _is_idle(node: fx.Node, part: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(part.get_submodule(str(node.target)), _IDLE_LAYERS)
    return _name(node) in _IDLE


def _not_in_place(node: fx.Node, part: nn.Module) -> None:
    """What wrote into a sum must not write into its shortcut, which others may read."""
    if node.op == "call_module":
        layer = part.get_submodule(str(node.target))
        if hasattr(layer, "inplace"):
            vars(layer)["inplace"] = False
    elif node.kwargs.get("inplace"):
        node.update_kwarg("inplace", False)


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _gives_input(graph: fx.Graph) -> bool:
    """Whether all that is left of a graph is its first input."""
    first, *_ = graph.nodes
    output = next(node for node in graph.nodes if node.op == "output")
    return bool(first.op == "placeholder" and output.args == (first,))


def _keep_dense(small: nn.Module) -> None:
    """torch's encoder packs padded rows for layers of its own class alone; in place."""
    for part in small.modules():
        if isinstance(part, nn.TransformerEncoder) and not all(
            isinstance(layer, nn.TransformerEncoderLayer) for layer in part.layers
        ):
            part.use_nested_tensor = False


def _allow_training(small: nn.Module, call: Call) -> None:
    """Makes activations that write over what another one gave give new tensors, where gradients
    need the old; in place. A shortcut may lead from one such activation to the next."""
    parameters = [one for one in small.parameters() if one.requires_grad]
    if not parameters:
        return
    try:
        with torch.enable_grad(), redirect_stderr(StringIO()):
            total = sum(
                (one.sum() for one in tensors_in(call.run(small)) if one.requires_grad),
                start=torch.zeros(()),
            )
            torch.autograd.grad(total, parameters, allow_unused=True)
    except RuntimeError:
        for part in small.modules():
            if getattr(part, "inplace", False) is True:
                vars(part)["inplace"] = False


def _refused(trace: TorchTrace, block: _Block, sites: Sites) -> ModelError:
    why = ""
    if sites.refused:
        path, reason = next(iter(sites.refused.items()))
        why = f" (torch.fx cannot trace {path or 'the module itself'!r}: {reason})"
    return ModelError(
        f"module {type(trace.module).__name__}: block {block.name!r} cannot be left out, its code "
        f"cannot be rewritten{why}; hold it (hold={block.name!r}), or prune the ONNX export instead"
    )
