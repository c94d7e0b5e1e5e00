"""Weights that a file computes from others, computed once.

Weight standardisation, weight norm, masks, float16 weights behind a Cast, fake quantisation: sub-
graphs whose leaves are all constants become initializers, so that the layers that read them can be
cut. Numbers are those of the operators' definitions (numpy, `onnx.reference`); sums may differ from
a runtime's in the last bits. Never done to a skeleton, whose weights are not there: the skeleton of
a model that was treated so has the results as its weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from rlprune.graph.bodies import bodies_of, reads_of
from rlprune.graph.folding import ARITHMETIC, LAYOUT, SMALL, Array, constant_value, make_tensor
from rlprune.graph.kinds import is_quantised
from rlprune.graph.load import FLOAT_TYPES, check_shape, is_skeleton
from rlprune.graph.walk import attribute_value

GROWTH = 4
"""Numbers that may be computed, as a multiple of those that the file's float tensors hold."""
MIN_ALL = 2**20
"""So many may be in any case."""
READ = 32
"""Numbers that may be read for it, as a multiple of those that may be computed."""

_COMPUTING = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Neg", "Abs", "Exp", "Log"),
        *("Tanh", "Sigmoid", "Relu", "Clip", "Softplus", "Softmax", "Erf", "Sign", "Floor", "Ceil"),
        *("Round", "Min", "Max", "Sum", "Mean", "Where", "Equal", "Less", "Greater", "Mod"),
        *("LessOrEqual", "GreaterOrEqual", "Not", "And", "Or", "Xor", "Sin", "Cos", "CumSum"),
        *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1"),
        *("ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "LpNormalization"),
        *("MatMul", "Gemm", "Einsum", "BatchNormalization", "InstanceNormalization"),
        *("LayerNormalization", "Trilu", "Tile", "Pad", "ScatterND", "ScatterElements"),
        *("GatherElements", "GatherND", "QuantizeLinear", "DequantizeLinear"),
    )
)
_QUANTISING = frozenset(("QuantizeLinear", "DequantizeLinear"))
_MOVING = frozenset((*LAYOUT, "Concat", "Split", "Shape", "Size", "ConstantOfShape", "Range"))


@dataclass
class _Constants:
    """The tensors of a model that are computed from constants alone."""

    leaves: dict[str, TensorProto | Array]
    maker: dict[str, NodeProto] = field(default_factory=dict)
    """What makes each, leaves apart, in the order of the file."""
    beyond: set[str] = field(default_factory=set)
    """Those that walks do not fold: computed (or concatenated, as gates are), and from large floats
    or by operators they lack."""


def compute_weights(model: ModelProto) -> ModelProto:
    """The model with initializers for what is computed from constants, weights among them; itself
    where there is nothing of the kind. The argument is not changed."""
    if is_skeleton(model):
        return model
    found = _find(model)
    constant = {id(node) for node in found.maker.values()}
    read = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if id(node) not in constant:
            read.update(reads_of(node))
    wanted = [name for name in found.maker if name in read and name in found.beyond]
    results = _evaluate(model, found, wanted) if wanted else {}
    for node in model.graph.node:
        # Learned queries, keys or values are data, whose layers are pruned as any.
        if node.op_type == "MatMul" and id(node) not in constant:
            for place, name in enumerate(node.input):
                if name in results and (place == 0 or results[name].ndim > 2):
                    del results[name]
    if not results:
        return model
    kept = []
    for node in reversed(model.graph.node):
        if id(node) in constant:
            if not any(name in read and name not in results for name in node.output):
                continue
            for name in node.output:
                results.pop(name, None)
            read.update(reads_of(node))
        kept.append(node)
    own = deepcopy(model)
    del own.graph.node[:]
    own.graph.node.extend(reversed(kept))
    own.graph.initializer.extend(make_tensor(name, array) for name, array in results.items())
    return own


def _find(model: ModelProto) -> _Constants:
    graph = model.graph
    ranged = _find_by(model, _COMPUTING | _MOVING)
    constant = {id(node) for node in ranged.maker.values()}
    marks = [node for node in graph.node if is_quantised(node.op_type, node.domain)]
    if any(id(node) not in constant for node in marks):
        # Activations are quantised too: the file is to stay what it is.
        return _find_by(model, (_COMPUTING | _MOVING) - _QUANTISING)
    return ranged


def _find_by(model: ModelProto, operators: frozenset[str]) -> _Constants:
    found = _Constants({t.name: t for t in model.graph.initializer})
    large = {t.name for t in model.graph.initializer if _is_large(t)}
    computed: set[str] = set()
    hard: set[str] = set()
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Constant":
            value = _value(node)
            if value is not None:
                found.leaves[node.output[0]] = value
                if isinstance(value, TensorProto) and _is_large(value):
                    large.add(node.output[0])
            continue
        inputs = [name for name in node.input if name]
        known = inputs and all(n in found.leaves or n in found.maker for n in inputs)
        if node.op_type not in operators or not known or bodies_of(node):
            continue
        if node.op_type == "DequantizeLinear" and inputs[0] in found.leaves:
            continue  # stored as integers: a quantised file
        outputs = [name for name in node.output if name]
        found.maker.update(dict.fromkeys(outputs, node))
        if node.op_type not in ("Shape", "Size") and large.intersection(inputs):
            large.update(outputs)
        if (
            node.op_type not in _MOVING
            or node.op_type in ("Cast", "Concat")
            or computed.intersection(inputs)
        ):
            computed.update(outputs)
        if node.op_type not in ARITHMETIC or hard.intersection(inputs):
            hard.update(outputs)
        found.beyond.update(n for n in outputs if n in computed and (n in large or n in hard))
    return found


def _evaluate(model: ModelProto, found: _Constants, wanted: Sequence[str]) -> dict[str, Array]:
    """The values of those of the tensors that can be computed within bounds."""
    needed: set[str] = set()
    todo = list(wanted)
    while todo:
        name = todo.pop()
        if name in found.maker and name not in needed:
            needed.add(name)
            todo.extend(reads_of(found.maker[name]))
    uses = Counter(n for n in wanted)
    order = list({id(n): n for name, n in found.maker.items() if name in needed}.values())
    for node in order:
        uses.update(set(reads_of(node)))
    floats = [leaf for leaf in found.leaves.values() if isinstance(leaf, TensorProto)]
    stored = sum(math.prod(tensor.dims) for tensor in floats if _is_large(tensor))
    left = max(GROWTH * stored, MIN_ALL)
    unread = READ * left
    opsets = {e.domain if e.domain != "ai.onnx" else "": e.version for e in model.opset_import}
    known: dict[str, Array] = {}
    for node in order:
        inputs = [_array(name, known, found.leaves) for name in node.input]
        if any(array is None for array, name in zip(inputs, node.input, strict=True) if name):
            continue
        try:
            size = _result_size(node, inputs, opsets)
            unread -= sum(array.size for array in inputs if array is not None)
            if size > left or unread < 0:
                continue
            left -= size
            with np.errstate(all="ignore"):
                results = _run(node, inputs, opsets)
        except MemoryError:
            raise
        except Exception:  # whatever the operator cannot do with these arrays
            continue
        known.update(zip(node.output, results, strict=False))
        for name in set(reads_of(node)):
            uses[name] -= 1
            if not uses[name]:
                known.pop(name, None)
    return {name: known[name] for name in wanted if name in known}


def _array(
    name: str, known: Mapping[str, Array], leaves: Mapping[str, TensorProto | Array]
) -> Array | None:
    if name in known:
        return known[name]
    leaf = leaves.get(name)
    return numpy_helper.to_array(leaf) if isinstance(leaf, TensorProto) else leaf


def _result_size(node: NodeProto, inputs: Sequence[Array | None], opsets: Mapping[str, int]) -> int:
    """Numbers that a node makes.

    Raises:
        Exception: of many kinds, where ONNX cannot tell.
    """
    types, data = {}, {}
    for name, array in zip(node.input, inputs, strict=True):
        if array is not None:
            elem = helper.np_dtype_to_tensor_dtype(array.dtype)
            types[name] = helper.make_tensor_type_proto(elem, array.shape)
            if array.size < SMALL:
                data[name] = make_tensor(name, array)
    schema = onnx.defs.get_schema(node.op_type, opsets[""], "")
    shown = shape_inference.infer_node_outputs(
        schema, node, types, data, opset_imports=[helper.make_opsetid("", opsets[""])]
    )
    total = 0
    for name in node.output:
        if name:
            dims = shown[name].tensor_type.shape.dim
            if not all(dim.HasField("dim_value") for dim in dims):
                raise ValueError("unknown extents")
            check_shape(name, (dim.dim_value for dim in dims))
            total += math.prod(dim.dim_value for dim in dims)
    return total


def _run(node: NodeProto, inputs: Sequence[Array | None], opsets: Mapping[str, int]) -> list[Array]:
    attrs = {a.name: attribute_value(a) for a in node.attribute}
    if node.op_type in ARITHMETIC and len(node.output) == 1:
        return [np.asarray(ARITHMETIC[node.op_type](attrs, *(a for a in inputs if a is not None)))]
    from onnx.reference import ReferenceEvaluator  # 25 ms, for what few files need

    runner = ReferenceEvaluator(node, opsets=dict(opsets))
    feeds = {name: array for name, array in zip(node.input, inputs, strict=True) if name}
    return [np.asarray(array) for array in runner.run(None, feeds)]


def _value(node: NodeProto) -> TensorProto | Array | None:
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            return attribute.t
    return constant_value({a.name: attribute_value(a) for a in node.attribute})


def _is_large(tensor: TensorProto | Array) -> bool:
    if not isinstance(tensor, TensorProto):
        return False
    return tensor.data_type in FLOAT_TYPES and math.prod(tensor.dims) >= SMALL
