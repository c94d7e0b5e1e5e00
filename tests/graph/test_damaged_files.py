"""Files with one thing wrong: each is refused in one line that names it, and nothing hangs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from onnx_oracle import Net, assert_pruned_right, run, some_keeps

import rlprune
from rlprune.errors import ModelError
from rlprune.graph.size_guard import measure


def network(opset: int = 18) -> ModelProto:
    net = Net("batch", 3, 8, 8, opset=opset)
    x = net.add("Relu", net.norm(net.conv("x", 3, 16), 16))
    return net.model(net.head(net.conv(x, 16, 24), 24))


def line(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


def with_number(op: str, place: int, number: float) -> tuple[ModelProto, str]:
    """The network with one number of one weight replaced, and the weight's name."""
    model = network()
    name = next(node for node in model.graph.node if node.op_type == op).input[place]
    tensor = next(one for one in model.graph.initializer if one.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.ravel()[1] = number
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return model, name


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("op", "place"),
    [("Conv", 1), ("Conv", 2), ("Gemm", 2), *(("BatchNormalization", k) for k in (1, 2, 3, 4))],
)
def test_weights_that_are_not_finite_are_refused_by_name(
    op: str, place: int, number: float
) -> None:
    model, name = with_number(op, place, number)
    assert f"'{name}'" in line(lambda: rlprune.trace(model))


def test_a_variance_without_a_root_is_refused_and_a_mask_of_minus_infinity_is_not() -> None:
    model, name = with_number("BatchNormalization", 4, -0.5)
    assert f"'{name}'" in line(lambda: rlprune.trace(model))
    rlprune.trace(with_number("BatchNormalization", 4, 0.0)[0])
    net = Net(1, 16, 8)
    mask = net.constant(np.triu(np.full((16, 16), -np.inf), 1), np.float32)
    x = net.add("MatMul", "x", net.weight(8, 12))
    scores = net.add("Add", net.add("MatMul", x, net.add("Transpose", x, perm=[0, 2, 1])), mask)
    x = net.add("MatMul", net.add("Softmax", scores, axis=-1), x)
    assert rlprune.trace(net.model(net.add("MatMul", x, net.weight(12, 4)))).graph.macs


def rename(data: bytes, old: bytes, new: bytes) -> bytes:
    assert len(old) == len(new) and old in data
    return data.replace(old, new)


@pytest.mark.parametrize("old", [b"conv0", b"Relu", b"t0_0", b"batch", b"net", b"kernel_shape"])
def test_names_that_are_not_utf_8_never_do_worse_than_a_refusal(old: bytes) -> None:
    model = network()
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("kernel_shape", [3, 3]))
    data = rename(model.SerializeToString(), old, b"\x92" * len(old))
    try:
        rlprune.trace(data)
    except ModelError as error:
        assert "\n" not in str(error)


def test_notes_that_are_not_utf_8_are_passed_over() -> None:
    model = network()
    model.metadata_props.add(key="dictionary", value="zzzz")
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="zzzz")
    data = rename(model.SerializeToString(), b"zzzz", b"\x92" * 4)
    assert len(rlprune.trace(data).graph.groups) == 2


@pytest.mark.parametrize("kind", [-1, -(2**31), 77, 2**31 - 1])
def test_element_types_that_do_not_exist_are_refused(kind: int) -> None:
    model = network()
    model.graph.initializer[0].data_type = kind
    assert "not numbers" in line(lambda: rlprune.trace(model))
    for ends in ("input", "output", "value_info"):
        model = network()
        getattr(model.graph, ends)[0].type.tensor_type.elem_type = kind
        try:
            rlprune.trace(model)
        except ModelError as error:
            assert "\n" not in str(error)


def test_an_empty_tensor_of_absurd_extents_is_refused() -> None:
    model = network()
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].dims[:] = [0, 2**40, 2**40]
    assert "too large" in line(lambda: rlprune.trace(model))


def test_newer_and_ancient_opsets_are_named() -> None:
    for version, word in ((27, "newer than 26"), (6, "not within 7..26")):
        model = network()
        model.opset_import[0].version = version
        assert word in line(lambda model=model: rlprune.trace(model))  # type: ignore[misc]


@pytest.mark.parametrize("version", [7, 8, 9, 10])
def test_old_opsets_are_converted(version: int) -> None:
    model = network()
    model.opset_import[0].version = version
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    trace = rlprune.trace(model)
    assert [group.width for group in trace.graph.groups] == [16, 24]
    for keeps in some_keeps(trace):
        assert_pruned_right(trace, keeps)
    image = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    np.testing.assert_allclose(
        run(trace.model, [image])[0], run(network(), [image])[0], rtol=1e-5, atol=1e-6
    )
    assert len(weights) == len(trace.model.graph.initializer)


def saved(folder: Path, name: str = "model.onnx") -> Path:
    """A model with external data beside it."""
    path = folder / name
    onnx.save(network(), path, save_as_external_data=True, location="model.data", size_threshold=0)
    return path


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "pipe or a device" in line(lambda: rlprune.trace(tmp_path / "pipe.onnx"))
    path = saved(tmp_path)
    (tmp_path / "model.data").unlink()
    os.mkfifo(tmp_path / "model.data")
    assert "pipe or a device" in line(lambda: rlprune.trace(path))
    assert "pipe or a device" in line(lambda: rlprune.trace("/dev/zero"))


def test_links_within_the_models_folder_are_followed_and_others_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    path = saved(folder)
    (folder / "deep").mkdir()
    (folder / "model.data").rename(folder / "deep" / "real.data")
    (folder / "model.data").symlink_to("deep/real.data")
    assert len(rlprune.trace(path).graph.groups) == 2
    (folder / "deep" / "real.data").rename(tmp_path / "outside.data")
    (folder / "model.data").unlink()
    (folder / "model.data").symlink_to("../outside.data")
    assert "put the file itself beside the model" in line(lambda: rlprune.trace(path))


def test_a_cache_of_links_is_read(tmp_path: Path) -> None:
    """Hugging Face's: `snapshots/1` holds links into `blobs`."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    saved(blobs).rename(blobs / "5c8f")
    (blobs / "model.data").rename(blobs / "77aa")
    (snapshot / "model.onnx").symlink_to("../../blobs/5c8f")
    (snapshot / "model.data").symlink_to("../../blobs/77aa")
    assert len(rlprune.trace(snapshot / "model.onnx").graph.groups) == 2


def test_millions_of_fields_are_refused_before_they_are_all_counted() -> None:
    def seconds(body: bytes) -> float:
        start = time.process_time()
        assert "more than" in line(lambda: measure(body))
        return time.process_time() - start

    for field in (b"\x08\x01", b"\x40\x01"):
        four_million, sixteen_million = (
            min(seconds(within(field * count)) for _ in range(2)) for count in (2**22, 2**24)
        )
        assert sixteen_million < 2 * four_million


def within(body: bytes, tags: tuple[int, ...] = (0x2A, 0x0A, 0x3A)) -> bytes:
    """Fields of an attribute, of a node, of the graph, of a model; or of what `tags` say."""
    for tag in tags:
        size, coded = len(body), bytearray()
        while size > 0x7F:
            coded.append(size & 0x7F | 0x80)
            size >>= 7
        body = bytes([tag, *coded, size]) + body
    return body


@pytest.mark.parametrize("depth", [10, 200, 2000])
def test_bodies_in_bodies_are_refused_however_deep(depth: int) -> None:
    body = b"\x22\x04Relu"
    for _ in range(depth):
        # A node, in a graph, in an attribute, in a node.
        body = within(body, (0x0A, 0x32, 0x2A))
    data = b"\x08\x0a" + within(body, (0x0A, 0x3A)) + b"\x42\x02\x10\x12"
    assert line(lambda: rlprune.trace(data))


def test_hundreds_of_branches_are_followed_quickly() -> None:
    net = Net("batch", 3, "height", "width")
    x = net.add("Relu", net.conv("x", 3, 12))
    ends = [onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)]
    condition = net.add(
        "Greater", net.add("ReduceMax", x, keepdims=0), net.constant(0.0, np.float32)
    )
    bodies = [
        onnx.helper.make_graph([onnx.helper.make_node(op, [x], ["z"])], "body", [], ends)
        for op in ("Relu", "Neg")
    ]
    found = [
        net.add("If", condition, then_branch=bodies[0], else_branch=bodies[1]) for _ in range(400)
    ]
    y = net.head(net.conv(x, 12, 16), 16)
    model = net.model(net.add("Add", net.add("Sum", *found), net.constant(1.0, np.float32)), y)
    del model.graph.value_info[:]
    start = time.process_time()
    trace = rlprune.trace(model, input_shapes={"x": (1, 3, 8, 8)})
    assert [group.width for group in trace.graph.groups] == [16]
    assert time.process_time() - start < 20


def test_statistics_that_are_no_vectors_are_refused() -> None:
    model = network()
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    norm.input[1] = next(node for node in model.graph.node if node.op_type == "Conv").input[1]
    assert "no vectors" in line(lambda: rlprune.trace(model))
