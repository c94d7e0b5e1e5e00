"""What a plan loses after statistics correction."""

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
from rlprune.profile.evaluate import Evaluator, evaluate_model, score
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


@pytest.mark.parametrize("name", NETS)
def test_the_unpruned_model_is_its_own_correction(name: str) -> None:
    trace = traced(name)
    evaluator = Evaluator(trace, own_images(trace), runtime=RUNTIME)
    same = evaluator.evaluate(trace.graph.widths)
    assert evaluator.base.accuracy == 1.0  # labels are the file's own answers, one by one
    assert same.loss == pytest.approx(evaluator.base.loss, abs=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_the_corrected_model_is_what_was_evaluated(name: str) -> None:
    """One batch: then the pass that matched each layer and the file made of it are the same."""
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


@pytest.mark.parametrize("name", ["resnet_a", "mobilenet_v2", "vgg_view"])
def test_corrected_layers_have_the_dense_networks_statistics(name: str) -> None:
    trace = traced(name)
    images = own_images(trace)
    keeps = shrunk(trace)
    corrected = Evaluator(trace, images, runtime=RUNTIME).corrected_model(keeps)
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


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_reductions_are_spelt_as_the_opset_wants(opset: int) -> None:
    model = small_onnx()
    model.opset_import[0].version = opset
    trace = trace_onnx(model)
    evaluator = Evaluator(trace, own_images(trace), runtime=RUNTIME)
    assert evaluator.evaluate(shrunk(trace)).loss > 0.0


def test_several_batches_see_nearly_what_one_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = traced("resnet_a")
    images = own_images(trace, 256)
    # Sorted by class: batches must mix them.
    images = images.take(np.argsort(images.y, kind="stable"))
    whole = Evaluator(trace, images, runtime=RUNTIME)
    monkeypatch.setattr("rlprune.profile.evaluate.MOST_BATCH_VALUES", 0)  # 64 images
    parts = Evaluator(trace, images, runtime=RUNTIME)
    assert parts.base.loss == pytest.approx(whole.base.loss, rel=1e-5)
    np.testing.assert_allclose(parts.base.fold_losses, whole.base.fold_losses, rtol=1e-4)
    keeps = shrunk(trace)
    one, many = whole.evaluate(keeps), parts.evaluate(keeps)
    assert many.loss == pytest.approx(one.loss, abs=one.loss_se)
    folded = evaluate_model(parts.corrected_model(keeps), images, runtime=RUNTIME)
    assert folded.loss == pytest.approx(one.loss, abs=one.loss_se)


def test_the_traced_model_is_not_changed() -> None:
    trace = traced("resnet_a")
    before = trace.model.SerializeToString(deterministic=True)
    evaluator = Evaluator(trace, own_images(trace), runtime=RUNTIME)
    evaluator.corrected_model(shrunk(trace))
    assert trace.model.SerializeToString(deterministic=True) == before


def test_cross_entropy_is_exact_where_exponentials_overflow() -> None:
    logits = np.array([[1e4, 0.0], [0.0, 1e4], [0.0, 0.0], [0.0, 1.0]])
    found = score(logits, np.array([0, 0, 1, 1]))
    expected = np.array([0.0, 1e4, np.log(2.0), np.log1p(np.exp(-1.0))])
    assert found.loss == pytest.approx(expected.mean())
    assert found.loss_se == pytest.approx(expected.std(ddof=1) / 2.0)
    np.testing.assert_allclose(found.fold_losses, expected)
    assert found.accuracy == 0.5


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
    assert found.evaluate(keeps).loss == pytest.approx(wanted.evaluate(keeps).loss, rel=1e-3)


def test_an_answer_that_is_no_logits_is_refused() -> None:
    model = small_onnx()
    del model.graph.node[-2:]
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("e", TensorProto.FLOAT, (1, 64, 1, 1))
    )
    images = Calibration(np.zeros((32, 3, 16, 16), np.float32), np.arange(32) % 10)
    with pytest.raises(CalibrationError, match="logits"):
        Evaluator(trace_onnx(model), images, runtime=RUNTIME)


def test_a_batch_fixed_to_more_than_one_is_refused() -> None:
    with pytest.raises(CalibrationError, match="fixed to 4"):
        statistics.open_batch(small_onnx(shape=(4, 3, 16, 16)))
