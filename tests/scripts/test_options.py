"""`scripts/bench options`: what is trained first, and what its headlines are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.parts import options_plans
from benchmarks.parts.options_plans import (
    BUDGETS,
    INT8_BUDGET,
    NETS,
    Cell,
    Run,
    keep_plans,
    planned,
)
from benchmarks.parts.options_rows import BLOCK_NETS, THREE, gain_rows
from benchmarks.parts.options_training import LONG, LONG_BUDGET, SEEDS, SHORT, trainings

Known = dict[tuple[Cell, int], list[float]]


@pytest.fixture
def known() -> Known:
    """Of every network, all options two points above channels, and blocks one."""
    found: Known = {}
    for net in NETS:
        for epochs, budgets in ((SHORT, BUDGETS), (LONG, (LONG_BUDGET,))):
            for budget in budgets:
                for arm, more in (("channels", 0), ("all", 2), ("blocks", 1)):
                    own = [80.0 + more + wobble for wobble in (-0.1, 0.0, 0.1)]
                    found[Cell(net, budget, arm), epochs] = own
    return found


def test_gains_are_means_over_networks_and_budgets(known: Known) -> None:
    known[Cell(THREE[0], 0.35, "all"), SHORT] = [88.0] * 3
    rows = {name: row for name, [row] in gain_rows(known).items()}
    assert rows["options.gain.3x3.e1"].value == pytest.approx((5 * 2 + 8) / 6)
    assert rows["options.gain.e15"].value == pytest.approx(2)
    assert rows["options.blocks.gain.e15"].value == pytest.approx(1)
    assert rows["options.blocks.gain.e15"].n == SEEDS * len(BLOCK_NETS)


def test_worst_cell_is_counted_in_standard_errors(known: Known) -> None:
    known[Cell("mobilenetv2", 0.65, "all"), SHORT] = [79.4, 79.5, 79.6]
    [worst] = gain_rows(known)["options.worst.e1"]
    assert worst.value == pytest.approx(-0.5 / (0.1 * (2 / 3) ** 0.5))
    assert not worst.met


def test_headlines_wait_for_all_that_they_are_made_of(known: Known) -> None:
    del known[Cell("resnet56", 0.35, "channels"), SHORT]
    assert "options.gain.3x3.e1" not in gain_rows(known)
    assert "options.worst.e1" not in gain_rows(known)
    assert "options.gain.e15" in gain_rows(known)


def test_short_trainings_of_the_first_network_come_first() -> None:
    order = list(trainings())
    lengths = [one.epochs for one in order]
    assert lengths == sorted(lengths)
    assert order[0].cell.net == next(iter(NETS))
    assert len(set(order)) == len(order)
    long = [one.cell for one in order if one.epochs == LONG]
    assert {one.budget for one in long if "int8" not in one.arm} == {LONG_BUDGET}
    assert {one.budget for one in long if one.arm == "all-int8"} == {LONG_BUDGET, INT8_BUDGET}


def test_a_kept_plan_serves_a_work_folder_that_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell("resnet20", 0.5, "all")
    kept = planned(cell, Run(tmp_path / "first"))  # from the plans that rows are of
    monkeypatch.setattr(options_plans, "KEPT", tmp_path / "plans.jsonl")
    assert keep_plans(Run(tmp_path / "first")) == 1
    again = planned(cell, Run(tmp_path / "second"))
    assert again == kept and "shape" in again.plan.schemes
