"""Can the kind of an index be chosen, changed and brought up to date?"""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexed import DIM, clusters, filled, small_indexes

import vecstore
from vecstore import (
    Database,
    ReadOnlyError,
    SpecError,
    StoreError,
    UsageError,
    VectorError,
    maintenance,
    planner,
)
from vecstore.ann import bits, compiled, lookup
from vecstore.ann.index import KINDS

KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_indexes(monkeypatch)


def contents(collection: vecstore.Collection) -> list[Any]:
    records = collection.scan(include=("text", "metadata", "vector"))
    return [(item.id, item.metadata, item.vector.tolist()) for item in records]


def share_found(collection: vecstore.Collection, queries: np.ndarray) -> float:
    near = collection.search_many(queries)
    true = collection.search_many(queries, recall="exact")
    return float(np.mean([len({*a.ids} & {*b.ids}) / 10 for a, b in zip(near, true, strict=True)]))


# Declaring


def test_an_index_is_automatic_unless_another_is_asked_for(memory: Database) -> None:
    assert memory.collection("c", dim=2).stats()["index"] == "auto"


@KIND
def test_a_kind_is_kept_in_the_file(path: Path, kind: Any) -> None:
    with vecstore.open(path) as db:
        db.collection("c", dim=2, index=kind)
    with vecstore.open(path) as db:
        assert db.collection("c").stats()["index"] == kind
        assert db.collection("c", dim=2, index=kind).stats()["index"] == kind
        assert db.check() == []


def test_another_kind_on_reopening_is_an_error_that_names_reindex(memory: Database) -> None:
    memory.collection("c", dim=2, index="flat")
    with pytest.raises(SpecError, match=r"index='flat', not 'ivf'.*reindex\('ivf'\)"):
        memory.collection("c", index="ivf")
    memory.collection("d", dim=2)
    with pytest.raises(SpecError, match="index='auto', not 'flat'"):
        memory.collection("d", index="flat")


@pytest.mark.parametrize("kind", ["hnsw", "", "IVF", 1, b"ivf", ["ivf"]])
def test_an_unknown_kind_is_refused(memory: Database, kind: Any) -> None:
    with pytest.raises(SpecError, match=r"index=.* is unknown; use one of auto, flat, hash, ivf"):
        memory.collection("c", dim=2, index=kind)
    assert memory.collections() == []
    with pytest.raises(SpecError, match="is unknown"):
        memory.collection("c", dim=2).reindex(kind)


def test_binary_vectors_have_no_lists_of_codes(memory: Database) -> None:
    refused = "index='ivf' is not there for metric 'hamming', .*; use 'hash'"
    with pytest.raises(SpecError, match=refused):
        memory.collection("c", dim=8, metric="hamming", index="ivf")
    collection = memory.collection("c", dim=8, metric="hamming", index="flat")
    with pytest.raises(SpecError, match=refused):
        collection.reindex("ivf")
    collection.add(vectors=np.eye(8, dtype=bool))
    for kind in ("auto", "hash", "flat"):
        assert collection.reindex(kind)["lists"] == 0
        assert collection.stats()["index"] == kind
        assert collection.search(np.ones(8, bool), 3).plan.method == "scan"
        assert memory.check() == []


def test_binary_vectors_get_and_lose_buckets(
    memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "START_COST", 0.0)
    # Whether other tests have loaded the kernel must not matter.
    monkeypatch.setattr(bits, "LEAST_LOADED", bits.LEAST_ROWS)
    collection = memory.collection("c", dim=16, metric="hamming")
    collection.add(vectors=np.arange(9600, dtype="<u2").view(np.uint8).reshape(-1, 2))
    assert collection.search([0, 0], min_score=-1).plan.method == "scan"
    assert collection.reindex("hash")["lists"] == 2
    found = collection.search([0, 0], 100, min_score=-1)
    assert found.plan.method == "buckets"
    assert collection.stats()["tail_rows"] == 0
    for kind in ("auto", "flat"):
        assert collection.reindex(kind)["lists"] == 0
        assert collection.search([0, 0], 100, min_score=-1) == found
        assert collection.stats()["index_bytes"] == 0
        assert memory.check() == []


def test_a_kind_chosen_in_a_transaction_goes_with_it(memory: Database) -> None:
    with contextlib.suppress(ZeroDivisionError), memory.transaction():
        filled(memory, count=300, index="hash")
        1 / 0  # noqa: B018
    assert memory.collections() == []
    with memory.transaction():
        collection = filled(memory, count=300, index="hash")
        assert collection.search(clusters(1)[0]).plan.method == "scan"
    assert collection.search(clusters(1)[0]).plan.method == "index"


# Kinds


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_codes_in_row_order_work_from_the_first_record(memory: Database, metric: Any) -> None:
    collection = memory.collection("c", dim=DIM, metric=metric, index="hash")
    assert list(collection.search(np.ones(DIM))) == []
    vectors = clusters(500)
    for count, vector in enumerate(vectors[:3], 1):
        collection.add(vectors=vector)
        assert len(collection.search(vector)) == count
    collection.add(vectors=vectors[3:190])
    collection.add(vectors=vectors[190:390])
    found = collection.search(vectors[7], 10)
    assert found.plan.method == "index"
    assert "is estimated to reach" in found.plan.reason
    assert share_found(collection, clusters(20, 5)) == 1.0
    assert memory.check() == []


def test_codes_in_row_order_are_made_anew_and_measured_as_they_grow(
    memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "GROWTH", 2)
    collection = filled(memory, count=300, index="hash")
    assert "estimated" in collection.search(clusters(1)[0]).plan.reason
    collection.add(vectors=clusters(300, 1))
    assert "measured" in collection.search(clusters(1)[0]).plan.reason
    assert collection.stats()["trained_rows"] == 600


def test_codes_in_row_order_need_no_column_of_the_rows_lists(memory: Database) -> None:
    collection = filled(memory, count=300, index="hash")
    collection.optimize()
    with memory.reading() as reader:
        parts = [key[4:] for key, _ in reader.items("index", b"")]
    assert sorted(parts) == [b"listed", b"model", b"plan"]


def test_automatic_lists_come_when_there_are_rows_enough(memory: Database) -> None:
    collection = filled(memory, count=300)
    assert collection.stats()["lists"] == 0
    collection.add(vectors=clusters(400, 1))
    assert collection.stats()["lists"] > 10
    assert collection.search(clusters(1)[0]).plan.method == "index"


def test_lists_that_were_asked_for_need_fewer_rows(memory: Database) -> None:
    assert filled(memory, count=300, index="ivf").stats()["lists"] > 10
    assert filled(memory, "flat", count=900, index="flat").stats()["lists"] == 0


@KIND
def test_reindexing_keeps_the_records(memory: Database, kind: Any) -> None:
    collection = filled(memory)
    before = contents(collection)
    report = collection.reindex(kind)
    assert contents(collection) == before
    assert memory.check() == []
    stats = collection.stats()
    assert (stats["index"], stats["lists"]) == (kind, report["lists"])
    assert (report["lists"] > 0) == (kind in ("auto", "ivf"))
    assert (stats["index_bytes"] > 0) == (kind != "flat")
    assert stats["tail_rows"] == {"hash": 900, "flat": 0}.get(kind, stats["tail_rows"])
    plan = collection.search(clusters(1)[0]).plan
    assert plan.method == ("scan" if kind == "flat" else "index")
    assert share_found(collection, clusters(30, 5)) > 0.9
    assert memory.collection("points", index=kind).count() == 900


def test_all_kinds_in_turn(memory: Database) -> None:
    collection = filled(memory)
    for kind in ("hash", "ivf", "hash", "flat", "ivf", "auto", "flat", "hash"):
        collection.reindex(kind)
        collection.upsert(vectors=clusters(50, 3), ids=range(50))
        collection.delete(range(100, 120))
        assert memory.check() == []
        assert share_found(collection, clusters(20, 5)) > 0.9


# Optimizing


def test_optimizing_moves_the_tail_to_lists(memory: Database) -> None:
    collection = filled(memory)
    collection.add(vectors=clusters(130, 7))
    assert collection.stats()["tail_rows"] >= 128
    report = collection.optimize()
    assert report["calibrated"]
    assert report["seconds"] > 0
    assert collection.stats()["tail_rows"] < 64
    assert memory.check() == []


def test_optimizing_trains_anew_after_much_growth(memory: Database) -> None:
    collection = filled(memory, count=500, index="ivf")
    assert collection.stats()["trained_rows"] == 300
    assert not collection.optimize()["trained"]
    collection.add(vectors=clusters(100, 7))
    assert collection.optimize()["trained"]
    assert collection.stats()["trained_rows"] == 600


def test_half_of_the_records_replaced_is_a_reason_to_train_anew(
    memory: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "BACKLOG", 10_000)
    collection = filled(memory, count=600)
    collection.upsert(vectors=clusters(250, 8), ids=range(250))
    assert not collection.optimize()["trained"]
    collection.upsert(vectors=clusters(60, 9), ids=range(250, 310))
    assert collection.optimize()["trained"]
    assert not collection.optimize()["trained"]


def test_an_index_of_which_hardly_a_record_is_left_is_not_measured(memory: Database) -> None:
    collection = filled(memory, index="ivf")
    before = collection.stats()
    collection.delete(range(1, 900))
    assert not collection.optimize()["calibrated"]
    collection.delete(0)
    assert not collection.optimize()["calibrated"]
    assert collection.stats()["trained_rows"] == before["trained_rows"]
    collection.add(vectors=clusters(900, 1))
    assert collection.audit().holds


@pytest.mark.parametrize("count", [0, 1, 300])
@KIND
def test_optimizing_few_records_does_what_there_is_to_do(
    memory: Database, kind: Any, count: int
) -> None:
    collection = filled(memory, count=count, index=kind)
    report = collection.optimize()
    assert (report["lists"] > 0) == (kind == "ivf" and count == 300)
    assert collection.count() == count


def test_an_index_is_changed_by_calls_of_their_own(path: Path) -> None:
    with vecstore.open(path) as db:
        collection = filled(db, count=300)
        with db.transaction():
            for call in (collection.optimize, lambda: collection.reindex("flat")):
                with pytest.raises(StoreError, match=r"inside db\.transaction\(\)"):
                    call()
        with db.snapshot() as view:
            frozen = view.collection("points")
            for call in (frozen.optimize, lambda: frozen.reindex("flat")):
                with pytest.raises(ReadOnlyError, match="a snapshot only reads"):
                    call()
    with vecstore.open(path, read_only=True) as db:
        collection = db.collection("points", index="auto")
        for call in (collection.optimize, lambda: collection.reindex("flat")):
            with pytest.raises(ReadOnlyError, match="read_only=True"):
                call()
        assert collection.stats()["index"] == "auto"


def test_long_work_shows_a_bar_only_where_wanted(
    memory: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    collection = filled(memory, count=300)
    collection.optimize()
    collection.audit()
    assert capsys.readouterr().err == ""
    collection.reindex("ivf", progress=True)
    assert "indexing" in capsys.readouterr().err
    collection.audit(progress=True)
    assert "measuring" in capsys.readouterr().err


# Many queries


@KIND
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_many_queries_find_what_single_ones_do(
    memory: Database, kind: Any, threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few rows are as well compared all.
    monkeypatch.setattr(planner, "EXACT_WORTH", 0)
    collection = filled(memory, count=700, index=kind)
    queries = clusters(70, 5)
    options: dict[str, Any] = {"k": 5, "where": {"third": {"$in": [0, 1]}}, "min_score": 0.1}
    found = collection.search_many(queries, threads=threads, **options)
    assert found == [collection.search(query, **options) for query in queries]
    assert (found[0].plan.method == "index") == (kind != "flat")


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_are_a_whole_number(memory: Database, threads: Any) -> None:
    with pytest.raises(UsageError, match=r"threads=.* must be a whole number of at least 1"):
        memory.collection("c", dim=2).search_many([[1, 2]], threads=threads)


# Queries that cannot be compared


UNSOUND = {
    "not a number": ("nan", [np.nan] + [1.0] * (DIM - 1), ("cosine", "dot", "l2")),
    "infinite": ("inf", [1.0] * (DIM - 1) + [-np.inf], ("cosine", "dot", "l2")),
    "zeros": ("is zero", [0.0] * DIM, ("cosine",)),
    "too long": ("has length 1.2e\\+18", [3e17] * DIM, ("dot", "l2")),
}


@pytest.mark.parametrize("engine", ["compiled", "numpy"])
@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("kind", ["hash", "ivf"])
def test_what_cannot_be_compared_is_refused_by_indexes_too(
    memory: Database, monkeypatch: pytest.MonkeyPatch, kind: Any, metric: Any, engine: str
) -> None:
    points = filled(memory, index=kind, metric=metric)
    compiled.compile_now()
    if engine == "numpy":
        monkeypatch.setattr(compiled, "ready", lambda name: None)
    sound = np.ones(DIM, np.float32)
    right = points.search(sound)
    assert right.plan.method == "index"

    for text, numbers, metrics in UNSOUND.values():
        query = np.array(numbers, np.float32)
        if metric in metrics:
            for ask in (points.search, points.explain):
                with pytest.raises(VectorError, match=text):
                    ask(query)
            with pytest.raises(VectorError, match=text):
                points.search_many(np.array([sound, query]))
        else:
            assert len(points.search(query)) == 10
    # Nor are they remembered, to calibrate with.
    assert points.search(sound).ids == right.ids
    assert points.optimize()["calibrated"]


def test_queries_that_are_hardly_long_or_short_are_answered(memory: Database) -> None:
    for metric, size in (("cosine", 1e-38), ("cosine", 3e38), ("dot", 2.4e17), ("l2", 2.4e17)):
        points = filled(memory, f"{metric} {size}", index="ivf", metric=metric)
        query = np.full(DIM, size, np.float32)
        assert len(points.search(query)) == 10
        assert len(points.search(query.tolist())) == 10
