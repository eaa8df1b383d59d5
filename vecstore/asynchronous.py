"""How is a database used from asyncio? Each call runs in a thread, and the loop goes on meanwhile.

A facade and nothing more: arguments, results and errors are those of `Database` and `Collection`.
Searches let go of Python's lock while they compute, so several run at once.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, overload

from vecstore.collection import Collection
from vecstore.contents import DEFAULT_INCLUDE, PAGE
from vecstore.database import Database
from vecstore.database import open as open_database
from vecstore.hits import Record
from vecstore.spec import CollectionSpec, Id, Include

P = ParamSpec("P")
T = TypeVar("T")


def _of_database(
    method: Callable[Concatenate[Database, P], T],
) -> Callable[Concatenate[AsyncDatabase, P], Awaitable[T]]:
    @functools.wraps(method)
    async def call(self: AsyncDatabase, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, self.database, *args, **kwargs)

    return call


def _of_collection(
    method: Callable[Concatenate[Collection, P], T],
) -> Callable[Concatenate[AsyncCollection, P], Awaitable[T]]:
    @functools.wraps(method)
    async def call(self: AsyncCollection, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, self.collection, *args, **kwargs)

    return call


class AsyncCollection:
    """A collection whose methods are awaited. Made by `AsyncDatabase.collection`.

    Attributes:
        collection: The collection itself.
    """

    def __init__(self, collection: Collection) -> None:
        self.collection = collection

    def __repr__(self) -> str:
        return f"<Async{repr(self.collection).removeprefix('<')}"

    @property
    def spec(self) -> CollectionSpec:
        """The collection's declaration."""
        return self.collection.spec

    @property
    def name(self) -> str:
        """The collection's name."""
        return self.collection.name

    add = _of_collection(Collection.add)
    upsert = _of_collection(Collection.upsert)
    update = _of_collection(Collection.update)
    delete = _of_collection(Collection.delete)
    add_records = _of_collection(Collection.add_records)
    count = _of_collection(Collection.count)
    facets = _of_collection(Collection.facets)
    distinct = _of_collection(Collection.distinct)
    search = _of_collection(Collection.search)
    search_many = _of_collection(Collection.search_many)
    explain = _of_collection(Collection.explain)
    audit = _of_collection(Collection.audit)
    optimize = _of_collection(Collection.optimize)
    reindex = _of_collection(Collection.reindex)
    sample = _of_collection(Collection.sample)
    stats = _of_collection(Collection.stats)

    # A str is also an iterable of str; it is one id, and the first overload takes it.
    @overload
    async def get(  # type: ignore[overload-overlap]
        self, ids: Id, *, include: Iterable[Include] = ...
    ) -> Record | None: ...

    @overload
    async def get(
        self, ids: Iterable[Id], *, include: Iterable[Include] = ...
    ) -> list[Record | None]: ...

    async def get(
        self, ids: Id | Iterable[Id], *, include: Iterable[Include] = DEFAULT_INCLUDE
    ) -> Record | list[Record | None] | None:
        """As `Collection.get`."""
        found: Record | list[Record | None] | None
        found = await asyncio.to_thread(self.collection.get, ids, include=include)
        return found

    async def scan(self, *args: Any, **kwargs: Any) -> AsyncIterator[Record]:
        """As `Collection.scan`: `async for record in notes.scan(where)`."""
        records = await asyncio.to_thread(self.collection.scan, *args, **kwargs)
        while page := await asyncio.to_thread(_page, records):
            for record in page:
                yield record


def _page(records: Iterator[Record]) -> list[Record]:
    return list(itertools.islice(records, PAGE))


class AsyncDatabase:
    """A database whose methods are awaited; use it with `async with`.

    A call that is cancelled goes on in its thread: a write that had begun happens, and closing
    waits for it, five seconds at most.

    Attributes:
        database: The database itself.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    async def open(cls, path: str | os.PathLike[str], **options: Any) -> Self:
        """Open a file as `vecstore.open` does, with its options."""
        return cls(await asyncio.to_thread(open_database, path, **options))

    def __repr__(self) -> str:
        return f"<Async{repr(self.database).removeprefix('<')}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def collection(self, name: str, **declared: Any) -> AsyncCollection:
        """Return the collection of this name; arguments as in `Database.collection`."""
        return AsyncCollection(await asyncio.to_thread(self.database.collection, name, **declared))

    async def run(self, work: Callable[[Database], T]) -> T:
        """Run a function of the database in one thread, for what belongs together.

        A transaction belongs to its thread, so this is how to use one::

            def move(db):
                with db.transaction():
                    db.collection("old").delete("a")
                    db.collection("new").add("text", ids="a")

            await db.run(move)
        """
        return await asyncio.to_thread(work, self.database)

    async def rename(self, old: str, new: str, *, timeout: float | None = None) -> AsyncCollection:
        """As `Database.rename`."""
        rename = functools.partial(self.database.rename, old, new, timeout=timeout)
        return AsyncCollection(await asyncio.to_thread(rename))

    close = _of_database(Database.close)
    sync = _of_database(Database.sync)
    stats = _of_database(Database.stats)
    collections = _of_database(Database.collections)
    drop = _of_database(Database.drop)
    check = _of_database(Database.check)
    backup = _of_database(Database.backup)
    compact = _of_database(Database.compact)
