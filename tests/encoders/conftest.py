"""Tiny models, made while the tests run: a word table, a tokenizer for its words, any config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *["red", "green", "blue", "apple", "pear", "train", "late", "query", ":"],
]
TABLE = np.random.default_rng(5).normal(size=(len(WORDS), 6)).astype(np.float32)

Make = Callable[..., Path]


class Twin:
    """What the tiny model computes, in plain numpy."""

    @staticmethod
    def ids(text: str) -> list[int]:
        inner = [WORDS.index(word) if word in WORDS else 1 for word in text.split()]
        return [2, *inner, 3]

    @classmethod
    def tokens(cls, text: str, limit: int | None = None) -> np.ndarray:
        ids = cls.ids(text)
        if limit is not None and len(ids) > limit:
            ids = [*ids[: limit - 1], 3]
        return TABLE[ids]


@pytest.fixture
def twin() -> type[Twin]:
    return Twin


@pytest.fixture
def make_model(tmp_path: Path) -> Make:
    """Return a function that writes a model folder and returns its path."""

    def make(graph: onnx.ModelProto | None = None, **configs: Any) -> Path:
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        onnx.save(graph or token_graph(), folder / "model.onnx")
        write_tokenizer(folder)
        for name, value in configs.items():
            write_config(folder, name, value)
        return folder

    return make


@pytest.fixture
def graphs() -> dict[str, Callable[..., onnx.ModelProto]]:
    return {"tokens": token_graph, "pooled": pooled_graph}


@pytest.fixture
def table() -> np.ndarray:
    return TABLE


FILES = {
    "modules": "modules.json",
    "pooling": "1_Pooling/config.json",
    "prompts": "config_sentence_transformers.json",
    "sentence": "sentence_bert_config.json",
    "own": "vecstore.json",
    "config": "config.json",
    "tokenizer_config": "tokenizer_config.json",
}


def write_config(folder: Path, name: str, value: Any) -> None:
    path = folder / FILES[name]
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def write_tokenizer(folder: Path) -> None:
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def token_graph(
    *,
    inputs: tuple[str, ...] = ("input_ids", "attention_mask"),
    output: str = "last_hidden_state",
    integers: int = TensorProto.INT64,
    table: np.ndarray = TABLE,
    extra: tuple[str, ...] = (),
    width: int | str | None = None,
) -> onnx.ModelProto:
    """One vector per token: its row of the table (plus its segment, if that is an input)."""
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["rows"])]
    rows = "rows"
    if "token_type_ids" in inputs:
        nodes += [
            helper.make_node("Cast", ["token_type_ids"], ["kinds"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["kinds", "last"], ["column"]),
            helper.make_node("Add", ["rows", "column"], ["shifted"]),
        ]
        rows = "shifted"
    if "position_ids" in inputs:
        nodes += [
            helper.make_node("Cast", ["position_ids"], ["places"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["places", "last"], ["place"]),
            helper.make_node("Add", [rows, "place"], ["placed"]),
        ]
        rows = "placed"
    nodes.append(helper.make_node("Identity", [rows], [output]))
    shape = ["batch", "sequence", table.shape[1] if width is None else width]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
    for name in extra:
        nodes.append(helper.make_node("ReduceMax", [rows], [name], axes=[1], keepdims=0))
        outputs.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", table.shape[1]])
        )
    return _model(nodes, inputs, outputs, integers, table)


def pooled_graph(
    *,
    output: str = "sentence_embedding",
    width: int | str = TABLE.shape[1],
    tokens: str | None = None,
) -> onnx.ModelProto:
    """One vector per text: the mean over its tokens, padding left out.

    `tokens` names an output of vectors of tokens beside it.
    """
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "first"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["column", "first"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], [output]),
    ]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", width])]
    if tokens is not None:
        shape = ["batch", "sequence", TABLE.shape[1]]
        nodes.append(helper.make_node("Identity", ["rows"], [tokens]))
        outputs.append(helper.make_tensor_value_info(tokens, TensorProto.FLOAT, shape))
    return _model(nodes, ("input_ids", "attention_mask"), outputs, TensorProto.INT64, TABLE)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: tuple[str, ...],
    outputs: list[onnx.ValueInfoProto],
    integers: int,
    table: np.ndarray,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, integers, ["batch", "sequence"]) for name in inputs],
        outputs,
        initializer=[
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "first"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
