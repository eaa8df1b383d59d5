"""What is approximate search measured on? Sets of unit vectors with queries and exact neighbours.

A set is a folder that `make_data.py` wrote: `base.npy` in an order drawn once, so that the first n
rows are a fair sample of any size, `KIND.queries.npy` for each kind of queries, and `set.json` with
counts and origins. Exact neighbours are kept beside them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from data import Vectors
from numpy.typing import NDArray

DEPTH = 100
# Rows scored in one product; bounds memory at 200 MB for 1,000 queries.
_BLOCK = 50_000
# Candidates of the float32 products beyond the wanted depth.
_SPARE = 60
# Above the error of a float32 product of unit vectors of some hundred dimensions.
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Set:
    """Vectors, queries and what is nearest.

    Attributes:
        name: The set and the kind of its queries.
        base: float32 (n, dim), of unit length.
        queries: float32 (m, dim), of unit length.
        truth: float64 (m, 100): the exact similarities of the nearest, best first.
        about: Counts and origins.
    """

    name: str
    base: Vectors
    queries: Vectors
    truth: NDArray[np.float64]
    about: dict[str, Any]

    def recall(self, found: list[list[int]], k: int) -> float:
        """The share of the k nearest that was found by the first queries.

        A row that is as near as the last of the true ones counts as well as that one: neighbours
        that tie are worth the same. A row that is returned twice counts once.
        """
        hits = 0
        for query, least, rows in zip(self.queries, self.truth[:, k - 1], found, strict=False):
            near = self.base[list(dict.fromkeys(rows[:k]))].astype(np.float64) @ query
            hits += int((near >= least - ROUNDING).sum())
        return hits / (k * len(found))


def load(folder: Path, name: str, kind: str, rows: int | None, queries: int) -> Set:
    """Read the first rows of a set and the first queries of a kind; None means all rows."""
    place = folder / name
    if not (place / "set.json").exists():
        raise SystemExit(f"{place} holds no set; python benchmarks/make_data.py makes them")
    asked = place / f"{kind}.queries.npy"
    if not asked.exists():
        kinds = ", ".join(path.name.split(".")[0] for path in place.glob("*.queries.npy"))
        raise SystemExit(f"{name} has no {kind} queries, only {kinds}")
    base = unit(np.load(place / "base.npy", mmap_mode="r")[:rows])
    wanted = unit(np.load(asked, mmap_mode="r"))
    kept = place / f"{kind}.truth-{len(base)}.npy"
    if not kept.exists():
        np.save(kept, nearest(base, wanted, DEPTH))
    truth = np.load(kept)[:queries]
    about = json.loads((place / "set.json").read_text())
    return Set(f"{name}-{kind}", base, wanted[:queries], truth, about)


def unit(vectors: NDArray[Any]) -> Vectors:
    """Rows of unit length as contiguous float32."""
    wide = np.ascontiguousarray(vectors, np.float32)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    return wide


def nearest(base: Vectors, queries: Vectors, depth: int) -> NDArray[np.float64]:
    """The similarities of the nearest rows, (m, depth), best first and exact.

    Float32 products choose candidates and float64 products score them. A query whose last
    candidate comes so near the last kept score that rounding might have hidden a row is done again
    in float64 alone.
    """
    best = np.full((len(queries), 0), -np.inf, np.float32)
    ids = np.zeros((len(queries), 0), np.intp)
    wanted = min(depth + _SPARE, len(base))
    for at in range(0, len(base), _BLOCK):
        scores = queries @ base[at : at + _BLOCK].T
        best = np.concatenate([best, scores], axis=1)
        ids = np.concatenate(
            [ids, np.broadcast_to(np.arange(at, at + scores.shape[1]), scores.shape)], axis=1
        )
        keep = np.argpartition(-best, min(wanted, best.shape[1]) - 1, axis=1)[:, :wanted]
        best, ids = np.take_along_axis(best, keep, 1), np.take_along_axis(ids, keep, 1)
    exact = np.empty((len(queries), depth))
    for i, query in enumerate(queries.astype(np.float64)):
        scores = np.sort(base[ids[i]].astype(np.float64) @ query)[::-1]
        if len(base) > wanted and scores[depth - 1] < best[i].min() + 2 * ROUNDING:
            scores = np.sort(base.astype(np.float64) @ query)[::-1]
        exact[i] = scores[:depth]
    return exact
