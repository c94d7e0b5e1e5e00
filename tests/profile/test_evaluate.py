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
from rlprune.profile import statistics
from rlprune.profile.calibration import Calibration
from rlprune.profile.evaluate import Correction, Evaluator, evaluate_model, score
from rlprune.profile.reconstruct import Reconstruction
from rlprune.runtime import get_runtime
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


CORRECTIONS: tuple[Correction, ...] = ("reconstruct", "match", "none")
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


@pytest.mark.parametrize("correction", ["reconstruct", "match"])
@pytest.mark.parametrize("name", NETS)
def test_the_corrected_model_is_what_was_evaluated(name: str, correction: Correction) -> None:
    """One batch: then the pass that matched each layer and the file made of it are the same."""
    trace = traced(name)
    images = own_images(trace)
    evaluator = Evaluator(trace, images, runtime=RUNTIME, correction=correction)
    keeps = shrunk(trace)

    corrected = evaluator.corrected_model(keeps)

    onnx.checker.check_model(corrected, full_check=True)
    loss = evaluator.evaluate(keeps).loss
    assert evaluate_model(corrected, images, runtime=RUNTIME).loss == pytest.approx(loss, rel=1e-4)
    assert len(single_outputs(corrected, images.x[:2])) == 2  # its batch is fixed to 1, as before
    pruned = prune_onnx(trace, keeps)
    assert evaluate_model(pruned, images, runtime=RUNTIME).loss != pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("name", ["resnet_a", "mobilenet_v2", "vgg_view"])
def test_matched_layers_have_the_dense_networks_statistics(name: str) -> None:
    trace = traced(name)
    images = own_images(trace)
    keeps = shrunk(trace)
    corrected = Evaluator(trace, images, runtime=RUNTIME, correction="match").corrected_model(keeps)
    sites = statistics.find_sites(trace.model)
    assert len(sites) >= 2

    dense, matched = (_site_moments(model, sites, images.x) for model in (trace.model, corrected))

    for site, before, after in zip(sites, dense, matched, strict=True):
        kept = _kept(trace, site, keeps)
        np.testing.assert_allclose(after[0], before[0][kept], atol=2e-3, err_msg=site.tensor)
        np.testing.assert_allclose(
            after[1], before[1][kept], rtol=2e-2, atol=1e-6, err_msg=site.tensor
        )


def _site_moments(
    model: onnx.ModelProto, sites: list[statistics.Site], x: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    opened = statistics.open_batch(model)
    opened.graph.output.extend(onnx.ValueInfoProto(name=site.tensor) for site in sites)
    session = RUNTIME.load(opened.SerializeToString())
    values = session.run({session.input_names[0]: x})[1:]
    found = []
    for value in values:
        rows = np.moveaxis(value.astype(np.float64), 1, -1).reshape(-1, value.shape[1])
        found.append((rows.mean(0), rows.var(0)))
    return found


def _kept(trace: object, site: statistics.Site, keeps: np.ndarray) -> np.ndarray:
    from rlprune.surgery.importance import unit_scores
    from rlprune.surgery.onnx import kept_units

    group, unit = trace.channels.axis_units(site.tensor, site.axis)  # type: ignore[attr-defined]
    kept = kept_units(unit_scores(trace), keeps)  # type: ignore[arg-type]
    return np.array(
        [g < 0 or u in kept[g] for g, u in zip(group, unit, strict=True)], dtype=np.bool_
    )


def test_the_last_layer_is_left_alone() -> None:
    trace = trace_onnx(small_onnx())
    sites = [site.tensor for site in statistics.find_sites(trace.model)]
    assert len(sites) == 2
    assert trace.model.graph.output[0].name not in sites


@pytest.mark.parametrize("correction", ["reconstruct", "match"])
@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_corrections_are_spelt_as_the_opset_wants(opset: int, correction: Correction) -> None:
    model = small_onnx()
    model.opset_import[0].version = opset
    trace = trace_onnx(model)
    evaluator = Evaluator(trace, own_images(trace), runtime=RUNTIME, correction=correction)
    assert evaluator.evaluate(shrunk(trace)).loss > 0.0


@pytest.mark.parametrize("correction", ["reconstruct", "none"])
def test_in_how_many_batches_a_plan_is_run_makes_no_difference(
    monkeypatch: pytest.MonkeyPatch, correction: Correction
) -> None:
    trace = traced("resnet_a")
    images = own_images(trace, 256)
    whole = Evaluator(trace, images, runtime=RUNTIME, correction=correction)
    monkeypatch.setattr("rlprune.profile.evaluate.MOST_BATCH_VALUES", 0)  # 64 images
    parts = Evaluator(trace, images, runtime=RUNTIME, correction=correction)
    keeps = shrunk(trace)
    assert parts.corrected_model(keeps) == whole.corrected_model(keeps)
    one, many = whole.evaluate(keeps), parts.evaluate(keeps)
    for name in ("image_losses", "fold_losses", "fold_divergences"):
        found, wanted = getattr(many, name), getattr(one, name)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=name)


def test_matching_in_several_batches_sees_nearly_what_one_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = traced("resnet_a")
    images = own_images(trace, 256)
    # Sorted by class: batches must mix them.
    images = images.take(np.argsort(images.y, kind="stable"))
    whole = Evaluator(trace, images, runtime=RUNTIME, correction="match")
    monkeypatch.setattr("rlprune.profile.evaluate.MOST_BATCH_VALUES", 0)  # 64 images
    parts = Evaluator(trace, images, runtime=RUNTIME, correction="match")
    assert parts.base.loss == pytest.approx(whole.base.loss, rel=1e-5)
    np.testing.assert_allclose(parts.base.fold_losses, whole.base.fold_losses, rtol=1e-4)
    keeps = shrunk(trace)
    one, many = whole.evaluate(keeps), parts.evaluate(keeps)
    assert many.loss == pytest.approx(one.loss, abs=one.loss_se)
    folded = evaluate_model(parts.corrected_model(keeps), images, runtime=RUNTIME)
    assert folded.loss == pytest.approx(one.loss, abs=one.loss_se)


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


def test_an_answer_that_is_no_logits_is_refused() -> None:
    model = small_onnx()
    del model.graph.node[-2:]
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("e", TensorProto.FLOAT, (1, 64, 1, 1))
    )
    images = Calibration(np.zeros((32, 3, 16, 16), np.float32), np.arange(32) % 10)
    with pytest.raises(CalibrationError, match="logits"):
        Evaluator(trace_onnx(model), images, runtime=RUNTIME)


@each_correction
def test_a_batch_fixed_to_more_than_one_is_refused(correction: Correction) -> None:
    trace = trace_onnx(small_onnx(shape=(4, 3, 16, 16)))
    images = Calibration(np.zeros((32, 3, 16, 16), np.float32), np.arange(32) % 10)
    with pytest.raises(CalibrationError, match="fixed to 4"):
        Evaluator(trace, images, runtime=RUNTIME, correction=correction)
    with pytest.raises(CalibrationError, match="fixed to 4"):
        Reconstruction.of(trace, images, RUNTIME)
