"""Does awaiting do what calling does?"""

import asyncio
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from vecstore import (
    AsyncCollection,
    AsyncDatabase,
    ClosedError,
    Collection,
    Database,
    NotFoundError,
)

VECTORS = np.random.default_rng(2).normal(size=(600, 8)).astype(np.float32)


def test_every_call_is_there_and_answers_as_the_other(path: Path) -> None:
    async def main() -> None:
        async with await AsyncDatabase.open(path, durable=False) as db:
            found = await db.collection("c", dim=8)
            ids = list(range(600))
            metadata = [{"n": number % 7} for number in ids]
            assert await found.add(vectors=VECTORS, ids=ids, metadata=metadata) == ids
            one = found.collection
            hits = await found.search(VECTORS[3], 5, where={"n": {"$gt": 1}})
            assert hits == one.search(VECTORS[3], 5, where={"n": {"$gt": 1}})
            assert await found.get(3) == one.get(3)
            assert await found.get([3, 1000]) == one.get([3, 1000])
            assert await found.count({"n": 1}) == one.count({"n": 1})
            assert [record async for record in found.scan({"n": 2})] == list(one.scan({"n": 2}))
            assert len([record async for record in found.scan(limit=300)]) == 300
            assert await found.facets("n") == one.facets("n")
            await found.update(3, metadata={"n": 100})
            assert await found.delete([1, 2]) == 2
            assert (await db.rename("c", "d")).name == "d"
            assert await db.collections() == ["d"]
            await db.rename("d", "c")
            assert (await db.stats())["collections"]["c"]["records"] == 598
            assert await db.check() == []
            assert found.name == "c"
            assert found.spec.dim == 8
        with pytest.raises(ClosedError):
            await found.count()

    asyncio.run(main())


def test_errors_come_as_they_are(path: Path) -> None:
    async def main() -> None:
        async with await AsyncDatabase.open(path) as db:
            found = await db.collection("c", dim=8)
            with pytest.raises(NotFoundError, match="no record"):
                await found.update("nobody", metadata={})

    asyncio.run(main())


def test_searches_run_beside_one_another_and_the_loop_goes_on(path: Path) -> None:
    async def main() -> None:
        async with await AsyncDatabase.open(path, durable=False) as db:
            found = await db.collection("c", dim=8)
            await found.add(vectors=VECTORS, ids=list(range(600)))
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0)

            ticking = asyncio.create_task(tick())
            answers = await asyncio.gather(*(found.search(one, 1) for one in VECTORS[:100]))
            ticking.cancel()
            assert [hits.ids[0] for hits in answers] == list(range(100))
            assert ticks > 10

    asyncio.run(main())


def test_what_belongs_together_runs_in_one_thread(path: Path) -> None:
    def move(db: Database) -> int:
        with db.transaction():
            db.collection("old").delete("a")
            db.collection("new").add(vectors=[[1, 2]], ids=["a"])
        return db.collection("new").count()

    def fail(db: Database) -> None:
        with db.transaction():
            db.collection("new").delete("a")
            raise KeyError("a")

    async def main() -> None:
        async with await AsyncDatabase.open(path) as db:
            for name in ("old", "new"):
                await db.collection(name, dim=2)
            await (await db.collection("old")).add(vectors=[[1, 2]], ids=["a"])
            assert await db.run(move) == 1
            with pytest.raises(KeyError):
                await db.run(fail)
            assert await (await db.collection("new")).count() == 1

    asyncio.run(main())


def test_writers_of_many_tasks_lose_nothing(path: Path) -> None:
    async def main() -> None:
        async with await AsyncDatabase.open(path, durable=False) as db:
            found = await db.collection("c", dim=8)
            await asyncio.gather(
                *(found.add(vectors=one, ids=i) for i, one in enumerate(VECTORS[:60]))
            )
            assert sorted([record.id async for record in found.scan()]) == list(range(60))

    asyncio.run(main())


def test_a_write_that_is_cancelled_happens_whole_or_not_at_all(path: Path) -> None:
    async def main() -> None:
        async with await AsyncDatabase.open(path, durable=False) as db:
            found = await db.collection("c", dim=8)
            for delay in (0.0, 0.001, 0.01):
                task = asyncio.create_task(found.add(vectors=VECTORS))
                await asyncio.sleep(delay)
                task.cancel()
            await asyncio.sleep(0.1)
            assert await found.count() % len(VECTORS) == 0
            assert await db.check() == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("sync", "threaded"), [(Collection, AsyncCollection), (Database, AsyncDatabase)]
)
def test_arguments_are_those_of_the_call(sync: Any, threaded: Any) -> None:
    own = {"open", "run", "scan", "collection", "rename"}
    names = [name for name, _ in inspect.getmembers(threaded, inspect.iscoroutinefunction)]
    names = [name for name in names if not name.startswith("_") and name not in own]
    assert len(names) >= 8
    for name in names:
        assert inspect.signature(getattr(threaded, name)) == inspect.signature(getattr(sync, name))


def test_asyncio_is_not_imported_before_it_is_needed(run_python: Any) -> None:
    program = """
        import sys, vecstore
        print("asyncio" in sys.modules)
        vecstore.AsyncDatabase
        print("asyncio" in sys.modules)
        try:
            vecstore.Nothing
        except AttributeError as error:
            print(error)
    """
    assert run_python(program).splitlines() == [
        "False",
        "True",
        "module 'vecstore' has no attribute 'Nothing'",
    ]


def test_it_says_what_it_is(path: Path) -> None:
    with vecstore.open(path) as db:
        assert repr(AsyncDatabase(db)) == f"<AsyncDatabase {str(path)!r}>"
        assert repr(AsyncCollection(db.collection("c", dim=2))).startswith("<AsyncCollection 'c'")
