"""What are the stores measured on? Vectors, queries and metadata, the same in every run.

A data folder gives real vectors: files `*/docs.*.npy` and `*/queries.*.npy` of 384 columns, which
are sentence embeddings. Where more are wanted than there are, the rest are made from real ones: the
sum of two with random weights and a little noise. Without a folder all vectors are synthetic:
clusters of uneven size whose dimensions have a falling spectrum, as those of encoders have.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

DIM = 384
SEED = 20_240
CLUSTERS = 500
NOISE = 0.02
SECTIONS = ("admin", "devel", "doc", "games", "libs", "net", "science", "sound", "text", "web")


@dataclass(frozen=True, slots=True)
class Data:
    """What goes into a store and what is asked of it.

    Attributes:
        name: Where the vectors are from.
        vectors: float32 (n, 384), of unit length.
        queries: float32 (m, 384), of unit length.
        ids: str, one per vector.
        metadata: A section, a year, a price and a flag, one dict per vector.
    """

    name: str
    vectors: Vectors
    queries: Vectors
    ids: list[str]
    metadata: list[dict[str, Any]]

    @property
    def raw_bytes(self) -> int:
        """Bytes of the vectors alone."""
        return self.vectors.nbytes


def load(folder: Path | None, count: int, queries: int) -> Data:
    """Return `count` vectors and `queries` queries; the first of a larger count are the same."""
    rng = np.random.default_rng(SEED)
    if folder is None:
        made = _clustered(rng, count + queries)
        name = f"{count:,} synthetic vectors in {CLUSTERS} clusters"
        vectors, asked = made[queries:], made[:queries]
    else:
        real = _read(folder, "docs", count)
        name = f"{len(real):,} sentence embeddings"
        if len(real) < count:
            name += f" and {count - len(real):,} mixtures of them"
        vectors = np.concatenate([real, _mixtures(rng, real, count - len(real))])
        asked = _read(folder, "queries", queries)
    return Data(
        name,
        np.ascontiguousarray(_unit(vectors)),
        np.ascontiguousarray(_unit(asked)),
        [f"doc-{i:07d}" for i in range(count)],
        metadata(count),
    )


def _read(folder: Path, kind: str, count: int) -> Vectors:
    parts: list[Vectors] = []
    for path in sorted(folder.glob(f"*/{kind}.*.npy")):
        array = np.load(path, mmap_mode="r")
        left = count - sum(map(len, parts))
        if array.ndim == 2 and array.shape[1] == DIM and left > 0:
            parts.append(np.asarray(array[:left], np.float32))
    if not parts:
        raise SystemExit(f"{folder} has no */{kind}.*.npy with {DIM} columns")
    return np.concatenate(parts)


def _mixtures(rng: np.random.Generator, real: Vectors, count: int) -> Vectors:
    first, second = rng.integers(len(real), size=(2, count))
    weight = rng.uniform(0.2, 0.8, (count, 1)).astype(np.float32)
    noise = rng.standard_normal((count, real.shape[1]), np.float32) * NOISE
    mixed: Vectors = weight * real[first] + (1 - weight) * real[second] + noise
    return mixed


def _clustered(rng: np.random.Generator, count: int) -> Vectors:
    scale = np.arange(1, DIM + 1, dtype=np.float32) ** -0.45
    centres = rng.standard_normal((CLUSTERS, DIM), np.float32) * scale
    share = rng.dirichlet(np.full(CLUSTERS, 0.7))
    which = rng.choice(CLUSTERS, count, p=share)
    made: Vectors = centres[which] + rng.standard_normal((count, DIM), np.float32) * scale * 0.7
    return made


def _unit(vectors: Vectors) -> Vectors:
    units: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units.astype(np.float32)


def metadata(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(SEED + 1)
    sections = rng.integers(len(SECTIONS), size=count).tolist()
    years = rng.integers(1990, 2025, size=count).tolist()
    prices = rng.uniform(0, 100, size=count).round(2).tolist()
    return [
        {"section": SECTIONS[section], "year": year, "price": price, "free": price < 10}
        for section, year, price in zip(sections, years, prices, strict=True)
    ]


def exact(vectors: Vectors, queries: Vectors, k: int) -> NDArray[np.intp]:
    """Places of the k nearest by cosine, (m, k), in float64; of equal ones the first."""
    found = np.empty((len(queries), k), np.intp)
    wide = vectors.astype(np.float64)
    wide /= np.sqrt((wide**2).sum(axis=1, keepdims=True))
    for i, query in enumerate(queries.astype(np.float64)):
        scores = (wide @ query) / np.sqrt(query @ query)
        best = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
        found[i] = best[np.lexsort((best, -scores[best]))][:k]
    return found
