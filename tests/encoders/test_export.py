"""Exported models, compared with transformers written in plain numpy in float64."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from vecstore import cli
from vecstore.encoders import OnnxEncoder
from vecstore.encoders.export import export
from vecstore.encoders.transformer import distance_buckets
from vecstore.errors import (
    AlreadyExistsError,
    EncoderError,
    MissingExtraError,
    ModelNotFoundError,
    StoreError,
)

TEXTS = ["red apple", "late", "green pear blue train red apple late", "unheard of"]
DIM, INNER, HEADS, LAYERS, WORDS, POSITIONS = 8, 12, 2, 2, 13, 20
PADDING = 1
BERT_NAMES = """attention.self.query attention.self.key attention.self.value
    attention.output.dense attention.output.LayerNorm
    intermediate.dense output.dense output.LayerNorm"""
MPNET_NAMES = """attention.attn.q attention.attn.k attention.attn.v
    attention.attn.o attention.LayerNorm
    intermediate.dense output.dense output.LayerNorm"""
DISTILBERT_NAMES = """attention.q_lin attention.k_lin attention.v_lin
    attention.out_lin sa_layer_norm
    ffn.lin1 ffn.lin2 output_layer_norm"""
NAMES = {
    "bert": BERT_NAMES.split(),
    "roberta": BERT_NAMES.split(),
    "xlm-roberta": BERT_NAMES.split(),
    "mpnet": MPNET_NAMES.split(),
    "distilbert": DISTILBERT_NAMES.split(),
}
CONFIG = {
    "hidden_size": DIM,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "layer_norm_eps": 1e-5,
    "pad_token_id": PADDING,
    "max_position_embeddings": POSITIONS,
}
DISTIL = {"dim": DIM, "n_layers": LAYERS, "n_heads": HEADS, "max_position_embeddings": POSITIONS}


def weights_of(family: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(family))

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": normal(WORDS, DIM),
        "embeddings.position_embeddings.weight": normal(POSITIONS, DIM),
        "embeddings.LayerNorm.weight": normal(DIM),
        "embeddings.LayerNorm.bias": normal(DIM),
    }
    if family in ("bert", "roberta", "xlm-roberta"):
        tensors["embeddings.token_type_embeddings.weight"] = normal(2, DIM)
    if family == "mpnet":
        tensors["encoder.relative_attention_bias.weight"] = normal(32, HEADS)
    stem = "transformer.layer" if family == "distilbert" else "encoder.layer"
    shapes = [(DIM, DIM)] * 4 + [(DIM,), (INNER, DIM), (DIM, INNER), (DIM,)]
    for layer in range(LAYERS):
        for name, shape in zip(NAMES[family], shapes, strict=True):
            tensors[f"{stem}.{layer}.{name}.weight"] = normal(*shape) * np.float32(0.5)
            tensors[f"{stem}.{layer}.{name}.bias"] = normal(shape[0])
    return tensors


def write(folder: Path, family: str, tokenizer: Path, prefix: str = "", **config: Any) -> None:
    folder.mkdir(parents=True)
    header, data = {}, b""
    for name, tensor in weights_of(family).items():
        span = [len(data), len(data) + tensor.nbytes]
        header[prefix + name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": span}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    stated = DISTIL if family == "distilbert" else CONFIG
    (folder / "config.json").write_text(json.dumps({"model_type": family, **stated, **config}))
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())


class Plain:
    """A transformer in float64, one text at a time, without padding."""

    def __init__(self, family: str, activation: str = "gelu") -> None:
        self.family = family
        self.w = {name: tensor.astype(np.float64) for name, tensor in weights_of(family).items()}
        self.epsilon = 1e-12 if family == "distilbert" else 1e-5
        self.activation = activation

    def tokens(self, ids: list[int]) -> np.ndarray:
        first = 0 if self.family in ("bert", "distilbert") else PADDING + 1
        value = self.w["embeddings.word_embeddings.weight"][ids]
        value = value + self.w["embeddings.position_embeddings.weight"][first : first + len(ids)]
        if "embeddings.token_type_embeddings.weight" in self.w:
            value = value + self.w["embeddings.token_type_embeddings.weight"][0]
        value = self.norm(value, "embeddings.LayerNorm")
        for layer in range(LAYERS):
            stem = "transformer.layer" if self.family == "distilbert" else "encoder.layer"
            names = [f"{stem}.{layer}.{name}" for name in NAMES[self.family]]
            query, key, content = (self.linear(value, name) for name in names[:3])
            mixed = np.hstack(
                [
                    self.head(query[:, part], key[:, part], content[:, part], head)
                    for head, part in enumerate((slice(0, DIM // 2), slice(DIM // 2, DIM)))
                ]
            )
            value = self.norm(value + self.linear(mixed, names[3]), names[4])
            inner = self.activated(self.linear(value, names[5]))
            value = self.norm(value + self.linear(inner, names[6]), names[7])
        return value

    def head(self, query, key, content, head: int) -> np.ndarray:
        scores = query @ key.T / math.sqrt(query.shape[1])
        if self.family == "mpnet":
            biases = self.w["encoder.relative_attention_bias.weight"]
            for row in range(len(scores)):
                for column in range(len(scores)):
                    scores[row, column] += biases[bucket(column - row), head]
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True) @ content

    def linear(self, value, name: str) -> np.ndarray:
        return value @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, value, name: str) -> np.ndarray:
        centred = value - value.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + self.epsilon)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def activated(self, value) -> np.ndarray:
        if self.activation == "relu":
            return np.maximum(value, 0)
        if self.activation == "gelu_new":
            inner = math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)
            return 0.5 * value * (1 + np.tanh(inner))
        return value * 0.5 * (1 + np.vectorize(math.erf)(value / math.sqrt(2)))


def bucket(distance: int) -> int:
    """MPNet's bucket of the distance from a query to a key, of 32."""
    side, far = (16 if distance > 0 else 0), abs(distance)
    if far < 8:
        return side + far
    return side + min(15, 8 + int(math.log(far / 8) / math.log(128 / 8) * 8))


@pytest.fixture
def tokenizer(make_model) -> Path:
    return make_model() / "tokenizer.json"


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_an_exported_model_equals_its_numpy_twin(tmp_path, tokenizer, twin, family, prefix):
    write(tmp_path / "source", family, tokenizer, prefix)

    made = export(tmp_path / "source", tmp_path / "out", int8=False)

    encoder = OnnxEncoder(made)
    wanted = [Plain(family).tokens(twin.ids(text)).mean(axis=0) for text in TEXTS]
    np.testing.assert_allclose(encoder.encode(TEXTS), wanted, rtol=1e-4, atol=1e-5)
    assert encoder.max_length == (POSITIONS if family in ("bert", "distilbert") else POSITIONS - 2)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
def test_activations_equal_their_numpy_twins(tmp_path, tokenizer, twin, activation):
    write(tmp_path / "source", "bert", tokenizer, hidden_act=activation)

    found = OnnxEncoder(export(tmp_path / "source", tmp_path / "out", int8=False)).encode(TEXTS)

    plain = Plain("bert", activation)
    wanted = [plain.tokens(twin.ids(text)).mean(axis=0) for text in TEXTS]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_int8_model_is_smaller_and_nearly_the_same(tmp_path, tokenizer):
    write(tmp_path / "source", "bert", tokenizer)
    whole, small = (
        OnnxEncoder(export(tmp_path / "source", tmp_path / name, int8=int8)).encode(TEXTS)
        for name, int8 in (("whole", False), ("small", True))
    )

    lengths = np.linalg.norm(whole, axis=1) * np.linalg.norm(small, axis=1)
    assert ((whole * small).sum(axis=1) / lengths).min() > 0.999
    assert not np.array_equal(whole, small)


def test_modules_and_prompts_come_along(tmp_path, tokenizer, twin):
    source = tmp_path / "source"
    write(source / "0_Transformer", "bert", tokenizer)
    types = "sentence_transformers.models."
    modules = [
        {"type": f"{types}Transformer", "path": "0_Transformer"},
        {"type": f"{types}Pooling", "path": "1_Pooling"},
        {"type": f"{types}Normalize", "path": "2_Normalize"},
    ]
    (source / "modules.json").write_text(json.dumps(modules))
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling/config.json").write_text('{"pooling_mode": "cls"}')
    (source / "config_sentence_transformers.json").write_text('{"prompts": {"query": "query : "}}')

    encoder = OnnxEncoder(export(source, tmp_path / "out", int8=False))

    wanted = Plain("bert").tokens(twin.ids("query : red"))[0]
    wanted /= np.linalg.norm(wanted)
    np.testing.assert_allclose(encoder.encode(["red"], "query")[0], wanted, rtol=1e-4, atol=1e-5)


def test_buckets_are_those_of_the_formula():
    distances = np.arange(-600, 601)

    np.testing.assert_array_equal(
        distance_buckets(distances, 32), [bucket(int(distance)) for distance in distances]
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen3"}, r"model_type='qwen3' .*bert, roberta.*torch\.onnx"),
        ({"model_type": None}, "model_type='none'"),
        ({"hidden_act": "swish"}, "hidden_act='swish' must be one of"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_attention_heads": 3}, "fit each other"),
        (
            {"num_hidden_layers": 3},
            r"tensor 'encoder\.layer\.2\.\S+' must be floats.*there is none",
        ),
        ({"hidden_size": 10}, r"tensor 'embeddings\.word_embeddings\.weight' has shape"),
        ({"layer_norm_eps": -1}, "layer_norm_eps"),
        ({"num_hidden_layers": 1}, r"declares 1 layers, and model\.safetensors has 2"),
        ({"max_position_embeddings": 10**6}, r"declares 1000000 positions, and \S+ has 20"),
    ],
)
def test_what_cannot_be_exported_is_named_and_leaves_nothing(tmp_path, tokenizer, config, message):
    write(tmp_path / "source", "bert", tokenizer, **config)
    before = sorted(tmp_path.iterdir())

    with pytest.raises(EncoderError, match=message):
        export(tmp_path / "source", tmp_path / "out", int8=False)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path, tokenizer, missing):
    write(tmp_path / "source", "bert", tokenizer)
    (tmp_path / "source" / missing).unlink()

    with pytest.raises(ModelNotFoundError, match=f"source has no {missing}"):
        export(tmp_path / "source", tmp_path / "out", int8=False)


def test_nothing_is_overwritten(tmp_path, tokenizer):
    write(tmp_path / "source", "bert", tokenizer)

    with pytest.raises(AlreadyExistsError):
        export(tmp_path / "source", tmp_path / "source", int8=False)


def test_a_place_that_cannot_be_written_is_named(tmp_path, tokenizer):
    source = tmp_path / "source"
    write(source, "bert", tokenizer)
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match="file/out cannot be written: "):
        export(source, tmp_path / "file/out", int8=False)


def test_a_missing_extra_is_named_with_the_remedy(tmp_path, tokenizer, monkeypatch):
    write(tmp_path / "source", "bert", tokenizer)
    monkeypatch.setitem(sys.modules, "onnx", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'vecstore\[export\]'"):
        export(tmp_path / "source", tmp_path / "out", int8=False)


def test_the_command_exports(tmp_path, tokenizer):
    write(tmp_path / "source", "distilbert", tokenizer)
    arguments = ["models", "export", str(tmp_path / "source"), str(tmp_path / "out"), "--int8"]

    found = CliRunner().invoke(cli.main, [*arguments, "--json"])

    assert found.exit_code == 0, found.output
    assert json.loads(found.output)["dim"] == DIM
    again = CliRunner().invoke(cli.main, arguments)
    assert again.exit_code == 1
    assert "exists already" in again.output
