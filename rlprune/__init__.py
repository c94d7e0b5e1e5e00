"""rlprune: model + device + milliseconds -> pruning plan.

    trace = rlprune.trace("model.onnx")                    # or a torch module and example inputs
    plan = rlprune.plan(trace, budget_ratio=0.5)           # for this machine, measured if need be
    smaller = rlprune.apply(plan, trace)                   # an onnx.ModelProto, or a torch module
    report = rlprune.finetune(module, plan, "train.npz", out="tuned")   # cut, trained, written
    plan = rlprune.Client("host:port").plan("model.onnx", device="...", budget_ms=8)

Importing this costs nothing: each call imports what it needs, and says which extra is missing.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from rlprune.errors import AccuracyWarning, InputError

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from rlprune.finetuning.run import finetune
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.graph.from_torch import TorchTrace
    from rlprune.plans import PruningPlan
    from rlprune.sensitivity.correct import Correction
    from rlprune.sensitivity.sources import CalibrationData, CalibrationSource
    from rlprune.service.client import Client

    OnnxModel = str | Path | bytes | onnx.ModelProto | OnnxTrace
    TorchModel = nn.Module | TorchTrace

__all__ = [
    "CalibrationData",
    "Client",
    "PruningPlan",
    "__version__",
    "apply",
    "finetune",
    "plan",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from rlprune.service.client import Client

        return Client
    if name == "finetune":
        from rlprune.finetuning.run import finetune

        return finetune
    if name == "CalibrationData":
        from rlprune.sensitivity.sources import CalibrationData

        return CalibrationData
    if name == "PruningPlan":
        from rlprune.plans import PruningPlan

        return PruningPlan
    if name == "__version__":
        from importlib.metadata import version

        return version("rlprune")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@overload
def trace(
    model: OnnxModel,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_values: Mapping[str, Any] | None = None,
) -> OnnxTrace: ...
@overload
def trace(model: TorchModel, example_inputs: Any = None) -> TorchTrace: ...
def trace(
    model: OnnxModel | TorchModel,
    example_inputs: Any = None,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    input_values: Mapping[str, Any] | None = None,
) -> OnnxTrace | TorchTrace:
    """What of a model can be pruned. The model is not changed; a trace is returned as it is.

    Args:
        model: an ONNX file's path or bytes, an `onnx.ModelProto`, or a torch module.
        example_inputs: what a torch module is called with (a tensor or a tuple of them).
        input_shapes: shapes of ONNX inputs whose extents the file leaves open, by name.
        input_values: values of ONNX inputs that are to be constants, by name, such as
            `{"sr": 16000}`; in what is written, too.

    Raises:
        ModelError: the model is refused, or its channels cannot be followed.
        MissingExtraError: a torch module without the extra "torch".
    """
    return _trace(model, example_inputs, input_shapes, input_values)


def _trace(
    model: OnnxModel | TorchModel,
    example_inputs: Any,
    input_shapes: Mapping[str, Sequence[int]] | None,
    input_values: Mapping[str, Any] | None = None,
) -> OnnxTrace | TorchTrace:
    from rlprune.graph.from_onnx import OnnxTrace, trace_onnx

    if isinstance(model, OnnxTrace):
        return model
    # Who holds a module has imported torch; who has not cannot hold one, and is spared the import.
    if "torch" in sys.modules:
        from torch import nn

        from rlprune.graph.from_torch import TorchTrace, trace_torch

        if isinstance(model, TorchTrace):
            return model
        if isinstance(model, nn.Module):
            if example_inputs is None:
                raise InputError("a torch module is traced with example_inputs; give a tensor")
            return trace_torch(model, example_inputs)
    import onnx

    if not isinstance(model, str | Path | bytes | onnx.ModelProto):
        raise InputError(
            f"cannot trace a {type(model).__name__}; give an ONNX file's path or bytes, "
            "a ModelProto, or a torch module"
        )
    return trace_onnx(model, input_shapes=input_shapes, input_values=input_values)


def plan(
    model: OnnxModel | TorchModel,
    *,
    budget_ms: float | None = None,
    budget_ratio: float | None = None,
    device: str | None = None,
    policy: str = "learned",
    calibration: CalibrationSource | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    round_to: int | None = None,
    min_keep: int = 1,
    min_keep_ratio: float = 0.0,
    hold: str | Iterable[str] = (),
    pin: str | Iterable[str] = (),
    certify: bool = False,
    guard: bool = True,
    candidates: int | None = None,
    max_params: int | None = None,
    at_init: str | None = None,
) -> PruningPlan:
    """How many channels each group may keep, so that the model runs within the budget.

    No server is asked. With no `device` it is this machine: what the model needs is measured the
    first time (about a minute) and found in the local store later.

    Args:
        model: as `trace` takes it, or a trace, which spares tracing again.
        budget_ms: latency that the pruned model must not exceed; either this or
        budget_ratio: the same as a share (0-1] of the unpruned model's predicted latency.
        device: a key that the local store knows; ort, openvino or mnn for that runtime on this
            machine; or `macs` (then "ms" are millions of MACs).
        policy: learned, corrected, knapsack, global, uniform (one ratio, filled up to the budget),
            uniform-plain (not filled), or a trained policy's directory.
        calibration: inputs without or with labels: an `.npz` with an array for every input (`x`
            where there is one, [N, ...]; `y` [N] for labels), arrays by name, one array, a
            `CalibrationData`, or `made-up`; sensitivity is then measured, not predicted from the
            weights.
        example_inputs, input_shapes: as for `trace`.
        round_to: keep counts are multiples of this, or the full width; by default of what the
            device likes (8).
        min_keep: no group keeps fewer units.
        min_keep_ratio: nor a smaller share (0-1) of them.
        hold: globs over names of layers, nodes, weights or groups; what matches is left as it is.
        pin: the same; the channels of all layers that one glob matches keep one ratio.
        certify: measure the plan on this machine, in a new process, and correct it where it misses
            its budget or leaves much of it unused; `plan.certificate` says what came of it.
        guard: give the knapsack's plan, and say so in `plan.note`, where the policy's recorded gain
            on unseen models is not clearly above zero; False for what it plans all the same.
        candidates: let so many plans (the knapsack's, the policy's, samples around both) race on
            half of the calibration images, the other half being what losses are measured on, and
            take the one whose answers diverge least from the unpruned network's; the knapsack's
            stands unless beaten by more than a standard error. `plan.candidates` has the table. By
            default 64 from 500 calibration images on, with the policy `learned`; 0 for none.
        max_params: a second budget: parameters (BatchNorm folded) that the plan may have at most.
        at_init: synflow, snip or grasp: the module is not trained yet, and this score says what a
            group is worth; snip and grasp are taken of the `calibration` images. Cut, then train.

    Returns:
        The plan; `feasible` is False where no plan is within the budget.

    Raises:
        InputError: what was given is refused; the subclass or `field` says what (model, budget,
            calibration, hold, pin).
        NotFoundError: the device is unknown to the local store.
        MissingExtraError: something must be measured without the extra "device".
    """
    from rlprune.constraints import Constraints, patterns
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.planning import plan_model

    constraints = Constraints(round_to, min_keep, min_keep_ratio, patterns(hold), patterns(pin))
    traced = _trace(model, example_inputs, input_shapes)
    initial = None
    if at_init is not None:
        from rlprune.sensitivity.at_init import score_units

        if isinstance(traced, OnnxTrace):
            raise InputError(
                "at_init needs a torch module: an ONNX file cannot be trained", field="at_init"
            )
        initial, calibration = score_units(traced, at_init, calibration), None
    return plan_model(
        traced if isinstance(traced, OnnxTrace) else traced.onnx,
        budget_ms=budget_ms,
        budget_ratio=budget_ratio,
        device=device,
        policy=policy,
        calibration=calibration,
        constraints=constraints,
        certify=certify,
        guard=guard,
        candidates=candidates,
        max_params=max_params,
        initial=initial,
    )


@overload
def apply(
    plan: PruningPlan,
    model: OnnxModel,
    *,
    calibration: CalibrationSource | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    on_result: Callable[[Correction], None] | None = None,
) -> onnx.ModelProto: ...
@overload
def apply(
    plan: PruningPlan,
    model: TorchModel,
    *,
    calibration: CalibrationSource | None = None,
    example_inputs: Any = None,
    on_result: Callable[[Correction], None] | None = None,
) -> nn.Module: ...
def apply(
    plan: PruningPlan,
    model: OnnxModel | TorchModel,
    *,
    calibration: CalibrationSource | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    on_result: Callable[[Correction], None] | None = None,
) -> onnx.ModelProto | nn.Module:
    """The model with the channels removed that the plan gives up; the input stays as it is.

    Of every group the channels stay that the weights pass most energy through. The layers that lose
    inputs are reconstructed from those that stay, which saves most of what a cut costs before any
    training: on the inputs of `calibration`, which need no labels, or on made-up ones where there
    are none. Where no runtime is installed the model is only cut. An ONNX model gives an ONNX
    model, a torch module a module.

    Args:
        calibration: a file, arrays by input name, one array, or a `CalibrationData`; `none` to cut
            and no more.
        on_result: told what the model was reconstructed from and, of an ONNX model, how far its
            answers moved. Where it is None, `AccuracyWarning` is issued if they moved a lot, or if
            nothing could be reconstructed.

    Raises:
        PlanMismatchError: the plan is for another model.
        ModelError: what was cut is refused by ONNX's checker, or does not run where the model does.
        CalibrationError: the calibration data is refused.
        MissingExtraError: calibration was given, and no runtime is installed.
    """
    from rlprune.graph.from_onnx import OnnxTrace

    traced = _trace(model, example_inputs, input_shapes)
    plan.check(traced.graph)
    if isinstance(traced, OnnxTrace):
        from rlprune.graph.reach import attach
        from rlprune.runtime.once import run_once
        from rlprune.sensitivity.correct import carry_out
        from rlprune.surgery.written import note_plan

        made = carry_out(traced, plan.keeps, calibration)
        run_once(traced, made.model)
        written = attach(made.model, traced.tail)
        note_plan(written, plan)
        _tell(made, on_result)
        return written
    from rlprune.sensitivity.torch_reconstruct import prune_module

    small, correction = prune_module(traced, plan.keeps, calibration)
    _tell(correction, on_result)
    return small


def _tell(made: Correction, on_result: Callable[[Correction], None] | None) -> None:
    if on_result is not None:
        on_result(made)
    elif made.warning:
        warnings.warn(made.warning, AccuracyWarning, stacklevel=3)
