"""Layers and prefixes of a model: `layer=`, `dim=`, and the names that state them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import vecstore
from vecstore.encoders import OnnxEncoder, bundled, bundled_names, resolve
from vecstore.errors import EncoderError, EncoderMismatchError, ModelNotFoundError, UsageError

TEXTS = ["red apple", "late", "green pear blue train red"]
OWN = {"mrl": [2, 4, 6], "layers": {"1": "early", "2": "middle"}}
DEPTH = 3
ROOT = Path(__file__).parents[2]
FACTORS = np.random.default_rng(9).normal(size=(DEPTH, 6)).astype(np.float32)
# What only the deepest layer needs, large enough to be missed.
BALLAST = np.ones(50_000, dtype=np.float32)


@pytest.fixture
def deep(make_model, table):
    """A model of three layers, each of which scales all tokens, with an exit behind each."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["layer_0"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("ReduceSum", ["column", "first"], ["count"], keepdims=0),
        helper.make_node("ReduceMax", ["ballast"], ["unit"], axes=[0], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "first"),
        numpy_helper.from_array(BALLAST, "ballast"),
    ]
    exits = ["early", "middle", "sentence_embedding"]
    for number, output in enumerate(exits):
        scale = "scaled" if output == "sentence_embedding" else f"factor_{number}"
        if scale == "scaled":
            nodes.append(helper.make_node("Mul", [f"factor_{number}", "unit"], [scale]))
        nodes += [
            helper.make_node("Mul", [f"layer_{number}", scale], [f"layer_{number + 1}"]),
            helper.make_node("Mul", [f"layer_{number + 1}", "column"], [f"kept_{number}"]),
            helper.make_node(
                "ReduceSum", [f"kept_{number}", "first"], [f"sum_{number}"], keepdims=0
            ),
            helper.make_node("Div", [f"sum_{number}", "count"], [output]),
        ]
        constants.append(numpy_helper.from_array(FACTORS[number], f"factor_{number}"))
    graph = helper.make_graph(
        nodes,
        "deep",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 6]) for name in exits],
        initializer=constants,
    )
    opsets = [helper.make_opsetid("", 17)]
    return make_model(helper.make_model(graph, opset_imports=opsets, ir_version=8), own=OWN)


def expected(twin, layers: int, dim: int = 6) -> np.ndarray:
    factor = FACTORS[:layers].astype(np.float64).prod(axis=0)
    whole = np.array([(twin.tokens(text) * factor).mean(axis=0) for text in TEXTS])
    cut = whole[:, :dim]
    return cut * (np.linalg.norm(whole, axis=1) / np.linalg.norm(cut, axis=1))[:, None]


@pytest.mark.parametrize(("layer", "layers"), [(1, 1), (2, 2), (None, 3)])
@pytest.mark.parametrize("dim", [2, 4, 6, None])
def test_a_layer_and_a_prefix_equal_their_numpy_twin(deep, twin, layer, layers, dim):
    encoder = OnnxEncoder(deep, layer=layer, dim=dim)

    assert encoder.dim == (dim or 6)
    assert encoder.mrl == tuple(size for size in (2, 4, 6) if size <= encoder.dim)
    np.testing.assert_allclose(
        encoder.encode(TEXTS), expected(twin, layers, dim or 6), rtol=1e-4, atol=1e-5
    )


def test_only_the_part_that_is_needed_is_loaded(deep):
    early, whole = OnnxEncoder(deep, layer=1), OnnxEncoder(deep)
    for encoder in (early, whole):
        encoder.encode(TEXTS)

    sessions = [encoder._session._graph for encoder in (early, whole)]
    assert [one.name for one in sessions[0].get_outputs()] == ["early"]
    assert [one.name for one in sessions[1].get_outputs()] == ["sentence_embedding"]
    # Nothing of the model's bytes is held beside the model.
    assert all(session._model_bytes is None for session in sessions)


def test_a_part_of_a_model_with_tensors_outside_the_file_is_loaded(deep, twin, monkeypatch):
    path = deep / "model.onnx"
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=100
    )
    monkeypatch.chdir("/")

    found = OnnxEncoder(deep, layer=2).encode(TEXTS)

    np.testing.assert_allclose(found, expected(twin, 2), rtol=1e-4, atol=1e-5)


def test_names_and_fingerprints_tell_variants_apart(deep):
    variants = [{}, {"layer": 1}, {"layer": 2}, {"dim": 4}, {"layer": 1, "dim": 4}, {"dim": 2}]
    encoders = [OnnxEncoder(deep, name="m", **variant) for variant in variants]

    assert [encoder.name for encoder in encoders] == [
        *("m", "m/layer=1", "m/layer=2", "m/dim=4", "m/layer=1/dim=4", "m/dim=2")
    ]
    assert len({encoder.fingerprint for encoder in encoders}) == len(encoders)


def test_the_whole_dim_is_the_same_as_none(deep):
    stated, plain = OnnxEncoder(deep, name="m", dim=6), OnnxEncoder(deep, name="m")

    assert (stated.name, stated.fingerprint) == (plain.name, plain.fingerprint)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"layer": 3}, r"layer=3 is not offered by .*layers: 1, 2"),
        ({"layer": True}, "layer=True"),
        ({"layer": "1"}, "layer='1'"),
        ({"dim": 5}, "dim=5 is no prefix .*it makes 6 numbers, and its prefixes are: 2, 4, 6"),
        ({"dim": 8}, "dim=8"),
        ({"dim": True}, "dim=True"),
        ({"dim": 4.0}, r"dim=4\.0"),
    ],
)
def test_what_the_model_does_not_offer_is_named(deep, variant, message):
    with pytest.raises(UsageError, match=message):
        OnnxEncoder(deep, **variant)


def test_a_layer_whose_output_is_not_there_is_named(make_model):
    encoder = OnnxEncoder(make_model(own={"layers": {"1": "nowhere"}}), layer=1)

    with pytest.raises(EncoderError, match=r"vecstore\.json names the output 'nowhere'"):
        encoder.encode(["red"])


# Names of bundled models


def test_a_name_states_the_prefix_of_a_bundled_model():
    found = resolve("default/dim=128")

    assert found is bundled("default/dim=128")
    assert (found.name, found.dim) == ("default/dim=128", 128)
    whole = bundled().encode(TEXTS)[:, :128]
    wanted = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(found.encode(TEXTS), wanted, rtol=1e-4, atol=1e-6)


def test_every_variant_that_is_written_about_is_there():
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("vecstore/**/*.py")]
    written = {
        name
        for file in files
        for name in re.findall(r"\b(?:default|fast)(?:/(?:layer|dim)=\d+)+", file.read_text())
    }

    assert len(written) > 2
    for name in written:
        assert bundled(name).name == name


def test_the_whole_dim_names_the_same_instance():
    assert bundled("default/dim=384") is bundled()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("default/dim=100", UsageError),
        ("default/layer=99", UsageError),
        ("default/layer=99/dim=128", UsageError),
        ("default/dim=64/dim=64", ModelNotFoundError),
        ("default/dim=-1", ModelNotFoundError),
        ("nothing/dim=64", ModelNotFoundError),
    ],
)
def test_a_variant_that_is_not_there_is_refused(name, error):
    with pytest.raises(error):
        bundled(name)


def test_a_collection_of_a_bundled_variant_reopens_without_its_encoder(tmp_path):
    path = tmp_path / "notes.vecstore"
    with vecstore.open(path) as db:
        notes = db.collection("notes", encoder="default/dim=64")
        notes.add(TEXTS, ids=TEXTS)
        wanted = notes.search("a red fruit", k=3).scores
    with vecstore.open(path) as db:
        notes = db.collection("notes")
        assert (notes.spec.encoder, notes.spec.dim) == ("default/dim=64", 64)
        assert list(notes.search("a red fruit", k=3).scores) == list(wanted)
        with db.snapshot() as view:
            assert list(view.collection("notes").search("a red fruit", k=3).scores) == list(wanted)
        with pytest.raises(EncoderMismatchError, match="default/dim=64"):
            db.collection("notes", encoder="default")


def test_every_bundled_model_has_its_own_name():
    for name in bundled_names():
        assert bundled(name).name == name


def test_a_name_of_another_release_is_a_mismatch(deep):
    with vecstore.open(":memory:") as db:
        # A folder of the user's may be called as a bundled model is.
        mine = OnnxEncoder(deep, name="default", layer=2)
        notes = db.collection("mine", encoder=mine)
        notes.add(["red apple"])
        db._encoders.clear()

        with pytest.raises(EncoderMismatchError, match="default/layer=2"):
            notes.search("red")
