"""Each precision is measured and predicted by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hand_graphs import (
    CALL_MS,
    DEVICE,
    law_ms,
    model_ms,
    operator_measurement,
    plan_measurement,
    residual_graph,
)
from small_onnx import small_onnx
from synthetic import channel_space

from rlprune.errors import InputError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.skeleton import strip
from rlprune.latency.choose import calibration_plans, operator_grid
from rlprune.latency.collect import measure_subjects, skeleton_models
from rlprune.latency.device import local_device_key, preferred_multiple
from rlprune.latency.limits import fault_of
from rlprune.latency.measure import MeasureConfig, measure
from rlprune.latency.model import LatencyModel
from rlprune.latency.multiples import BETWEEN, LEAST, measured_multiple, multiple_probes
from rlprune.latency.operators import OVERHEAD, operator_model
from rlprune.latency.types import (
    BF16,
    F32,
    INT8,
    Arithmetic,
    Measurement,
    ModelSubject,
    OperatorSpec,
)
from rlprune.precision import is_quantised
from rlprune.runtime import check_precision, get_runtime
from rlprune.store.encoding import subject_from_key, subject_key

GRAPH = residual_graph()
SPACE = channel_space(GRAPH)
GRAPHS = {GRAPH.fingerprint: GRAPH}
FACTORS = {"conv": 1.25, "activation": 0.0, "add": 0.5}
IN_INT8 = Arithmetic(INT8)
QUICK = MeasureConfig(session_count=2, extra_session_count=0, sample_count=3, max_sample_count=4)


def measured(arithmetic: Arithmetic, *, slow: float = 1.0) -> list[Measurement]:
    """A device that is a formula, `slow` times as slow in one arithmetic."""
    specs = [OVERHEAD, *operator_grid(SPACE)]
    found = [
        operator_measurement(s, slow * (CALL_MS if s == OVERHEAD else law_ms(s) + CALL_MS))
        for s in specs
    ]
    keeps = calibration_plans(SPACE, count=21)
    base = slow * float(model_ms(GRAPH, GRAPH.widths[None], FACTORS)[0])
    for keep, ms in zip(keeps, slow * model_ms(GRAPH, keeps, FACTORS), strict=True):
        found.append(plan_measurement(GRAPH, keep, ms, base))
    return [replace(one, subject=_in(one.subject, arithmetic)) for one in found]


def _in(subject: OperatorSpec | ModelSubject, own: Arithmetic) -> OperatorSpec | ModelSubject:
    if isinstance(subject, OperatorSpec):
        return replace(subject, precision=own.precision)
    return replace(subject, precision=own.precision, keep_float=own.keep_float)


def base_ms(measurements: list[Measurement], arithmetic: Arithmetic) -> float:
    model = LatencyModel.fit(DEVICE, measurements, GRAPHS, arithmetic=arithmetic)
    return model.compile(SPACE).base_ms


def test_a_precision_is_predicted_from_its_own_measurements_alone() -> None:
    kept = Arithmetic(INT8, ("conv*",))
    alone = {
        one: measured(one, slow=slow)
        for one, slow in ((Arithmetic(), 1.0), (IN_INT8, 0.4), (kept, 0.7))
    }
    together = [one for own in alone.values() for one in own]
    for arithmetic, own in alone.items():
        found = base_ms(together, arithmetic)
        # Operators alone are of int8 whatever else stays in float; they only guess.
        assert found == pytest.approx(base_ms(own, arithmetic), rel=1e-3)
    assert base_ms(together, IN_INT8) < 0.5 * base_ms(together, Arithmetic())


def test_what_is_missing_is_asked_for_in_the_precision() -> None:
    in_f32 = measured(Arithmetic())
    assert not LatencyModel.fit(DEVICE, in_f32, GRAPHS).missing(SPACE)
    for arithmetic in (IN_INT8, Arithmetic(BF16), Arithmetic.of(INT8, ["b", "a", "b"])):
        model = LatencyModel.fit(DEVICE, in_f32, GRAPHS, arithmetic=arithmetic)
        assert model.empty
        missing = model.missing(SPACE)
        assert len(missing) > 25 and all(arithmetic.is_of(subject) for subject in missing)
    own = measured(IN_INT8)
    assert not LatencyModel.fit(DEVICE, own, GRAPHS, arithmetic=IN_INT8).missing(SPACE)


def test_a_subject_in_another_arithmetic_is_another_subject() -> None:
    model = ModelSubject("a" * 64, (8, 16), precision=INT8)
    kept = replace(model, keep_float=("conv1", "fc"))
    operator = replace(OVERHEAD, precision=INT8)
    keys = {subject_key(one) for one in (model, kept, replace(model, precision=F32))}
    assert len(keys) == 3
    for one in (model, kept, operator):
        assert subject_from_key(subject_key(one)) == one
    assert "keep_float" not in subject_key(model)


def test_float_layers_of_a_model_in_f32_cannot_be() -> None:
    wrong = ModelSubject("a" * 64, (8,), keep_float=("conv1",))
    fault = fault_of(Measurement.failed(DEVICE, wrong, "x"))
    assert fault is not None and fault[0] == "subject.keep_float"


def test_int8_operators_and_models_are_measured_from_skeletons_without_data() -> None:
    runtime = get_runtime()
    trace = trace_onnx(small_onnx())
    fingerprint, skeleton = trace.graph.fingerprint, strip(trace.model)
    model_of = skeleton_models({fingerprint: skeleton}.__getitem__)
    plan = (16, 32)
    subjects = [
        OperatorSpec(
            *("conv", "", 32, 64, (16, 16), (16, 16), (3, 3), (1, 1), (1,) * 4, (1, 1)),
            precision=INT8,
        ),
        replace(OVERHEAD, precision=INT8),
        ModelSubject(fingerprint, plan, precision=INT8),
        ModelSubject(fingerprint, plan),
        ModelSubject(fingerprint, plan, precision=INT8, keep_float=("conv2",)),
    ]
    assert is_quantised(operator_model(subjects[0]))
    found = measure_subjects(
        subjects,
        model_of=model_of,
        device=local_device_key(runtime),
        runtime=runtime,
        config=QUICK,
    )
    assert {one.subject for one in found} == set(subjects)
    assert all(one.status != "failed" for one in found), [one.reason for one in found]
    # Each is compared with its unpruned self in the same arithmetic.
    for one in found:
        if isinstance(one.subject, ModelSubject):
            assert one.beside_itself and 0.1 < one.control_ratio < 1.1
    wrong = ModelSubject(fingerprint, plan, precision=INT8, keep_float=("no such",))
    [one] = measure_subjects([wrong], model_of=model_of, device="d", runtime=runtime, config=QUICK)
    assert one.status == "failed" and "matches no layer" in one.reason


def test_two_precisions_can_be_measured_in_turns() -> None:
    runtime = get_runtime("openvino")
    if runtime.refusal(BF16):
        pytest.skip("no bf16 on this processor")
    model = small_onnx(shape=(1, 3, 64, 64), widths=(64, 64))
    subject = ModelSubject("a" * 64, (64, 64), precision=BF16)
    [found] = measure(
        [(subject, model)],
        device="d",
        runtime=runtime,
        control=model,
        control_precision=F32,
        config=QUICK,
    )
    assert found.status != "failed" and found.beside_f32 and not found.beside_itself
    assert found.control_ratio < 0.9
    fitted = LatencyModel.fit("d", [found], {}, arithmetic=Arithmetic(BF16))
    assert fitted.over_f32 == {"a" * 64: found.control_ratio} and fitted.empty


@pytest.mark.parametrize(
    ("runtime", "precision", "why"),
    [
        ("ort", BF16, "no bf16 kernels for CPUs; take openvino"),
        ("mnn", BF16, "f32 only"),
        ("mnn", INT8, "f32 only, not in int8; take ort or openvino"),
    ],
)
def test_what_a_runtime_cannot_compute_in_is_refused_in_one_line(
    runtime: str, precision: str, why: str
) -> None:
    executing = get_runtime(runtime)
    with pytest.raises(InputError, match=why) as refused:
        check_precision(executing, precision)
    assert refused.value.field == "precision"
    subject = ModelSubject("a" * 64, (32, 64), precision=precision)
    [found] = measure([(subject, small_onnx())], device="d", runtime=executing, config=QUICK)
    assert found.status == "failed" and why in found.reason


def probed(saved: dict[int, float]) -> list[Measurement]:
    """The probes on a device where a width saves a share of what 48 of 64 channels save."""
    found = []
    for spec in multiple_probes(INT8):
        share = {LEAST: 1.0, 64: 0.0, **saved}[spec.out_width]
        found.append(operator_measurement(spec, 1.0 - 0.25 * share))
    return found


FAIR = {width: (64 - width) / 16 for width in BETWEEN.values()}


def test_the_multiple_is_the_finest_that_pays() -> None:
    nothing = dict.fromkeys(FAIR, 0.0)
    assert measured_multiple(probed(FAIR), INT8) == 1
    assert measured_multiple(probed(nothing), INT8) == 16
    assert measured_multiple(probed(nothing | {56: 0.5}), INT8) == 8
    assert measured_multiple(probed(FAIR | {51: 0.1}), INT8) == 4
    # 52 pays and 56 does not: that is noise, or a kernel of its own.
    assert measured_multiple(probed(FAIR | {56: 0.1}), INT8) == 16


def test_the_multiple_is_not_known_until_all_probes_are_measured() -> None:
    assert measured_multiple(probed(FAIR)[1:], INT8) is None
    assert measured_multiple(probed(FAIR), BF16) is None
    assert measured_multiple([], INT8) is None
    assert preferred_multiple("ort-1", INT8) == preferred_multiple("openvino-1", INT8) == 16
    assert preferred_multiple("macs", INT8) == preferred_multiple("macs") == 8


def test_real_probes_tell_a_multiple() -> None:
    runtime = get_runtime()
    found = measure_subjects(
        multiple_probes(INT8),
        model_of=lambda subject: small_onnx(),
        device=local_device_key(runtime),
        runtime=runtime,
        config=QUICK,
    )
    assert measured_multiple(found, INT8) in (1, 4, 8, 16)
    assert np.isfinite([one.control_ratio for one in found]).all()
