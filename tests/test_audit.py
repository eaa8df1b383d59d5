"""Does an audit measure the true recall, and does recalibration mend what it finds?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexed import DIM, clusters, filled, small_indexes, spoil

import vecstore
from vecstore import (
    Audit,
    Collection,
    Database,
    ReadOnlyError,
    StoreError,
    UsageError,
    planner,
    recent,
)
from vecstore.recent import EACH, SIZE, Recent, RecentOf


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_indexes(monkeypatch)


def asked(collection: Collection, count: int) -> Audit:
    for query in clusters(count, 77):
        collection.search(query)
    return collection.audit(sample=50)


def scanned(collection: Collection, queries: np.ndarray) -> int:
    return sum(collection.explain(query).scanned for query in queries)


# What is measured


def test_comparing_all_finds_all(memory: Database) -> None:
    found = filled(memory, count=100).audit(5, 40)
    assert (found.recall, found.low, found.holds, found.method) == (1.0, 1.0, True, "scan")
    assert (found.queries, found.remembered, found.k, found.target) == (40, 0, 5, 0.95)
    assert "recall@5 1.0000" in str(found)
    assert "0.95 holds" in str(found)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("kind", ["hash", "ivf"])
def test_an_index_is_measured_by_its_answers(memory: Database, kind: Any, metric: Any) -> None:
    collection = filled(memory, index=kind, metric=metric)
    found = collection.audit(sample=100, recall=0.9)
    assert found.method == "index"
    assert found.low <= found.recall <= 1
    assert found.recall > 0.85
    assert found == collection.audit(sample=100, recall=0.9)


def test_a_record_is_not_its_own_neighbour(memory: Database) -> None:
    collection = filled(memory, index="ivf")
    spoil(memory)
    found = collection.audit(1, 900)
    near = collection.search_many(clusters(900), 2)
    true = collection.search_many(clusters(900), 2, recall="exact")
    assert all(hits.ids[0] == n for n, hits in enumerate(true))
    others = [next(key for key in hits.ids if key != n) for n, hits in enumerate(near)]
    right = [key == hits.ids[1] for key, hits in zip(others, true, strict=True)]
    assert found.recall == np.mean(right) < 1


def test_records_that_tie_count_as_found(memory: Database) -> None:
    collection = memory.collection("c", dim=DIM, index="hash")
    collection.add(vectors=np.ones((400, DIM)))
    found = collection.audit(10, 50)
    assert (found.method, found.recall) == ("index", 1.0)


def test_a_filter_holds_for_records_and_their_neighbours(
    memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "EXACT_WORTH", 0)
    collection = filled(memory, index="ivf")
    found = collection.audit(sample=1000, where={"third": 1})
    assert (found.queries, found.method) == (300, "index")
    assert collection.audit(where={"n": 5}).queries == 1
    assert collection.audit(where={"n": 5}).recall == 1.0


@pytest.mark.parametrize("options", [{}, {"where": {"n": -1}}])
def test_nothing_to_measure(memory: Database, options: Any) -> None:
    collection = filled(memory, count=300 if options else 0, index="hash")
    collection.search(clusters(1)[0])
    found = collection.audit(**options)
    assert (found.queries, found.recall, found.holds, found.method) == (0, 1.0, True, "none")
    assert "nothing was measured" in str(found)


def test_no_more_records_are_asked_for_than_there_are(memory: Database) -> None:
    assert filled(memory, count=30).audit(sample=1000).queries == 30


def test_bits_are_audited_too(memory: Database) -> None:
    collection = memory.collection("c", dim=8, metric="hamming")
    collection.add(vectors=np.eye(8, dtype=bool))
    collection.search(np.ones(8, bool))
    assert (collection.audit().recall, collection.audit().remembered) == (1.0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0 must be"),
        ({"sample": 0}, "sample=0 must be"),
        ({"sample": 1.5}, r"sample=1\.5 must be"),
        ({"recall": 0}, "recall=0 must be a number over 0"),
        ({"recall": 1.1}, r"recall=1\.1 must be"),
        ({"recall": "exact"}, "recall='exact' must be a number"),
        ({"where": {"a": {"$foo": 1}}}, r"\$foo"),
    ],
)
def test_arguments_are_checked(memory: Database, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        filled(memory, count=10).audit(**options)


# Recalibration


def test_recalibration_mends_budgets_that_are_wrong(memory: Database) -> None:
    collection = filled(memory, index="ivf")
    spoil(memory)
    trained = collection.stats()["trained_rows"]
    before = collection.audit()
    assert before.recall < 0.9
    assert not before.holds
    assert "does not hold" in str(before)
    after = collection.audit(recalibrate=True)
    assert after.recall > 0.95
    assert after.holds
    assert collection.audit() == after
    assert collection.stats()["trained_rows"] == trained


def test_optimizing_measures_anew(memory: Database) -> None:
    collection = filled(memory, index="ivf")
    spoil(memory)
    assert not collection.audit().holds
    assert collection.optimize()["calibrated"]
    assert collection.audit().holds


def test_queries_asked_lately_decide_how_far_searches_go(memory: Database) -> None:
    collection = filled(memory, index="ivf")
    collection.optimize()
    strange = np.random.default_rng(1).normal(size=(100, DIM))
    usual = scanned(collection, strange)
    for query in strange:
        collection.search(query)
    assert collection.audit(recalibrate=True).holds
    # Queries that are unlike the records are near to many lists.
    assert scanned(collection, strange) > usual


def test_a_view_and_a_read_only_file_are_audited_and_not_changed(path: Path) -> None:
    with vecstore.open(path) as db:
        collection = filled(db, index="ivf")
        with db.snapshot() as view:
            frozen = view.collection("points")
            found = frozen.audit()
            collection.delete(where={})
            assert frozen.audit() == found
            with pytest.raises(ReadOnlyError):
                frozen.audit(recalibrate=True)
        filled(db, "again", index="ivf")
        with db.transaction():
            # A transaction reads what no index knows of yet.
            assert db.collection("again").audit().method == "scan"
            with pytest.raises(StoreError, match=r"inside db\.transaction\(\)"):
                db.collection("again").audit(recalibrate=True)
    with vecstore.open(path, read_only=True) as db:
        assert db.collection("again").audit().method == "index"
        with pytest.raises(ReadOnlyError):
            db.collection("again").audit(recalibrate=True)


# Recent queries


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_queries_asked_lately_are_asked_again(memory: Database, kind: Any) -> None:
    collection = filled(memory, index=kind)
    found = asked(collection, 40)
    assert (found.queries, found.remembered) == (90, 40)
    assert found.remembered_recall is not None
    assert f"40 of them asked lately ({found.remembered_recall:.4f})" in str(found)
    collection.search_many(clusters(20, 5))
    # Neither are remembered.
    collection.search(np.ones(DIM), dims=3)
    collection.explain(np.ones(DIM))
    assert memory.collection("points").audit(sample=50).remembered == 60


def test_queries_are_remembered_for_a_collection_and_its_views(memory: Database) -> None:
    collection, other = filled(memory, count=20), filled(memory, "other", count=20)
    with memory.snapshot() as view:
        view.collection("points").search(clusters(1)[0])
    memory.rename("points", "renamed")
    assert (collection.audit().remembered, other.audit().remembered) == (1, 0)


def test_queries_may_be_forgotten() -> None:
    with vecstore.open(":memory:", remember_queries=False) as db:
        assert asked(filled(db), 40).remembered == 0


def test_a_sample_of_queries_gives_way_to_newer_ones() -> None:
    sample = Recent()
    assert sample.queries() is None
    many = 1 + np.arange(100 * SIZE, dtype=np.float32)[:, None]
    sample.add(many[:10])
    found = sample.queries()
    assert found is not None
    assert found.tolist() == many[:10].tolist()
    for query in many[10:]:
        sample.add(query[None])
    found = sample.queries()
    assert found is not None
    assert len(found) == len(sample) == SIZE
    assert np.median(found) > 10 * SIZE
    assert found.max() >= len(many) - 2 * EACH
    assert len(np.unique(found)) == SIZE


def test_what_no_search_could_have_been_asked_for_is_not_taken_into_a_sample() -> None:
    sample = Recent()
    sample.add(np.array([[0.0], [np.nan], [np.inf], [3e38], [2.0], [-np.inf]], np.float32))

    found = sample.queries()
    assert found is not None
    assert found.tolist() == [[2.0]]


def test_a_sample_is_that_of_queries_one_by_one_or_together() -> None:
    queries = 1 + np.arange(3000, dtype=np.float32)[:, None]
    one, together = Recent(), Recent()
    for query in queries:
        one.add(query[None])
    for part in np.array_split(queries, 7):
        together.add(part)
    assert np.array_equal(one.queries(), together.queries())


def test_a_sample_keeps_copies() -> None:
    sample, query = Recent(), np.ones((1, 3), np.float32)
    sample.add(query)
    query[:] = 2
    assert sample.queries().tolist() == [[1, 1, 1]]


def test_samples_of_dropped_collections_give_way() -> None:
    samples = RecentOf()
    first = samples.of(b"0")
    assert samples.of(b"0") is first
    for number in range(recent.COLLECTIONS):
        samples.of(str(number + 1).encode())
    assert samples.of(b"0") is not first
