"""Transformers whose matrices multiply in int8: near float32, and the same in every batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny_bert
from tiny_bert import DIM, LARGE, LAYERS, SHAPE, WORDS

from vecstore.encoders.transformer import Graph, Range, build


def tensors() -> dict[str, np.ndarray]:
    """With one number much larger than the others, as real models have."""
    return tiny_bert.tensors(large=60.0)


def run(model: Any, texts: np.ndarray, mask: np.ndarray | None = None) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    mask = np.ones_like(texts) if mask is None else mask
    return session.run(None, {"input_ids": texts, "attention_mask": mask})


def measured(texts: np.ndarray, *, factors: bool) -> dict[str, Range]:
    """Ranges from what enters the matrices of the float32 graph."""
    entering: dict[str, str] = {}

    def finish(graph: Graph, _values: list[str]) -> None:
        entering.update(graph.entering)
        for value in dict.fromkeys(entering.values()):
            graph.output(value, "batch", "sequence", f"size of {value}")

    found = run(build(tensors(), SHAPE, quantized=False, finish=finish), texts)
    ranges = {}
    for value, array in zip(dict.fromkeys(entering.values()), found, strict=True):
        largest = np.abs(array).max(axis=(0, 1))
        down = np.minimum(1, np.median(largest) / largest).astype(np.float32)
        scaled = array * down if factors else array
        ends = min(0.0, float(scaled.min())), float(scaled.max())
        ranges[value] = Range(*ends, down if factors else None)
    return {matrix: ranges[value] for matrix, value in entering.items()}


@pytest.fixture(scope="module")
def texts() -> np.ndarray:
    return np.random.default_rng(6).integers(0, WORDS, size=(12, 10))


def errors(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """One less the cosine of each token's vectors, without the large number that would decide."""
    found, wanted = (np.delete(vectors, LARGE, axis=-1) for vectors in (found, wanted))
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(wanted, axis=-1)
    return 1 - (found * wanted).sum(axis=-1) / lengths


def test_int8_is_near_float32_and_nearer_where_large_numbers_are_divided(
    texts: np.ndarray,
) -> None:
    (wanted,) = run(build(tensors(), SHAPE, quantized=False), texts)
    means = []
    for factors in (False, True):
        ranges = measured(texts, factors=factors)
        (found,) = run(build(tensors(), SHAPE, quantized=True, ranges=ranges), texts)
        means.append(errors(found, wanted).mean())

    assert means[1] < 0.002
    assert 5 * means[1] < means[0]


def test_a_texts_vectors_do_not_depend_on_its_batch_mates_or_on_padding(texts: np.ndarray) -> None:
    model = build(tensors(), SHAPE, quantized=True, ranges=measured(texts, factors=True))
    (together,) = run(model, texts)
    for row in range(len(texts)):
        (alone,) = run(model, texts[row : row + 1])
        assert np.abs(alone[0] - together[row]).max() < 1e-5

    padded = np.concatenate([texts[:3], np.zeros((3, 6), np.int64)], axis=1)
    mask = np.repeat([[1] * 10 + [0] * 6], 3, axis=0)
    (found,) = run(model, padded, mask)
    assert np.abs(found[:, :10] - together[:3]).max() < 1e-5


def test_what_enters_three_matrices_is_rounded_once(texts: np.ndarray) -> None:
    model = build(tensors(), SHAPE, quantized=True, ranges=measured(texts, factors=True))
    kinds = [node.op_type for node in model.graph.node]

    assert kinds.count("MatMulIntegerToFloat") == 6 * LAYERS
    # Attention's three matrices share one.
    assert kinds.count("QuantizeLinear") == 4 * LAYERS


def test_a_range_becomes_its_step_and_zero(texts: np.ndarray) -> None:
    from onnx import numpy_helper

    name = "encoder.layer.0.intermediate.dense"
    model = build(tensors(), SHAPE, quantized=True, ranges={name: Range(-1.0, 2.5)})
    held = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}

    assert held[f"{name}.step"] == np.float32(3.5 / 255)
    # 72.86, which is nearer to 73.
    assert held[f"{name}.zero"] == np.uint8(73)


def test_two_ranges_of_one_value_round_it_twice(texts: np.ndarray) -> None:
    stem = "encoder.layer.0.attention.self"
    ranges = {f"{stem}.query": Range(-4.0, 4.0), f"{stem}.key": Range(-9.0, 9.0)}
    model = build(tensors(), SHAPE, quantized=False, ranges=ranges)
    steps = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}

    assert steps == {f"{stem}.query.step", f"{stem}.key.step"}


def test_a_branch_is_not_what_the_model_returns(texts: np.ndarray) -> None:
    more = tensors()
    for name, value in tensors().items():
        if name.startswith("encoder.layer.0."):
            more[name.replace("layer.0.", f"layer.{LAYERS}.")] = -value
    (wanted,) = run(build(tensors(), SHAPE, quantized=False), texts)

    (found,) = run(build(more, SHAPE, quantized=False, branches={LAYERS: 1}), texts)

    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_products_of_two_fit_16_bits(texts: np.ndarray) -> None:
    from onnx import numpy_helper

    model = build(tensors(), SHAPE, quantized=True, ranges=measured(texts, factors=True))
    multiplied = {
        node.input[1] for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"
    }
    codes = [
        numpy_helper.to_array(tensor).astype(int)
        for tensor in model.graph.initializer
        if tensor.name in multiplied
    ]

    assert len(codes) == 6 * LAYERS
    assert 2 * 255 * max(np.abs(code).max() for code in codes) < 1 << 15


def test_matrices_without_a_range_stay_as_they_are(texts: np.ndarray) -> None:
    ranges = measured(texts, factors=True)
    kept = {name: found for name, found in ranges.items() if "layer.1" in name}
    model = build(tensors(), SHAPE, quantized=False, ranges=kept)
    kinds = [node.op_type for node in model.graph.node]

    assert kinds.count("MatMulIntegerToFloat") == 6
    (wanted,) = run(build(tensors(), SHAPE, quantized=False), texts)
    (found,) = run(model, texts)
    assert errors(found, wanted).mean() < 0.002


@pytest.mark.parametrize("quantized", [False, True])
def test_a_layer_beside_the_others_reads_what_is_before_it(
    texts: np.ndarray, *, quantized: bool
) -> None:
    def last(layers: int, numbers: dict[int, int], behind: int | None) -> np.ndarray:
        """The last value, where the layers beyond those of the model are copies of others."""
        held = tensors()
        for number, source in numbers.items():
            stem, own = f"encoder.layer.{source}.", f"encoder.layer.{number}."
            held |= {own + n.removeprefix(stem): t for n, t in held.items() if n.startswith(stem)}
        branches = {} if behind is None else {LAYERS: behind}

        def finish(graph: Graph, values: list[str]) -> None:
            assert len(values) == 1 + layers + len(branches)
            graph.node("Identity", values[-1], output="last")
            graph.output("last", "batch", "sequence", DIM)

        shape = dataclasses.replace(SHAPE, layers=layers)
        (found,) = run(
            build(held, shape, quantized=quantized, finish=finish, branches=branches), texts
        )
        return found

    copied = {LAYERS: 1}
    np.testing.assert_array_equal(last(2, copied, 1), last(2, {}, None))
    np.testing.assert_array_equal(last(2, copied, 2), last(3, copied, None))
    assert np.abs(last(2, copied, 0) - last(2, copied, 1)).max() > 0.1
