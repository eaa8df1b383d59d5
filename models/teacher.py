"""What does the base model say of texts? Their vectors, and what its layers make of them.

It runs in int8, in which its layers will be used: those that are trained learn to make up for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from base import Base
from numpy.typing import NDArray

from vecstore.encoders.batching import batches
from vecstore.encoders.transformer import Graph, Range, build

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Read:
    """What layers made of texts.

    Attributes:
        vectors: The means over the tokens of each text behind the last layer, unit length, float32
            (n, dim).
        sizes: Tokens of each, (n,).
        starts: Where each text begins in `values`, (n,).
        values: The vectors of all tokens behind the teacher's layer, float16 (tokens, dim).
    """

    vectors: Floats
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    values: NDArray[np.float16]


class Teacher:
    """The base model.

    Args:
        base: The model.
        ranges: Of what enters its matrices.
        layer: Behind which layer the vectors of tokens are kept by `read`.
    """

    def __init__(
        self, base: Base, ranges: Mapping[str, Range], *, layer: int | None = None
    ) -> None:
        dim = base.shape.dim

        def finish(graph: Graph, values: list[str]) -> None:
            graph.node("ReduceMean", values[-1], output="mean", axes=[1], keepdims=0)
            graph.output("mean", "batch", dim)
            graph.node("Identity", values[-1 if layer is None else layer], output="tokens")
            graph.output("tokens", "batch", "sequence", dim)

        model = build(base.tensors, base.shape, quantized=True, ranges=ranges, finish=finish)
        self._session = onnxruntime.InferenceSession(model.SerializeToString())
        self._dim = dim

    def vectors(self, texts: Sequence[Sequence[int]]) -> Floats:
        """Return the vectors of texts, each a list of numbers of tokens; unit length, (n, dim)."""
        return means(self._session, "mean", texts, self._dim)

    def read(self, texts: Sequence[Sequence[int]], file: Path) -> Read:
        """Return the vectors of texts and of their tokens, which are kept in a file."""
        sizes = np.array([len(text) for text in texts])
        starts = np.cumsum(sizes) - sizes
        vectors = np.zeros((len(texts), self._dim), np.float32)
        shape = (int(sizes.sum()), self._dim)
        values = np.lib.format.open_memmap(file, "w+", np.float16, shape)
        for rows, feed in feeds(texts):
            vectors[rows], found = self._session.run(["mean", "tokens"], feed)
            for row, value in zip(rows, found, strict=True):
                values[starts[row] : starts[row] + sizes[row]] = value
        return Read(_unit(vectors), sizes, starts, values)


def means(
    session: onnxruntime.InferenceSession, output: str, texts: Sequence[Sequence[int]], dim: int
) -> Floats:
    """Return what an output of a graph says of each text, unit length, float32 (n, dim)."""
    vectors = np.zeros((len(texts), dim), np.float32)
    for rows, feed in feeds(texts):
        (vectors[rows],) = session.run([output], feed)
    return _unit(vectors)


def _unit(vectors: Floats) -> Floats:
    scaled: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


Feed = dict[str, NDArray[np.int64]]


def feeds(texts: Sequence[Sequence[int]]) -> Iterator[tuple[NDArray[np.intp], Feed]]:
    """Batches of texts of one length, so that no mask is needed: rows, and what a graph takes."""
    sizes = np.array([len(text) for text in texts])
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        for rows in (same[part] for part in batches(sizes[same])):
            ids = np.array([texts[row] for row in rows], np.int64)
            yield rows, {"input_ids": ids, "attention_mask": np.ones_like(ids)}
