"""From what is missing to measurements: the in-process planner and the device worker share this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx

from rlprune.constraints import float_nodes
from rlprune.errors import RlpruneError
from rlprune.graph.from_onnx import OnnxTrace, trace_onnx
from rlprune.graph.sizes import at_sizes
from rlprune.graph.skeleton import fill
from rlprune.latency.measure import MeasureConfig, Progress, measure
from rlprune.latency.operators import operator_model
from rlprune.latency.types import (
    CONTROL,
    INT8,
    Measurement,
    ModelSubject,
    OperatorSpec,
    Subject,
)
from rlprune.precision import with_made_up_scales
from rlprune.runtime.base import Runtime
from rlprune.schemes import carry_out
from rlprune.surgery.importance import unit_scores

ModelOf = Callable[[ModelSubject], onnx.ModelProto]
"""The model of a subject; without settings the unpruned one, which serves as the control."""

MODELS_AT_ONCE = 6
"""Whole models held in memory and measured in turns."""


def measure_subjects(
    subjects: Sequence[Subject],
    *,
    model_of: ModelOf,
    device: str,
    runtime: Runtime,
    config: MeasureConfig | None = None,
    on_progress: Progress | None = None,
) -> list[Measurement]:
    """Measures operators by themselves, and whole models in turns with their unpruned selves.

    `model_of` is asked for each model shortly before it is measured, and once per network and
    arithmetic with no settings: a control computes as its subjects do. Where it refuses, the
    measurement says `failed` and why.

    `config` is how whole models are measured; operators are looked at more briefly.

    Returns:
        One Measurement per distinct subject: operators first, then models, each in order given.
    """
    config = config or MeasureConfig()
    distinct = list(dict.fromkeys(subjects))
    operators = [subject for subject in distinct if isinstance(subject, OperatorSpec)]
    models = [subject for subject in distinct if isinstance(subject, ModelSubject)]
    brief = _brief(config)
    total = len(operators) * brief.session_count + len(models) * config.session_count
    results: list[Measurement] = []

    def progress() -> Progress | None:
        if on_progress is None:
            return None
        before = sum(
            (brief if isinstance(one.subject, OperatorSpec) else config).session_count
            for one in results
        )
        return lambda done, planned: on_progress(min(before + done, total), total)

    results += measure(
        [(spec, operator_model(spec)) for spec in operators],
        device=device,
        runtime=runtime,
        config=brief,
        on_progress=progress(),
    )

    def failed(subject: ModelSubject, reason: object) -> Measurement:
        return Measurement.failed(device, subject, str(reason), thread_count=config.thread_count)

    def control_of(subject: ModelSubject) -> ModelSubject:
        return ModelSubject(
            subject.fingerprint, (), precision=subject.precision, keep_float=subject.keep_float
        )

    for unpruned in dict.fromkeys(map(control_of, models)):
        own = [subject for subject in models if control_of(subject) == unpruned]
        try:
            control = model_of(unpruned)
        except RlpruneError as error:
            results += [failed(subject, f"{CONTROL}{error}") for subject in own]
            continue
        for start in range(0, len(own), MODELS_AT_ONCE):
            built: list[tuple[Subject, onnx.ModelProto]] = []
            refused: list[Measurement] = []
            for subject in own[start : start + MODELS_AT_ONCE]:
                try:
                    built.append((subject, model_of(subject)))
                except RlpruneError as error:
                    refused.append(failed(subject, error))
            results += refused
            results += measure(
                built,
                device=device,
                runtime=runtime,
                control=control,
                config=config,
                on_progress=progress(),
            )
    return results


def trace_models(trace: OnnxTrace) -> ModelOf:
    """Models of one traced network, cut from its own weights, at the sizes it was analysed at; in
    int8 with made-up scales, on which latency does not depend."""
    scores = unit_scores(trace)

    def cut(subject: ModelSubject) -> onnx.ModelProto:
        if not subject.settings:
            return at_sizes(trace.model)
        settings = np.array(subject.settings, dtype=np.int64)
        return at_sizes(carry_out(trace, settings, subject.schemes, scores=scores))

    def model_of(subject: ModelSubject) -> onnx.ModelProto:
        made = cut(subject)
        if subject.precision != INT8:
            return made
        return with_made_up_scales(made, keep_float=float_nodes(trace.graph, subject.keep_float))

    return model_of


def skeleton_models(skeleton_of: Callable[[str], bytes]) -> ModelOf:
    """Models cut from skeletons filled with random weights, each traced once; `skeleton_of` takes a
    fingerprint."""
    traced: dict[str, ModelOf] = {}

    def model_of(subject: ModelSubject) -> onnx.ModelProto:
        if subject.fingerprint not in traced:
            filled = fill(skeleton_of(subject.fingerprint))
            traced[subject.fingerprint] = trace_models(trace_onnx(filled))
        return traced[subject.fingerprint](subject)

    return model_of


def _brief(config: MeasureConfig) -> MeasureConfig:
    """Operators are features, calibrated to whole models later: many of them, each only roughly."""
    return replace(
        config,
        min_sample_ms=min(config.min_sample_ms, 1.0),
        sample_count=min(config.sample_count, 4),
        max_sample_count=min(config.max_sample_count, 5),
        max_session_ms=min(config.max_session_ms, 30.0),
        session_count=min(config.session_count, 6),
        extra_session_count=min(config.extra_session_count, 2),
        max_error_ratio=max(config.max_error_ratio, 0.06),
    )
