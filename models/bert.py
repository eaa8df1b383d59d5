"""What is computed? BERT with mean pooling, a rotation and unit length, as one ONNX graph.

The graph is written out node by node, so it needs no deep-learning framework, has few nodes, and
is the same bytes for the same weights. Inputs `input_ids` and `attention_mask`, int64
(batch, sequence); output `sentence_embedding`, float32 (batch, dim), unit length.

Weights may be stored as int8 with one scale per output number (per row for the word table); the
arithmetic is float32 either way. Quantized activations would be twice as fast, but they are scaled
over the whole batch, so that a text's vector would depend on its batch mates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
# Read by runtimes from about 2022 on.
IR_VERSION = 8
MASKED = np.float32(-1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a BERT model, from its config.json."""

    layers: int
    heads: int
    dim: int
    epsilon: float


class _Graph:
    """Nodes and constants under construction; every method returns the name of its output."""

    def __init__(self, *, quantized: bool) -> None:
        self.quantized = quantized
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[np.generic] | list[int]) -> str:
        array = np.asarray(value, np.int64) if isinstance(value, list) else value
        self.constants.setdefault(name, numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def weight(self, name: str, value: NDArray[np.float32]) -> str:
        """A matrix (in, out), as int8 with a scale per output number if quantized."""
        if not self.quantized:
            return self.constant(name, value)
        scale = np.maximum(np.abs(value).max(axis=0), 1e-8) / np.float32(127)
        codes = np.clip(np.rint(value / scale), -127, 127).astype(np.int8)
        self.constant(f"{name}.codes", codes)
        self.constant(f"{name}.scale", scale.astype(np.float32))
        return self.node("DequantizeLinear", f"{name}.codes", f"{name}.scale", axis=1)

    def linear(
        self, value: str, name: str, weight: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> str:
        product = self.node("MatMul", value, self.weight(f"{name}.weight", weight))
        return self.node("Add", product, self.constant(f"{name}.bias", bias))


def build(
    weights: Mapping[str, NDArray[np.float32]],
    shape: Shape,
    rotation: NDArray[np.float32],
    *,
    quantized: bool,
) -> onnx.ModelProto:
    """Return the model.

    Args:
        weights: BERT's tensors under their usual names ("embeddings.word_embeddings.weight").
        shape: The sizes.
        rotation: Applied to the pooled vector, float32 (dim, dim).
        quantized: Whether matrices are stored as int8.
    """
    graph = _Graph(quantized=quantized)
    mask = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    bias = _attention_bias(graph, mask)
    value = _embeddings(graph, weights, shape)
    for index in range(shape.layers):
        value = _layer(graph, weights, shape, f"encoder.layer.{index}", value, bias)
    _pool(graph, value, mask, rotation)
    axes = ["batch", "sequence"]
    proto = helper.make_graph(
        graph.nodes,
        "sentence_encoder",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, axes),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, axes),
        ],
        [
            helper.make_tensor_value_info(
                "sentence_embedding", TensorProto.FLOAT, ["batch", shape.dim]
            )
        ],
        initializer=list(graph.constants.values()),
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="vecstore models/make_default.py",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _embeddings(graph: _Graph, weights: Mapping[str, NDArray[np.float32]], shape: Shape) -> str:
    table = weights["embeddings.word_embeddings.weight"]
    if graph.quantized:
        # Rows are widened after they were gathered: the table stays int8 in memory too.
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), 1e-8) / np.float32(127)
        codes = np.clip(np.rint(table / scale), -127, 127).astype(np.int8)
        rows = graph.node("Gather", graph.constant("words.codes", codes), "input_ids")
        scales = graph.node(
            "Gather", graph.constant("words.scale", scale.astype(np.float32)), "input_ids"
        )
        words = graph.node("Mul", graph.node("Cast", rows, to=TensorProto.FLOAT), scales)
    else:
        words = graph.node("Gather", graph.constant("words", table), "input_ids")
    # One segment only, so its embedding is a constant that joins the positions'.
    positions = (
        weights["embeddings.position_embeddings.weight"]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    length = graph.node("Shape", "input_ids", start=1, end=2)
    used = graph.node(
        "Slice", graph.constant("positions", positions), graph.constant("zero", [0]), length
    )
    return _layer_norm(
        graph, weights, shape, "embeddings.LayerNorm", graph.node("Add", words, used)
    )


def _attention_bias(graph: _Graph, mask: str) -> str:
    absent = graph.node("Sub", graph.constant("one", np.float32(1)), mask)
    scaled = graph.node("Mul", absent, graph.constant("masked", MASKED))
    return graph.node("Unsqueeze", scaled, graph.constant("head_axes", [1, 2]))


def _layer(
    graph: _Graph,
    weights: Mapping[str, NDArray[np.float32]],
    shape: Shape,
    name: str,
    value: str,
    bias: str,
) -> str:
    context = _attention(graph, weights, shape, f"{name}.attention.self", value, bias)
    attended = _dense(graph, weights, f"{name}.attention.output.dense", context)
    value = _layer_norm(
        graph,
        weights,
        shape,
        f"{name}.attention.output.LayerNorm",
        graph.node("Add", attended, value),
    )
    inner = _gelu(graph, _dense(graph, weights, f"{name}.intermediate.dense", value))
    outer = _dense(graph, weights, f"{name}.output.dense", inner)
    return _layer_norm(
        graph, weights, shape, f"{name}.output.LayerNorm", graph.node("Add", outer, value)
    )


def _attention(
    graph: _Graph,
    weights: Mapping[str, NDArray[np.float32]],
    shape: Shape,
    name: str,
    value: str,
    bias: str,
) -> str:
    size = shape.dim // shape.heads
    factors = (np.float32(size**-0.5), np.float32(1), np.float32(1))
    parts = ("query", "key", "value")
    matrix = np.concatenate(
        [weights[f"{name}.{p}.weight"].T * f for p, f in zip(parts, factors, strict=True)], axis=1
    )
    offset = np.concatenate(
        [weights[f"{name}.{p}.bias"] * f for p, f in zip(parts, factors, strict=True)]
    )
    joint = graph.linear(value, name, matrix, offset)
    split = graph.node(
        "Reshape", joint, graph.constant("split_heads", [0, 0, 3, shape.heads, size])
    )

    def heads(part: int, *axes: int) -> str:
        picked = graph.node("Gather", split, graph.constant(f"part_{part}", np.int64(part)), axis=2)
        return graph.node("Transpose", picked, perm=list(axes))

    query, key, content = heads(0, 0, 2, 1, 3), heads(1, 0, 2, 3, 1), heads(2, 0, 2, 1, 3)
    scores = graph.node("Add", graph.node("MatMul", query, key), bias)
    mixed = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), content)
    merged = graph.node("Transpose", mixed, perm=[0, 2, 1, 3])
    return graph.node("Reshape", merged, graph.constant("merge_heads", [0, 0, shape.dim]))


def _dense(graph: _Graph, weights: Mapping[str, NDArray[np.float32]], name: str, value: str) -> str:
    return graph.linear(value, name, weights[f"{name}.weight"].T, weights[f"{name}.bias"])


def _gelu(graph: _Graph, value: str) -> str:
    # Written as runtimes expect it, who replace the five nodes by one.
    scaled = graph.node("Div", value, graph.constant("sqrt_two", np.float32(2**0.5)))
    shifted = graph.node("Add", graph.node("Erf", scaled), graph.constant("one", np.float32(1)))
    product = graph.node("Mul", value, shifted)
    return graph.node("Mul", product, graph.constant("half", np.float32(0.5)))


def _layer_norm(
    graph: _Graph, weights: Mapping[str, NDArray[np.float32]], shape: Shape, name: str, value: str
) -> str:
    gain = graph.constant(f"{name}.weight", weights[f"{name}.weight"])
    offset = graph.constant(f"{name}.bias", weights[f"{name}.bias"])
    return graph.node("LayerNormalization", value, gain, offset, axis=-1, epsilon=shape.epsilon)


def _pool(graph: _Graph, value: str, mask: str, rotation: NDArray[np.float32]) -> None:
    column = graph.node("Unsqueeze", mask, graph.constant("last_axis", [2]))
    present = graph.node("Mul", value, column)
    # A sum over the tokens and not a mean: the length is set to one in the end.
    total = graph.node("ReduceSum", present, graph.constant("token_axis", [1]), keepdims=0)
    turned = graph.node("MatMul", total, graph.constant("rotation", rotation))
    length = graph.node("ReduceL2", turned, axes=[-1], keepdims=1)
    floor = graph.node("Max", length, graph.constant("tiny", np.float32(1e-12)))
    graph.nodes.append(helper.make_node("Div", [turned, floor], ["sentence_embedding"]))
