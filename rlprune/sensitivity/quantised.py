"""A network in int8, its scales from inputs, and how far its answers moved by that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from rlprune.constraints import float_nodes
from rlprune.errors import CalibrationError, InputError
from rlprune.graph.from_onnx import OnnxTrace
from rlprune.graph.load import is_skeleton
from rlprune.precision import SCALED_COUNT, is_quantised, quantised
from rlprune.runtime import get_runtime
from rlprune.runtime.base import Array
from rlprune.sensitivity.batching import Batching, batch_axes
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.correct import Corrected, Moved, held_out
from rlprune.sensitivity.evaluate import Evaluator
from rlprune.sensitivity.sources import CalibrationSource, is_none, made_up_sets, open_calibration


def in_int8(trace: OnnxTrace, made: Corrected, keep_float: Sequence[str] = ()) -> Corrected:
    """What was made of a traced model, in int8, by the samples that it was made with.

    Args:
        trace: of the original network, whose layers `keep_float` names by patterns.

    Raises:
        InputError: there are no samples that scales could be taken from.
        ModelError: the quantiser refuses the model.
    """
    if made.samples is None:
        raise InputError(
            "int8 needs inputs to take scales from; give calibration", field="calibration"
        )
    apart, used = held_out(made.samples)
    kept = float_nodes(trace.graph, keep_float)
    model = quantised(made.model, _feeds(trace, used), keep_float=kept)
    judge = Evaluator(trace, apart, runtime=get_runtime(), reconstruct=False)
    return replace(made, model=model, quantised=Moved.of(judge.evaluate_model(model), judge.base))


def quantise(
    trace: OnnxTrace,
    calibration: CalibrationSource | None = None,
    keep_float: Sequence[str] = (),
) -> Corrected:
    """A traced model as it is, in int8: scales from `calibration`, or from made-up inputs where
    none is given.

    Raises:
        InputError: calibration is `none`, or a pattern matches no layer, or the model is quantised
            already.
        CalibrationError: what was given is refused, or made-up inputs do not do.
    """
    if is_none(calibration) or is_skeleton(trace.model):
        raise InputError("int8 needs weights, and inputs to take scales from", field="calibration")
    if is_quantised(trace.model):
        raise InputError("the model is quantised already", field="model")
    samples = open_calibration(calibration, trace)
    if samples is None:
        samples = next(made_up_sets(trace, get_runtime()), None)
    if samples is None:
        raise CalibrationError("made-up inputs do not do for this model; give calibration")
    return in_int8(trace, Corrected(model=trace.model, samples=samples), keep_float)


def _feeds(trace: OnnxTrace, samples: CalibrationSet) -> Iterator[Mapping[str, Array]]:
    """Samples one by one, as a file of whatever batch takes them."""
    alone = Batching(batch_axes(trace), None)
    few = samples.take(np.arange(min(SCALED_COUNT, len(samples))))
    return (alone.feeds(batch) for batch in few.batches(1))
