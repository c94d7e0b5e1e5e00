"""Widths written into a module's forward code, found and replaced through `torch.fx`.

The code is traced part by part (surgery.torch_sites). The net is then exported once more with every
value whose widths matter as an output, which tells the channels of exactly the values the fx graphs
compute; nothing is matched by order or by name of operator. Modules of which no number changes stay
what they are.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from rlprune.errors import ModelError
from rlprune.graph.channels import ChannelMap
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.from_torch import TorchTrace
from rlprune.graph.torch_call import tensors_in
from rlprune.graph.torch_export import export_onnx
from rlprune.graph.types import IntArray
from rlprune.surgery.torch_cut import Cut, kept_positions
from rlprune.surgery.torch_numbers import Widths, rewrite, subject
from rlprune.surgery.torch_sites import Sites, trace_sites


@dataclass(frozen=True)
class Rewritten:
    """What became of the code of a module's parts."""

    parts: dict[str, fx.GraphModule]
    """By path, code with other numbers; it holds the tensors and children, still of full size, of
    the part that it stands for."""
    followed: frozenset[str]
    """All paths whose code could be followed: those without a new part are right as they are."""
    refused: dict[str, str]
    """By path, why the code there could not be followed."""
    indices: set[str]
    """Names of index tensors, which have been replaced and are no longer to be cut."""


def rewrite_widths(module: nn.Module, trace: TorchTrace, cut: Cut) -> Rewritten:
    """For every part of `module` (in eval mode) with widths in its code, the code after the cut.

    Index tensors are replaced in `module`.

    Args:
        module: the traced one, or one that computes as it does and has its parts with code.

    Raises:
        ModelError: another graph than the traced one comes out.
    """
    sites = trace_sites(module, trace.call)
    names, channels = _watch(module, trace, sites)
    rewritten: dict[str, fx.GraphModule] = {}
    indices: set[str] = set()
    for path, graph in sites.graphs.items():
        part = module.get_submodule(path)
        widths = _SiteWidths(path, sites.shapes[path], names, channels, cut)
        changed, replaced = rewrite(part, graph, widths)
        indices.update(f"{path}.{name}" if path else name for name in replaced)
        if changed:
            rewritten[path] = graph_module(part, graph)
    return Rewritten(rewritten, frozenset(sites.graphs), sites.refused, indices)


def graph_module(part: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """`graph` as a module with all that `part` holds, the very same children and tensors."""
    if not any(node.op == "get_attr" and node.target == "training" for node in graph.nodes):
        # `torch.load` traces the code again, and not by our tracer. What asks for the mode when it
        # is run would be lost without a word, so that this is refused there.
        graph._tracer_cls = None
    for node in graph.nodes:
        node.type = None  # annotations, that may be strings, which cannot be saved
    result = fx.GraphModule(part, graph, type(part).__name__)
    constants = set(result._buffers) - set(part._buffers)
    for name in constants:
        part._buffers[name] = result._buffers[name]
    for name, value in part.__dict__.items():
        if name not in result.__dict__:
            result.__dict__[name] = value
    result._modules = part._modules
    result._parameters = part._parameters
    result._buffers = part._buffers
    result._non_persistent_buffers_set = part._non_persistent_buffers_set | constants
    result.training = part.training
    return result


class _SiteWidths(Widths):
    """Which positions stay of the values that one fx graph computes."""

    def __init__(
        self,
        path: str,
        shapes: dict[str, tuple[int, ...]],
        names: dict[tuple[str, str], str],
        channels: ChannelMap,
        cut: Cut,
    ) -> None:
        self._path = path
        self._shapes = shapes
        self._names = names
        self._channels = channels
        self._cut = cut

    def shape(self, node: object) -> tuple[int, ...] | None:
        return self._shapes.get(node.name) if isinstance(node, fx.Node) else None

    def kept(self, node: fx.Node, axis: int) -> IntArray:
        size = self._shapes[node.name][axis]
        if node.op == "get_attr":
            prefix = f"{self._path}." if self._path else ""
            group, unit = self._cut.units(f"{prefix}{node.target}", axis, size)
            return self._cut.stay(group, unit)
        name = self._names.get((self._path, node.name), "")
        return kept_positions(self._channels, name, axis, size, self._cut.form)


class _Noting(fx.Interpreter):
    """Runs a part's graph in place of its code and notes the values that are asked for."""

    def __init__(
        self, part: nn.Module, graph: fx.Graph, wanted: set[str], seen: dict[str, Tensor]
    ) -> None:
        super().__init__(part, graph=graph)
        self._wanted = wanted
        self._seen = seen

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self._wanted and isinstance(result, Tensor):
            self._seen.setdefault(n.name, result)
        return result


def _watch(
    module: nn.Module, trace: TorchTrace, sites: Sites
) -> tuple[dict[tuple[str, str], str], ChannelMap]:
    """Names of the values that decide about rewriting, by path and node, and the channel map."""
    wanted = {
        path: {
            node.name
            for node in map(subject, graph.nodes)
            if node is not None and node.op != "get_attr" and node.name in sites.shapes[path]
        }
        for path, graph in sites.graphs.items()
    }
    seen: dict[str, dict[str, Tensor]] = {path: {} for path in wanted}
    keys: list[list[tuple[str, str]]] = []  # of each output, all that it is called

    def prepare(twin: nn.Module) -> None:
        for path, graph in sites.graphs.items():
            part = twin.get_submodule(path)
            if wanted[path]:
                _lend_constants(module.get_submodule(path), part, graph)
                _run_noting(part, graph, wanted[path], seen[path])
        forward = twin.forward

        def with_notes(*args: Any, **kwargs: Any) -> tuple[tuple[Tensor, ...], Any]:
            for noted in seen.values():
                noted.clear()
            keys.clear()
            output = forward(*args, **kwargs)
            given = {id(tensor) for tensor in tensors_in([args, kwargs])}
            place: dict[int, int] = {}
            tensors: list[Tensor] = []
            for path, noted in seen.items():
                for name, tensor in noted.items():
                    if id(tensor) in given:
                        continue  # a graph input, of which nothing is cut
                    if id(tensor) not in place:
                        place[id(tensor)] = len(tensors)
                        tensors.append(tensor)
                        keys.append([])
                    keys[place[id(tensor)]].append((path, name))
            return tuple(tensors), output

        twin.forward = with_notes

    model = export_onnx(trace.module, trace.call, trace.exporter, prepare=prepare)
    source = {
        node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"
    }
    names: dict[tuple[str, str], str] = {}
    for value, own in zip(model.graph.output, keys, strict=False):
        name = value.name
        while name in source:
            name = source[name]
        names.update(dict.fromkeys(own, name))
    del model.graph.output[: len(keys)]
    again = trace_onnx(model, computing=False)
    ours = [(g.width, {m.tensor for m in g.members}) for g in again.graph.groups]
    theirs = [(g.width, {m.tensor for m in g.members}) for g in trace.onnx.graph.groups]
    if ours != theirs:
        raise ModelError(
            f"module {type(trace.module).__name__} cannot be cut: torch.fx sees another graph "
            "than the ONNX export shows; prune the export instead"
        )
    return names, again.channels


def _lend_constants(source: nn.Module, part: nn.Module, graph: fx.Graph) -> None:
    """Gives `part` the tensors that tracing `source` made of what code computes from buffers."""
    for node in graph.nodes:
        name = str(node.target)
        if node.op == "get_attr" and name in vars(source) and not hasattr(part, name):
            setattr(part, name, getattr(source, name))


def _run_noting(
    part: nn.Module, graph: fx.Graph, wanted: set[str], seen: dict[str, Tensor]
) -> None:
    """Makes `part` run its graph; in place."""
    signature = inspect.signature(part.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return _Noting(part, graph, wanted, seen).run(*bound.arguments.values())

    part.forward = forward
