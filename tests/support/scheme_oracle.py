"""What a model cut by several schemes must equal: the dense one, with what goes made nothing of.

Units that go have their readers zeroed, taps that go are zeroed in the weight, and what a branch
that is left out adds is multiplied by zero. Nothing is taken away, no border moved, no activation
dropped: where the cut model answers as this one does, all that was done to it is right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx_oracle import inputs_of, numbers_in_weights, relative_error, run, with_dead_readers

from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.reach import attach
from rlprune.graph.types import IntArray
from rlprune.schemes import Site, other_sites, removal_of, whole_space
from rlprune.surgery.onnx import cut
from rlprune.surgery.removal import Removal

EVERY = ("channel", "shape", "block")


def with_dead_parts(trace: OnnxTrace, removal: Removal) -> onnx.ModelProto:
    """The whole model in which nothing that goes can be told from nothing."""
    model = with_dead_readers(trace, removal.kept)
    for tensor in model.graph.initializer:
        window = removal.windows.get(tensor.name)
        if window is not None:
            array = numpy_helper.to_array(tensor)
            stays = np.ones(array.shape[2:], dtype=bool)
            for axis, (first, count) in enumerate(window):
                tap = np.arange(array.shape[2 + axis])
                inside = (first <= tap) & (tap < first + count)
                stays &= inside.reshape([-1 if k == axis else 1 for k in range(stays.ndim)])
            tensor.CopyFrom(numpy_helper.from_array(array * stays.astype(array.dtype), tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.name in removal.left_out and node.op_type in ("Add", "Sub"):
            place = 1 - removal.left_out[node.name]
            gone, node.input[place] = node.input[place], f"{node.name}/gone"
            nodes.append(helper.make_node("Sub", [gone, gone], [f"{node.name}/gone"]))
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def assert_carried_out(
    trace: OnnxTrace,
    settings: IntArray,
    schemes: Sequence[str] = EVERY,
    tolerance: float = 1e-4,
    *,
    taken: Removal | None = None,
) -> onnx.ModelProto:
    """The cut model, which is sound, answers as the oracle does and costs what the space says.

    Args:
        taken: what the plan takes out, where the caller knows better than the schemes.
    """
    removal = removal_of(trace, settings, schemes)
    small = cut(trace, removal)
    onnx.checker.check_model(small, full_check=True)
    inputs = inputs_of(trace)
    expected = run(with_dead_parts(trace, taken or removal), inputs)
    assert relative_error(expected, run(small, inputs)) < tolerance
    assert_costs(trace, settings, small, schemes)
    return small


def assert_costs(
    trace: OnnxTrace, settings: IntArray, small: onnx.ModelProto, schemes: Sequence[str] = EVERY
) -> None:
    """The cut model costs what the space says of the settings."""
    space = whole_space(trace.graph, schemes)
    choice = space.choice_of(settings)
    after = trace_onnx(small).graph
    assert int(after.macs(after.widths)) == int(space.macs(choice))
    assert numbers_in_weights(attach(small, trace.tail)) == int(space.params(choice))


def sites_of(trace: OnnxTrace, scheme: str) -> dict[str, Site]:
    """By name."""
    return {site.name: site for site in other_sites(trace.graph, [scheme])}


def settings_of(
    trace: OnnxTrace, changed: dict[str, int], schemes: Sequence[str] = EVERY
) -> IntArray:
    """Settings that leave all as it is but for the sites named."""
    sites = other_sites(trace.graph, schemes)
    assert set(changed) <= {site.name for site in sites}
    values = [changed.get(site.name, site.values[-1]) for site in sites]
    return np.array([*trace.graph.widths, *values], dtype=np.int64)


def random_settings(
    trace: OnnxTrace, rng: np.random.Generator, schemes: Sequence[str] = EVERY
) -> IntArray:
    """Any option of any site."""
    widths = trace.graph.widths
    values = [int(rng.choice(site.values)) for site in other_sites(trace.graph, schemes)]
    return np.array([*rng.integers(1, widths + 1), *values], dtype=np.int64)
