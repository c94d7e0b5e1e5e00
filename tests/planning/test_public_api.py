"""`rlprune.trace`, `plan` and `apply`: the few lines that a user writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from calibrated import single_outputs
from small_onnx import small_onnx

import rlprune
from rlprune.errors import BudgetError, InputError, PlanMismatchError


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    """Images of ten classes, each a colour and brightness of its own."""
    rng = np.random.default_rng(0)
    y = np.arange(64) % 10
    x = rng.standard_normal((64, 3, 16, 16)) * 0.3 + rng.standard_normal((10, 3, 1, 1))[y]
    np.savez(tmp_path / "images.npz", x=x.astype(np.float32), y=y.astype(np.int64))
    return tmp_path / "images.npz"


def test_file_bytes_and_proto_give_one_graph(tmp_path: Path) -> None:
    model = small_onnx()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    traces = [rlprune.trace(given) for given in (model, path, str(path), path.read_bytes())]
    assert len({trace.graph.fingerprint for trace in traces}) == 1
    assert rlprune.trace(traces[0]) is traces[0]


def test_plan_and_apply_in_process(tmp_path: Path) -> None:
    model = small_onnx()
    before = model.SerializeToString(deterministic=True)
    plan = rlprune.plan(model, budget_ratio=0.4, device="macs", policy="knapsack")
    assert plan.feasible and not plan.profiled
    pruned = rlprune.apply(plan, model)
    assert rlprune.trace(pruned).graph.widths.tolist() == plan.keeps.tolist()
    assert model.SerializeToString(deterministic=True) == before


def test_calibration_is_measured_once_and_then_found(calibration: Path, tmp_path: Path) -> None:
    trace = rlprune.trace(small_onnx())

    def ask() -> rlprune.PruningPlan:
        return rlprune.plan(
            trace,
            budget_ratio=0.4,
            device="macs",
            policy="knapsack",
            calibration=calibration,
            round_to=16,
        )

    plan = ask()
    assert plan.profiled and "calibration" not in plan.note
    (kept,) = (tmp_path / "data" / "rlprune" / "profiles").iterdir()
    stamp = kept.stat().st_mtime_ns
    assert ask() == plan and kept.stat().st_mtime_ns == stamp
    kept.write_bytes(b"damaged")  # measured again rather than refused
    assert ask() == plan and kept.stat().st_size > 100


def test_apply_with_calibration_reconstructs_what_reads_the_channels_cut(calibration: Path) -> None:
    trace = rlprune.trace(small_onnx())
    plan = rlprune.plan(trace, budget_ratio=0.3, device="macs", policy="knapsack")
    cut = rlprune.apply(plan, trace)
    corrected = rlprune.apply(plan, trace, calibration=calibration)
    shapes = [
        [list(t.dims) for t in m.graph.initializer if len(t.dims) == 4] for m in (cut, corrected)
    ]
    assert shapes[0] == shapes[1]
    assert cut != corrected
    with np.load(calibration) as data:
        whole, *rest = (single_outputs(m, data["x"]) for m in (trace.model, cut, corrected))
    alone, reconstructed = (np.abs(other - whole).mean() for other in rest)
    assert reconstructed < 0.7 * alone


def test_torch_module_is_traced_planned_and_cut() -> None:
    import torch
    from topologies import TOPOLOGIES

    module, inputs = TOPOLOGIES["resnet_a"]()
    trace = rlprune.trace(module, inputs)
    plan = rlprune.plan(trace, budget_ratio=0.5, device="macs", policy="knapsack")
    smaller = rlprune.apply(plan, trace)
    counts = [sum(p.numel() for p in net.parameters()) for net in (module, smaller)]
    assert counts[1] < counts[0]
    with torch.no_grad():
        assert smaller(*inputs).shape == module(*inputs).shape
    with pytest.raises(InputError, match="example_inputs"):
        rlprune.trace(module)


def test_a_weight_held_by_its_torch_name_keeps_its_shape() -> None:
    from topologies import TOPOLOGIES

    module, inputs = TOPOLOGIES["resnet_a"]()
    before = {name: tuple(p.shape) for name, p in module.named_parameters() if p.dim() == 4}
    name = list(before)[1]
    ask = {"budget_ratio": 0.6, "device": "macs", "policy": "uniform", "hold": name}
    plan = rlprune.plan(module, example_inputs=inputs, **ask)
    smaller = rlprune.apply(plan, module, example_inputs=inputs)
    after = {name: tuple(p.shape) for name, p in smaller.named_parameters()}
    assert after[name] == before[name]
    assert any(after[other] != shape for other, shape in before.items())


def test_what_cannot_be_traced_is_named() -> None:
    with pytest.raises(InputError, match="cannot trace a int"):
        rlprune.trace(7)  # type: ignore[call-overload]


def test_plan_for_another_model_is_refused() -> None:
    plan = rlprune.plan(small_onnx(), budget_ratio=0.5, device="macs", policy="knapsack")
    with pytest.raises(PlanMismatchError):
        rlprune.apply(plan, small_onnx(widths=(16, 24)))


@pytest.mark.parametrize("budget", [{}, {"budget_ms": 1.0, "budget_ratio": 0.5}])
def test_exactly_one_budget_is_given(budget: dict[str, float]) -> None:
    with pytest.raises(BudgetError, match="either"):
        rlprune.plan(small_onnx(), device="macs", **budget)
