"""What a plan loses after it was corrected."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from calibrated import own_images, shrunk, single_outputs, traced
from onnx import TensorProto, helper
from small_onnx import small_onnx

from rlprune.errors import CalibrationError
from rlprune.graph.from_onnx import trace_onnx
from rlprune.runtime import get_runtime
from rlprune.sensitivity.calibration import CalibrationSet
from rlprune.sensitivity.evaluate import Correction, Evaluator, evaluate_model, score
from rlprune.sensitivity.fit import fit_inputs
from rlprune.surgery.onnx import prune_onnx

RUNTIME = get_runtime()
NETS = [
    "vgg_view",  # constant view, BatchNorm on a Gemm
    "resnet_a",
    "mobilenet_v2",  # depthwise
    "dense_concat",
    "se_hardswish",
    "channel_shuffle",
    "keywords_1d",  # one spatial axis
    "preact",  # BatchNorm stays in the file
]


CORRECTIONS: tuple[Correction, ...] = ("reconstruct", "none")
each_correction = pytest.mark.parametrize("correction", CORRECTIONS)


@each_correction
@pytest.mark.parametrize("name", NETS)
def test_the_unpruned_model_is_its_own_correction(name: str, correction: Correction) -> None:
    trace = traced(name)
    evaluator = Evaluator(trace, own_images(trace), runtime=RUNTIME, correction=correction)
    same = evaluator.evaluate(trace.graph.widths)
    assert evaluator.base.accuracy == 1.0  # labels are the file's own answers, one by one
    assert evaluator.base.divergence == 0.0
    assert same.loss == pytest.approx(evaluator.base.loss, abs=1e-5)
    assert same.divergence == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_the_corrected_model_is_what_was_evaluated(name: str) -> None:
    trace = traced(name)
    images = own_images(trace)
    evaluator = Evaluator(trace, images, runtime=RUNTIME)
    keeps = shrunk(trace)

    corrected = evaluator.corrected_model(keeps)

    onnx.checker.check_model(corrected, full_check=True)
    loss = evaluator.evaluate(keeps).loss
    assert evaluate_model(corrected, images, runtime=RUNTIME).loss == pytest.approx(loss, rel=1e-4)
    assert len(single_outputs(corrected, images.x[:2])) == 2  # its batch is fixed to 1, as before
    pruned = prune_onnx(trace, keeps)
    assert evaluate_model(pruned, images, runtime=RUNTIME).loss != pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_corrections_are_spelt_as_the_opset_wants(opset: int) -> None:
    model = small_onnx()
    model.opset_import[0].version = opset
    trace = trace_onnx(model)
    evaluator = Evaluator(trace, own_images(trace), runtime=RUNTIME)
    assert evaluator.evaluate(shrunk(trace)).loss > 0.0


@pytest.mark.parametrize("correction", ["reconstruct", "none"])
def test_in_how_many_batches_a_plan_is_run_makes_no_difference(
    monkeypatch: pytest.MonkeyPatch, correction: Correction
) -> None:
    trace = traced("resnet_a")
    images = own_images(trace, 256)
    whole = Evaluator(trace, images, runtime=RUNTIME, correction=correction)
    monkeypatch.setattr("rlprune.sensitivity.evaluate.MOST_BATCH_VALUES", 1 << 17)
    parts = Evaluator(trace, images, runtime=RUNTIME, correction=correction)
    keeps = shrunk(trace)
    assert parts.corrected_model(keeps) == whole.corrected_model(keeps)
    one, many = whole.evaluate(keeps), parts.evaluate(keeps)
    for name in ("image_losses", "fold_losses", "fold_divergences"):
        found, wanted = getattr(many, name), getattr(one, name)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=name)


@each_correction
def test_the_traced_model_is_not_changed(correction: Correction) -> None:
    trace = traced("resnet_a")
    before = trace.model.SerializeToString(deterministic=True)
    evaluator = Evaluator(trace, own_images(trace), runtime=RUNTIME, correction=correction)
    evaluator.corrected_model(shrunk(trace))
    evaluator.evaluate(shrunk(trace))
    assert trace.model.SerializeToString(deterministic=True) == before


def test_cross_entropy_is_exact_where_exponentials_overflow() -> None:
    logits = np.array([[1e4, 0.0], [0.0, 1e4], [0.0, 0.0], [0.0, 1.0]])
    found = score(logits, np.array([0, 0, 1, 1]))
    expected = np.array([0.0, 1e4, np.log(2.0), np.log1p(np.exp(-1.0))])
    assert found.loss == pytest.approx(expected.mean())
    assert found.loss_se == pytest.approx(expected.std(ddof=1) / 2.0)
    np.testing.assert_allclose(found.fold_losses, expected)
    assert found.accuracy == 0.5


def test_without_correction_a_plan_is_only_cut() -> None:
    trace = traced("resnet_a")
    evaluator = Evaluator(trace, own_images(trace), runtime=RUNTIME, correction="none")
    assert evaluator.corrected_model(shrunk(trace)) == prune_onnx(trace, shrunk(trace))


def test_an_unknown_correction_is_refused() -> None:
    trace = trace_onnx(small_onnx())
    with pytest.raises(ValueError, match=r"'bias'.*reconstruct"):
        Evaluator(trace, own_images(trace), runtime=RUNTIME, correction="bias")  # type: ignore[arg-type]


def test_divergence_is_kl_from_the_dense_answers_whatever_the_labels() -> None:
    rng = np.random.default_rng(0)
    dense, pruned = rng.normal(0.0, 2.0, (2, 10, 6))
    p, q = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (dense, pruned))
    per_image = (p * np.log(p / q)).sum(1)
    y = rng.integers(0, 6, 10)

    found = score(pruned, y, dense)

    folds = [per_image[fold::4].mean() for fold in range(4)]
    np.testing.assert_allclose(found.fold_divergences, folds)
    assert found.divergence == pytest.approx(np.mean(folds)) and found.divergence > 0.0
    other = score(pruned, (y + 1) % 6, dense)
    np.testing.assert_array_equal(other.fold_divergences, found.fold_divergences)
    assert score(pruned, y).divergence == 0.0
    assert score(pruned, y, pruned + 3.0).divergence == pytest.approx(0.0, abs=1e-12)
    assert other.loss != found.loss


def test_divergence_is_the_expected_rise_of_the_loss_of_a_calibrated_network() -> None:
    """Labels drawn from the dense network's own answers."""
    rng = np.random.default_rng(0)
    dense = rng.normal(0.0, 1.5, (20_000, 4))
    pruned = dense + rng.normal(0.0, 1.0, dense.shape)
    p = np.exp(dense) / np.exp(dense).sum(1, keepdims=True)
    y = (p.cumsum(1) < rng.random((len(p), 1))).sum(1)
    found = score(pruned, y, dense)
    rise = found.image_losses - score(dense, y).image_losses
    assert found.divergence == pytest.approx(rise.mean(), abs=3 * rise.std() / np.sqrt(len(rise)))


def test_a_softmax_at_the_end_is_taken_for_what_it_is() -> None:
    plain = small_onnx()
    ended = small_onnx()
    ended.graph.node[-1].output[0] = "logits"
    ended.graph.node.append(helper.make_node("Softmax", ["logits"], ["y"], name="softmax"))
    trace, softened = trace_onnx(plain), trace_onnx(ended)
    images = own_images(trace)
    wanted = Evaluator(trace, images, runtime=RUNTIME)
    found = Evaluator(softened, images, runtime=RUNTIME)
    assert found.base.loss == pytest.approx(wanted.base.loss, rel=1e-4)
    keeps = shrunk(trace)
    one, other = found.evaluate(keeps), wanted.evaluate(keeps)
    assert one.loss == pytest.approx(other.loss, rel=1e-3)
    assert one.divergence == pytest.approx(other.divergence, rel=1e-3)


def test_an_answer_that_is_no_choice_is_judged_as_values() -> None:
    model = small_onnx()
    del model.graph.node[-2:]
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("e", TensorProto.FLOAT, (1, 64, 1, 1))
    )
    trace = trace_onnx(model)
    x = np.random.default_rng(0).standard_normal((32, 3, 16, 16)).astype(np.float32)
    found = Evaluator(trace, CalibrationSet.single(x), runtime=RUNTIME).evaluate(shrunk(trace))
    assert found.divergence > 0.0 and np.isnan(found.loss) and np.isnan(found.accuracy)


def test_a_batch_fixed_to_more_than_one_is_refused() -> None:
    trace = trace_onnx(small_onnx(shape=(4, 3, 16, 16)))
    with pytest.raises(CalibrationError, match="fixed to 4"):
        fit_inputs({"x": np.zeros((32, 3, 16, 16), np.float32)}, np.arange(32) % 10, trace)
