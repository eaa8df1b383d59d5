"""Which values do fields have? Compared with a walk over all records."""

from datetime import UTC, datetime

import numpy as np
import pytest
import strategies as own
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ids_in_order, same_value, values_in_order

import vecstore
from vecstore import Chunking, F, FilterError, UsageError
from vecstore.encoders import HashEncoder
from vecstore.fields import upkeep
from vecstore.values import instant

PATHS = st.sampled_from(own.PATHS) | st.sampled_from(["$id", "$text"])
LONG = "y" * 300


def assert_right(points, path, where=None):
    records = list(points.scan(where))
    wanted = values_in_order(records, path)

    found = points.distinct(path, where)
    assert len(found) == len(wanted)
    assert all(same_value(value, pair) for value, (pair, _) in zip(found, wanted, strict=True))
    facets = points.facets(path, where)
    assert sorted(count for _, count in facets) == sorted(count for _, count in wanted)
    assert [count for _, count in facets] == sorted((n for _, n in wanted), reverse=True)
    by_value = sorted(wanted, key=lambda item: -item[1])
    assert all(same_value(one.value, pair) for one, (pair, _) in zip(facets, by_value, strict=True))
    assert points.facets(path, where, limit=2) == facets[:2]
    for descending in (False, True):
        rows = list(points.scan(where, order_by=path, descending=descending))
        assert [row.id for row in rows] == ids_in_order(records, path, descending)
        if len(rows) > 2:
            rest = points.scan(where, order_by=path, descending=descending, after=rows[1], limit=5)
            assert [row.id for row in rest] == [row.id for row in rows[2:7]]


@settings(max_examples=150, deadline=None)
@given(
    metadata=st.lists(st.none() | own.metadata, min_size=1, max_size=30),
    path=PATHS,
    where=st.none() | own.wheres,
    least=st.sampled_from([1, 7, 100]),
    data=st.data(),
)
def test_values_are_those_of_the_records(metadata, path, where, least, data):
    with pytest.MonkeyPatch.context() as patch, vecstore.open(":memory:") as db:
        patch.setattr(upkeep, "LEAST", least)
        points = db.collection("p", dim=2)
        count = len(metadata)
        texts = [None if n % 3 else f"text {n % 4}" for n in range(count)]
        first = data.draw(st.integers(0, count))
        for part in (slice(0, first), slice(first, count)):
            ids = list(range(count))[part]
            if ids:
                vectors = [[1, n] for n in ids]
                points.add(vectors=vectors, ids=ids, texts=texts[part], metadata=metadata[part])
        points.delete([1, 5])
        changed = [n for n in (0, 2, 8) if n < count]
        points.update(changed, metadata=[{"a": n, "b": [n, n]} for n in changed])
        assert_right(points, path, where)


def test_values_that_columns_do_not_hold_whole_are_read(memory, monkeypatch):
    monkeypatch.setattr(upkeep, "LEAST", 1)
    points = memory.collection("p", dim=2, skip_fields=["s"])
    rows = [
        {"n": 2**53, "t": LONG + "a", "s": 3},
        {"n": 2**53 + 1, "t": LONG + "b", "s": 3.0},
        {"n": [2**53, 1, 1.0], "t": [LONG + "a", "short"], "s": None},
        {"n": 2.0**60, "t": LONG.encode(), "s": True},
        {"n": datetime(2024, 1, 1), "t": datetime(2024, 1, 1, tzinfo=UTC), "s": False},
        {},
    ]
    points.add(vectors=[[1, n] for n in range(6)], ids=range(6), metadata=rows)

    assert points.facets("n") == [
        (2**53, 2),
        (1, 1),
        (2**53 + 1, 1),
        (2**60, 1),
        (datetime(2024, 1, 1, tzinfo=UTC), 1),
    ]
    assert points.distinct("t") == [
        datetime(2024, 1, 1, tzinfo=UTC),
        "short",
        LONG + "a",
        LONG + "b",
        LONG.encode(),
    ]
    assert points.facets("s") == [(3, 2), (None, 1), (False, 1), (True, 1)]
    assert [type(facet.value) for facet in points.facets("s")] == [int, type(None), bool, bool]
    for path in ("n", "t", "s", "missing"):
        assert_right(points, path)


def test_a_record_with_passages_counts_once(memory, monkeypatch):
    monkeypatch.setattr(upkeep, "LEAST", 4)
    stories = memory.collection("c", encoder=HashEncoder(8))
    texts = [f"Text {n} is long. " * (1 + n % 5) for n in range(30)]
    metadata = [{"n": n % 3} for n in range(30)]
    stories.add(texts, ids=range(30), metadata=metadata, chunk=Chunking(tokens=8))
    assert stories.stats()["vectors"] > 30

    assert stories.facets("n") == [(0, 10), (1, 10), (2, 10)]
    assert stories.count(F("n") == 1) == 10
    assert len(list(stories.scan(order_by="n"))) == 30
    for path in ("n", "$id", "$text"):
        assert_right(stories, path, F("n") > 0)


def test_many_values_are_ordered_by_columns_and_records_alike(memory):
    points = memory.collection("p", dim=2)
    rng = np.random.default_rng(5)
    count = 3000
    rows = [
        {"price": float(p), "name": f"n{int(p * 7) % 400}", "seen": datetime(2020, 1, 1 + n % 28)}
        for n, p in enumerate(rng.random(count).round(3))
    ]
    for at in range(0, count, 500):
        ids = list(range(at, at + 500))
        points.add(vectors=rng.normal(size=(500, 2)), ids=ids, metadata=rows[at : at + 500])

    for path in ("price", "name", "seen"):
        assert_right(points, path)
        assert_right(points, path, F("price") < 0.05)
    assert sum(instant(value) >= 0 for value in points.distinct("seen")) == 28


def test_records_that_go_while_a_scan_runs_are_passed_over(memory):
    points = memory.collection("p", dim=2)
    points.add(
        vectors=[[1, n] for n in range(600)],
        ids=range(600),
        metadata=[{"n": -n} for n in range(600)],
    )
    found = points.scan(order_by="n")
    assert next(found).id == 599
    points.delete(list(range(300)))
    points.update(310, metadata={"n": 5})

    rest = [record.id for record in found]

    # Those of the page at hand are as they were when it was read.
    assert rest == list(range(598, 299, -1))
    with memory.transaction():
        points.delete([599])
        assert next(points.scan(order_by="n")).id == 598


@pytest.mark.parametrize(
    ("work", "error", "message"),
    [
        (lambda c: c.facets("$x"), FilterError, "not a field"),
        (lambda c: c.distinct(""), FilterError, "must not be empty"),
        (lambda c: c.facets("n", limit=-1), UsageError, "limit"),
        (lambda c: list(c.scan(order_by=3)), FilterError, "a str"),
        (lambda c: list(c.scan(descending=True)), UsageError, "needs order_by"),
        (lambda c: list(c.scan({"n": 1}, order_by="n", after=0)), UsageError, "is gone, or does"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(memory, work, error, message):
    points = memory.collection("p", dim=2)
    points.add(vectors=[[1, 0], [1, 1]], ids=range(2), metadata=[{"n": 0}, {"n": 1}])
    with pytest.raises(error, match=message):
        work(points)


def test_an_empty_collection_has_no_values(memory):
    points = memory.collection("p", dim=2)

    assert points.facets("n") == points.distinct("n") == list(points.scan(order_by="n")) == []
