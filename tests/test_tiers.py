"""Does an index have the codes that were stated, and do searches keep their promise with them?"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from indexed import DIM, clusters, filled, small_indexes

import vecstore
from vecstore import Collection, Database, SpecError, catalog, demo
from vecstore.ann import calibration, index
from vecstore.ann.index import Index
from vecstore.encoders import bundled
from vecstore.spec import CODE_BITS

KINDS = ("auto", "hash", "ivf")
TEXTS, ASKED = 450, 80


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_indexes(monkeypatch)


@pytest.fixture(scope="module")
def embedded() -> np.ndarray:
    """Real vectors, of the first lines of docstrings of the standard library."""
    records = demo.stdlib_records(limit=TEXTS + ASKED + 100)
    lines = dict.fromkeys(record["text"].splitlines()[0][:60] for record in records)
    vectors = bundled().encode(list(lines)[: TEXTS + ASKED])
    assert len(vectors) == TEXTS + ASKED
    return vectors[np.random.default_rng(1).permutation(TEXTS + ASKED)]


def found_index(db: Database, name: str = "points") -> Index:
    with db.reading() as reader:
        entry = catalog.find(reader, name)
        assert entry is not None
        found = index.load(reader, entry, catalog.state(reader, entry.number))
    assert found is not None
    return found


def let_everything_through(db: Database) -> None:
    """Let searches scan every list, and narrow and compare every row."""
    found = found_index(db)
    curve = [[1e9, 1e30, 1.0] for _ in found.budgets["levels"]]
    budgets = {**found.budgets, "gap": 0.0, "fine": calibration.MOST_FINE, "sizes": {"1": curve}}

    def work(txn: Any) -> None:
        entry = catalog.find(txn, "points")
        assert entry is not None
        index.save_plan(txn, entry.number, replace(found, budgets=budgets))

    db.writing(work)


def recall(collection: Collection, queries: np.ndarray, wanted: float) -> float:
    near = collection.search_many(queries, recall=wanted, include=())
    true = collection.search_many(queries, recall="exact", include=())
    return float(np.mean([len({*a.ids} & {*b.ids}) / 10 for a, b in zip(near, true, strict=True)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stated", [(8, 1), (16, 2), (5, 4), (16, 4)])
def test_codes_are_those_that_were_stated(memory: Database, kind: Any, stated: Any) -> None:
    collection = filled(memory, index=kind, tiers=(stated,))
    schedule = [list(stated), [DIM, 4]]

    assert found_index(memory).model.schedule == (stated, (DIM, 4))
    assert collection.stats()["tiers"] == [list(stated)]
    assert collection.stats()["codes"] == schedule
    assert collection.explain(clusters(1)[0]).codes == schedule
    assert f"{stated[0]} dims of {stated[1]} bits and" in str(collection.explain(clusters(1)[0]))
    collection.optimize()
    collection.reindex("ivf" if kind == "hash" else "hash")
    assert collection.stats()["codes"] == schedule


def test_without_an_index_there_are_no_codes(memory: Database) -> None:
    collection = filled(memory, index="flat", tiers=((8, 2),))
    assert (collection.stats()["tiers"], collection.stats()["codes"]) == ([[8, 2]], [])
    assert "none" in str(collection.explain(clusters(1)[0]))
    assert filled(memory, "other", 3).stats()["tiers"] == []


@given(
    st.sampled_from(["cosine", "dot", "l2"]),
    st.sampled_from(KINDS[1:]),
    st.tuples(st.integers(1, DIM), st.sampled_from(CODE_BITS)),
    st.integers(0, 2**32 - 1),
)
def test_a_shortlist_of_everything_is_an_exact_search(metric, kind, stated, seed) -> None:
    rng = np.random.default_rng(seed)
    with vecstore.open(":memory:") as db:
        points = db.collection("points", dim=DIM, metric=metric, index=kind, tiers=(stated,))
        points.add(vectors=rng.normal(size=(300, DIM)), ids=range(300))
        points.add(vectors=rng.normal(size=(20, DIM)), ids=range(300, 320))
        let_everything_through(db)
        queries = rng.normal(size=(4, DIM))
        for hits, right in zip(
            points.search_many(queries), points.search_many(queries, recall="exact"), strict=True
        ):
            assert hits.plan.method == "index"
            assert (hits.ids, hits.scores.tolist()) == (right.ids, right.scores.tolist())
        assert db.check() == []


@pytest.mark.parametrize("kind", ["hash", "ivf"])
@pytest.mark.parametrize("stated", [(384, 4), (192, 2), (128, 1), (16, 1)])
def test_the_recall_promised_is_kept_on_real_vectors(memory, embedded, kind, stated) -> None:
    points = memory.collection("points", dim=384, index=kind, tiers=(stated,))
    points.add(vectors=embedded[:TEXTS], ids=range(TEXTS))
    points.optimize()

    for wanted in (0.8, 0.95):
        assert recall(points, embedded[TEXTS:], wanted) >= wanted - 0.02


def test_codes_that_say_nothing_do_without_a_promise(memory: Database, rng) -> None:
    """Half of the rows begin with zeros, and so do all codes of them."""
    vectors = rng.normal(size=(2000, DIM))
    vectors[::2, :4] = 0
    points = memory.collection("points", dim=DIM, index="hash", tiers=((4, 1),))
    points.add(vectors=vectors, ids=range(2000))
    points.optimize()

    assert recall(points, rng.normal(size=(50, DIM)), 0.95) >= 0.93
    plan = points.search(vectors[0]).plan
    assert (plan.method, "reaches" in plan.reason) == ("scan", True)


def test_codes_of_a_prefix_are_not_trusted_before_they_are_measured(memory: Database) -> None:
    points = filled(memory, count=300, index="hash", tiers=((4, 1),))
    whole = filled(memory, "whole", 300, index="hash", tiers=((DIM, 1),))

    assert points.search(clusters(1)[0]).plan.method == "scan"
    assert whole.search(clusters(1)[0]).plan.method == "index"


# Declaring


def test_a_schedule_is_kept_in_the_file_and_compared(path: Path) -> None:
    with vecstore.open(path) as db:
        db.collection("c", dim=8, tiers=((4, 2),))
        db.collection("d", dim=8)
    with vecstore.open(path) as db:
        assert db.collection("c").spec.tiers == ((4, 2),)
        assert db.collection("c", tiers=[[4, 2], [8, 4]]).spec.tiers == ((4, 2),)
        for other in ((), ((4, 1),), ((8, 2),)):
            with pytest.raises(SpecError, match=r"has tiers=\(\(4, 2\),\), not \("):
                db.collection("c", tiers=other)
        with pytest.raises(SpecError, match=r"has tiers=\(\), not \(\(4, 2\),\)"):
            db.collection("d", tiers=((4, 2),))
        assert db.collection("d", tiers=()).spec.tiers == ()
        db.rename("c", "e")
        assert db.collection("e").spec.tiers == ((4, 2),)


@pytest.mark.parametrize(
    "tiers",
    [
        [(4, 2)],
        ((np.int64(4), np.uint8(2)),),
        np.array([[4, 2]]),
        (pair for pair in [(4, 2)]),
        [iter([4, 2])],
        ((4, 2), (8, 4)),
    ],
)
def test_a_schedule_may_come_as_any_pairs_of_whole_numbers(memory: Database, tiers: Any) -> None:
    spec = memory.collection("c", dim=8, tiers=tiers).spec
    assert spec.tiers == ((4, 2),)
    assert {type(number) for number in spec.tiers[0]} == {int}


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        (5, "tiers=5 is not a sequence of pairs"),
        ("42", "tiers='42' is not"),
        ("", "tiers='' is not"),
        ({}, "tiers={} is not"),
        ({(4, 2)}, r"tiers={\(4, 2\)} is not"),
        (["42"], r"tiers=\['42'\] is not"),
        ((4, 2), r"tiers=\(4, 2\) is not .* as \(\(192, 2\),\)"),
        ({4: 2}, "tiers={4: 2} is not"),
        (((4, True),), r"tiers=\(\(4, True\),\) is not"),
        (((True, 2),), r"tiers=\(\(True, 2\),\) is not"),
        (((4, np.True_),), "is not a sequence"),
        (((4.0, 2),), r"tiers=\(\(4\.0, 2\),\) is not"),
        (((4, None),), "is not a sequence"),
        (((4,),), r"tiers=\(\(4,\),\) is not"),
        (((4, 2, 1),), "is not a sequence"),
        (((),), "is not a sequence"),
        (((4, 3),), r"tiers=\(\(4, 3\),\): short codes have 1 to dim=8 dims of 1, 2, 4 bits"),
        (((4, 8),), "1, 2, 4 bits"),
        (((4, 0),), "1, 2, 4 bits"),
        (((9, 1),), "1 to dim=8 dims"),
        (((0, 1),), "1 to dim=8 dims"),
        (((-1, 1),), "1 to dim=8 dims"),
        (((10**5000, 1),), "1 to dim=8 dims"),
        (((4, 2), (8, 2)), r"is no schedule .* one pair .* at most the \(8, 4\)"),
        (((4, 2), (4, 4)), "is no schedule"),
        (((8, 4), (4, 2)), "is no schedule"),
        (((2, 2), (4, 2), (8, 4)), "is no schedule"),
    ],
)
def test_an_impossible_schedule_is_refused_by_value(memory: Database, tiers, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        memory.collection("c", dim=8, tiers=tiers)
    assert memory.collections() == []
    memory.collection("d", dim=8)
    with pytest.raises(SpecError):
        memory.collection("d", tiers=tiers)


def test_binary_vectors_have_no_codes(memory: Database) -> None:
    with pytest.raises(SpecError, match=r"tiers=\(\(8, 1\),\) does not apply to metric 'hamming'"):
        memory.collection("c", dim=8, metric="hamming", tiers=((8, 1),))
    assert memory.collection("c", dim=8, metric="hamming", tiers=()).spec.tiers == ()


def test_a_model_with_other_codes_than_stated_is_damage(path: Path) -> None:
    with vecstore.open(path) as db:
        filled(db, index="ivf")
        with db.reading() as reader:
            found = catalog.find(reader, "points")
        assert found is not None
        stated = replace(found, spec=replace(found.spec, tiers=((3, 1),)))
        db.writing(lambda txn: catalog._put(txn, stated))
        assert any("not (3, 1)" in problem.what for problem in db.check())


@pytest.mark.parametrize("mrl", ["", "48", b"\4", {}, {4: 8}, {4, 8}, 4, [4.0], [[4]], np.array(4)])
def test_prefix_lengths_are_a_sequence_of_whole_numbers(memory: Database, mrl: Any) -> None:
    with pytest.raises(SpecError, match=r"mrl=.* is not a sequence of whole numbers"):
        memory.collection("c", dim=8, mrl=mrl)
    assert memory.collections() == []
    assert memory.collection("c", dim=8, mrl=np.array([4, 8])).spec.mrl == (4, 8)
