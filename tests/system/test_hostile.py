"""Vectors that nobody would think of: does each search still find what an exact one finds?"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vecstore import Collection, Database, UsageError, VectorError
from vecstore.ann import compiled

COUNT, DIM, QUERIES = 300, 16, 8

Vectors = np.ndarray
Draw = Callable[[np.random.Generator, int], Vectors]


@pytest.fixture(autouse=True)
def _by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "ready", lambda *_: None)


def drawn(rng: np.random.Generator, dim: int) -> Vectors:
    return rng.normal(size=(COUNT, dim))


def equal(rng: np.random.Generator, dim: int) -> Vectors:
    return np.repeat(rng.normal(size=(1, dim)), COUNT, axis=0)


def duplicates(rng: np.random.Generator, dim: int) -> Vectors:
    return drawn(rng, dim)[rng.integers(0, 8, COUNT)]


def pairs(rng: np.random.Generator, dim: int) -> Vectors:
    return np.repeat(drawn(rng, dim)[: COUNT // 2], 2, axis=0)


def outlier(rng: np.random.Generator, dim: int) -> Vectors:
    found = drawn(rng, dim)
    found[17] *= -1e4
    return found


def tiny(rng: np.random.Generator, dim: int) -> Vectors:
    return drawn(rng, dim) * 1e-38


def large(rng: np.random.Generator, dim: int) -> Vectors:
    return drawn(rng, dim) * 1e16


def uneven(rng: np.random.Generator, dim: int) -> Vectors:
    return drawn(rng, dim) * 10.0 ** rng.integers(-30, 12, (COUNT, 1))


def unit_axes(rng: np.random.Generator, dim: int) -> Vectors:
    return np.eye(dim)[rng.integers(0, dim, COUNT)]


def integers(rng: np.random.Generator, dim: int) -> Vectors:
    return rng.integers(1, 4, (COUNT, dim))


def on_a_line(rng: np.random.Generator, dim: int) -> Vectors:
    return np.outer(np.arange(1, COUNT + 1), np.ones(dim))


def mostly_constant(rng: np.random.Generator, dim: int) -> Vectors:
    found = np.full((COUNT, dim), 7.0)
    found[:, 0] = rng.normal(size=COUNT)
    return found


DRAWS: list[Draw] = [
    drawn,
    equal,
    duplicates,
    pairs,
    outlier,
    tiny,
    large,
    uneven,
    unit_axes,
    integers,
    on_a_line,
    mostly_constant,
]
METRICS = pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])


def exact_scores(metric: str, stored: Vectors, queries: Vectors) -> Vectors:
    """Scores in float64, (queries, records)."""
    wide, asked = stored.astype(np.float64), queries.astype(np.float64)
    if metric == "l2":
        return -np.sqrt(np.array([((wide - query) ** 2).sum(axis=1) for query in asked]))
    if metric == "cosine":
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
        asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    return np.asarray(asked @ wide.T)


def stored_vectors(collection: Collection) -> Vectors:
    return np.array([record.vector for record in collection.scan(include=("vector",))])


def recall(collection: Collection, wanted: Any) -> float:
    """The share of ten hits that score as much as the tenth neighbour, of rows and mixtures."""
    metric, stored = collection.spec.metric, stored_vectors(collection)
    mixed = stored[:QUERIES] * np.float32(0.5) + stored[-QUERIES:] * np.float32(0.5)
    queries = np.concatenate([stored[:QUERIES], mixed])
    truth = exact_scores(metric, stored, queries)
    shares = []
    for scores, hits in zip(truth, collection.search_many(queries, recall=wanted), strict=True):
        found, least = scores[list(hits.ids)], np.sort(scores)[-10]
        near = 1e-6 * np.abs(scores).max() + 1e-300
        assert len({*hits.ids}) == 10
        np.testing.assert_allclose(hits.scores, found, rtol=1e-5, atol=near)
        # Under cosine `get` multiplies by the length, and rounds: what was equal may not be.
        slack = (1e-7 if metric == "cosine" else 1e-9) * np.abs(scores).max()
        shares.append(np.mean(found >= least - slack))
    return float(np.mean(shares))


def all_kinds_find(db: Database, vectors: Vectors, **declared: Any) -> None:
    collection = db.collection("points", dim=vectors.shape[1], **declared)
    collection.add(vectors=vectors, ids=range(len(vectors)))
    for kind in ("flat", "hash", "ivf"):
        collection.reindex(kind)
        assert recall(collection, 0.95) >= 0.93
        assert db.check() == []
    assert recall(collection, "exact") >= 0.999


@METRICS
@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: draw.__name__)
def test_unusual_vectors_are_found(memory: Database, draw: Draw, metric: str) -> None:
    vectors = draw(np.random.default_rng(3), DIM).astype(np.float32)

    all_kinds_find(memory, vectors, metric=metric)


@METRICS
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("dim", [2, 3, 63, 65])
def test_odd_dims_are_searched(memory: Database, dim: int, precision: str, metric: str) -> None:
    vectors = drawn(np.random.default_rng(dim), dim)

    all_kinds_find(memory, vectors, metric=metric, precision=precision)


@pytest.mark.parametrize("dim", [2047])
def test_many_dims_are_searched(memory: Database, dim: int) -> None:
    all_kinds_find(memory, drawn(np.random.default_rng(dim), dim), metric="dot", precision="int8")


def test_the_most_dims_are_searched_without_lists(memory: Database) -> None:
    points = memory.collection("points", dim=8192, metric="l2", precision="float16", index="hash")
    points.add(vectors=drawn(np.random.default_rng(1), 8192), ids=range(COUNT))

    assert points.search(stored_vectors(points)[5]).plan.method == "index"
    assert recall(points, 0.95) >= 0.93
    with pytest.raises(UsageError, match=r"dim=8193 is outside 2\.\.8192"):
        memory.collection("more", dim=8193)


@METRICS
def test_fewer_rows_than_lists_are_searched(memory: Database, metric: str) -> None:
    collection = memory.collection("points", dim=DIM, metric=metric, index="ivf")
    vectors = drawn(np.random.default_rng(3), DIM)
    collection.add(vectors=vectors, ids=range(COUNT))
    lists = collection.stats()["lists"]
    collection.delete(range(lists // 2, COUNT))
    collection.optimize()

    assert collection.count() < lists
    hits = collection.search(vectors[3], k=COUNT)
    assert sorted(hits.ids) == list(range(lists // 2))
    assert memory.check() == []


@METRICS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_numbers_that_are_none_leave_no_trace(memory: Database, metric: str, bad: float) -> None:
    collection = memory.collection("points", dim=3, metric=metric)
    collection.add(vectors=[1, 2, 3], ids=0)
    for call in (
        lambda: collection.add(vectors=[[1, 2, 3], [1, bad, 3]], ids=["a", "b"]),
        lambda: collection.upsert(vectors=[[3, 2, 1], [1, bad, 3]], ids=[0, "b"]),
        lambda: collection.update(0, vector=[1, bad, 3]),
        lambda: collection.search([1, bad, 3]),
        lambda: collection.search_many([[1, 2, 3], [1, bad, 3]]),
    ):
        with pytest.raises(VectorError, match=r"position 1; every value must be"):
            call()
    assert collection.count() == 1
    record = collection.get(0, include=("vector",))
    assert record is not None
    np.testing.assert_allclose(record.vector, [1, 2, 3], rtol=1e-6)


def test_the_largest_numbers_have_a_direction_but_no_distance(memory: Database) -> None:
    huge = [[3e38, -3e38, 3e38], [1e38, 1e38, 1e-38]]
    cosine = memory.collection("cosine", dim=3)
    cosine.add(vectors=huge, ids=[0, 1])
    assert cosine.search(huge[1])[0].score == pytest.approx(1)
    for metric in ("dot", "l2"):
        other = memory.collection(metric, dim=3, metric=metric)
        for call in (lambda: other.add(vectors=huge), lambda: other.search(huge[0])):  # noqa: B023
            with pytest.raises(VectorError, match=r"up to 1e\+18, scale the vectors down"):
                call()
        assert other.count() == 0


@pytest.mark.parametrize("text", ["", " ", "\0", "é", "e\u0301", "\u202e", "\U0001f600" * 126])
def test_ids_of_any_text_come_back(memory: Database, text: str) -> None:
    collection = memory.collection("points", dim=2)
    collection.add(vectors=[[1, 2], [2, 1]], ids=[text, text + "."])

    hits = collection.search([1, 2], 1)
    assert hits.ids == [text]
    assert [record.id for record in collection.scan(after=text)] == [text + "."]
    assert collection.delete(text) == 1
    assert text not in collection
