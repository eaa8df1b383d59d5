"""Which collections exist? Names, numbers, specs and counters in the `meta` database."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace

from vecstore import layout
from vecstore.errors import AlreadyExistsError, CorruptionError, NotFoundError
from vecstore.layout import Form, State
from vecstore.spec import CollectionSpec, check_name
from vecstore.store import Reader, Snapshot, Transaction

PREFIXED = ("ids", "records", "tiers", "lists", "index", "fields", "live", "digests")
_NAME_PREFIX = layout.name_key("")


@dataclass(frozen=True, slots=True)
class Entry:
    """A collection as the catalog knows it.

    Attributes:
        number: The prefix of its keys; unique among the living collections of a file.
        uid: Random, so that a handle of a dropped collection never meets another one.
        spec: What was declared.
    """

    number: int
    uid: bytes
    spec: CollectionSpec

    @property
    def form(self) -> Form:
        """How its vectors are stored."""
        return layout.form(self.spec)


def names(reader: Reader) -> list[str]:
    """The collections' names, sorted by code point."""
    keys = [key[len(_NAME_PREFIX) :] for key, _ in reader.items("meta", _NAME_PREFIX)]
    try:
        return sorted(key.decode() for key in keys)
    except UnicodeDecodeError as error:
        raise CorruptionError(f"meta: a collection's name is not UTF-8: {error}") from error


def find(reader: Reader, name: str) -> Entry | None:
    """The collection of this name, or None."""
    value = reader.get("meta", layout.name_key(check_name(name)))
    if value is None:
        return None
    return read(reader, number_of(value, name))


def number_of(value: bytes | memoryview, name: str) -> int:
    """The number of the collection that a name leads to; CorruptionError if that is none."""
    return _number(value, f"meta: name {name!r}", "number")


def _number(value: bytes | memoryview, where: str, key: str) -> int:
    number = layout.unpack_meta(value, where).get(key)
    if not isinstance(number, int) or not 0 < number < 2**32:
        raise CorruptionError(f"{where}: {number!r} is no number of a collection")
    return number


def read(reader: Reader, number: int, uid: bytes | None = None) -> Entry:
    """The collection of this number; NotFoundError if it, or the one with this uid, is gone."""
    if not isinstance(reader, Snapshot):
        entry = _read(reader, number)
    elif (entry := reader.cache.get(("entry", number))) is None:
        entry = reader.cache["entry", number] = _read(reader, number)
    if entry is None or (uid is not None and entry.uid != uid):
        raise NotFoundError(
            "this collection no longer exists: it was dropped, or its creation was rolled back"
        )
    return entry


def _read(reader: Reader, number: int) -> Entry | None:
    value = reader.get("meta", layout.spec_key(number))
    return None if value is None else parse(number, bytes(value))


@functools.lru_cache(maxsize=512)
def parse(number: int, value: bytes) -> Entry:
    """The collection of a number, by the value of its spec; CorruptionError if that is none."""
    where = f"meta: spec of collection {number}"
    values = layout.unpack_meta(value, where)
    try:
        uid = values["uid"]
        if not isinstance(uid, bytes):
            raise TypeError(f"uid is {type(uid).__name__}")
        return Entry(number, uid, CollectionSpec.from_dict(values))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptionError(f"{where}: cannot be read: {error!r}") from error


def state(reader: Reader, number: int) -> State:
    """The counters of a collection."""
    value = reader.get("meta", layout.state_key(number))
    if value is None:
        raise CorruptionError(f"meta: collection {number} has no counters")
    found = State.unpack(value)
    # Whatever has a number for each row is made as long as this says.
    if found.blocks > layout.PART_ROWS // layout.BLOCK_ROWS * reader.entries("live"):
        raise CorruptionError(
            f"meta: collection {number} has {found.blocks} blocks, and no bitmaps of so many"
        )
    return found


def save_state(txn: Transaction, number: int, state: State) -> None:
    """Write the counters of a collection that this transaction changed."""
    former, marker = layout.pack_generation(state.generation), layout.collection_key(number)
    state.generation += 1
    txn.put("meta", layout.state_key(number), state.pack())
    # Digests and columns of fields count only if every write knew of them.
    for database in filter(txn.has, ("digests", "fields")):
        if txn.get(database, marker) == former:
            txn.put(database, marker, layout.pack_generation(state.generation))


def format_of(reader: Reader) -> tuple[int, int]:
    """The version of a file's format, and the oldest whose readers understand the file."""
    value = reader.get("meta", layout.KEY_FORMAT) or b""
    values = layout.unpack_meta(value, "meta: format")
    number, oldest = values.get("format"), values.get("oldest_readable")
    if not isinstance(number, int) or not isinstance(oldest, int):
        raise CorruptionError(f"meta: {values} is no version of a format")
    return number, oldest


def raise_format(txn: Transaction) -> None:
    """Make a file one that older releases refuse: they would not know what passages are."""
    number, oldest = format_of(txn)
    if oldest < layout.FORMAT:
        value = layout.pack_format(max(number, layout.FORMAT), layout.FORMAT)
        txn.put("meta", layout.KEY_FORMAT, value)


def following(reader: Reader) -> int:
    """The number that the next new collection gets; it is above all that were given out."""
    value = reader.get("meta", layout.KEY_NEXT)
    return 1 if value is None else _number(value, "meta: next", "next")


def create(txn: Transaction, spec: CollectionSpec) -> Entry:
    """Make an empty collection; AlreadyExistsError if the name is taken."""
    _check_free(txn, spec.name)
    number = following(txn)
    entry = Entry(number, os.urandom(8), spec)
    txn.put("meta", layout.KEY_NEXT, layout.pack_meta({"next": number + 1}))
    _put(txn, entry)
    txn.put("meta", layout.state_key(number), State().pack())
    return entry


def rename(txn: Transaction, old: str, new: str) -> Entry:
    """Give a collection another name; its records and its open handles stay."""
    entry = _require(txn, old)
    if old == new:
        return entry
    spec = replace(entry.spec, name=check_name(new))
    _check_free(txn, new)
    txn.delete("meta", layout.name_key(old))
    entry = replace(entry, spec=spec)
    _put(txn, entry)
    return entry


def change_encoder(txn: Transaction, entry: Entry, name: str, fingerprint: str) -> None:
    """Say that queries are embedded by another encoder, which embeds documents alike."""
    _put(txn, replace(entry, spec=replace(entry.spec, encoder=name, fingerprint=fingerprint)))


def drop(txn: Transaction, name: str) -> None:
    """Delete a collection with everything in it."""
    entry = _require(txn, name)
    for database in filter(txn.has, PREFIXED):
        txn.delete_prefix(database, layout.collection_key(entry.number))
    txn.delete("meta", layout.name_key(name))
    txn.delete("meta", layout.spec_key(entry.number))
    txn.delete("meta", layout.state_key(entry.number))
    txn.delete("meta", layout.adapter_key(entry.number))


def _put(txn: Transaction, entry: Entry) -> None:
    values = {**entry.spec.to_dict(), "uid": entry.uid}
    txn.put("meta", layout.spec_key(entry.number), layout.pack_meta(values))
    named = layout.pack_meta({"number": entry.number})
    txn.put("meta", layout.name_key(entry.spec.name), named)


def _require(reader: Reader, name: str) -> Entry:
    entry = find(reader, name)
    if entry is None:
        raise missing(reader, name)
    return entry


def missing(reader: Reader, name: str) -> NotFoundError:
    """The error for a name that no collection has."""
    known = ", ".join(map(repr, names(reader)[:20])) or "none"
    return NotFoundError(f"there is no collection {name!r}; this file has: {known}")


def _check_free(reader: Reader, name: str) -> None:
    if find(reader, name) is not None:
        raise AlreadyExistsError(f"a collection {name!r} exists already")
