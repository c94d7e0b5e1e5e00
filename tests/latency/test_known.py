"""Operators that ship: what latency is told from before a device has measured anything."""

from __future__ import annotations

import numpy as np
import pytest
from hand_graphs import residual_graph
from synthetic import channel_space

from rlprune.latency.known import Donor, Kind, distance, donor, is_known, kind_of, nearest, shipped
from rlprune.latency.model import CALIBRATION_COUNT, LatencyModel
from rlprune.latency.types import ModelSubject, OperatorSpec
from rlprune.runtime import RUNTIMES

GRAPH = residual_graph()
SPACE = channel_space(GRAPH)


def known_donor(kinds: tuple[Kind, ...]) -> Donor:
    found = donor(kinds)
    assert found is not None
    return found


def test_every_runtime_ships_for_one_and_two_threads() -> None:
    for runtime in RUNTIMES:
        for threads in (1, 2):
            assert Kind(runtime, threads) in shipped()
        assert is_known(f"{runtime}-9.9.some-board.t4.b1", "f32")
    assert not is_known("board-1.t1.b1", "f32") and not is_known("macs", "f32")


def test_the_nearest_are_of_as_many_threads_and_then_of_the_same_runtime() -> None:
    assert kind_of("ort-1.31.1.x86_64-some-cpu.t2.b1", "f32") == Kind("ort", 2)
    assert nearest(Kind("ort", 2)) == (Kind("ort", 2),)
    assert nearest(Kind("ort", 4)) == (Kind("ort", 2),)
    others = {Kind("openvino", 2), Kind("mnn", 2)}
    assert set(nearest(Kind("ort", 2), without=frozenset([Kind("ort", 2)]))) == others
    assert set(nearest(Kind("board", 2))) == others | {Kind("ort", 2)}
    assert nearest(Kind("ort", 2, "int8")) == (Kind("ort", 1, "int8"),)
    assert not is_known("openvino-9.t1.b1", "bf16"), "but f32 says more than nothing"
    assert {one.runtime for one in nearest(Kind("openvino", 1, "bf16"))} == {"openvino"}
    assert nearest(Kind("ort", 1), without=frozenset(shipped())) == () and donor(()) is None
    assert distance(Kind("mnn", 1), Kind("ort", 1)) < distance(Kind("ort", 2), Kind("ort", 1))


def test_several_kinds_say_their_mean() -> None:
    form = OperatorSpec("linear", "", 0, 0, (), ())
    ins, outs = np.array([64, 256]), np.array([10, 100])
    pair = (Kind("ort", 1), Kind("mnn", 1))
    told = [known_donor((one,)).costs.ms(form, ins, outs) for one in pair]
    mean = known_donor(pair).costs.ms(form, ins, outs)
    np.testing.assert_allclose(mean, np.sqrt(told[0] * told[1]))


@pytest.mark.parametrize("kind", shipped(), ids=lambda kind: f"{kind.runtime}.t{kind.threads}")
def test_wider_operators_of_what_ships_take_longer(kind: Kind) -> None:
    """A 3x3 convolution over 16x16 places, a form that no network of the tables has."""
    form = OperatorSpec("conv", "", 0, 0, (16, 17), (16, 17), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    widths = np.array([16, 32, 64, 128, 256])
    ms = known_donor((kind,)).costs.ms(form, widths, widths)
    assert (np.diff(ms) > 0).all() and ms[-1] > 10 * ms[0]
    assert 0 < known_donor((kind,)).call_ms < 0.1


def test_plans_are_told_before_anything_is_measured() -> None:
    known = known_donor((Kind("ort", 1),))
    model = LatencyModel.fit("ort-9.t1.b1", [], {}, donor=known)
    tables = model.compile(SPACE)
    low, high = tables.interval_ms(SPACE.unpruned[None])
    assert 0 < low[0] < tables.base_ms < high[0]
    half = tables.latency_ms(np.array([SPACE.unpruned // 2]))[0]
    assert half < tables.base_ms
    assert tables.overhead_ms == pytest.approx(known.call_ms)


def test_few_whole_models_are_enough_where_somebody_waits() -> None:
    model = LatencyModel.fit("ort-9.t1.b1", [], {}, donor=donor((Kind("ort", 1),)))
    few, all_of_it = model.missing(SPACE, 2), model.missing(SPACE)
    assert len(few) == 2 and set(few) < set(all_of_it)
    plans = [one for one in all_of_it if isinstance(one, ModelSubject)]
    assert len(plans) == CALIBRATION_COUNT < len(all_of_it)
    unpruned = tuple(int(value) for value in GRAPH.widths)
    assert plans[0].settings == unpruned and plans[0] not in few  # it runs beside every plan
