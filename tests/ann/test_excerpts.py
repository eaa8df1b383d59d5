"""Filters that are asked for again and again: less is scanned, and as much is found."""

import threading
import time

import numpy as np
import pytest
from indexed import by_numpy, clusters, filled, small_indexes

import vecstore
from vecstore import Collection, index_layout, planner
from vecstore.ann import compiled, excerpts, ivf
from vecstore.ann.excerpts import FilteredJob
from vecstore.store import Snapshot

QUERIES = clusters(40, seed=5)
FILTERS = [{"third": number} for number in range(3)]


@pytest.fixture(autouse=True)
def _worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the index be used for few rows, in long lists, and excerpts be made soon."""
    compiled.compile_now()
    small_indexes(monkeypatch)
    monkeypatch.setattr(ivf, "lists_for", lambda count: 12)
    monkeypatch.setattr(planner, "ROW_COST", 1e9)
    monkeypatch.setattr(excerpts, "COPY", 0.6)


def jobs(points: Collection) -> list[FilteredJob]:
    """What the newest version of the file remembers."""
    with points._source.reading() as reader:
        known = reader.cache["search"].values()
        return [made.job for made in known if isinstance(made.job, FilteredJob)]


def made(points: Collection) -> list[bool]:
    return [len(job.excerpts) > 0 for job in jobs(points)]


def scanned(points: Collection, where: dict[str, int]) -> int:
    return sum(points.explain(query, 10, where=where).scanned for query in QUERIES)


def recall(points: Collection, where: dict[str, int]) -> float:
    """How many of the neighbours are found; whatever is found is right."""
    right = 0
    for query in QUERIES:
        exact = points.search(query, 300, where=where, recall="exact", include=())
        scores = dict(zip(exact.ids, exact.scores.tolist(), strict=True))
        hits = points.search(query, 10, where=where, include=())
        assert (hits.plan.method, len(set(hits.ids))) == ("index", 10)
        assert [scores[one] for one in hits.ids] == hits.scores.tolist()
        right += len(set(hits.ids) & set(exact.ids[:10]))
    return right / (10 * len(QUERIES))


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_less_is_scanned_and_as_much_is_found(memory, metric, precision, monkeypatch) -> None:
    points = filled(memory, metric=metric, precision=precision, index="ivf", count=3000)
    points.delete([4, 5])
    with monkeypatch.context() as patch:
        patch.setattr(excerpts, "COPY", 1e9)
        before, found_before = scanned(points, FILTERS[1]), recall(points, FILTERS[1])
        assert made(points) == [False]
    points.add(vectors=clusters(3), metadata=[{"third": 1}] * 3)

    assert recall(points, FILTERS[1]) >= found_before - 0.02
    assert made(points) == [True]
    assert scanned(points, FILTERS[1]) < 0.75 * before
    batch = points.search_many(QUERIES, 10, where=FILTERS[1], threads=2)
    assert [hits.ids for hits in batch] == [
        points.search(query, 10, where=FILTERS[1]).ids for query in QUERIES
    ]


def test_a_filter_that_is_asked_for_once_costs_nothing_more(memory) -> None:
    points = filled(memory, index="ivf", count=3000)
    points.search(QUERIES[0], 10, where=FILTERS[0])

    assert made(points) == [False]
    points.search(QUERIES[0], 10)
    assert len(jobs(points)) == 1


def test_a_filter_that_lets_nearly_all_through_needs_none(memory) -> None:
    points = filled(memory, index="ivf", count=3000)
    for query in QUERIES:
        points.search(query, 10, where={"n": {"$gte": 10}})

    assert made(points) == [False]


def test_the_first_excerpts_go_when_others_need_the_room(memory, monkeypatch) -> None:
    points = filled(memory, index="ivf", count=3000)
    right = [recall(points, where) for where in FILTERS]
    assert made(points) == [True, True, True]
    sizes = [job.excerpts.base.nbytes for job in jobs(points)]
    points.add(vectors=clusters(1), metadata=[{"third": 5}])
    monkeypatch.setattr(excerpts, "ROOM", 2 * max(sizes) + 4096)

    assert [recall(points, where) for where in FILTERS] == right
    assert made(points) == [False, True, True]
    assert recall(points, FILTERS[0]) == right[0]
    assert made(points) == [True, False, True]


def test_excerpts_that_are_too_large_are_not_made(memory, monkeypatch) -> None:
    monkeypatch.setattr(excerpts, "ROOM", 1000)
    points = filled(memory, index="ivf", count=3000)

    assert recall(points, FILTERS[0]) > 0.9
    assert made(points) == [False]


def test_who_loses_the_room_while_copying_does_not_keep_it(memory, monkeypatch) -> None:
    points = filled(memory, index="ivf", count=3000)
    monkeypatch.setattr(excerpts, "ROOM", 40_000)
    kernel, ready = compiled.ready("excerpt"), compiled.ready
    begun, done, main = threading.Event(), threading.Event(), threading.get_ident()

    def slow(address: int, first: int) -> int:
        if threading.get_ident() != main:
            begun.set()
            done.wait(10)
        return kernel(address, first)

    monkeypatch.setattr(compiled, "ready", lambda name: slow if name == "excerpt" else ready(name))
    thread = threading.Thread(target=recall, args=(points, FILTERS[0]))
    thread.start()
    assert begun.wait(10)
    recall(points, FILTERS[1])
    done.set()
    thread.join()

    assert sum(job.excerpts.base.nbytes for job in jobs(points) if len(job.excerpts)) <= 40_000


def test_lists_that_are_missing_and_not_looked_at_do_no_harm(memory, monkeypatch) -> None:
    points = filled(memory, index="ivf", count=3000)
    how = {"where": FILTERS[1], "recall": 0.5}
    expected = points.search(QUERIES[0], 10, **how).ids
    with points._source.reading() as reader:
        (table,) = (made for name, made in reader._tables.items() if name.startswith(b"lists"))
    far = int(np.flatnonzero(table == 0)[0])
    memory.writing(lambda txn: txn.delete("lists", index_layout.list_key(1, far)))

    for _ in range(100):
        assert points.search(QUERIES[0], 10, **how).ids == expected
    assert made(points) == [False]
    points.reindex("ivf")


def test_threads_of_one_search_read_one_after_another(path, monkeypatch) -> None:
    """They have one transaction."""
    with vecstore.open(path) as db:
        filled(db, index="ivf", count=3000)
    monkeypatch.setattr(excerpts, "COPY", 0.01)
    get, inside, together = Snapshot.get, [], []

    def slow(self: Snapshot, database: str, key: bytes) -> object:
        if database == "lists":
            together.extend(inside)
            inside.append(key)
        time.sleep(0.001)
        found = get(self, database, key)
        if database == "lists":
            inside.remove(key)
        return found

    monkeypatch.setattr(Snapshot, "get", slow)
    near = QUERIES[:1] + np.random.default_rng(1).normal(0, 0.01, (64, QUERIES.shape[1]))
    with vecstore.open(path) as db:
        points = db.collection("points")
        points.search_many(near.astype(np.float32), 10, where=FILTERS[1], recall=0.8, threads=4)
        assert made(points) == [True]
    assert together == []


def test_without_a_compiler_lists_are_scanned(memory) -> None:
    points = filled(memory, index="ivf", count=3000)
    with by_numpy():
        assert recall(points, FILTERS[0]) > 0.9
        assert made(points) == [False]
    assert recall(points, FILTERS[0]) > 0.9
    assert made(points) == [True]


def test_threads_find_the_same_while_excerpts_come_and_go(memory, monkeypatch) -> None:
    points = filled(memory, index="ivf", count=3000)
    expected = [
        [set(points.search(query, 300, where=where, recall="exact").ids) for query in QUERIES]
        for where in FILTERS
    ]
    # Each one that is made takes the others' room.
    monkeypatch.setattr(excerpts, "ROOM", 40_000)
    wrong: list[object] = []

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(150):
            one, number = int(rng.integers(3)), int(rng.integers(len(QUERIES)))
            hits = points.search(QUERIES[number], 10, where=FILTERS[one])
            if len(set(hits.ids)) != 10 or not set(hits.ids) <= expected[one][number]:
                wrong.append((seed, hits.ids))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
