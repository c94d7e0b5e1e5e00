"""Fingerprints that 0.6.1 gave: measurements are stored by them, so they must not change.

`fingerprints_0_6_1.json` has the first 16 digits of each, made by 0.6.1 itself. Left out are nets
whose operators are listed otherwise since: recurrent layers, Einsum, what is computed from
constants alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import adversarial_compute
import adversarial_layout
import adversarial_shapes
import adversarial_sharing
import pytest
from architectures import ARCHITECTURES
from exports import older_export
from topologies import TOPOLOGIES

from rlprune.graph.from_onnx import trace_onnx

GOLDEN = json.loads((Path(__file__).parent / "fingerprints_0_6_1.json").read_text())
ADVERSARIAL = (
    adversarial_compute.CASES
    | adversarial_layout.CASES
    | adversarial_shapes.CASES
    | adversarial_sharing.CASES
)
MORE_GROUPS = frozenset(
    f"adversarial/{name}"
    for name in (
        "size_open_batch",
        "shape_open_batch_prod",
        "shape_vector_used_open",
        "constant_of_shape_open",
    )
)
"""Where more can be pruned than 0.6.1 offered: what computes with open extents is told the whole
model's, so that the channels among them need not be held. Plans have more groups there."""


def model(case: str) -> object:
    place, name = case.split("/", 1)
    if place == "architecture":
        return older_export(ARCHITECTURES[name].build, 17)
    if place == "topology":
        return older_export(TOPOLOGIES[name], 18)
    net, outputs = ADVERSARIAL[name][0]()
    return net.model(*([outputs] if isinstance(outputs, str) else outputs))


@pytest.mark.parametrize("case", list(GOLDEN))
def test_graph_has_the_fingerprint_that_0_6_1_gave_it(case: str) -> None:
    graph = trace_onnx(model(case)).graph  # type: ignore[arg-type]
    assert graph.fingerprint.startswith(GOLDEN[case]) != (case in MORE_GROUPS)
