"""Damaged and hostile models, tokenizers and texts: an error that names the file, nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import vecstore
from vecstore.encoders import OnnxEncoder, bundled
from vecstore.errors import EncoderError, UsageError

FIXTURE = [HealthCheck.function_scoped_fixture]


def values(*names: str, shape: list[object], kind: int = TensorProto.INT64):
    return [helper.make_tensor_value_info(name, kind, shape) for name in names]


def model_of(nodes, constants, outputs=None, functions=()) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17)]
    opsets += [helper.make_opsetid("local", 1)] if functions else []
    graph = helper.make_graph(
        nodes,
        "hostile",
        values("input_ids", "attention_mask", shape=["b", "s"]),
        outputs or values("tokens", shape=["b", "s", 6], kind=TensorProto.FLOAT),
        initializer=constants,
    )
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))


TABLE = numpy_helper.from_array(np.ones((13, 6), np.float32), "table")
GATHER = helper.make_node("Gather", ["table", "input_ids"], ["tokens"])


def claimed(*sizes: int, data: bytes = b"abcd") -> onnx.TensorProto:
    """A table that claims to be of a shape."""
    return TensorProto(name="table", data_type=TensorProto.FLOAT, dims=sizes, raw_data=data)


def itself() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    inner = [helper.make_node("F", ["x"], ["y"], domain="local")]
    function = helper.make_function("local", "F", ["x"], ["y"], inner, opsets)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("F", ["rows"], ["tokens"], domain="local"),
    ]
    return model_of(nodes, [TABLE], functions=[function])


def filled(size: int) -> onnx.ModelProto:
    """A graph that asks for a tensor of a size."""
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["one"]),
        helper.make_node("Mul", ["one", "size"], ["asked"]),
        helper.make_node("Unsqueeze", ["asked", "axis"], ["many"]),
        helper.make_node("ConstantOfShape", ["many"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Add", ["rows", "sum"], ["tokens"]),
    ]
    constants = [
        TABLE,
        numpy_helper.from_array(np.array(0), "zero"),
        numpy_helper.from_array(np.array(size), "size"),
        numpy_helper.from_array(np.array([0]), "axis"),
    ]
    return model_of(nodes, constants)


HOSTILE = {
    "a cycle": model_of(
        [
            helper.make_node("Add", ["a", "table"], ["b"]),
            helper.make_node("Identity", ["b"], ["a"]),
            helper.make_node("Identity", ["b"], ["tokens"]),
        ],
        [TABLE],
    ),
    "a function that calls itself": itself(),
    "a table of enormous dims": model_of([GATHER], [claimed(1 << 40, 1 << 40)]),
    "a table of dims that overflow to 0": model_of([GATHER], [claimed(1 << 31, 1 << 33, data=b"")]),
    "a table of negative dims": model_of([GATHER], [claimed(-13, 6, data=bytes(312))]),
    "a table that is cut short": model_of([GATHER], [claimed(13, 6, data=bytes(300))]),
    "a tensor larger than all memory": filled(1 << 44),
    "an unknown operator": model_of(
        [helper.make_node("Telephone", ["input_ids"], ["tokens"])], [TABLE]
    ),
    "an output that nothing makes": model_of(
        [GATHER], [TABLE], values("nothing", shape=["b", "s", 6], kind=TensorProto.FLOAT)
    ),
    "an output of integers": model_of(
        [helper.make_node("Identity", ["input_ids"], ["tokens"])],
        [TABLE],
        values("tokens", shape=["b", "s"]),
    ),
    "an output of four dimensions": model_of(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Unsqueeze", ["rows", "axis"], ["tokens"]),
        ],
        [TABLE, numpy_helper.from_array(np.array([0]), "axis")],
        values("tokens", shape=[1, "b", "s", 6], kind=TensorProto.FLOAT),
    ),
    "an output of one vector for all texts": model_of(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("ReduceMax", ["rows"], ["tokens"], axes=[0], keepdims=0),
        ],
        [TABLE],
        values("tokens", shape=["s", 6], kind=TensorProto.FLOAT),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_is_an_encoder_error_that_names_the_file(make_model, capfd, name):
    path = make_model(HOSTILE[name])
    encoder = OnnxEncoder(path, threads=1)

    with pytest.raises(EncoderError, match=str(path / "model.onnx")):
        encoder.encode(["red apple", "late"])
    assert capfd.readouterr().err == ""


def test_an_output_whose_shape_is_not_stated_is_tried(make_model, table, twin):
    model = model_of([GATHER], [numpy_helper.from_array(table, "table")])
    model.graph.output[0].type.tensor_type.ClearField("shape")
    encoder = OnnxEncoder(make_model(model))

    assert encoder.dim == 6
    np.testing.assert_allclose(encoder.encode(["red"])[0], twin.tokens("red").mean(axis=0), 1e-5)


@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURE)
@given(data=st.data())
@pytest.mark.parametrize("file", ["model.onnx", "tokenizer.json"])
def test_any_damage_is_an_encoder_error_or_other_vectors(make_model, file, data):
    path = make_model()
    content = bytearray((path / file).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(1, len(content))))
    (path / file).write_bytes(content[:end])
    encoder = OnnxEncoder(path, threads=1)

    try:
        found = encoder.encode(["red apple", "late"])
    except (EncoderError, UsageError):
        return
    assert found.shape == (2, encoder.dim)
    assert np.isfinite(found).all()


@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURE)
@given(
    name=st.sampled_from(
        ["modules", "pooling", "prompts", "sentence", "own", "config", "tokenizer_config"]
    ),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        *(
                            "type",
                            "path",
                            "pooling_mode",
                            "prompts",
                            "max_seq_length",
                            "dim",
                            "mrl",
                        ),
                        *("layers", "hidden", "weights", "pooling", "output", "files", "query"),
                        *("model_type", "max_position_embeddings", "default_prompt_name"),
                    ]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=6,
    ),
)
def test_any_config_is_an_encoder_error_or_a_setting(make_model, name, value):
    path = make_model(**{name: json.dumps(value)})

    try:
        encoder = OnnxEncoder(path, threads=1)
        found = encoder.encode(["red apple", "late"])
        assert len(encoder.fingerprint) == 32
    except (EncoderError, UsageError):
        return
    assert found.shape == (2, encoder.dim)


# Texts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text 1 is empty"),
        (" \n\t", "text 1 is empty or only whitespace"),
        (3, "text 1 is a int"),
        (None, "text 1 is a NoneType"),
        (b"red", "text 1 is a bytes"),
        ("lone \ud800", "text 1 .*lone surrogate"),
    ],
)
def test_a_text_that_cannot_be_encoded_is_named(make_model, text, message):
    with pytest.raises(UsageError, match=message):
        OnnxEncoder(make_model()).encode(["red", text])


@pytest.mark.parametrize("text", ["\0\x01\x1b", "\u200b\u200b", "\ufeff"])
def test_a_text_of_which_nothing_is_read_is_named(text):
    with pytest.raises(UsageError, match=r"text 1 is .*, of which 'default' knows no token"):
        bundled().encode(["red", text])


def test_control_characters_among_words_do_no_harm():
    plain, mixed = bundled().encode(
        ["embedded key-value store", "embedded\0 key\x07-value\x1b store"]
    )

    assert float(plain @ mixed) > 0.999


@pytest.mark.parametrize("bad", ["", "\ud800", 3])
def test_a_batch_that_fails_leaves_the_collection_as_it_was(make_model, bad):
    with vecstore.open(":memory:") as db:
        notes = db.collection("notes", encoder=OnnxEncoder(make_model()))
        notes.add(["red apple"], ids=["a"])

        with pytest.raises(UsageError):
            notes.add(["late", bad], ids=["b", "c"])

        assert [record.id for record in notes.scan()] == ["a"]
        assert db.check() == []


def test_a_model_that_fails_in_the_middle_leaves_the_collection_as_it_was(
    make_model, graphs, table
):
    broken = table.copy()
    broken[4] = np.nan
    path: Path = make_model(graphs["tokens"](table=broken))
    with vecstore.open(":memory:") as db:
        notes = db.collection("notes", encoder=OnnxEncoder(path, batch_size=1))
        notes.add(["late"], ids=["a"])

        with pytest.raises(EncoderError, match="NaN or infinity for text 1, 'red'"):
            notes.add([*["blue"] * 40, "red"])

        assert notes.count() == 1
        assert db.check() == []


def test_a_collection_refuses_another_model_and_other_dims(make_model, graphs, table):
    first, wider = make_model(), make_model(graphs["tokens"](table=np.hstack([table, table])))
    with vecstore.open(":memory:") as db:
        db.collection("notes", encoder=str(first)).add(["red"])

        with pytest.raises(vecstore.errors.EncoderMismatchError, match=wider.name):
            db.collection("notes", encoder=str(wider))
        with pytest.raises(vecstore.errors.SpecError, match="dim=5"):
            db.collection("others", encoder=str(first), dim=5)
        assert db.collection("notes").count() == 1
