"""What does the base model say of texts? Their vectors, and what its layers make of them.

It runs in int8, in which its layers will be used: those that are trained learn to make up for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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
        values: The vectors of all tokens behind each of the kept layers, float16 (tokens, dim).
    """

    vectors: Floats
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    values: tuple[NDArray[np.float16], ...]


class Teacher:
    """The base model.

    Args:
        base: The model.
        ranges: Of what enters its matrices.
        kept: Behind how many layers the vectors of tokens are wanted, ascending.
    """

    def __init__(
        self, base: Base, ranges: Mapping[str, Range], *, kept: Sequence[int] = ()
    ) -> None:
        dim = base.shape.dim

        def finish(graph: Graph, values: list[str]) -> None:
            graph.node("ReduceMean", values[-1], output="mean", axes=[1], keepdims=0)
            graph.output("mean", "batch", dim)
            for layer in kept:
                graph.node("Identity", values[layer], output=f"kept_{layer}")
                graph.output(f"kept_{layer}", "batch", "sequence", dim)

        model = build(base.tensors, base.shape, quantized=True, ranges=ranges, finish=finish)
        self._session = onnxruntime.InferenceSession(model.SerializeToString())
        self._kept = [f"kept_{layer}" for layer in kept]
        self._dim = dim

    def read(self, texts: Sequence[Sequence[int]], files: str = "") -> Read:
        """Run texts, each a list of numbers of tokens.

        Args:
            texts: The texts.
            files: What the paths begin with where the vectors of tokens are kept: they take
                gigabytes. They are not kept otherwise.
        """
        sizes = np.array([len(text) for text in texts])
        starts = np.cumsum(sizes) - sizes
        vectors = np.zeros((len(texts), self._dim), np.float32)
        tokens = (int(sizes.sum()), self._dim)
        kept = self._kept if files else []
        values = tuple(
            np.lib.format.open_memmap(f"{files}.{name}.npy", "w+", np.float16, tokens)
            for name in kept
        )
        for rows, feed in feeds(texts):
            mean, *found = self._session.run(["mean", *kept], feed)
            vectors[rows] = mean
            for held, those in zip(values, found, strict=True):
                for row, value in zip(rows, those, strict=True):
                    held[starts[row] : starts[row] + sizes[row]] = value
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return Read(vectors, sizes, starts, values)


Feed = dict[str, NDArray[np.int64]]


def feeds(texts: Sequence[Sequence[int]]) -> Iterator[tuple[NDArray[np.intp], Feed]]:
    """Batches of texts of one length, so that no mask is needed: rows, and what a graph takes."""
    sizes = np.array([len(text) for text in texts])
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        for rows in (same[part] for part in batches(sizes[same])):
            ids = np.array([texts[row] for row in rows], np.int64)
            yield rows, {"input_ids": ids, "attention_mask": np.ones_like(ids)}
