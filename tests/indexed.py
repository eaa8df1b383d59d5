"""Collections small enough for tests, and yet with an index."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vecstore import Collection, Database, Hits, catalog, maintenance
from vecstore.ann import compiled, index

DIM = 16


def small_indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let indexes be made of few rows, and be kept up after few writes."""
    monkeypatch.setattr(maintenance, "AUTO_ROWS", 600)
    monkeypatch.setattr(maintenance, "AUTO_BYTES", 1)
    monkeypatch.setattr(maintenance, "BACKLOG", 200)


# The same for programs that run by themselves.
SMALL_INDEXES = """
from vecstore import maintenance
maintenance.AUTO_ROWS, maintenance.AUTO_BYTES, maintenance.BACKLOG = 300, 1, 200
"""


def honest(points: Any, queries: np.ndarray, k: int = 10) -> bool:
    """Assert that a view's approximate answers are right as far as they go.

    Returns:
        Whether they came through an index.
    """
    exact = points.search_many(queries, points.count(), recall="exact", include=())
    found = points.search_many(queries, k, threads=2, include=())
    for hits, right in zip(found, exact, strict=True):
        scores = {hit.id: hit.score for hit in right}
        assert len(hits) == len(set(hits.ids)) == k
        assert [scores[hit.id] for hit in hits] == [hit.score for hit in hits]
        assert hits.scores.tolist() == sorted(hits.scores.tolist(), reverse=True)
    return bool(found[0].plan.method == "index")


@contextlib.contextmanager
def by_numpy() -> Iterator[None]:
    """Without any kernel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "ready", lambda name: None)
        yield


def found(hits: Hits) -> tuple[list[Any], list[float], str]:
    """What two ways to answer a query must have in common."""
    return hits.ids, hits.scores.tolist(), hits.complete


def clusters(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, DIM))
    points = centres[rng.integers(0, len(centres), count)]
    return (points + 0.4 * rng.normal(size=(count, DIM))).astype(np.float32)


def filled(db: Database, name: str = "points", count: int = 900, **declared: Any) -> Collection:
    """A collection of clusters whose records know their number and a third of them."""
    collection = db.collection(name, dim=DIM, **declared)
    vectors = clusters(count)
    for at in range(0, count, 300):
        part = range(at, min(at + 300, count))
        metadata = [{"n": n, "third": n % 3} for n in part]
        collection.add(vectors=vectors[part.start : part.stop], ids=part, metadata=metadata)
    return collection


def spoil(db: Database, name: str = "points") -> None:
    """Let searches go nowhere near as far as they have to."""

    def work(txn: Any) -> None:
        entry = catalog.find(txn, name)
        assert entry is not None
        found = index.load(txn, entry, catalog.state(txn, entry.number))
        assert found is not None
        levels = found.budgets["levels"]
        curve = [[0.0, 0.0, level] for level in levels]
        budgets = {**found.budgets, "sizes": {"1000": curve}}
        index.save_plan(txn, entry.number, replace(found, budgets=budgets))

    db.writing(work)
