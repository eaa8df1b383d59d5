"""What do records say that lie in some rows? For what columns leave open."""

from __future__ import annotations

from collections.abc import Iterator

from vecstore import records, rows
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.layout import State
from vecstore.record_layout import Part
from vecstore.records import Stored
from vecstore.rows import Words
from vecstore.store import Reader

# Records read at a time.
_STEP = 1024


def placed(
    reader: Reader, entry: Entry, state: State, words: Words
) -> Iterator[tuple[int, Stored | Part]]:
    """What is in each of some living rows: a record, or a passage that is not its first."""
    asked = rows.members(words)
    for at in range(0, len(asked), _STEP):
        part = asked[at : at + _STEP]
        orders = rows.gather_orders(reader, entry.number, state, entry.form, part)
        for row, order in zip(part.tolist(), orders.tolist(), strict=True):
            found = records.placed(reader, entry.number, order)
            if found.row != row:
                raise CorruptionError(
                    f"records: row {row} leads to order {order}, whose row is {found.row}"
                )
            yield row, found
