"""What follows the graph: several layers, poolings by their own names, Dense modules, lengths."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vecstore.encoders import OnnxEncoder
from vecstore.encoders.dense import read_dense
from vecstore.errors import EncoderError, ModelNotFoundError

TEXTS = ["red apple", "late", "green pear blue train red", "unheard of"]
TYPES = "sentence_transformers.models."
WEIGHT = np.random.default_rng(3).normal(size=(4, 6)).astype(np.float32)
BIAS = np.random.default_rng(4).normal(size=4).astype(np.float32)

TWINS = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.where(x > 0, x, 0),
    "GELU": lambda x: x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
}


def listed(*kinds: str) -> list[dict[str, object]]:
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense"}
    return [
        {"idx": idx, "name": str(idx), "path": paths.get(kind, f"{idx}"), "type": TYPES + kind}
        for idx, kind in enumerate(kinds)
    ]


def write_dense(
    model: Path,
    weight: np.ndarray = WEIGHT,
    bias: np.ndarray | None = BIAS,
    **config: object,
) -> None:
    folder = model / "2_Dense"
    folder.mkdir(exist_ok=True)
    declared = {"in_features": 6, "out_features": 4, "bias": bias is not None} | config
    (folder / "config.json").write_text(json.dumps(declared))
    tensors = {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
    (folder / "model.safetensors").write_bytes(safetensors(tensors))


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    header, data = {}, b""
    for name, tensor in tensors.items():
        kind = {"f": "F", "i": "I"}[tensor.dtype.kind] + str(8 * tensor.itemsize)
        span = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": span}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def means(twin) -> np.ndarray:
    return np.array([twin.tokens(text).astype(np.float64).mean(axis=0) for text in TEXTS])


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# Dense


@pytest.mark.parametrize("activation", sorted(TWINS))
@pytest.mark.parametrize("bias", [BIAS, None])
def test_dense_equals_its_numpy_twin(make_model, twin, activation, bias):
    path = make_model(modules=listed("Transformer", "Pooling", "Dense"), pooling={})
    write_dense(path, bias=bias, activation_function=f"torch.nn.modules.activation.{activation}")
    encoder = OnnxEncoder(path)

    found = encoder.encode(TEXTS)

    wanted = TWINS[activation](
        means(twin) @ WEIGHT.T.astype(np.float64) + (0 if bias is None else bias)
    )
    assert encoder.dim == 4
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (("Dense", "Normalize"), lambda x: unit(np.tanh(x @ WEIGHT.T + BIAS))),
        (("Normalize", "Dense"), lambda x: np.tanh(unit(x) @ WEIGHT.T + BIAS)),
    ],
)
def test_modules_follow_each_other_in_their_order(make_model, twin, order, expected):
    path = make_model(modules=listed("Transformer", "Pooling", *order), pooling={})
    # Without an activation that is named, sentence-transformers takes the hyperbolic tangent.
    write_dense(path)

    found = OnnxEncoder(path).encode(TEXTS)

    np.testing.assert_allclose(found, expected(means(twin)), rtol=1e-4, atol=1e-5)


def test_a_graph_that_pools_holds_its_dense_module_too(make_model, graphs, twin):
    path = make_model(
        graphs["pooled"](), modules=listed("Transformer", "Pooling", "Dense"), pooling={}
    )

    np.testing.assert_allclose(OnnxEncoder(path).encode(TEXTS), means(twin), rtol=1e-4, atol=1e-5)


def test_dense_is_part_of_the_fingerprint(make_model):
    path = make_model(modules=listed("Transformer", "Pooling", "Dense", "Normalize"), pooling={})
    found = []
    for change in (
        {},
        {"weight": WEIGHT * 2},
        {"bias": BIAS * 2},
        {"activation_function": "torch.nn.modules.linear.Identity"},
    ):
        write_dense(path, **change)
        found.append(OnnxEncoder(path).fingerprint)
    write_dense(path)
    swapped = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps([*swapped[:2], swapped[3], swapped[2]]))
    found.append(OnnxEncoder(path).fingerprint)

    assert len(set(found)) == len(found)


def test_a_dense_module_of_halves_is_widened(make_model, twin):
    path = make_model(modules=listed("Transformer", "Pooling", "Dense"), pooling={})
    write_dense(path, WEIGHT.astype(np.float16), None, activation_function="x.Identity")

    wanted = means(twin) @ WEIGHT.astype(np.float16).astype(np.float64).T
    np.testing.assert_allclose(OnnxEncoder(path).encode(TEXTS), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_features": 5}, r"linear\.weight must be floats of shape \(4, 5\)"),
        ({"in_features": None}, "must declare in_features"),
        ({"out_features": 1 << 40}, "out_features=1099511627776 must be"),
        ({"bias": "yes"}, "bias='yes'"),
        ({"activation_function": "os.system"}, "activation_function='os.system' must be one of"),
        ({"activation_function": 3}, "activation_function=3"),
        ({"module_input_name": "token_embeddings"}, "module_input_name"),
        ({"weight": WEIGHT.astype("<i4")}, "int32 of shape"),
        ({"weight": np.full_like(WEIGHT, np.nan)}, "NaN or infinity"),
        ({"weight": np.full((4, 6), 1e300)}, "NaN or infinity"),
        ({"bias": None, "in_features": 6, "weight": WEIGHT[:, :0]}, r"shape \(4, 0\)"),
    ],
)
def test_a_dense_module_that_cannot_be_is_named(make_model, change, message):
    path = make_model(modules=listed("Transformer", "Pooling", "Dense"), pooling={})
    if isinstance(change.get("bias"), str):
        write_dense(path)
        (path / "2_Dense/config.json").write_text(
            json.dumps({"in_features": 6, "out_features": 4, **change})
        )
    else:
        write_dense(path, **change)

    with pytest.raises(EncoderError, match=message) as caught:
        OnnxEncoder(path).encode(TEXTS)
    assert str(path) in str(caught.value)


def test_dense_of_another_size_than_the_pooling_is_named(make_model):
    path = make_model(modules=listed("Transformer", "Pooling", "Dense"), pooling={})
    write_dense(path, WEIGHT[:, :5], in_features=5)

    with pytest.raises(EncoderError, match="takes 5 numbers, and the pooling makes 6"):
        OnnxEncoder(path).encode(TEXTS)


def test_a_pickle_is_not_opened(make_model):
    path = make_model(modules=listed("Transformer", "Pooling", "Dense"), pooling={})
    write_dense(path)
    (path / "2_Dense/model.safetensors").rename(path / "2_Dense/pytorch_model.bin")

    with pytest.raises(EncoderError, match=r"pytorch_model\.bin is a pickle.*safetensors"):
        OnnxEncoder(path).encode(TEXTS)

    (path / "2_Dense/pytorch_model.bin").unlink()
    with pytest.raises(ModelNotFoundError, match=r"2_Dense has no model\.safetensors"):
        read_dense(path / "2_Dense").load()


def test_dense_before_the_pooling_is_refused(make_model):
    path = make_model(modules=listed("Transformer", "Dense", "Pooling"), pooling={})
    write_dense(path)

    with pytest.raises(EncoderError, match="Dense before Pooling"):
        OnnxEncoder(path).encode(TEXTS)


# Pooling


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("cls+mean", lambda tokens: (tokens[0] + tokens.mean(axis=0)) / 2),
        ("last", lambda tokens: tokens[-1]),
        (["cls", "mean"], lambda tokens: np.concatenate([tokens[0], tokens.mean(axis=0)])),
        (["cls+max", "last"], lambda t: np.concatenate([(t[0] + t.max(axis=0)) / 2, t[-1]])),
    ],
)
def test_own_poolings_equal_their_numpy_twins(make_model, twin, pooling, expected):
    encoder = OnnxEncoder(make_model(own={"pooling": pooling}))

    wanted = np.array([expected(twin.tokens(text).astype(np.float64)) for text in TEXTS])
    assert encoder.dim == wanted.shape[1]
    np.testing.assert_allclose(encoder.encode(TEXTS), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls+", "", "+", "cls + mean", [["cls"]], {"a": 1}])
def test_an_own_pooling_that_is_not_known_is_named(make_model, pooling):
    with pytest.raises(EncoderError, match=r"vecstore\.json declares the pooling"):
        OnnxEncoder(make_model(own={"pooling": pooling}))


# Several layers


def layered(table: np.ndarray, depth: int = 4, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Token vectors behind each layer: the table's rows times 1, 2, 3, ..."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["hidden_states.0"])]
    names = ["hidden_states.0"]
    for number in range(1, depth):
        names.append(f"hidden_states.{number}")
        nodes.append(helper.make_node("Add", [names[-2], names[0]], [names[-1]]))
    nodes.append(helper.make_node("Identity", [names[-1]], ["last_hidden_state"]))
    graph = helper.make_graph(
        nodes,
        "layered",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"])
            for name in ("input_ids", "attention_mask")
        ],
        [
            helper.make_tensor_value_info(name, dtype, ["b", "s", 6])
            for name in ["last_hidden_state", *names]
        ],
        initializer=[numpy_helper.from_array(table.astype(kind), "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("own", "factor"),
    [
        ({}, 4),
        ({"hidden": [-2]}, 3),
        ({"hidden": [0]}, 1),
        ({"hidden": ["hidden_states.1"]}, 2),
        ({"hidden": [-1, -2, -3]}, 3),
        ({"hidden": [0, 3], "weights": [1, 3]}, 13 / 4),
        ({"hidden": ["last_hidden_state", 0], "weights": [0, 2.5]}, 1),
    ],
)
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_layers_are_averaged_as_declared(make_model, table, twin, own, factor, dtype):
    found = OnnxEncoder(make_model(layered(table, dtype=dtype), own=own)).encode(TEXTS)

    assert found.dtype == np.float32
    tolerance = 1e-5 if dtype == TensorProto.FLOAT else 5e-3
    np.testing.assert_allclose(found, factor * means(twin), rtol=tolerance, atol=4 * tolerance)


def test_an_early_layer_is_no_average_of_layers(make_model, table):
    layers = {"layers": {"1": "hidden_states.1"}}
    averaged = {**layers, "hidden": [1, 2], "weights": [1, 2]}
    plain, early = (
        OnnxEncoder(make_model(layered(table), own=own), layer=1) for own in (layers, averaged)
    )

    np.testing.assert_array_equal(early.encode(TEXTS), plain.encode(TEXTS))
    assert early.fingerprint == plain.fingerprint


def test_layers_and_weights_are_part_of_the_fingerprint(make_model, table):
    declared = [{}, {"hidden": [1]}, {"hidden": [1, 2]}, {"hidden": [1, 2], "weights": [1, 2]}]
    found = {OnnxEncoder(make_model(layered(table), own=own)).fingerprint for own in declared}

    assert len(found) == len(declared)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"hidden": [4]}, "names the output 'hidden_states.4'"),
        ({"hidden": [-5]}, "names the output"),
        ({"hidden": ["absent"]}, "names the output 'absent'"),
    ],
)
def test_a_layer_that_is_not_there_is_named(make_model, table, own, message):
    with pytest.raises(EncoderError, match=message):
        OnnxEncoder(make_model(layered(table), own=own)).encode(TEXTS)


@pytest.mark.parametrize(
    "own",
    [
        {"hidden": "hidden_states.1"},
        {"hidden": [1.5]},
        {"hidden": [True]},
        {"hidden": [0] * 1000},
        {"hidden": [0, 1], "weights": [1]},
        {"hidden": [0, 1], "weights": [0, 0]},
        {"hidden": [0, 1], "weights": [1, -1]},
        {"hidden": [0], "weights": ["1"]},
        {"hidden": [0], "weights": [10**400]},
        {"weights": [1]},
        '{"hidden": [0], "weights": [NaN]}',
        '{"hidden": [0], "weights": [Infinity]}',
        {"layers": ["a"]},
        {"layers": {"three": "a"}},
        {"layers": {"-3": "a"}},
        {"layers": {"3": 4}},
        {"layers": {"9" * 5000: "a"}},
    ],
)
def test_absurd_layers_and_weights_are_refused(make_model, own):
    with pytest.raises(EncoderError, match=r"vecstore\.json: (hidden|weights|layers)="):
        OnnxEncoder(make_model(own=own))


def test_outputs_of_other_shapes_are_not_averaged(make_model, graphs):
    path = make_model(
        graphs["tokens"](extra=("largest",)), own={"hidden": ["last_hidden_state", "largest"]}
    )

    with pytest.raises(EncoderError, match="differ in shape"):
        OnnxEncoder(path).encode(TEXTS)
