"""What a model says of its outputs, made true."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy

from onnx import ValueInfoProto

from rlprune.graph.walk import Walk


def true_outputs(stated: Iterable[ValueInfoProto], walks: Sequence[Walk]) -> list[ValueInfoProto]:
    """The outputs with the types and extents that the walks found, whatever the file states.

    An extent that differs from walk to walk keeps the name the file has for it. Runtimes only warn
    of what is stated wrongly; a shape that is missing is refused by ONNX's checker.
    """
    found = []
    for value in stated:
        true = deepcopy(value)
        known = [walk.types.get(value.name) for walk in walks]
        shapes = [entry[1] for entry in known if entry is not None]
        if known[0] is not None and len(shapes) == len(walks):
            kind = true.type.tensor_type
            ranks = {len(shape) for shape in shapes}
            names = [dim.dim_param for dim in kind.shape.dim]
            kind.elem_type = known[0][0]
            kind.ClearField("shape")
            if len(ranks) == 1:
                kind.shape.SetInParent()
                for axis, extents in enumerate(zip(*shapes, strict=True)):
                    dim = kind.shape.dim.add()
                    if len(set(extents)) == 1:
                        dim.dim_value = extents[0]
                    elif len(names) == len(shapes[0]) and names[axis]:
                        dim.dim_param = names[axis]
        found.append(true)
    return found
