"""Do threads share a database? Readers see whole batches while one thread writes."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexed import DIM, clusters, honest, small_indexes

import vecstore
from vecstore import Database, LockedError, NotFoundError

ROUNDS = 80


def put(points: vecstore.Collection, number: int) -> None:
    """Give all 130 records one new number, which is their vector's length too."""
    points.upsert(vectors=np.full((130, 4), number), ids=range(130), metadata=[{"n": number}] * 130)


def run(*works: Callable[[], Any]) -> list[Any]:
    """Run each in a thread of its own; raise what any of them raises."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(60) for future in [pool.submit(work) for work in works]]


@pytest.mark.parametrize("name", ["file", ":memory:"])
def test_readers_see_whole_batches_while_one_thread_writes(tmp_path: Path, name: str) -> None:
    path = name if name == ":memory:" else tmp_path / name
    with vecstore.open(path, durable=False) as db:
        points = db.collection("points", dim=4, metric="l2")
        put(points, 0)

        def write() -> None:
            for number in range(1, ROUNDS + 1):
                if number % 3:
                    put(points, number)
                else:
                    with db.transaction():
                        points.delete(where={"n": {"$lt": number}})
                        assert points.count() == 0
                        put(points, number)

        def read() -> int:
            last, seen = 0, set()
            while last < ROUNDS:
                hits = points.search(np.zeros(4), 200, include=("metadata", "vector"))
                check(hits)
                filtered = points.search_many(np.ones((2, 4)), 200, where={"n": {"$gte": last}})
                assert [len(found) for found in filtered] == [130, 130]
                with db.snapshot() as view:
                    frozen = view.collection("points")
                    numbers = {record.metadata["n"] for record in frozen.scan()}
                    assert len(numbers) == 1
                    assert {hit.metadata["n"] for hit in frozen.search(np.ones(4), 130)} == numbers
                found = points.get(range(130), include=("metadata",))
                assert len({record.metadata["n"] for record in found}) == 1
                number = hits[0].metadata["n"]
                assert number >= last
                last = number
                seen.add(number)
            return len(seen)

        _, *seen = run(write, read, read, read)
        assert min(seen) >= 1
        assert db.check() == []


def check(hits: vecstore.Hits) -> None:
    assert len(hits) == 130
    (number,) = {hit.metadata["n"] for hit in hits}
    assert sorted(hits.ids) == list(range(130))
    for hit in hits:
        assert (hit.vector == number).all()


def test_threads_may_share_one_view(db: Database) -> None:
    points = db.collection("points", dim=4, metric="l2")
    put(points, 1)
    done = threading.Event()

    def write() -> None:
        for number in range(2, 30):
            put(points, number)
        done.set()

    with db.snapshot() as view:
        frozen = view.collection("points")

        def read() -> None:
            while True:
                ended = done.is_set()
                check(frozen.search(np.zeros(4), 200, include=("metadata", "vector")))
                assert {record.metadata["n"] for record in frozen.scan()} == {1}
                assert frozen.count({"n": 1}) == 130
                if ended:
                    return

        run(write, read, read, read)
    assert {record.metadata["n"] for record in points.scan()} == {29}


def test_writers_of_several_threads_lose_nothing(db: Database) -> None:
    points = db.collection("points", dim=2)

    def write(name: str) -> Callable[[], None]:
        def work() -> None:
            for number in range(25):
                points.add(vectors=[1, number], ids=f"{name}{number}")
                points.update(f"{name}{number}", metadata={"done": True})

        return work

    run(*map(write, "abcd"))
    found = [record.id for record in points.scan({"done": True})]
    assert sorted(found) == sorted(f"{name}{n}" for name in "abcd" for n in range(25))


def test_other_threads_do_not_see_an_open_transaction(db: Database) -> None:
    points = db.collection("points", dim=2)
    with db.transaction():
        points.add(vectors=[1, 0], ids="a")
        other = db.collection("other", dim=2)
        assert points.count() == 1
        assert run(points.count, db.collections) == [0, ["points"]]
        with pytest.raises(NotFoundError, match="no longer exists"):
            run(other.count)
    assert run(points.count, other.count) == [1, 0]


def test_another_thread_waits_for_the_writer_no_longer_than_its_timeout(db: Database) -> None:
    points = db.collection("points", dim=2)

    def write() -> None:
        points.add(vectors=[1, 0], ids="a", timeout=0.05)

    with db.transaction():
        points.add(vectors=[1, 0], ids="b")
        with pytest.raises(LockedError, match=r"thread MainThread .* 0\.05 s"):
            run(write)
    assert [record.id for record in points.scan()] == ["b"]


def test_searches_of_many_threads_after_each_commit_agree(db: Database) -> None:
    rng = np.random.default_rng(0)
    points = db.collection("points", dim=8)
    for _ in range(10):
        points.add(vectors=rng.normal(size=(70, 8)))
        query = rng.normal(size=8)
        answers = run(*[lambda query=query: points.search(query, 20)] * 6)
        assert all(answer == answers[0] for answer in answers)


def test_databases_in_memory_do_not_meet_one_another() -> None:
    def work(number: int) -> Callable[[], int]:
        def fill() -> int:
            with vecstore.open(":memory:") as db:
                points = db.collection("points", dim=2)
                points.add(vectors=np.ones((number, 2)))
                return points.count()

        return fill

    assert run(*map(work, range(1, 9))) == list(range(1, 9))


def test_compacting_waits_for_readers_and_readers_for_it(db: Database) -> None:
    points = db.collection("points", dim=4, metric="l2")
    put(points, 1)
    done = threading.Event()

    def compact() -> None:
        for number in range(2, 12):
            put(points, number)
            db.compact()
        done.set()

    def read() -> None:
        while not done.is_set():
            check(points.search(np.zeros(4), 200, include=("metadata", "vector")))

    run(compact, read, read)


@pytest.mark.parametrize("name", ["file", ":memory:"])
def test_threads_search_an_index_while_another_one_changes_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_indexes(monkeypatch)
    queries, done = clusters(2, 7), threading.Event()
    with vecstore.open(name if name == ":memory:" else tmp_path / name, durable=False) as db:
        points = db.collection("points", dim=DIM, metric="l2", index="ivf")

        def replace(number: int) -> None:
            metadata = [{"n": number}] * 400
            with db.transaction():
                points.upsert(vectors=clusters(400, number), ids=range(400), metadata=metadata)
                points.delete(range(400, 500))
                points.add(
                    vectors=clusters(90, number), ids=range(400, 490), metadata=metadata[:90]
                )

        def maintain() -> None:
            works = [points.optimize, db.compact]
            works += [lambda kind=kind: points.reindex(kind) for kind in ("hash", "auto", "ivf")]
            for number in range(1, 7):
                replace(number)
                works[number % len(works)]()
            done.set()

        def read() -> int:
            last, through, ended = 0, 0, False
            while not ended:
                ended = done.is_set()
                with db.snapshot() as view:
                    through += honest(view.collection("points"), queries)
                single = points.search(queries[0], 10)
                for hits in [single, *points.search_many(queries, 10, threads=2)]:
                    assert len(hits) == len(set(hits.ids)) == 10
                    (number,) = {hit.metadata["n"] for hit in hits}
                    assert number >= last
                    last = number
            return through

        replace(0)
        _, *through = run(maintain, read, read)
        assert min(through) >= 1
        assert db.check() == []
