"""Is the recall promised reached where vectors are nearly parallel, or far from the origin?

There neighbours differ by little beside what all vectors have in common, which float32 rounds off
and codes would spend their bits on. Held against the exact search; equal scores are as good.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import vecstore
from vecstore import Collection
from vecstore.ann import compiled, verify

DIM, QUERIES, FEW = 32, 120, 20

Draw = Callable[[np.random.Generator, int], np.ndarray]


@pytest.fixture(autouse=True)
def every_row_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding is told from damage in all rows, not only in those that a sample happens to hold."""
    monkeypatch.setattr(verify, "SAMPLE", 10_000)


def far_off(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, DIM)) + 1000


def parallel(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.eye(1, DIM) + 1e-3 * rng.normal(size=(count, DIM))


def nearly_equal(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.full((1, DIM), 0.2) + 1e-5 * rng.normal(size=(count, DIM))


def outlying(rng: np.random.Generator, count: int) -> np.ndarray:
    """Some are in one place that is very far from all others."""
    found = rng.normal(size=(count, DIM))
    found[rng.random(count) < 0.02] += 1e4 * np.linspace(-1, 1, DIM)
    return found


def uneven(rng: np.random.Generator, count: int) -> np.ndarray:
    """Lengths from 1e-6 to 1e6."""
    return rng.normal(size=(count, DIM)) * 10 ** rng.uniform(-6, 6, (count, 1))


def filled(draw: Draw, count: int, db: vecstore.Database, **declared: Any) -> Collection:
    collection = db.collection("points", dim=DIM, **declared)
    collection.add(vectors=draw(np.random.default_rng(3), count).astype(np.float32))
    return collection


def asked(draw: Draw, collection: Collection, count: int) -> np.ndarray:
    """New vectors, and as many that are near records."""
    rng = np.random.default_rng(4)
    fresh = draw(rng, count)
    stored = np.array([record.vector for record in collection.scan(include=("vector",))])
    near = stored[rng.choice(len(stored), count)].astype(np.float64)
    near += 0.01 * (near - stored[rng.choice(len(stored), count)])
    return np.concatenate([fresh, near]).astype(np.float32)


def recall(collection: Collection, queries: np.ndarray) -> float:
    exact = collection.search_many(queries, recall="exact", include=())
    found = collection.search_many(queries, include=())
    assert found[0].plan.method == "index"
    shares = [
        np.mean([score >= right.scores[-1] for score in hits.scores])
        for hits, right in zip(found, exact, strict=True)
    ]
    return float(np.mean(shares))


METRICS = pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
KINDS = pytest.mark.parametrize("kind", ["ivf", "hash"])


@KINDS
@pytest.mark.parametrize(
    ("draw", "metric"),
    [
        (far_off, "cosine"),
        (far_off, "dot"),
        (far_off, "l2"),
        (parallel, "cosine"),
        (parallel, "dot"),
        (parallel, "l2"),
        (nearly_equal, "cosine"),
        (nearly_equal, "dot"),
        (outlying, "dot"),
        (outlying, "l2"),
        (uneven, "l2"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_recall_is_as_promised(memory, draw: Draw, metric: str, kind: str) -> None:
    compiled.compile_now()
    collection = filled(draw, 3000, memory, metric=metric, index=kind)

    assert recall(collection, asked(draw, collection, QUERIES)) >= 0.94


@KINDS
@METRICS
def test_recall_is_as_promised_by_numpy(memory, monkeypatch, metric: str, kind: str) -> None:
    monkeypatch.setattr(compiled, "ready", lambda name: None)
    collection = filled(far_off, 1200, memory, metric=metric, index=kind)

    assert recall(collection, asked(far_off, collection, FEW)) >= 0.94


def far_for_bytes(rng: np.random.Generator, count: int) -> np.ndarray:
    """As far as vectors can be with int8 still telling them apart."""
    return rng.normal(size=(count, DIM)) + 100


@KINDS
@pytest.mark.parametrize(("precision", "draw"), [("float16", far_off), ("int8", far_for_bytes)])
def test_recall_is_as_promised_of_what_is_stored_with_few_bits(
    memory, precision: str, draw: Draw, kind: str
) -> None:
    compiled.compile_now()
    collection = filled(draw, 3000, memory, index=kind, precision=precision)

    # Lengths are off by many times what neighbours' cosines differ by.
    assert recall(collection, asked(draw, collection, QUERIES)) >= 0.94
    assert memory.check() == []


def two_places(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, DIM)) + 1000 * rng.integers(0, 2, (count, 1))


@KINDS
@pytest.mark.parametrize("precision", ["float32", "float16"])
@METRICS
def test_what_float32_cannot_tell_apart_is_not_promised(memory, precision, metric, kind) -> None:
    compiled.compile_now()
    collection = filled(two_places, 1500, memory, metric=metric, index=kind, precision=precision)
    queries = asked(two_places, collection, QUERIES)
    exact = collection.search_many(queries, recall="exact", include=())
    found = collection.search_many(queries, include=())

    shares = [
        np.mean(hits.scores >= right.scores[-1]) for hits, right in zip(found, exact, strict=True)
    ]
    assert np.mean(shares) >= 0.94


@METRICS
def test_records_that_come_later_are_found_too(memory, metric: str) -> None:
    collection = filled(far_off, 2000, memory, metric=metric, index="ivf")
    fresh = far_off(np.random.default_rng(5), 600).astype(np.float32)
    collection.add(vectors=fresh)

    hits = collection.search_many(fresh, 1, include=("vector",))
    exact = collection.search_many(fresh, 1, recall="exact")
    same = [a[0].score == b[0].score for a, b in zip(hits, exact, strict=True)]
    assert np.mean(same) > 0.94
    assert memory.check() == []


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_vectors_whose_squares_float32_loses_are_searched_without_the_index(memory, metric) -> None:
    rng = np.random.default_rng(3)
    vectors = (rng.normal(size=(1500, DIM)) * 1e-20).astype(np.float32)
    lists = memory.collection("tiny", dim=DIM, metric=metric, index="ivf")
    lists.add(vectors=vectors, ids=range(len(vectors)))
    lists.optimize(progress=False)

    hits = lists.search(vectors[:2].mean(axis=0), 10)

    assert hits.plan.method == "scan"
    assert hits == lists.search(vectors[:2].mean(axis=0), 10, recall="exact")
