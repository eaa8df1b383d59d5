from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from vecstore.encoders.graph import read_outline
from vecstore.errors import EncoderError


def test_the_outline_names_inputs_outputs_and_operators(make_model):
    outline = read_outline(make_model() / "model.onnx")

    assert outline.inputs == dict.fromkeys(("input_ids", "attention_mask"), ("int64", (None, None)))
    assert outline.outputs == {"last_hidden_state": ("float32", (None, None, 6))}
    assert outline.operators == {"Gather": 1, "Identity": 1}
    assert outline.weights == {"float32": 13 * 6 * 4, "int64": 16}
    assert outline.external == set()


def test_external_files_are_found_wherever_a_tensor_is(tmp_path: Path):
    model = onnx.load(save_external(tmp_path), load_external_data=False)

    outline = read_outline(tmp_path / "model.onnx")

    assert outline.external == {"weights.bin"}
    assert set(outline.operators) == {node.op_type for node in model.graph.node}


def test_tensors_inside_nodes_and_inner_graphs_are_seen(tmp_path: Path):
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["x"], value=outside("inner.bin"))],
        "inner",
        [],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
    )
    nodes = [
        helper.make_node("Constant", [], ["y"], value=outside("outer.bin")),
        helper.make_node("If", ["flag"], ["z"], then_branch=inner, else_branch=inner),
    ]
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])]
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    constant = numpy_helper.from_array(np.array(True), "flag")
    graph = helper.make_graph(nodes, "outer", [flag], outputs, initializer=[constant])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())

    outline = read_outline(path)

    assert outline.external == {"inner.bin", "outer.bin"}
    assert outline.operators == {"Constant": 3, "If": 1}
    assert outline.inputs == {}
    assert outline.outputs == {"z": ("float32", (1,))}


def test_graphs_nested_too_deeply_are_refused(tmp_path: Path):
    graph = b""
    for _ in range(40):
        # A graph in an attribute of a node of a graph.
        graph = part(1, part(5, part(6, graph)))
    path = tmp_path / "model.onnx"
    path.write_bytes(part(7, graph))

    with pytest.raises(EncoderError, match="nested too deeply"):
        read_outline(path)


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x00" * 64, b"\xff" * 64])
def test_other_files_are_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(EncoderError, match=r"model\.onnx is not an ONNX model"):
        read_outline(path)


def described(tensor: bytes, shape: bytes = b"") -> bytes:
    """A model with an initializer, and an output of a tensor type."""
    output = part(1, b"y") + part(2, part(1, shape))
    return part(7, part(5, tensor) + part(12, output))


def test_numbers_that_are_not_there_are_none(tmp_path: Path):
    path = tmp_path / "model.onnx"
    # A type, an element type and a size, each packed and empty.
    path.write_bytes(described(part(2, b""), part(1, b"") + part(2, part(1, part(1, b"")))))

    assert read_outline(path).outputs == {"y": ("type 0", (None,))}


def test_a_tensor_of_absurdly_many_dimensions_is_refused(tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(described(part(1, b"\xff\xff\xff\xff\x7f" * 2000)))

    with pytest.raises(EncoderError, match="2000 dimensions"):
        read_outline(path)


@settings(max_examples=60)
@given(data=st.data())
def test_any_damage_is_an_encoder_error_or_another_outline(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "model.onnx"
    content = bytearray(
        onnx.load(save_external(folder), load_external_data=False).SerializeToString()
    )
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])

    try:
        outline = read_outline(path)
    except EncoderError:
        return
    assert outline.outputs


def part(number: int, content: bytes) -> bytes:
    size = len(content)
    assert size < 1 << 14
    return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7]) + content


def outside(location: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.zeros(1, dtype=np.float32), location)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def save_external(folder: Path) -> Path:
    table = numpy_helper.from_array(np.zeros((4, 3), dtype=np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["b", "s", 3])],
        initializer=[table],
    )
    path = folder / "model.onnx"
    path.unlink(missing_ok=True)
    (folder / "weights.bin").unlink(missing_ok=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return path
