"""Which ONNX graph computes what a transformer of PyTorch does? Written out node by node.

BERT (https://arxiv.org/abs/1810.04805) and those that share its layers: RoBERTa and XLM-RoBERTa,
whose positions start behind the padding token's; DistilBERT, without segments; MPNet
(https://arxiv.org/abs/2004.09297), with a bias by distance. Inputs `input_ids` and
`attention_mask`, int64 (batch, sequence); output `last_hidden_state`, float32 (batch, sequence,
dim). Needs the package onnx, and none of a deep-learning framework.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore.encoders.config import Config
from vecstore.encoders.folder import OFFSET_POSITIONS
from vecstore.errors import EncoderError, MissingExtraError

OPSET, IR_VERSION = 17, 8
_MASKED = np.float32(-1e9)
_MICROSOFT = "com.microsoft"
_BERT = {
    "query": "encoder.layer.{}.attention.self.query",
    "key": "encoder.layer.{}.attention.self.key",
    "value": "encoder.layer.{}.attention.self.value",
    "attended": "encoder.layer.{}.attention.output.dense",
    "attended_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "inner": "encoder.layer.{}.intermediate.dense",
    "outer": "encoder.layer.{}.output.dense",
    "outer_norm": "encoder.layer.{}.output.LayerNorm",
}
_MPNET = _BERT | {
    "query": "encoder.layer.{}.attention.attn.q",
    "key": "encoder.layer.{}.attention.attn.k",
    "value": "encoder.layer.{}.attention.attn.v",
    "attended": "encoder.layer.{}.attention.attn.o",
    "attended_norm": "encoder.layer.{}.attention.LayerNorm",
}
_DISTILBERT = {
    "query": "transformer.layer.{}.attention.q_lin",
    "key": "transformer.layer.{}.attention.k_lin",
    "value": "transformer.layer.{}.attention.v_lin",
    "attended": "transformer.layer.{}.attention.out_lin",
    "attended_norm": "transformer.layer.{}.sa_layer_norm",
    "inner": "transformer.layer.{}.ffn.lin1",
    "outer": "transformer.layer.{}.ffn.lin2",
    "outer_norm": "transformer.layer.{}.output_layer_norm",
}
# Names of tensors by `model_type` of config.json.
FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
}
_ACTIVATIONS = ("gelu", "relu", "gelu_new", "gelu_pytorch_tanh")
# MPNet's: distances from here on share the last bucket.
_FAR = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes and choices of a transformer, from its `config.json`."""

    family: str
    layers: int
    heads: int
    dim: int
    epsilon: float
    activation: str
    padding: int


def read_shape(config: Config) -> Shape:
    """Return the sizes of a transformer.

    Raises:
        EncoderError: It is of a kind that cannot be exported, or its configuration is damaged.
    """
    family = config.string("model_type") or "none"
    if family not in FAMILIES:
        raise EncoderError(
            f"{config.file}: model_type={family!r:.60} is not among those that can be exported"
            f" here, {', '.join(FAMILIES)}; export it with torch.onnx, so that the folder has"
            " model.onnx"
        )
    if config.values.get("position_embedding_type") not in (None, "absolute"):
        raise config.error("position_embedding_type", '"absolute"')
    distil = family == "distilbert"
    keys = (
        ("n_layers", "n_heads", "dim")
        if distil
        else ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    layers, heads, dim = (config.integer(key, 1, 1 << 16) for key in keys)
    if layers is None or heads is None or dim is None or dim % heads:
        raise EncoderError(f"{config.file} must declare {', '.join(keys)}, that fit each other")
    epsilon = config.values.get("layer_norm_eps", 1e-12)
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
        raise config.error("layer_norm_eps", "a number between 0 and 1")
    key = "activation" if distil else "hidden_act"
    activation = config.string(key) or "gelu"
    if activation not in _ACTIVATIONS:
        raise config.error(key, f"one of {', '.join(_ACTIVATIONS)}")
    padding = config.integer("pad_token_id", 0, 1 << 30)
    return Shape(
        family=family,
        layers=layers,
        heads=heads,
        dim=dim,
        epsilon=float(epsilon),
        activation=activation,
        padding=1 if padding is None else padding,
    )


@dataclass(frozen=True, slots=True)
class Range:
    """How far the numbers go that enter a matrix, so that they can be rounded to 8 bits.

    Attributes:
        low: The least, at most 0.
        high: The largest, over 0.
        factors: What each is multiplied by before, float32 (in,), so that a few large ones do not
            make the steps of all others coarse; the rows of the matrix are divided by it. None
            where nothing is.
    """

    low: float
    high: float
    factors: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class _Codes:
    """A value in 8 bits: the names of its numbers, of their step and of their zero."""

    range: Range
    codes: str
    step: str
    zero: str


def build(
    tensors: Mapping[str, NDArray[Any]],
    shape: Shape,
    *,
    quantized: bool,
    ranges: Mapping[str, Range] | None = None,
    finish: Callable[[Graph, list[str]], None] | None = None,
    branches: Mapping[int, int] | None = None,
) -> Any:
    """Return the onnx.ModelProto of a transformer.

    Args:
        tensors: Its weights under PyTorch's names.
        shape: Its sizes.
        quantized: Whether matrices are stored as int8 with a scale for each output number.
        ranges: Of the matrices that are to multiply in int8, by name; arithmetic is float32
            elsewhere. A text's vector does not depend on its batch mates either way, since no
            range does. These graphs are for onnxruntime only.
        finish: Adds what follows, given the values before the first and behind each layer; by
            default the output is `last_hidden_state`.
        branches: Layers beside those of `shape`: by their number in the tensors' names, behind how
            many of the others each stands. Their values follow in `finish`.

    Raises:
        EncoderError: A tensor is missing or of another shape.
        MissingExtraError: onnx is not installed.
    """
    graph = Graph(tensors, shape, quantized=quantized, ranges=ranges or {})
    values = [_embeddings(graph)]
    bias = _attention_bias(graph)
    for layer in range(shape.layers):
        values.append(_layer(graph, layer, values[-1], bias))
    values += [_layer(graph, layer, values[at], bias) for layer, at in (branches or {}).items()]
    if finish is None:
        graph.node("Identity", values[shape.layers], output="last_hidden_state")
        graph.output("last_hidden_state", "batch", "sequence", shape.dim)
    else:
        finish(graph, values)
    return graph.model()


class Graph:
    """Nodes and constants under construction; most methods return the name of an output.

    Attributes:
        entering: The value that enters each matrix, by the matrix's name.
    """

    def __init__(
        self,
        tensors: Mapping[str, NDArray[Any]],
        shape: Shape,
        *,
        quantized: bool,
        ranges: Mapping[str, Range],
    ) -> None:
        try:
            import onnx
        except ImportError as error:
            raise MissingExtraError(
                f"exporting a model needs onnx ({error}): pip install 'vecstore[export]'"
            ) from error
        self.onnx = onnx
        self.shape = shape
        self.quantized = quantized
        self.tensors = tensors
        # Models with a head for training have their encoder under a name of its own.
        self.prefix = next(
            (
                name.removesuffix("embeddings.word_embeddings.weight")
                for name in tensors
                if name.endswith("embeddings.word_embeddings.weight")
            ),
            "",
        )
        self.ranges = ranges
        self.entering: dict[str, str] = {}
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.outputs: list[Any] = []
        self._codes: dict[str, _Codes] = {}

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add an operation."""
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        made = self.onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes)
        self.nodes.append(made)
        return name

    def constant(self, name: str, value: Any) -> str:
        """Add a constant, unless there is one of this name."""
        if name not in self.constants:
            array = np.array(value, np.int64 if type(value) is list else None, order="C")
            self.constants[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def tensor(self, name: str, *shape: int | None) -> NDArray[np.float32]:
        """A tensor of the model, float32, of a shape in which None may be any size."""
        found = self.tensors.get(self.prefix + name)
        wanted = tuple("any" if size is None else size for size in shape)
        if found is None or found.dtype.kind != "f" or len(found.shape) != len(shape):
            held = "there is none" if found is None else f"it is {found.dtype} {found.shape}"
            raise EncoderError(f"tensor {name!r} must be floats of shape {wanted}: {held}")
        if any(size not in (None, had) for size, had in zip(shape, found.shape, strict=True)):
            raise EncoderError(f"tensor {name!r} has shape {found.shape}, not {wanted}")
        loaded = np.array(found, dtype=np.float32)
        if not np.isfinite(loaded).all():
            raise EncoderError(f"tensor {name!r} has NaN or infinity")
        return loaded

    def output(self, name: str, *axes: str | int) -> None:
        """Declare a value of float32 as an output."""
        types = self.onnx.TensorProto
        self.outputs.append(self.onnx.helper.make_tensor_value_info(name, types.FLOAT, list(axes)))

    def linear(self, value: str, name: str, weight: NDArray[Any], bias: NDArray[Any]) -> str:
        """Multiply by a matrix (in, out) and add (out,)."""
        self.entering[name] = value
        if name in self.ranges:
            return self._int8_linear(value, name, weight, bias)
        product = self.node("MatMul", value, self.matrix(f"{name}.weight", weight))
        return self.node("Add", product, self.constant(f"{name}.bias", bias))

    def _int8_linear(self, value: str, name: str, weight: NDArray[Any], bias: NDArray[Any]) -> str:
        entering = self._entering_codes(value, self.ranges[name], name)
        factors = self.ranges[name].factors
        if factors is not None:
            weight = weight / factors[:, None]
        # Of 7 bits: products of two in 8 bits overflow where a processor adds pairs in 16.
        codes, scale = _rounded(weight, 0, most=63)
        inputs = [
            entering.codes,
            self.constant(f"{name}.codes", codes),
            entering.step,
            self.constant(f"{name}.scale", scale[0]),
            entering.zero,
            "",
            self.constant(f"{name}.bias", np.asarray(bias, np.float32)),
        ]
        return self.node("MatMulIntegerToFloat", *inputs, domain=_MICROSOFT)

    def _entering_codes(self, value: str, found: Range, name: str) -> _Codes:
        """A value rounded to 8 bits, once for all matrices that it enters with one range."""
        known = self._codes.get(value)
        if known is not None and known.range is found:
            return known
        step = np.float32((found.high - found.low) / 255)
        zero = np.uint8(np.clip(np.rint(-found.low / step), 0, 255))
        steps = self.constant(f"{name}.step", step), self.constant(f"{name}.zero", zero)
        scaled = value
        if found.factors is not None:
            held = self.constant(f"{name}.factors", np.asarray(found.factors, np.float32))
            scaled = self.node("Mul", value, held)
        codes = self.node("QuantizeLinear", scaled, *steps)
        self._codes[value] = _Codes(found, codes, *steps)
        return self._codes[value]

    def matrix(self, name: str, value: NDArray[np.float32]) -> str:
        """A constant matrix (in, out)."""
        if not self.quantized:
            return self.constant(name, value)
        codes, scale = _rounded(value, 0)
        self.constant(f"{name}.codes", codes)
        self.constant(f"{name}.scale", scale[0])
        return self.node("DequantizeLinear", f"{name}.codes", f"{name}.scale", axis=1)

    def norm(self, value: str, name: str) -> str:
        """Shift and scale each vector to mean 0 and variance 1, then by what was learned."""
        dim = self.shape.dim
        gain = self.constant(f"{name}.weight", self.tensor(f"{name}.weight", dim))
        offset = self.constant(f"{name}.bias", self.tensor(f"{name}.bias", dim))
        return self.node(
            "LayerNormalization", value, gain, offset, axis=-1, epsilon=self.shape.epsilon
        )

    def model(self) -> Any:
        """The onnx.ModelProto of all that was added."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        axes = ["batch", "sequence"]
        graph = helper.make_graph(
            self.nodes,
            "transformer",
            [
                helper.make_tensor_value_info(name, types.INT64, axes)
                for name in ("input_ids", "attention_mask")
            ],
            self.outputs,
            initializer=list(self.constants.values()),
        )
        more = [helper.make_opsetid(_MICROSOFT, 1)] if self.ranges else []
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), *more],
            ir_version=IR_VERSION,
            producer_name="vecstore",
        )


def _rounded(
    value: NDArray[np.float32], axis: int, *, most: int = 127
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 numbers, and the scales along an axis that undo the rounding best."""
    scale = np.maximum(np.abs(value).max(axis=axis, keepdims=True), 1e-8) / np.float32(most)
    return np.clip(np.rint(value / scale), -most, most).astype(np.int8), scale.astype(np.float32)


def _embeddings(graph: Graph) -> str:
    dim = graph.shape.dim
    table = graph.tensor("embeddings.word_embeddings.weight", None, dim)
    words = _rows(graph, "words", table, "Gather", "input_ids")
    positions = graph.tensor("embeddings.position_embeddings.weight", None, dim)
    if graph.shape.family in OFFSET_POSITIONS:
        positions = positions[graph.shape.padding + 1 :]
    if graph.prefix + "embeddings.token_type_embeddings.weight" in graph.tensors:
        # A text is one segment, so that its embedding is a constant.
        positions = (
            positions + graph.tensor("embeddings.token_type_embeddings.weight", None, dim)[0]
        )
    first, length = graph.constant("zero", [0]), graph.node("Shape", "input_ids", start=1, end=2)
    places = _rows(graph, "positions", positions, "Slice", first, length)
    return graph.norm(graph.node("Add", words, places), "embeddings.LayerNorm")


def _rows(graph: Graph, name: str, table: NDArray[np.float32], kind: str, *which: str) -> str:
    """Some rows of a constant table."""
    if not graph.quantized:
        return graph.node(kind, graph.constant(name, table), *which)
    # Widened after they were taken, so that the table stays small in memory too.
    codes, scale = _rounded(table, 1)
    rows = graph.node(kind, graph.constant(f"{name}.codes", codes), *which)
    scales = graph.node(kind, graph.constant(f"{name}.scale", scale), *which)
    float_type = int(graph.onnx.TensorProto.FLOAT)
    return graph.node("Mul", graph.node("Cast", rows, to=float_type), scales)


def _attention_bias(graph: Graph) -> str:
    """What is added to attention: (batch, 1 or heads, 1 or sequence, sequence)."""
    mask = graph.node("Cast", "attention_mask", to=int(graph.onnx.TensorProto.FLOAT))
    absent = graph.node("Sub", graph.constant("one", np.float32(1)), mask)
    scaled = graph.node("Mul", absent, graph.constant("masked", _MASKED))
    bias = graph.node("Unsqueeze", scaled, graph.constant("head_axes", [1, 2]))
    if graph.shape.family != "mpnet":
        return bias
    return graph.node("Add", bias, _distance_bias(graph))


def _distance_bias(graph: Graph) -> str:
    """MPNet's bias of each head by how far a token is from another, (1, heads, s, s)."""
    buckets = graph.tensor("encoder.relative_attention_bias.weight", None, graph.shape.heads)
    longest = len(graph.tensor("embeddings.position_embeddings.weight", None, graph.shape.dim))
    distances = np.arange(1 - longest, longest)
    table = graph.constant("distances", buckets[distance_buckets(distances, len(buckets))])
    whole = graph.node("Shape", "input_ids", start=1, end=2)
    length = graph.node("Squeeze", whole, graph.constant("zero", [0]))
    first, step = graph.constant("first", np.int64(0)), graph.constant("step", np.int64(1))
    places = graph.node("Range", first, length, step)
    rows = graph.node("Unsqueeze", places, graph.constant("row_axis", [1]))
    shifted = graph.node("Add", places, graph.constant("longest", np.int64(longest - 1)))
    gathered = graph.node("Gather", table, graph.node("Sub", shifted, rows))
    heads = graph.node("Transpose", gathered, perm=[2, 0, 1])
    return graph.node("Unsqueeze", heads, graph.constant("zero", [0]))


def distance_buckets(distances: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the bucket of each distance: exact near by, then by the logarithm, by sides apart."""
    half = count // 2
    exact = half // 2
    size = np.abs(distances)
    # As PyTorch does it, in float32: the borders of buckets depend on it.
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact))
    far = exact + (ratio / np.float32(math.log(_FAR / exact)) * (half - exact)).astype(np.int64)
    near = np.where(size < exact, size, np.minimum(far, half - 1))
    return np.where(distances > 0, half, 0) + near


def _layer(graph: Graph, layer: int, value: str, bias: str) -> str:
    names = {part: name.format(layer) for part, name in FAMILIES[graph.shape.family].items()}
    context = _attention(graph, names, value, bias)
    attended = _dense(graph, names["attended"], context)
    value = graph.norm(graph.node("Add", attended, value), names["attended_norm"])
    outer = _dense(graph, names["outer"], _activated(graph, _dense(graph, names["inner"], value)))
    return graph.norm(graph.node("Add", outer, value), names["outer_norm"])


def _attention(graph: Graph, names: Mapping[str, str], value: str, bias: str) -> str:
    dim, heads = graph.shape.dim, graph.shape.heads
    size = dim // heads
    split = graph.constant("split_heads", [0, 0, heads, size])

    def part(name: str, factor: float, *axes: int) -> str:
        weight = graph.tensor(f"{names[name]}.weight", dim, dim).T * np.float32(factor)
        offset = graph.tensor(f"{names[name]}.bias", dim) * np.float32(factor)
        projected = graph.linear(value, names[name], weight, offset)
        return graph.node("Transpose", graph.node("Reshape", projected, split), perm=list(axes))

    query = part("query", size**-0.5, 0, 2, 1, 3)
    scores = graph.node("MatMul", query, part("key", 1, 0, 2, 3, 1))
    shares = graph.node("Softmax", graph.node("Add", scores, bias), axis=-1)
    mixed = graph.node("MatMul", shares, part("value", 1, 0, 2, 1, 3))
    merged = graph.node("Transpose", mixed, perm=[0, 2, 1, 3])
    return graph.node("Reshape", merged, graph.constant("merge_heads", [0, 0, dim]))


def _dense(graph: Graph, name: str, value: str) -> str:
    weight = graph.tensor(f"{name}.weight", None, None)
    return graph.linear(value, name, weight.T, graph.tensor(f"{name}.bias", len(weight)))


def _activated(graph: Graph, value: str) -> str:
    if graph.shape.activation == "relu":
        return graph.node("Relu", value)
    half, one = graph.constant("half", np.float32(0.5)), graph.constant("one", np.float32(1))
    if graph.shape.activation == "gelu":
        # Written as runtimes expect it, who replace the five nodes by one.
        scaled = graph.node("Div", value, graph.constant("sqrt_two", np.float32(2**0.5)))
        shifted = graph.node("Add", graph.node("Erf", scaled), one)
        return graph.node("Mul", graph.node("Mul", value, shifted), half)
    cube = graph.node("Pow", value, graph.constant("three", np.float32(3)))
    small = graph.node("Mul", cube, graph.constant("cubic", np.float32(0.044715)))
    inner = graph.node(
        "Mul",
        graph.node("Add", value, small),
        graph.constant("sqrt_two_over_pi", np.float32((2 / math.pi) ** 0.5)),
    )
    shifted = graph.node("Add", graph.node("Tanh", inner), one)
    return graph.node("Mul", graph.node("Mul", value, shifted), half)
