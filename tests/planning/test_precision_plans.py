"""Plans in int8: what is offered, what they stand beside, and what they are certified by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_nets import conv_net
from planning_here import plan_here
from service_rig import macs_cost
from service_rig import measured as measured_as
from synthetic import channel_space

from rlprune.constraints import Constraints, bind
from rlprune.errors import InputError, NotFoundError
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.latency.device import local_device_key
from rlprune.latency.macs import macs_tables
from rlprune.latency.types import F32, INT8, Arithmetic, Measurement, ModelSubject
from rlprune.planning.beside import with_unpruned
from rlprune.planning.breakdown import explain_latency
from rlprune.planning.dominated import paying_options, restricted
from rlprune.planning.tables import latency_model
from rlprune.runtime import get_runtime
from rlprune.schemes import space_of
from rlprune.sensitivity.energy import energy_profiles
from rlprune.solver.task import PruningTask
from rlprune.store import Store, open_store

BOARD = "board-1.x.t1.b1"
TRACE = trace_onnx(conv_net((16, 32, 32), extent=16))
IN_INT8 = Arithmetic(INT8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"sqlite:///{tmp_path / 'store.db'}")


def fill(store: Store, arithmetic: Arithmetic, factor: float) -> None:
    """A board that has measured what plans of TRACE need, in multiples of 16 or 8."""
    store.put_graph(TRACE.graph, strip(TRACE.model))
    multiple = 8 if arithmetic.precision == F32 else 16
    space = space_of(TRACE.graph, bind(TRACE.graph, Constraints(), round_to=multiple))
    cost = macs_cost(TRACE.graph, factor)
    while missing := latency_model(store, BOARD, arithmetic).missing(space):
        store.add_measurements([measured_as(BOARD, one, cost(one)) for one in missing])


def beside_f32(ratio: float) -> Measurement:
    """The unpruned network in int8 beside f32."""
    settings = tuple(int(width) for width in TRACE.graph.widths)
    subject = ModelSubject(TRACE.graph.fingerprint, settings, precision=INT8)
    one = measured_as(BOARD, subject, ratio)
    control = tuple(tuple(ms / ratio for ms in session) for session in one.cpu_ms)
    return replace(
        one,
        control_cpu_ms=control,
        control_wall_ms=control,
        conditions=(("control", F32),),
    )


def test_a_budget_is_a_share_of_the_unpruned_latency_in_the_same_precision(store: Store) -> None:
    fill(store, Arithmetic(), 1.0)
    fill(store, IN_INT8, 0.4)
    asked = {"device": BOARD, "budget_ratio": 0.8}
    plain, quantised = (
        plan_here(TRACE, store, precision=precision, **asked) for precision in (F32, INT8)
    )
    assert quantised.base_latency_ms == pytest.approx(0.4 * plain.base_latency_ms, rel=0.05)
    assert quantised.budget_ms == pytest.approx(0.8 * quantised.base_latency_ms)
    assert quantised.precision == INT8 and quantised.constraints.round_to == 16
    assert plain.precision == F32 and plain.constraints.round_to == 8


def test_a_device_that_has_not_measured_in_a_precision_says_so(store: Store) -> None:
    fill(store, Arithmetic(), 1.0)
    with pytest.raises(NotFoundError, match="has reported no measurements in int8"):
        plan_here(TRACE, store, device=BOARD, budget_ratio=0.5, precision=INT8)


def test_plans_stand_beside_the_unpruned_network_in_f32_and_int8(store: Store) -> None:
    fill(store, Arithmetic(), 1.0)
    asked = {"device": BOARD, "budget_ratio": 0.5}
    alone = plan_here(TRACE, store, **asked)
    assert alone.unpruned == () and "int8" not in alone.note
    store.add_measurements([beside_f32(0.3)])
    plain = plan_here(TRACE, store, **asked)
    assert [one.precision for one in plain.unpruned] == [F32, INT8]
    assert plain.unpruned[0].latency_ms == plain.base_latency_ms
    assert plain.unpruned[1].latency_ms == pytest.approx(0.3 * plain.base_latency_ms)
    assert "the unpruned network in int8 takes" in plain.note
    assert "rlprune quantize MODEL.onnx" in plain.note and "--precision int8" in plain.note
    fill(store, IN_INT8, 0.35)
    quantised = plan_here(TRACE, store, precision=INT8, **(asked | {"budget_ratio": 0.9}))
    by = {one.precision: one.latency_ms for one in quantised.unpruned}
    assert by[INT8] == quantised.base_latency_ms
    assert by[F32] == pytest.approx(quantised.base_latency_ms / 0.3)
    assert "unpruned network in int8" not in quantised.note


def test_without_a_common_measurement_each_precisions_own_tells(store: Store) -> None:
    fill(store, Arithmetic(), 1.0)
    fill(store, IN_INT8, 0.8)
    plan = plan_here(TRACE, store, device=BOARD, budget_ratio=0.5)
    assert plan.unpruned[1].latency_ms == pytest.approx(0.8 * plan.base_latency_ms, rel=0.05)
    # Slower than the plan: nothing to remark.
    assert "int8" not in plan.note


def test_counted_plans_stand_beside_nothing(store: Store) -> None:
    plan = plan_here(TRACE, store, device="macs", budget_ratio=0.5, precision=INT8)
    assert plan.unpruned == () and with_unpruned(plan, TRACE.graph, store) is plan


def cliff(trace: OnnxTrace) -> PruningTask:
    """A task in which 8 of the first group's channels take as long as all, and 24 are dear."""
    space = channel_space(trace.graph)
    task = PruningTask(space, macs_tables(space), energy_profiles(trace, space))
    cells = task.tables.condensed
    flat = np.full_like(cells.flat_ms, 1.0)
    return replace(task, tables=replace(task.tables, condensed=replace(cells, flat_ms=flat)))


def test_options_that_save_no_time_are_left_out() -> None:
    space = channel_space(TRACE.graph)
    sane = PruningTask(space, macs_tables(space), energy_profiles(TRACE, space))
    every = tuple(tuple(range(count)) for count in space.option_count.tolist())
    assert paying_options(sane) == every
    assert restricted(sane, every, macs_tables) is sane
    flat = cliff(TRACE)
    # Where everything costs the same only the whole widths are left.
    only_whole = tuple((count - 1,) for count in space.option_count.tolist())
    assert paying_options(flat) == only_whole
    few = tuple((0, count - 1) for count in space.option_count.tolist())
    left = restricted(sane, few, macs_tables)
    assert left.option_count.tolist() == [2] * len(few)
    assert (left.space.settings[:, 0] == space.settings[:, 0]).all()
    assert left.base_ms == sane.base_ms
    np.testing.assert_allclose(left.curve[:, 0], sane.curve[:, 0])


def test_a_runtime_without_the_precision_is_refused_before_anything_is_measured(
    store: Store,
) -> None:
    with pytest.raises(InputError, match="MNN is measured in f32 only") as refused:
        plan_here(TRACE, store, device="mnn", budget_ratio=0.5, precision=INT8)
    assert refused.value.field == "precision"
    with pytest.raises(InputError, match="no bf16 kernels"):
        plan_here(TRACE, store, device="ort", budget_ratio=0.5, precision="bf16")
    assert not store.devices()


def test_this_machine_plans_and_certifies_in_int8(store: Store) -> None:
    """The whole way on the real runtime, with layers kept in float."""
    plan = plan_here(
        TRACE, store, budget_ratio=1.0, precision=INT8, keep_float="conv0*", certify=True
    )
    key = local_device_key(get_runtime())
    subjects = {one.subject for one in store.measurements(key)}
    own = {one for one in subjects if isinstance(one, ModelSubject)}
    assert {one.precision for one in subjects} == {INT8}
    kept = {one.keep_float for one in own}
    assert kept == {("conv0*",)}
    assert plan.certificate is not None and plan.constraints.keep_float == ("conv0*",)
    assert {one.precision for one in plan.unpruned} == {F32, INT8}
    found = explain_latency(TRACE, plan, store=store)
    assert found.precision == INT8 and found.after is not None
