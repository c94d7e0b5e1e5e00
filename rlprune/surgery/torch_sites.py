"""The forward code of a module's parts as `torch.fx` graphs, computed along as they are traced.

Every module with forward code of its own is traced by itself, its children being leaves, on the
values it gets when the whole net runs: so branches and loops over shapes are followed.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from rlprune.graph.torch_call import Call, first_line, tensors_in


def by_mode(training: bool, in_training: Any, in_eval: Any) -> Any:
    """What forward code made depend on `self.training`."""
    return in_training if training else in_eval


@dataclass(frozen=True)
class Sites:
    """Modules with forward code of their own, as fx graphs."""

    graphs: dict[str, fx.Graph]
    shapes: dict[str, dict[str, tuple[int, ...]]]
    """Per path, the shape of every tensor that the graph computes, by node name."""
    refused: dict[str, str]
    """Why the code at a path cannot be followed."""


def own_code(part: nn.Module) -> bool:
    """Whether a module's forward code may have widths in it: it is not a plain layer of torch's."""
    if isinstance(part, fx.GraphModule | nn.Unflatten):
        return True
    forward = inspect.unwrap(type(part).forward)
    return not str(getattr(forward, "__module__", "")).startswith("torch.")


def trace_sites(
    module: nn.Module, call: Call, has_code: Callable[[nn.Module], bool] = own_code
) -> Sites:
    """Follows the code of all modules within `module` (in eval mode) that has code of its own."""
    calls = first_calls(module, call, has_code)
    sites = Sites({}, {}, {})
    for path, (args, kwargs) in calls.items():
        part = module.get_submodule(path)
        try:
            graph, shapes = _trace(part, args, kwargs)
        except Exception as error:  # tracing runs forward code, which may raise anything
            sites.refused[path] = first_line(error)
        else:
            sites.graphs[path], sites.shapes[path] = graph, shapes
    return sites


def first_calls(
    module: nn.Module, call: Call, has_code: Callable[[nn.Module], bool] = own_code
) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """What each module with code of its own is called with first, by path, as the net runs."""
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    handles = []
    for path, part in module.named_modules():
        if has_code(part):

            def note(_: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                calls.setdefault(path, (args, kwargs))

            handles.append(part.register_forward_pre_hook(note, with_kwargs=True))
    with torch.no_grad():
        call.run(module)
    for handle in handles:
        handle.remove()
    return calls


def _trace(
    part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[fx.Graph, dict[str, tuple[int, ...]]]:
    """The code of one module; numbers that depend on `self.training` ask for it when run."""
    with torch.no_grad():
        tracer = _Tracer(part, args, kwargs)
        graph = tracer.trace(part)
        try:
            part.training = True
            other = _Tracer(part, args, kwargs).trace(part)
        except Exception:  # code that runs in eval mode only
            other = graph
        finally:
            part.training = False
    pairs = list(zip(graph.nodes, other.nodes, strict=False))
    alike = len(graph.nodes) == len(other.nodes) and all(
        a.op == b.op and str(a.target) == str(b.target) for a, b in pairs
    )
    mode: fx.Node | None = None
    for node, twin in pairs if alike else ():
        for place in range(len(node.args)):
            if _differ(node.args[place], twin.args[place]):
                mode = mode or _ask_mode(graph)
                node.update_arg(place, _choice(graph, node, mode, twin.args[place], place))
        for key in node.kwargs:
            if _differ(node.kwargs[key], twin.kwargs.get(key)):
                mode = mode or _ask_mode(graph)
                node.update_kwarg(key, _choice(graph, node, mode, twin.kwargs[key], key))
    return graph, tracer.shapes


def _differ(left: Any, right: Any) -> bool:
    numbers = (bool, int, float)
    return isinstance(left, numbers) and isinstance(right, numbers) and left != right


def _ask_mode(graph: fx.Graph) -> fx.Node:
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        return graph.create_node("get_attr", "training")


def _choice(graph: fx.Graph, node: fx.Node, mode: fx.Node, other: Any, at: int | str) -> fx.Node:
    here = node.args[at] if isinstance(at, int) else node.kwargs[at]
    with graph.inserting_before(node):
        return graph.call_function(by_mode, (mode, other, here))


class _Proxy(fx.Proxy):
    """A value of which numbers and lengths are known."""

    def __len__(self) -> int:
        return len(_value(self.node))

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __index__(self) -> int:
        return int(_value(self.node))

    __int__ = __index__


def _value(node: fx.Node) -> Any:
    return node.meta["value"]


class _Tracer(fx.Tracer):
    """Computes along, so that it knows what a branch or loop over shapes does."""

    def __init__(self, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        bound = inspect.signature(part.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        self._given = bound.arguments
        self._computing = False
        self.shapes: dict[str, tuple[int, ...]] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        # What is no tensor is what it was: None, flags, sizes.
        return function, [
            arg
            if not isinstance(arg, fx.Proxy) or list(tensors_in(_value(arg.node)))
            else _value(arg.node)
            for arg in args
        ]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._computing:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if self._computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self._computing = True
        try:
            node.meta["value"] = self._compute(node)
        finally:
            self._computing = False
        if isinstance(_value(node), Tensor):
            self.shapes[node.name] = tuple(_value(node).shape)
        return node

    def to_bool(self, obj: fx.Proxy) -> bool:
        value = _value(obj.node)
        if isinstance(value, Tensor):
            raise ValueError("it branches on computed values")
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        value = _value(obj.node)
        count = value.shape[0] if isinstance(value, Tensor) else len(value)
        item: Any = obj
        return iter([item[index] for index in range(count)])

    def _compute(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._given[str(node.target).lstrip("*")]
        if node.op == "output":
            return None
        args = fx.node.map_arg(node.args, _value)
        kwargs = fx.node.map_arg(node.kwargs, _value)
        if node.op == "get_attr":
            found: Any = self.root
            for name in str(node.target).split("."):
                found = getattr(found, name)
            return found
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)
