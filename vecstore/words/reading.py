"""How are the vectors of many ids read at once? In one snapshot, without an object for each.

`Collection.get` does the same for whole records, in several times the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vecstore import catalog, layout, record_layout, records, rows
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.spec import Id
from vecstore.store import Reader
from vecstore.vectors import Vectors, original


class Source(Protocol):
    """A database, or a view of one."""

    def reading(self) -> AbstractContextManager[Reader]:
        """A transaction to read in."""


@dataclass(frozen=True, slots=True)
class Read:
    """What some ids have.

    Attributes:
        places: Of each id that is stored, its place in the others.
        vectors: float32 (n, dim), as they were given.
        metadata: n dicts; none where they were not asked for.
    """

    places: dict[Id, int]
    vectors: Vectors
    metadata: list[dict[str, Any]]


def read(source: Source, entry: Entry, ids: Sequence[Id], *, metadata: bool = False) -> Read:
    """Read the vectors of distinct ids, and their metadata; those that are not stored are left out.

    Raises:
        NotFoundError: The collection is gone.
        CorruptionError: A record is damaged.
    """
    with source.reading() as reader:
        entry = catalog.read(reader, entry.number, entry.uid)
        found = reader.get_each("ids", layout.id_keys(entry.number, ids))
        there = [value for value, order in zip(ids, found, strict=True) if order is not None]
        held = [order for order in found if order is not None]
        if any(len(order) != layout.ORDER.size for order in held):
            raise CorruptionError(f"ids: an entry of {entry.spec.name!r} is damaged")
        orders = [int.from_bytes(order, "little") for order in held]
        places, values = records.verified(reader, entry.number, orders)
        if record_layout.unpack_ids(values) != there:
            raise CorruptionError(f"ids: an id of {entry.spec.name!r} leads to another record")
        state = catalog.state(reader, entry.number)
        gathered = rows.gather_packed(
            reader, entry.number, state, entry.form, np.array(places, np.intp)
        )
        return Read(
            dict(zip(there, range(len(there)), strict=True)),
            original(gathered.packed, entry.spec.metric),
            [record_layout.unpack_body(value)[2] or {} for value in values] if metadata else [],
        )
