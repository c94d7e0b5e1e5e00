"""The nursery: networks drawn by number, small, prunable, and of no held-out family."""

from __future__ import annotations

import pytest

from datasets import catalogue, nursery
from datasets.pack import exported
from rlprune.graph.from_onnx import trace_onnx


def test_no_kind_is_of_a_held_out_family() -> None:
    assert len(nursery.KINDS) >= 5
    assert not set(nursery.KINDS) & set(catalogue.HELD_OUT)


@pytest.mark.parametrize("number", range(6))
def test_a_number_always_draws_the_same_small_prunable_network(number: int) -> None:
    (family, one), (_, same) = nursery.drawn(number), nursery.drawn(number)
    graph = trace_onnx(exported(one)).graph
    assert graph.fingerprint == trace_onnx(exported(same)).graph.fingerprint
    for left, right in zip(one.parameters(), same.parameters(), strict=True):
        assert (left == right).all()
    least, most = nursery.KINDS[family].mmacs
    assert least <= graph.macs(graph.widths) / 1e6 <= most
    assert graph.prunable_macs_ratio() > 0.9
    assert all(width % 8 == 0 for width in graph.widths)


def test_other_numbers_draw_other_networks() -> None:
    graphs = [trace_onnx(exported(nursery.drawn(number)[1])).graph for number in (3, 9, 15)]
    assert len({graph.fingerprint for graph in graphs}) == 3
