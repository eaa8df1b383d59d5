"""What is in a collection? What users read of it without a query."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from vecstore import arguments, catalog, fields, filters, records, rows
from vecstore.arguments import Where
from vecstore.catalog import Entry
from vecstore.errors import UsageError
from vecstore.fields.groups import Groups, groups
from vecstore.filters import Filter
from vecstore.handle import Handle, shown
from vecstore.hits import Facet, Hit, Record
from vecstore.records import Stored
from vecstore.spec import Id, Include, check_id, is_id, show
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
            return records.living(reader, self._entry(reader).number, check_id(value)) is not None

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
            found = [records.living(reader, entry.number, value) for value in listed]
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

    def facets(self, field: str, where: Where = None, *, limit: int | None = None) -> list[Facet]:
        """Return which values a field has, and how many records have each, the commonest first.

        A record whose field is a list counts for each of its elements, once. Numbers that are equal
        are one value, and so are datetimes of one instant, which come back in UTC. Null is a value;
        records without the field count for none. Values of equal count stand as in `distinct`.

        Args:
            field: The name of a field, such as "lang" or "author.name"; "$id" and "$text" too.
            where: Count only records that satisfy a filter.
            limit: The most values to return.
        """
        most = None if limit is None else arguments.whole(limit, "limit", 0)
        found = self._groups(field, where)
        order = np.argsort(-found.counts, kind="stable")[:most].tolist()
        return [Facet(found.values[number], int(found.counts[number])) for number in order]

    def distinct(self, field: str, where: Where = None) -> list[Any]:
        """Return the values of a field, as `facets`, in order.

        The order is null, False, True, numbers, datetimes, strings by code point, bytes.
        """
        return self._groups(field, where).values

    def _groups(self, field: str, where: Where) -> Groups:
        path, parsed = filters.F(field).path, filters.parse(where)
        with self._source.reading() as reader:
            entry = self._entry(reader)
            state = catalog.state(reader, entry.number)
            allowed = fields.leading(reader, entry, state, parsed)
            return groups(reader, entry, state, path, allowed)

    def scan(
        self,
        where: Where = None,
        *,
        order_by: str | None = None,
        descending: bool = False,
        after: Id | Record | Hit | None = None,
        limit: int | None = None,
        include: Iterable[Include] = DEFAULT_INCLUDE,
    ) -> Iterator[Record]:
        """Yield records in the order in which they were first stored, or in that of a field.

        The order is stable: updates and upserts keep a record's place. To go on later, pass the
        last record as `after` (its id will do as long as the record exists). The scan reads a few
        hundred records at a time and holds nothing between; for a view of one moment use
        `db.snapshot()`.

        With `order_by` records stand as `distinct` has the values of that field, those with a list
        by its least element (descending: its largest), and those without the field last; where
        values are equal, in the order of storing. That order is worked out when the first record is
        asked for; records come as they are when they are read.

        Args:
            where: A filter.
            order_by: The name of a field, "$id" or "$text".
            descending: From the largest value on.
            after: Begin behind this record, which must satisfy the filter if there is `order_by`.
            limit: The most records to yield.
            include: Which of "text", "metadata" and "vector" the records carry.
        """
        wanted, parsed = arguments.check_include(include), filters.parse(where)
        left = None if limit is None else arguments.whole(limit, "limit", 0)
        order = self._order_of(after)
        if order_by is None:
            if descending is not False:
                raise UsageError("descending=True needs order_by, the field to order by")
            return self._scan(parsed, order, left, wanted)
        if type(descending) is not bool:
            raise UsageError(f"descending={show(descending)} must be True or False")
        path = filters.F(order_by).path
        return self._scan_ordered(parsed, path, descending, order, left, wanted)

    def _scan_ordered(
        self,
        where: Filter | None,
        path: str,
        descending: bool,
        after: int,
        left: int | None,
        wanted: frozenset[Include],
    ) -> Iterator[Record]:
        with self._source.reading() as reader:
            orders = self._ordered(reader, where, path, descending)
        if after >= 0:
            place = np.flatnonzero(orders == after)
            if not len(place):
                raise UsageError("after= is a record that is gone, or does not satisfy the filter")
            orders = orders[int(place[0]) + 1 :]
        for at in range(0, len(orders), PAGE):
            if left is not None and left <= 0:
                return
            with self._source.reading() as reader:
                entry = self._entry(reader)
                asked = orders[at : at + PAGE].tolist()
                there = (records.still(reader, entry.number, order) for order in asked)
                living = (item for item in there if item and not item.is_expired(reader.now))
                # No more are read than are wanted.
                page = list(itertools.islice(living, left))
                ready = shown(reader, entry, page, wanted)
            yield from ready
            left = None if left is None else left - len(page)

    def _ordered(
        self, reader: Reader, where: Filter | None, path: str, descending: bool
    ) -> NDArray[np.uint64]:
        """The orders of the records that satisfy a filter, by the values of a field."""
        entry = self._entry(reader)
        state = catalog.state(reader, entry.number)
        allowed = fields.leading(reader, entry, state, where)
        members = rows.members(allowed)
        if not len(members):
            return np.zeros(0, np.uint64)
        ranked, numbers = groups(reader, entry, state, path, allowed).ranked(descending=descending)
        # Records without the field come last.
        ranks = np.full(len(members), np.iinfo(np.intp).max)
        ranks[np.searchsorted(members, ranked)] = numbers
        orders = rows.gather_orders(reader, entry.number, state, entry.form, members)
        return orders[np.lexsort((orders, ranks))]

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
        if where is not None and isinstance(reader, Snapshot):
            return fields.walk(reader, entry, catalog.state(reader, entry.number), where, order)
        # A transaction would ask the columns anew for each page.
        walked, now = records.walk(reader, entry.number, order), reader.now
        living = (item for item in walked if not item.is_expired(now))
        return living if where is None else (item for item in living if where.matches(item))
