"""Files that are refused, each in one line and before anything is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_oracle import Net

from rlprune.errors import ModelError, UnsupportedOperatorError
from rlprune.graph import skeleton
from rlprune.graph.from_onnx import trace_onnx
from rlprune.graph.load import load_onnx
from rlprune.graph.size_guard import MAX_NODES, MAX_PARTS


def good() -> onnx.ModelProto:
    net = Net(1, 3, 8, 8)
    x = net.add("Relu", net.conv("x", 3, 16))
    return net.model(net.head(net.conv(x, 16, 8), 8))


def refused(model: onnx.ModelProto | bytes, *words: str) -> None:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(ModelError) as caught:
        trace_onnx(data)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_what_is_no_onnx_is_refused() -> None:
    refused(b"", "not an ONNX file")
    refused(b"\x89PNG\r\n\x1a\n" * 10, "not an ONNX file")
    refused(b"import os; os.system('true')", "not an ONNX file")


def test_every_truncation_is_refused_or_sound() -> None:
    data = good().SerializeToString()
    for end in range(0, len(data) - 1, 97):
        with pytest.raises(ModelError):
            trace_onnx(data[:end])


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        load_onnx(tmp_path / "none.onnx")


def test_dangling_name_is_refused_by_name() -> None:
    model = good()
    model.graph.node[1].input[0] = "nobody"
    refused(model, "nobody", "nothing makes it")


def test_cycle_is_refused() -> None:
    model = good()
    model.graph.node[0].input[0] = model.graph.node[1].output[0]
    refused(model, "cycle")


def test_name_made_twice_is_refused() -> None:
    model = good()
    model.graph.node[1].output[0] = model.graph.node[0].output[0]
    refused(model, "made twice")


def test_missing_output_is_refused() -> None:
    model = good()
    model.graph.output[0].name = "nobody"
    refused(model, "nobody")


@pytest.mark.parametrize("extent", [2**40, 2**62, -3])
def test_absurd_extents_are_refused(extent: int) -> None:
    model = good()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = extent
    refused(model, "too large" if extent > 0 else "x")
    model = good()
    model.graph.initializer[0].dims[0] = extent
    refused(model)


def test_expansion_to_an_absurd_tensor_is_refused_before_it_is_made() -> None:
    net = Net(1, 3, 8, 8)
    shape = net.ints(2**20, 2**20, 3, 8, 8)
    refused(net.model(net.add("Expand", "x", shape)), "too large")
    net = Net(1, 3, 8, 8)
    filled = net.add("ConstantOfShape", net.ints(2**20, 2**30))
    refused(net.model(net.add("Add", "x", filled)))


def test_local_functions_are_refused() -> None:
    model = good()
    model.functions.append(
        helper.make_function(
            "own",
            "Nested",
            ["a"],
            ["b"],
            [helper.make_node("Nested", ["a"], ["b"], domain="own")],
            [helper.make_opsetid("own", 1)],
        )
    )
    refused(model, "function")


def test_text_that_the_network_reads_is_refused() -> None:
    model = good()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    refused(model, "not a tensor of numbers")


def test_weight_that_is_shorter_than_its_shape_is_refused() -> None:
    model = good()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    refused(model, "does not hold what its shape says")


class Reached:
    """Stands for what a refused file must not come to."""

    def __call__(self, *_: object, **__: object) -> None:
        raise AssertionError("reached")


def lengthy(entry: bytes, tags: bytes, count: int) -> bytes:
    """A file with `entry` many times within messages of these tags."""
    inner = entry * count
    for tag in tags:
        size, coded = len(inner), bytearray()
        while size > 0x7F:
            coded.append(size & 0x7F | 0x80)
            size >>= 7
        inner = bytes([tag]) + bytes([*coded, size]) + inner
    return b"\x08\x0a" + inner + b"\x42\x02\x10\x12"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (lengthy(b"\x0a\x00", b"\x3a", MAX_NODES + 1), "nodes"),
        (lengthy(b"\x40\x01", b"\x2a\x0a\x3a", MAX_PARTS + 1), "parts"),
        (lengthy(b"\x0a\x00", b"\x0a\x3a", MAX_PARTS + 1), "parts"),
        (lengthy(b"\x01" * 2**20, b"\x3a\x2a\x3a", 17), "listed numbers"),
    ],
    ids=["nodes", "attribute", "inputs", "numbers"],
)
def test_what_would_take_absurd_memory_is_refused_before_it_is_parsed(
    data: bytes, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlprune.graph.load.ModelProto", Reached())
    refused(data, word)


def test_too_many_nodes_in_memory_are_refused_before_any_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = good()
    extra = helper.make_node("Relu", ["x"], ["never"])
    model.graph.node.extend([extra] * MAX_NODES)
    monkeypatch.setattr("onnx.checker.check_model", Reached())
    with pytest.raises(ModelError, match="nodes"):
        trace_onnx(model)


@pytest.mark.parametrize("grow", ["double", "outer"])
def test_constants_that_grow_while_folded_are_refused(grow: str) -> None:
    net = Net(1, 3, 8, 8)
    if grow == "double":
        made = net.ints(*range(1024))
        for _ in range(40):
            made = net.add("Concat", made, made, axis=0)
    else:
        column = net.constant(np.arange(2**17).reshape(-1, 1))
        made = net.add("Add", column, net.constant(np.arange(2**17).reshape(1, -1)))
    graph = helper.make_graph(
        [*net.nodes, helper.make_node("Reshape", ["x", made], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        net.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    refused(model, "too large")


def test_shapes_that_contradict_are_refused_by_node() -> None:
    net = Net(1, 3, 8, 8)
    output = net.conv(net.conv("x", 3, 16), 24, 8)
    net.nodes[-1].name = "wrong"
    graph = helper.make_graph(
        net.nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 8, 8, 8])],
        net.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    refused(model, "does not fit the 16 channels")


def test_unknown_domain_without_stated_shapes_is_refused_by_node() -> None:
    net = Net(1, 3, 8, 8)
    made = net.add("Relu", net.conv("x", 3, 16))
    model = net.model(net.add("Relu", made))
    model.graph.node[1].op_type, model.graph.node[1].domain = "Mystery", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    assert trace_onnx(model).graph.groups == ()  # held, since value_info tells the shapes
    del model.graph.value_info[:]
    with pytest.raises(UnsupportedOperatorError, match=r"com\.example\.Mystery"):
        trace_onnx(model)


def test_open_extents_are_refused_naming_the_option() -> None:
    net = Net("batch", 3, "height", "width")
    model = net.model(net.head(net.conv("x", 3, 16), 16))
    refused(model, "'x'", "--input-shape x=1x3xNxN")
    graph = trace_onnx(model, input_shapes={"x": (1, 3, 16, 16)}).graph
    assert graph.input_shapes == ((1, 3, 16, 16),)


@pytest.mark.parametrize(
    ("shapes", "word"),
    [
        ({"y": (1, 3, 8, 8)}, "no graph input 'y'"),
        ({"x": (1, 3, 8)}, "4 axes"),
        ({"x": (1, 4, 8, 8)}, "1x4x8x8"),
        ({"x": (1, 3, 0, 8)}, "1x3x0x8"),
    ],
)
def test_input_shapes_that_do_not_fit_are_refused(
    shapes: dict[str, tuple[int, ...]], word: str
) -> None:
    with pytest.raises(ModelError, match=word):
        trace_onnx(good(), input_shapes=shapes)


def external(tmp_path: Path, location: str) -> Path:
    """A model whose first weight says its data lies at `location`."""
    model = good()
    weight = model.graph.initializer[0]
    data = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    (folder / "beside.bin").write_bytes(data)
    (tmp_path / "outside.bin").write_bytes(data)
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    path = external(tmp_path, "beside.bin")
    weight = load_onnx(path).graph.initializer[0]
    expected = numpy_helper.to_array(good().graph.initializer[0])
    assert np.array_equal(numpy_helper.to_array(weight), expected)


@pytest.mark.parametrize(
    "where",
    [
        lambda folder: "../outside.bin",
        lambda folder: f"{folder}/outside.bin",
        lambda folder: "sub/../../outside.bin",
        lambda folder: "..\\outside.bin",
        lambda folder: "link.bin",
        lambda folder: "nothing.bin",
        lambda folder: ".",
        lambda folder: "",
    ],
)
def test_external_data_elsewhere_is_refused(tmp_path: Path, where: Callable[[Path], str]) -> None:
    path = external(tmp_path, where(tmp_path))
    (path.parent / "link.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(ModelError):
        load_onnx(path)


def test_external_data_of_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="path of the model"):
        load_onnx(external(tmp_path, "beside.bin").read_bytes())


def test_external_data_cut_short_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path, "beside.bin")
    (path.parent / "beside.bin").write_bytes(b"1234")
    with pytest.raises(ModelError, match="cut short"):
        load_onnx(path)


def test_flipped_bytes_never_do_worse_than_a_refusal() -> None:
    """Damaged files are refused, or are other sound files; nothing else comes out."""
    data = bytearray(skeleton.strip(good()))
    rng = np.random.default_rng(0)
    for _ in range(600):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(0, 256)
        try:
            trace_onnx(bytes(damaged))
        except ModelError as error:
            assert "\n" not in str(error)
