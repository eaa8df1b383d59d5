"""Comparing the rows that a filter allows: the hits are those of numpy's comparison, to the bit."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from indexed import by_numpy, found
from odd_vectors import KINDS, drawn

import vecstore
from vecstore import F, catalog
from vecstore.ann import chosen, compiled, engine, index
from vecstore.errors import CorruptionError


@pytest.fixture(autouse=True, scope="module")
def _kernels():
    compiled.compile_now()


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_hits_are_those_of_numpy(data):
    metric = data.draw(st.sampled_from(["cosine", "dot", "l2"]))
    precision = data.draw(st.sampled_from(["float32", "float16", "int8"]))
    dim, count = data.draw(st.sampled_from([2, 3, 17, 384])), data.draw(st.integers(1, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kind = data.draw(st.sampled_from(KINDS if precision == "float32" else ["normal", "equal"]))
    vectors = drawn(rng, count, dim, kind)
    if metric == "cosine":
        # Vectors of zeros have no direction.
        vectors[~vectors.any(axis=1)] = 1
    if data.draw(st.booleans()):
        # Ties stand in the order of the records.
        vectors[:] = vectors[rng.integers(0, min(3, count), count)]
    few = data.draw(st.integers(0, min(count, 70)))
    allowed = rng.choice(count, few, replace=False).tolist()
    with vecstore.open(":memory:") as db:
        points = db.collection("p", dim=dim, metric=metric, precision=precision)
        metadata = [{"wanted": number in allowed} for number in range(count)]
        points.add(vectors=vectors, ids=range(count), metadata=metadata)
        points.delete(list(range(0, count, 7)))
        queries = np.concatenate([vectors[:2], drawn(rng, 3, dim, kind)])
        queries[~queries.any(axis=1)] = 1
        options = {"k": data.draw(st.sampled_from([1, 5, 100])), "where": F("wanted") == True}  # noqa: E712  # builds a filter
        options["recall"] = data.draw(st.sampled_from([0.9, "exact"]))
        mine = points.search_many(queries, **options)
        with by_numpy():
            right = points.search_many(queries, **options)
        assert list(map(found, mine)) == list(map(found, right))
        left = [number for number in allowed if number % 7]
        for hits in mine:
            assert set(hits.ids) <= set(left)
            assert len(hits) == min(options["k"], len(left))
            if left and len(left) < points.count():
                assert hits.plan.method == "rows"
                assert hits.plan.compared == len(left)


def test_without_an_index_numba_is_not_imported_for_a_few_rows(memory, monkeypatch):
    monkeypatch.setattr(compiled, "loaded", lambda name: False)
    monkeypatch.setattr(compiled, "ready", lambda name: pytest.fail("it was asked for"))
    points = memory.collection("p", dim=3)
    points.add(vectors=np.eye(3), ids=range(3), metadata=[{"n": n} for n in range(3)])

    assert points.search([1, 0, 0], where={"n": {"$gt": 0}}).ids == [1, 2]


def test_a_query_that_the_metric_cannot_compare_is_refused(memory):
    points = memory.collection("p", dim=3)
    points.add(vectors=np.eye(3), ids=range(3), metadata=[{"n": n} for n in range(3)])
    for query in ([0, 0, 0], [np.nan, 0, 0], [np.inf, 0, 0]):
        with pytest.raises(vecstore.VectorError):
            points.search(query, where={"n": {"$gt": 0}})


def test_a_missing_block_is_a_clear_error(memory):
    points = memory.collection("p", dim=3)
    points.add(vectors=np.eye(3), ids=range(3), metadata=[{"n": n} for n in range(3)])
    memory.writing(lambda txn: txn.delete_prefix("tiers", b"\0\0\0\1"))

    with pytest.raises(CorruptionError, match="block 0"):
        points.search([1, 0, 0], where={"n": {"$gt": 0}})
    memory.drop("p")


def test_many_rows_are_left_to_numpy(memory, monkeypatch):
    monkeypatch.setattr(chosen, "MOST_ROWS", 1)
    points = memory.collection("p", dim=3)
    points.add(vectors=np.eye(3), ids=range(3), metadata=[{"n": n} for n in range(3)])

    hits = points.search([1, 0, 0], where={"n": {"$gt": 0}})

    assert (hits.ids, hits.plan.compared) == ([1, 2], 0)


def test_lists_weigh_what_a_mask_leaves_of_them(memory, rng):
    points = memory.collection("p", dim=4, index="ivf")
    groups = np.repeat([0, 1, 2], 300)
    vectors = np.eye(4)[groups] + 0.01 * rng.normal(size=(900, 4))
    # All of one group, a third of another one, none of the last one.
    metadata = [{"w": g == 0 or (g == 1 and n % 3 == 0)} for n, g in enumerate(groups.tolist())]
    points.add(vectors=vectors, ids=range(900), metadata=metadata)
    points.optimize(progress=False)
    with memory.reading() as reader:
        entry = catalog.find(reader, "p")
        state = catalog.state(reader, entry.number)
        made = index.load(reader, entry, state)
        view = engine.view(reader, entry, state, made)
        listed = index.read_lists_of_rows(reader, entry.number, made)[:900]
        mask = np.zeros(state.blocks, np.uint64)
        wanted = [n for n, one in enumerate(metadata) if one["w"]]
        for row in wanted:
            mask[row >> 6] |= np.uint64(1 << (row & 63))
        crowding = engine.crowding(reader, entry, view, mask)

    for which in range(made.model.lists):
        own = np.flatnonzero(listed == which)
        if len(own):
            kept = len(set(own.tolist()) & set(wanted))
            assert (crowding.weights[which] == 0) == (kept == 0)
            if kept == len(own):
                assert crowding.weights[which] == 1
    held = [set(np.flatnonzero(listed == n).tolist()) for n in range(made.model.lists)]
    tail = 64 * len(view.tail)
    assert crowding.rows == tail + sum(len(own) for own in held if own & set(wanted))
