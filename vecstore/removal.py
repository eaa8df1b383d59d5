"""How do records leave the file? Deleted, or expired and then purged.

What has expired is found no more from that moment on (`fields/expiry.py`); to take it out of the
file is maintenance, which waits until it is worth a transaction.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from vecstore import catalog, digests, fields, layout, maintenance, records, rows
from vecstore.ann.index import IndexedRows
from vecstore.catalog import Entry
from vecstore.fields import upkeep
from vecstore.fields.reading import placed
from vecstore.fields.upkeep import Change, Fresh
from vecstore.filters import Filter
from vecstore.layout import State
from vecstore.maintenance import Source
from vecstore.record_layout import Part
from vecstore.records import Stored
from vecstore.spec import Id
from vecstore.store import Reader, Transaction

# Records purged in one transaction, and from how many, or what share of all, a write sees to it.
SLICE, WORTH, SHARE = 8192, 256, 0.125


def delete(txn: Transaction, entry: Entry, ids: list[Id] | None, where: Filter | None) -> int:
    """Delete the records with these ids, or that satisfy the filter; return how many there were."""
    if ids is not None:
        forget_expired(txn, entry, ids)
    state = catalog.state(txn, entry.number)
    if ids is not None:
        read = (records.get(txn, entry.number, value) for value in dict.fromkeys(ids))
        found = (record for record in read if record is not None)
    else:
        assert where is not None, "checked by the caller"
        found = fields.walk(txn, entry, state, where)
    wanted = (record for record in found if ids is None or where is None or where.matches(record))
    return remove(txn, entry, state, wanted)


def remove(txn: Transaction, entry: Entry, state: State, found: Iterable[Stored]) -> int:
    """Take records out of the file; return how many they were. The counters are changed."""
    # Not the records themselves: together, their texts may be larger than memory.
    doomed = [
        (
            record.id,
            record.order,
            record.row,
            records.parts(txn, entry.number, record),
            digests.keys_of(txn, entry, record),
            record.expires_at is not None,
        )
        for record in found
    ]
    if not doomed:
        return 0
    writer = IndexedRows(txn, entry, state)
    for value, order, _, parts, keys, _ in doomed:
        digests.drop(txn, keys)
        txn.delete("ids", layout.id_key(entry.number, value))
        txn.delete("records", layout.record_key(entry.number, order))
        if parts:
            drop_passages(txn, entry, state, writer, parts)
    writer.kill(np.array([row for _, _, row, *_ in doomed], np.intp))
    state.records -= len(doomed)
    state.expiring -= sum(ends for *_, ends in doomed)
    finish(txn, entry, state, writer)
    return len(doomed)


def finish(
    txn: Transaction,
    entry: Entry,
    state: State,
    writer: IndexedRows,
    fresh: Fresh | None = None,
    changed: Sequence[int] = (),
) -> None:
    """End a write: bring all that is derived from records up to date, and save the counters."""
    maintenance.repack_touched(txn, entry, state, writer)
    writer.finish()
    upkeep.keep_up(txn, entry, state, Change(writer.added, writer.allotted, fresh, changed))
    catalog.save_state(txn, entry.number, state)


def drop_passages(
    txn: Transaction, entry: Entry, state: State, writer: IndexedRows, parts: list[Part]
) -> None:
    """Let passages die that are not the first of their record."""
    for part in parts:
        txn.delete("records", layout.record_key(entry.number, part.order))
    writer.kill(np.array([part.row for part in parts], np.intp))
    state.passages -= len(parts)


# What has expired


def forget_expired(txn: Transaction, entry: Entry, ids: list[Id]) -> None:
    """Delete those records of some ids that have expired: their ids are free."""
    state = catalog.state(txn, entry.number)
    if may_be_due(txn, state):
        found = (records.get(txn, entry.number, value) for value in dict.fromkeys(ids))
        gone = [item for item in found if item is not None and item.is_expired(txn.now)]
        remove(txn, entry, state, gone)


def may_be_due(reader: Reader, state: State) -> bool:
    """Whether there may be something to purge, as the counters alone can tell."""
    return state.expiring > 0 and state.earliest <= reader.now


def after_write(source: Source, number: int, uid: bytes, timeout: float | None = None) -> None:
    """Purge what has expired, if it is enough to be worth it."""
    with source.reading() as reader:
        state = catalog.state(reader, number)
        past = fields.expired(reader, catalog.read(reader, number, uid), state).words
        count = 0 if past is None else rows.count(past)
        # Without any the counters wait for one that was deleted.
        due = count >= min(WORTH, SHARE * state.rows) if count else may_be_due(reader, state)
    if due:
        purge(source, number, uid, timeout)


def purge(source: Source, number: int, uid: bytes, timeout: float | None = None) -> int:
    """Take all records of a collection out of the file that have expired.

    Args:
        source: Where to read and write.
        number: The collection's number.
        uid: Its uid.
        timeout: Seconds to wait for the right to write, each time.

    Returns:
        How many they were.
    """
    total = 0
    while True:
        count = source.writing(
            lambda txn: _purge_some(txn, catalog.read(txn, number, uid)), timeout
        )
        total += count
        if count < SLICE:
            return total


def _purge_some(txn: Transaction, entry: Entry) -> int:
    state = catalog.state(txn, entry.number)
    past = fields.expired(txn, entry, state)
    none = np.zeros(0, np.uint64)
    found = placed(txn, entry, state, none if past.words is None else past.words)
    doomed = list(itertools.islice((one for _, one in found if isinstance(one, Stored)), SLICE))
    if state.expiring and len(doomed) < SLICE and state.earliest < past.until:
        # None that is left expires before that.
        state.earliest = past.until
        catalog.save_state(txn, entry.number, state)
    return remove(txn, entry, state, doomed)
