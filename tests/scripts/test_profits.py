"""What is offered on a runtime follows from what was measured there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import profits
from benchmarks.parts.profit_nets import ZEROS, convolutions, residual, words
from benchmarks.profits import (
    KERNELS,
    LEFT_OUT,
    block_macs,
    block_pays,
    data_of,
    kept_rows,
    offered,
    ratios_of,
    table_of,
)
from rlprune.graph.from_onnx import trace_onnx
from rlprune.schemes.profits import DATA

KERNEL = KERNELS[0]


def ratios(**changed: float) -> dict[str, dict[str, float]]:
    """In proportion to taps, but for some, by name of the option (`o2x3`)."""
    taps = {words(one): one[0] * one[1] / 9 for one in KERNEL.options()}
    return {name: {"here": changed.get(f"o{name}", share)} for name, share in taps.items()}


def test_all_rectangles_are_offered_where_time_follows_taps() -> None:
    assert offered(KERNEL, ratios()) == [words(one) for one in KERNEL.options()]


def test_what_is_no_faster_than_a_larger_rectangle_is_not_offered() -> None:
    found = offered(KERNEL, ratios(o2x3=1.5, o2x2=0.66, o3x2=0.66))
    assert "2x3" not in found and "2x2" not in found and "3x2" in found
    assert "1x3" in found  # 1x3 is none of those that contain 3x2


def test_what_is_slower_somewhere_is_not_offered() -> None:
    found = ratios()
    found["2x2"] = {"one": 0.2, "two": 1.2}
    assert "2x2" not in offered(KERNEL, found)
    found["2x2"] = {"one": 0.2, "two": 1.05}
    assert "2x2" in offered(KERNEL, found)


def test_leaving_blocks_out_pays_where_it_saves_half_of_what_operations_say() -> None:
    macs = {name: {"here": block_macs(n)} for name, n in LEFT_OUT.items()}
    assert block_pays(macs)
    assert not block_pays(macs | {"one_left_out": {"here": 0.95}})


def test_networks_compute_what_their_names_say() -> None:
    place = (16, 8)
    dense, cut = (
        trace_onnx(convolutions(KERNEL, place, extents)).graph for extents in ((3, 3), (1, 3))
    )
    assert cut.macs(cut.widths) * 3 == dense.macs(dense.widths)
    assert [op.out_spatial for op in cut.operators] == [op.out_spatial for op in dense.operators]
    whole, less = (residual(place, [16] * blocks) for blocks in (4, 3))
    graphs = [trace_onnx(one).graph for one in (whole, less)]
    first, second = (int(one.macs(one.widths)) for one in graphs)
    assert second / first == pytest.approx(block_macs(1))


@pytest.mark.parametrize(
    ("name", "share"),
    [("unstructured_0.5", 0.5), ("unstructured_0.1", 0.1), ("2of4", 0.5), ("pattern_4of9", 4 / 9)],
)
def test_zeros_are_as_many_as_their_names_say(name: str, share: float) -> None:
    model = convolutions(KERNEL, (16, 8), (3, 3), ZEROS[name])
    weights = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.dims[1:]]
    kept = [float((weight != 0).mean()) for weight in weights]
    assert np.allclose(kept, share, atol=1e-3)


def test_what_ships_is_what_the_kept_figures_say() -> None:
    rows = kept_rows()
    assert len(ratios_of(rows)) == len(profits.RUNS)
    assert DATA.read_text(encoding="utf-8") == data_of(rows)


def test_the_pages_table_is_what_the_script_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "faster.md").read_text(encoding="utf-8")
    assert "\n".join(table_of(kept_rows())) in page
