"""A second scheme costs one file: it goes the whole way, and no other file knows of it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_nets import conv_net
from toy_scheme import MIDDLE, NAME, WHOLE, register
from typer.testing import CliRunner

import rlprune
from rlprune.cli.app import app
from rlprune.device.child import ChildConfig
from rlprune.device.worker import WorkerConfig, work
from rlprune.errors import InputError, PlanError
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.latency.device import local_device_key
from rlprune.latency.measure import MeasureConfig
from rlprune.planning import LocalPlanner, PlanRequest, make_plans
from rlprune.planning.breakdown import explain_latency
from rlprune.plans import PruningPlan
from rlprune.runtime import get_runtime
from rlprune.schemes.registry import scheme_named
from rlprune.service.client import Client
from rlprune.service.server import start
from rlprune.store import Store, open_store

BOTH = ("channel", NAME)
BRIEF = MeasureConfig(
    warmup_count=1,
    min_sample_ms=0.3,
    sample_count=3,
    max_sample_count=3,
    session_count=2,
    extra_session_count=0,
)
TOY_CHILD = Path(__file__).parents[1] / "support" / "toy_child.py"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the toy scheme is installed in."""
    folder = tmp_path / "packages"
    folder.mkdir()
    register(folder)
    monkeypatch.syspath_prepend(str(folder))
    scheme_named.cache_clear()
    yield folder
    scheme_named.cache_clear()


@pytest.fixture
def trace() -> OnnxTrace:
    return trace_onnx(conv_net((32, 48), extent=24))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with_store = open_store(f"sqlite:///{tmp_path / 'store.sqlite'}")
    yield with_store
    with_store.close()


def both_decided(plan: PruningPlan) -> None:
    """The plan changes a kernel, and cuts the channels of the same convolution."""
    kept = {(entry.scheme, entry.name): (entry.keep, entry.width) for entry in plan.groups}
    taps = [name for (scheme, name), (keep, _) in kept.items() if scheme == NAME and keep == MIDDLE]
    assert taps, plan.groups
    cut = [name for (scheme, name), (keep, width) in kept.items() if keep < width]
    assert len(cut) > len(taps)


def kernels(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shape of every convolution's weight, by the node's name."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return {n.name: shapes[n.input[1]] for n in model.graph.node if n.op_type == "Conv"}


@pytest.mark.usefixtures("installed")
def test_a_plan_by_macs_goes_to_its_file_and_to_a_model_that_costs_what_it_says(
    trace: OnnxTrace, tmp_path: Path
) -> None:
    plan = rlprune.plan(trace, device="macs", budget_ratio=0.06, schemes=BOTH)
    both_decided(plan)
    plan.save(tmp_path / "plan.json")
    again = PruningPlan.load(tmp_path / "plan.json")
    assert again == plan
    small = rlprune.apply(again, trace, calibration="none")
    onnx.checker.check_model(small, full_check=True)
    cut = trace_onnx(small).graph
    assert int(cut.macs(cut.widths)) == plan.macs
    assert int(cut.params(cut.widths)) == plan.params
    entries = {entry.name: entry.keep for entry in plan.groups if entry.scheme == NAME}
    for name, shape in kernels(small).items():
        assert shape[2:] == ((1, 1) if entries[name] == MIDDLE else (3, 3))


@pytest.mark.usefixtures("installed")
def test_it_is_reconstructed_and_compared_with_the_original(trace: OnnxTrace) -> None:
    plan = rlprune.plan(trace, device="macs", budget_ratio=0.3, schemes=BOTH)
    found = []
    rlprune.apply(plan, trace, on_result=found.append)
    assert found[0].moved is not None and found[0].inputs


@pytest.mark.usefixtures("installed")
def test_a_profile_that_is_measured_has_its_options(trace: OnnxTrace) -> None:
    images = np.random.default_rng(0).normal(size=(16, 3, 24, 24)).astype(np.float32)
    plan = rlprune.plan(
        trace, device="macs", budget_ratio=0.3, schemes=BOTH, calibration=images, policy="knapsack"
    )
    assert plan.profiled and plan.schemes == BOTH


@pytest.mark.usefixtures("installed")
def test_measured_on_this_machine_planned_and_explained(trace: OnnxTrace, store: Store) -> None:
    request = PlanRequest.of(device="ort", budget_ratio=0.5, schemes=BOTH, policy="knapsack")
    [plan] = make_plans(LocalPlanner(store), trace, request)
    subjects = [one.subject for one in store.measurements(plan.device)]
    forms = {s.kernel for s in subjects if getattr(s, "kind", "") == "conv"}
    assert {(1, 1), (3, 3)} <= forms  # the operator was measured in both forms
    # Beside the plan stands the unpruned network in int8.
    wholes = [s for s in subjects if hasattr(s, "settings") and s.precision == "f32"]
    assert wholes and all(s.schemes == BOTH for s in wholes)
    assert any(MIDDLE in s.settings[2:] for s in wholes)
    report = explain_latency(trace, plan, store=store)
    assert report.after is not None
    assert report.after.predicted_ms == pytest.approx(plan.predicted_latency_ms)
    assert report.before.predicted_ms == pytest.approx(plan.base_latency_ms)


def test_over_the_wire_measured_by_a_worker_and_kept(
    trace: OnnxTrace, store: Store, installed: Path
) -> None:
    server = start("127.0.0.1:0", store)
    child = ChildConfig(command=(sys.executable, str(TOY_CHILD), str(installed)))
    config = WorkerConfig(poll_sec=0.05, max_backoff_sec=0.2, measure=BRIEF, child=child)
    key, stop = local_device_key(get_runtime("ort")), threading.Event()
    try:
        with futures.ThreadPoolExecutor(1) as pool, Client(server.address) as client:
            worker = pool.submit(work, server.address, stop=stop, config=config)
            try:
                until_known(client, key)
                plan = client.plan(
                    trace, device=key, budget_ratio=0.5, schemes=BOTH, policy="knapsack"
                )
                (kept,) = client.plans(device=key)
            finally:
                stop.set()
            worker.result(30)
    finally:
        server.stop(0.5)
    assert kept.plan == plan and plan.schemes == BOTH
    whole = [one for one in store.measurements(key) if hasattr(one.subject, "settings")]
    assert any(one.status == "ok" and MIDDLE in one.subject.settings[2:] for one in whole)


@pytest.mark.usefixtures("installed")
def test_the_command_line_shows_it(trace: OnnxTrace, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(trace.model, path)
    found = CliRunner().invoke(app, ["trace", str(path), "--schemes", f"channel,{NAME}", "--json"])
    assert found.exit_code == 0, found.output
    sites = json.loads(found.stdout)["sites"]
    assert [site["options"][0] for site in sites] == [f"{MIDDLE} of {WHOLE} kernel taps"] * 2


@pytest.mark.usefixtures("installed")
def test_what_is_held_is_left_as_it_is(trace: OnnxTrace) -> None:
    plan = rlprune.plan(trace, device="macs", budget_ratio=0.4, schemes=BOTH, hold="conv1")
    held = {entry.name: entry for entry in plan.groups if entry.scheme == NAME}
    assert held["conv1"].keep == WHOLE and held["conv0"].keep == MIDDLE


def test_where_it_is_not_installed_its_name_is_refused(
    trace: OnnxTrace, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = rlprune.plan(trace, device="macs", budget_ratio=0.06, schemes=BOTH)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(installed)])
    scheme_named.cache_clear()
    with pytest.raises(InputError, match="no scheme 'taps' is installed; there is channel"):
        rlprune.plan(trace, device="macs", budget_ratio=0.5, schemes=BOTH)
    with pytest.raises(PlanError, match="no scheme 'taps' is installed"):
        rlprune.apply(plan, trace)


def until_known(client: Client, key: str) -> None:
    for _ in range(600):
        if any(device.key == key for device in client.devices()):
            return
        threading.Event().wait(0.05)
    raise AssertionError("the worker never came")
