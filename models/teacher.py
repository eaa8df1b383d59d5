"""What does the base model say of texts? Their vectors, and what its layers make of them.

It runs in int8, in which its layers will be used: those that are trained learn to make up for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from base import Base
from numpy.typing import NDArray

from vecstore.encoders import fit_rotation
from vecstore.encoders.batching import batches
from vecstore.encoders.transformer import Graph, Range, build

Floats = NDArray[np.float32]
# Vectors from which the rotation is found with which training begins.
ROTATION_VECTORS = 40_000


@dataclass(frozen=True, slots=True)
class Read:
    """What layers made of texts.

    Attributes:
        vectors: The means over the tokens of each text behind the last layer, unit length, float32
            (n, dim).
        sizes: Tokens of each, (n,).
        starts: Where each text begins in `values`, (n,).
        values: The vectors of all tokens behind one layer, float16 (tokens, dim); None if they
            were not kept.
    """

    vectors: Floats
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    values: NDArray[np.float16] | None


class Teacher:
    """The base model.

    Args:
        base: The model.
        ranges: Of what enters its matrices.
        kept: Behind how many layers the vectors of tokens are wanted; None for none.
    """

    def __init__(self, base: Base, ranges: Mapping[str, Range], *, kept: int | None = None) -> None:
        dim = base.shape.dim

        def finish(graph: Graph, values: list[str]) -> None:
            graph.node("ReduceMean", values[-1], output="mean", axes=[1], keepdims=0)
            graph.output("mean", "batch", dim)
            if kept is not None:
                graph.node("Identity", values[kept], output="kept")
                graph.output("kept", "batch", "sequence", dim)

        model = build(base.tensors, base.shape, quantized=True, ranges=ranges, finish=finish)
        self._session = onnxruntime.InferenceSession(model.SerializeToString())
        self._outputs = ["mean"] if kept is None else ["mean", "kept"]
        self._dim = dim

    def read(self, texts: Sequence[Sequence[int]], file: Path | None = None) -> Read:
        """Run texts, each a list of numbers of tokens.

        Args:
            texts: The texts.
            file: Where the vectors of tokens are kept, if they are wanted: they take gigabytes.
        """
        sizes = np.array([len(text) for text in texts])
        starts = np.cumsum(sizes) - sizes
        vectors = np.zeros((len(texts), self._dim), np.float32)
        values = None
        if file is not None:
            tokens = (int(sizes.sum()), self._dim)
            values = np.lib.format.open_memmap(file, "w+", np.float16, tokens)
        # Of one length, so that no mask is needed.
        alike = (np.flatnonzero(sizes == size) for size in np.unique(sizes))
        for rows in (same[part] for same in alike for part in batches(sizes[same])):
            ids = np.array([texts[row] for row in rows], np.int64)
            feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            found = self._session.run(self._outputs, feed)
            vectors[rows] = found[0]
            if values is not None:
                for row, value in zip(rows, found[1], strict=True):
                    values[starts[row] : starts[row] + sizes[row]] = value
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return Read(vectors, sizes, starts, values)


def first_rotation(vectors: Sequence[Floats], mrl: Sequence[int], *, seed: int = 0) -> Floats:
    """Return the rotation that serves the teacher's own vectors best, float32 (dim, dim).

    Args:
        vectors: Of the documents of each source, float32 (n, dim).
        mrl: Lengths of prefixes, ascending; the last is the whole.
        seed: Fixes which vectors it is found from.
    """
    found = np.concatenate(vectors)
    rows = np.random.default_rng(seed).permutation(len(found))[:ROTATION_VECTORS]
    rotation = fit_rotation(found[rows], mrl[:-1]).documents
    return np.eye(found.shape[1], dtype=np.float32) if rotation is None else rotation.matrix
