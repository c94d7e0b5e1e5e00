"""rlprune: model + device + milliseconds -> pruning plan.

    trace = rlprune.trace("model.onnx")                    # or a torch module and example inputs
    plan = rlprune.plan(trace, budget_ratio=0.5)           # for this machine, measured if need be
    smaller = rlprune.apply(plan, trace)                   # an onnx.ModelProto, or a torch module
    report = rlprune.finetune(module, plan, "train.npz", out="tuned")   # cut, trained, written
    plan = rlprune.Client("host:port").plan("model.onnx", device="...", budget_ms=8)

Importing this costs nothing: each call imports what it needs, and says which extra is missing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from rlprune.errors import AccuracyWarning, InputError

if TYPE_CHECKING:
    from typing import Unpack

    import onnx
    from torch import nn

    from rlprune.finetuning.run import finetune
    from rlprune.graph.any_trace import OnnxModel, TorchModel
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.graph.from_torch import TorchTrace
    from rlprune.planning.profiles import OnProgress
    from rlprune.planning.request import OneBudget, SeveralBudgets
    from rlprune.plans import PruningPlan
    from rlprune.sensitivity.correct import Correction
    from rlprune.sensitivity.sources import CalibrationData, CalibrationSource
    from rlprune.service.client import Client

__all__ = [
    "CalibrationData",
    "Client",
    "PruningPlan",
    "__version__",
    "apply",
    "finetune",
    "plan",
    "quantize",
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
    """Reads a model and finds which of its channels can be pruned; the model is not changed.

    Args:
        model: an ONNX file's path or bytes, an `onnx.ModelProto`, a torch module, or a trace, which
            is returned as it is.
        example_inputs: what a torch module is called with (a tensor or a tuple of them).
        input_shapes: shapes of ONNX inputs whose extents the file leaves open, by name.
        input_values: values of ONNX inputs that are to be constants, by name, such as
            `{"sr": 16000}`; in what is written, too.

    Returns:
        The model with its graph: groups of channels, operators, and what is not prunable and why.

    Raises:
        ModelError: the model is refused, or its channels cannot be followed.
        MissingExtraError: a torch module without the extra "torch".
    """
    from rlprune.graph.any_trace import trace_any

    return trace_any(model, example_inputs, input_shapes, input_values)


@overload
def plan(
    model: OnnxModel | TorchModel,
    *,
    calibration: CalibrationSource | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    on_progress: OnProgress | None = None,
    **options: Unpack[OneBudget],
) -> PruningPlan: ...
@overload
def plan(
    model: OnnxModel | TorchModel,
    *,
    calibration: CalibrationSource | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    on_progress: OnProgress | None = None,
    **options: Unpack[SeveralBudgets],
) -> list[PruningPlan]: ...
def plan(
    model: OnnxModel | TorchModel,
    *,
    calibration: CalibrationSource | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> PruningPlan | list[PruningPlan]:
    """Finds how to prune a network so that it meets a latency budget on a device.

    No server is asked. With no `device` it is this machine: what the model needs is measured the
    first time (about a minute) and found in the local store later. The plan is kept there too.

    Args:
        model: as `trace` takes it, or a trace, which spares tracing again.
        calibration: inputs without or with labels: an `.npz` with an array for every input (`x`
            where there is one, [N, ...]; `y` [N] for labels), arrays by name, one array, a
            `CalibrationData`; `made-up`, as where nothing is given; or `none`, for a plan by what
            is predicted from the weights.
        example_inputs: as for `trace`.
        input_shapes: as for `trace`.
        on_progress: told (what is being done, how much is done, of how much).
        options: `budget_ms` or `budget_ratio`, and all else that may be asked: see
            `rlprune.planning.request.PlanOptions`.

    Returns:
        The plan, or for several budgets a list of plans in their order; `feasible` is False where
        no plan is within the budget.

    Raises:
        InputError: what was given is refused; the subclass or `field` says what (model, budget,
            calibration, hold, pin).
        NotFoundError: the device is unknown to the local store.
        MissingExtraError: something must be measured without the extra "device".
    """
    from rlprune.graph.any_trace import model_name, trace_any
    from rlprune.planning import LocalPlanner, PlanRequest, make_plans
    from rlprune.planning.request import asks_for_one

    request = PlanRequest.of(**options)
    made = make_plans(
        LocalPlanner(),
        trace_any(model, example_inputs, input_shapes),
        request,
        calibration=calibration,
        model_name=model_name(model),
        on_progress=on_progress,
    )
    return made[0] if asks_for_one(options) else made


@overload
def apply(
    plan: PruningPlan,
    model: OnnxModel,
    *,
    calibration: CalibrationSource | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    precision: str | None = None,
    keep_float: Sequence[str] | None = None,
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
    precision: str | None = None,
    keep_float: Sequence[str] | None = None,
    on_result: Callable[[Correction], None] | None = None,
) -> onnx.ModelProto | nn.Module:
    """Prunes a model as a plan says and reconstructs the layers that lost inputs.

    Of every group those channels stay that the weights pass most energy through. Layers that lose
    inputs are then solved by least squares to answer as before from the inputs that stay: on the
    inputs of `calibration`, which need no labels, or on made-up ones where there are none. Where no
    runtime is installed the model is only cut. The model that is given is not changed.

    Args:
        plan: for this model; see `PruningPlan.check`.
        model: as `trace` takes it, or a trace.
        example_inputs: as for `trace`.
        input_shapes: as for `trace`.
        calibration: a file, arrays by input name, one array, or a `CalibrationData`; `none` to cut
            and no more.
        precision: of the ONNX model that is returned: in `int8` it is quantised, on the same
            inputs; `bf16` is asked of OpenVINO when the f32 model is loaded. The plan's if None. A
            module stays in float: it is quantised once it is tuned and exported (`quantize`).
        keep_float: globs of layers that stay in float where the others become int8; the plan's if
            None.
        on_result: told what the model was reconstructed from and, how far its
            answers moved. Where it is None, `AccuracyWarning` is issued if they moved a lot, or if
            nothing could be reconstructed.

    Returns:
        The pruned model: an ONNX model for an ONNX model, a torch module for a module.

    Raises:
        PlanMismatchError: the plan is for another model.
        ModelError: what was cut is refused by ONNX's checker, or does not run where the model does.
        CalibrationError: the calibration data is refused.
        MissingExtraError: calibration was given, and no runtime is installed.
    """
    from rlprune.graph.any_trace import trace_any
    from rlprune.graph.from_onnx import OnnxTrace

    traced = trace_any(model, example_inputs, input_shapes)
    plan.check(traced.graph)
    if isinstance(traced, OnnxTrace):
        from rlprune.graph.reach import attach
        from rlprune.latency.types import INT8, check_precision
        from rlprune.runtime.once import run_once
        from rlprune.sensitivity.correct import carry_out
        from rlprune.sensitivity.quantised import in_int8
        from rlprune.surgery.written import note

        made = carry_out(traced, plan.keeps, calibration, plan.schemes)
        kept = plan.constraints.keep_float if keep_float is None else keep_float
        if check_precision(precision or plan.precision) == INT8:
            made = in_int8(traced, made, kept)
        elif keep_float:
            raise InputError("keep_float goes with precision int8", field="keep_float")
        run_once(traced, made.model)
        written = attach(made.model, traced.tail)
        note(written, plan.about)
        _tell(made, on_result)
        return written
    from rlprune.sensitivity.torch_reconstruct import prune_module

    if precision not in (None, "f32") or keep_float:
        raise InputError(
            "a module stays in float; quantize its ONNX file once it is exported",
            field="precision",
        )
    small, correction = prune_module(traced, plan.keeps, calibration, plan.schemes)
    _tell(correction, on_result)
    return small


def quantize(
    model: OnnxModel,
    *,
    calibration: CalibrationSource | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    keep_float: Sequence[str] = (),
    on_result: Callable[[Correction], None] | None = None,
) -> onnx.ModelProto:
    """The model as it is in int8, for ONNX Runtime and OpenVINO: static QDQ quantisation by ONNX
    Runtime, weights per channel.

    Args:
        model: an ONNX model, or its trace.
        calibration: as for `apply`; made-up inputs if None.
        input_shapes: as for `trace`.
        keep_float: globs of layers that stay in float.
        on_result: told how far answers moved; where it is None and they moved a lot,
            `AccuracyWarning` is issued.

    Raises:
        InputError: a pattern matches nothing, or the model is quantised already.
        ModelError: the quantiser refuses the model, or the result does not run.
        CalibrationError: the calibration data is refused.
        MissingExtraError: no runtime is installed.
    """
    from rlprune.constraints import Constraints, bind
    from rlprune.graph.any_trace import trace_any
    from rlprune.graph.from_onnx import OnnxTrace
    from rlprune.graph.reach import attach
    from rlprune.runtime.once import run_once
    from rlprune.sensitivity.quantised import quantise

    traced = trace_any(model, None, input_shapes)
    if not isinstance(traced, OnnxTrace):
        raise InputError("a module is quantized once it is exported to ONNX", field="model")
    bind(traced.graph, Constraints(keep_float=tuple(keep_float)), round_to=1)  # names are checked
    made = quantise(traced, calibration, keep_float)
    run_once(traced, made.model)
    _tell(made, on_result)
    return attach(made.model, traced.tail)


def _tell(made: Correction, on_result: Callable[[Correction], None] | None) -> None:
    if on_result is not None:
        on_result(made)
    elif made.warning:
        warnings.warn(made.warning, AccuracyWarning, stacklevel=3)
