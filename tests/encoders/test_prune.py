"""What is left of a graph, compared with onnx's own extraction and with what the whole returns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from vecstore.encoders.prune import prune
from vecstore.errors import EncoderError

FLOAT = TensorProto.FLOAT
OPERATORS = {"Add": 2, "Mul": 2, "Neg": 1, "Identity": 1, "Clip": 3}


def model_of(nodes, outputs, initializers=(), inputs=("x",)) -> onnx.ModelProto:
    def value(name):
        return helper.make_tensor_value_info(name, FLOAT, [2])

    graph = helper.make_graph(
        nodes,
        "g",
        [value(name) for name in inputs],
        [value(name) for name in outputs],
        initializer=list(initializers),
        value_info=[value(name) for node in nodes for name in node.output if name],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def constant(name: str, *values: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.float32), name)


def scalar(name: str, value: float) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, dtype=np.float32), name)


def write(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def run(model: bytes, outputs: list[str]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {given.name: np.array([1.5, -2.0], np.float32) for given in session.get_inputs()}
    return session.run(outputs, feed)


@st.composite
def models(draw) -> tuple[onnx.ModelProto, list[str]]:
    """A random acyclic graph, and some of its outputs."""
    known = ["x", "y", "c0", "c1"]
    nodes = []
    for number in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(sorted(OPERATORS)))
        taken = [draw(st.sampled_from(known)) for _ in range(min(2, OPERATORS[kind]))]
        if kind == "Clip":
            # Its second input is optional and left out, its third is a scalar.
            taken = [taken[0], "", "top"]
        nodes.append(helper.make_node(kind, taken, [f"n{number}"]))
        known.append(f"n{number}")
    made = [node.output[0] for node in nodes]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=4, unique=True))
    constants = [constant("c0", 1, 2), constant("c1", 3, 4), scalar("top", 2)]
    wanted = draw(st.lists(st.sampled_from(outputs), min_size=1, unique=True))
    return model_of(nodes, outputs, constants, ("x", "y")), wanted


@settings(max_examples=60, deadline=None)
@given(case=models())
def test_what_is_left_is_what_onnx_extracts(tmp_path_factory, case):
    model, wanted = case
    path = write(tmp_path_factory.mktemp("pruned"), model)
    whole = path.read_bytes()

    pruned = prune(path, wanted)

    left = onnx.load_model_from_string(whole if pruned is None else pruned)
    onnx.checker.check_model(left)
    extracted = Extractor(model).extract_model(["x", "y"], wanted).graph
    assert [node.output[0] for node in left.graph.node] == [n.output[0] for n in extracted.node]
    assert {t.name for t in left.graph.initializer} == {t.name for t in extracted.initializer}
    assert {value.name for value in left.graph.output} == set(wanted)
    taken = {name for node in left.graph.node for name in node.input}
    assert {value.name for value in left.graph.input} == {"x", "y"} & taken
    for one, other in zip(run(left.SerializeToString(), wanted), run(whole, wanted), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_graph_with_nothing_to_drop_is_left_alone(tmp_path: Path):
    path = write(tmp_path, model_of([helper.make_node("Neg", ["x"], ["y"])], ["y"]))

    assert prune(path, ["y"]) is None


def test_an_initializer_that_nothing_uses_is_dropped(tmp_path: Path):
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    path = write(tmp_path, model_of(nodes, ["y"], [constant("unused", *range(100))]))

    pruned = prune(path, ["y"])

    assert len(pruned) < len(path.read_bytes()) - 400
    np.testing.assert_array_equal(run(pruned, ["y"])[0], [-1.5, 2])


def branching(names: tuple[str, str]) -> onnx.ModelProto:
    """A graph with If inside If; the inner graphs take names from the outer ones."""

    def graph(nodes, output):
        return helper.make_graph(
            nodes, "inner", [], [helper.make_tensor_value_info(output, FLOAT, [2])]
        )

    deepest = graph([helper.make_node("Add", ["taken", names[0]], ["d"])], "d")
    other = graph([helper.make_node("Neg", ["taken"], ["e"])], "e")
    deep = graph(
        [helper.make_node("If", ["flag"], ["f"], then_branch=deepest, else_branch=other)], "f"
    )
    # Its own node makes a name that the outer graph has too, under another node.
    own = graph(
        [helper.make_node("Neg", ["taken"], ["h"]), helper.make_node("Neg", ["h"], ["i"])], "i"
    )
    nodes = [
        helper.make_node("Mul", ["x", "c0"], ["taken"]),
        helper.make_node("Neg", ["x"], ["aside"]),
        helper.make_node("If", ["flag"], ["z"], then_branch=deep, else_branch=own),
    ]
    flag = numpy_helper.from_array(np.array(True), "flag")
    constants = [constant("c0", 2, 2), constant(names[0], 5, 5), constant(names[1], 6, 6), flag]
    return model_of(nodes, ["z", "aside"], constants)


def test_what_inner_graphs_take_from_outside_is_kept(tmp_path: Path):
    path = write(tmp_path, branching(("deep", "never")))

    left = onnx.load_model_from_string(prune(path, ["z"]))

    assert [node.op_type for node in left.graph.node] == ["Mul", "If"]
    assert {tensor.name for tensor in left.graph.initializer} == {"c0", "deep", "flag"}
    whole = run(path.read_bytes(), ["z"])[0]
    np.testing.assert_array_equal(run(left.SerializeToString(), ["z"])[0], whole)
    np.testing.assert_array_equal(whole, [8, 1])


def test_an_input_with_a_default_value_stays_as_both(tmp_path: Path):
    nodes = [helper.make_node("Add", ["x", "c0"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    path = write(tmp_path, model_of(nodes, ["y", "z"], [constant("c0", 1, 1)], ("x", "c0")))

    left = onnx.load_model_from_string(prune(path, ["y"]))

    assert [value.name for value in left.graph.input] == ["x", "c0"]
    assert [tensor.name for tensor in left.graph.initializer] == ["c0"]


def test_functions_and_opsets_are_kept(tmp_path: Path):
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    inner = [helper.make_node("Neg", ["a"], ["b"])]
    function = helper.make_function("local", "F", ["a"], ["b"], inner, opsets)
    nodes = [
        helper.make_node("F", ["x"], ["y"], domain="local"),
        helper.make_node("Neg", ["x"], ["z"]),
    ]
    model = model_of(nodes, ["y", "z"])
    model.functions.append(function)
    model.opset_import.append(opsets[1])
    path = write(tmp_path, model)

    np.testing.assert_array_equal(run(prune(path, ["y"]), ["y"])[0], [-1.5, 2])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_damage_is_an_encoder_error_or_another_graph(tmp_path_factory, data):
    content = bytearray(branching(("deep", "never")).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])

    try:
        left = prune(path, ["z"])
    except EncoderError:
        return
    assert left is None or len(left) <= len(content)


def test_a_cycle_ends(tmp_path: Path):
    nodes = [helper.make_node("Add", ["b", "x"], ["a"]), helper.make_node("Neg", ["a"], ["b"])]

    assert prune(write(tmp_path, model_of(nodes, ["a", "b"])), ["a"])


@pytest.mark.parametrize("content", [b"", b"\x3a\x00\x3a\x00", b"\x08\x08", b"\x3a\xff\xff\xff"])
def test_what_has_no_single_graph_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(EncoderError, match=r"model\.onnx is not an ONNX model"):
        prune(path, ["z"])
