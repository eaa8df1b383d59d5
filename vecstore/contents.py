"""What is in a collection? What users read of it without a query."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator
from typing import overload

from vecstore import arguments, catalog, fields, filters, records
from vecstore.arguments import Where
from vecstore.catalog import Entry
from vecstore.filters import Filter
from vecstore.handle import Handle, shown
from vecstore.hits import Hit, Record
from vecstore.records import Stored
from vecstore.spec import Id, Include, check_id, is_id
from vecstore.store import Reader, Snapshot

DEFAULT_INCLUDE: tuple[Include, ...] = ("text", "metadata")
# Records read by one snapshot of a scan; between them nothing is held.
PAGE = 256


class Contents(Handle):
    """The records of a collection."""

    def __len__(self) -> int:
        return self.count()

    def __bool__(self) -> bool:
        # A handle is a thing, also when the collection is empty.
        return True

    def __contains__(self, value: object) -> bool:
        with self._source.reading() as reader:
            return records.find(reader, self._entry(reader).number, check_id(value)) is not None

    # A str is also an iterable of str; it is one id, and the first overload takes it.
    @overload
    def get(  # type: ignore[overload-overlap]
        self, ids: Id, *, include: Iterable[Include] = ...
    ) -> Record | None: ...

    @overload
    def get(
        self, ids: Iterable[Id], *, include: Iterable[Include] = ...
    ) -> list[Record | None]: ...

    def get(
        self, ids: Id | Iterable[Id], *, include: Iterable[Include] = DEFAULT_INCLUDE
    ) -> Record | list[Record | None] | None:
        """Return the record with an id or None; for several ids a list with None for the missing.

        Args:
            ids: One id, or several.
            include: Which of "text", "metadata" and "vector" the records carry.
        """
        wanted = arguments.check_include(include)
        listed = [check_id(value) for value in arguments.listed(ids)]
        with self._source.reading() as reader:
            entry = self._entry(reader)
            found = [records.get(reader, entry.number, value) for value in listed]
            there = iter(shown(reader, entry, [item for item in found if item], wanted))
            result = [None if item is None else next(there) for item in found]
        return result[0] if is_id(ids) else result

    def count(self, where: Where = None) -> int:
        """Return how many records there are, or satisfy a filter."""
        parsed = filters.parse(where)
        with self._source.reading() as reader:
            entry = self._entry(reader)
            state = catalog.state(reader, entry.number)
            return fields.count(reader, entry, state, parsed)

    def scan(
        self,
        where: Where = None,
        *,
        after: Id | Record | Hit | None = None,
        limit: int | None = None,
        include: Iterable[Include] = DEFAULT_INCLUDE,
    ) -> Iterator[Record]:
        """Yield records in the order in which they were first stored.

        The order is stable: updates and upserts keep a record's place. To go on later, pass the
        last record as `after` (its id will do as long as the record exists). The scan reads a few
        hundred records at a time and holds nothing between; for a view of one moment use
        `db.snapshot()`.

        Args:
            where: A filter.
            after: Begin behind this record.
            limit: The most records to yield.
            include: Which of "text", "metadata" and "vector" the records carry.
        """
        wanted, parsed = arguments.check_include(include), filters.parse(where)
        left = None if limit is None else arguments.whole(limit, "limit", 0)
        order = self._order_of(after)
        return self._scan(parsed, order, left, wanted)

    def _scan(
        self, where: Filter | None, order: int, left: int | None, wanted: frozenset[Include]
    ) -> Iterator[Record]:
        while left is None or left > 0:
            size = PAGE if left is None else min(PAGE, left)
            with self._source.reading() as reader:
                entry = self._entry(reader)
                walked = self._walk(reader, entry, where, order)
                page = list(itertools.islice(walked, size))
                # The cursor must not outlive its transaction.
                walked.close()
                found = shown(reader, entry, page, wanted)
            yield from found
            if len(page) < size:
                return
            order = page[-1].order
            left = None if left is None else left - len(page)

    def _walk(
        self, reader: Reader, entry: Entry, where: Filter | None, order: int
    ) -> Generator[Stored, None, None]:
        """Records that satisfy a filter, in their order, behind another one."""
        if where is None:
            return records.walk(reader, entry.number, order)
        if isinstance(reader, Snapshot):
            return fields.walk(reader, entry, catalog.state(reader, entry.number), where, order)
        # A transaction would ask the columns anew for each page.
        walked = records.walk(reader, entry.number, order)
        return (item for item in walked if where.matches(item))
