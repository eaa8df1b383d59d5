"""Where are the segments of a collection, and which rows do they speak for?

A release that does not know of them leaves them as they are while it changes records. So they count
only while the generation beside them is that of the counters, as with digests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from vecstore import field_layout, layout, rows
from vecstore.errors import CorruptionError
from vecstore.field_layout import RANGE_WORDS, Directory, Listed, Manifest
from vecstore.fields.segments import Segment
from vecstore.layout import HEADER, State
from vecstore.rows import Words
from vecstore.store import Reader, Snapshot

# Directories that are kept from version to version.
DIRECTORIES = 1024


class FieldIndex:
    """The field index of a collection in one version of a file.

    Args:
        collection: The collection's number.
        manifest: Which segments there are.
        own: For which rows each speaks, uint64 (RANGE_WORDS,).
    """

    def __init__(self, collection: int, manifest: Manifest, own: tuple[Words, ...]) -> None:
        self.collection, self.manifest, self.own = collection, manifest, own
        self._mapped: list[Segment] | None = None

    def covered(self, blocks: int) -> Words:
        """The rows for which any segment speaks, uint64 (blocks,)."""
        words = np.zeros(blocks, np.uint64)
        for listed, own in zip(self.manifest.segments, self.own, strict=True):
            part = words[listed.words]
            part |= own[: len(part)]
        return words

    def segments(self, reader: Reader) -> Iterable[Segment]:
        """The segments; what they view lives no longer than the reader.

        In a transaction each is a copy, and made when it is its turn.
        """
        if not isinstance(reader, Snapshot):
            listed = self.manifest.segments
            return (
                segment(reader, self.collection, one, own)
                for one, own in zip(listed, self.own, strict=True)
            )
        # Other snapshots of this version find the same where it is.
        if self._mapped is None:
            self._mapped = self._map(reader)
        return self._mapped

    def _map(self, snapshot: Snapshot) -> list[Segment]:
        """The segments where they lie in the map."""
        number, listed = self.collection, {one.number: one for one in self.manifest.segments}
        if not listed:
            return []

        def directory(value: memoryview, which: int) -> Directory:
            def read() -> Directory:
                return field_layout.read_segment(value, number, listed[which])

            name = layout.collection_key(number) + listed[which].edition
            return snapshot.store.tables.keep("fields", name, DIRECTORIES, read)

        wanted = np.array(list(listed), np.intp)
        prefix, count = field_layout.segment_prefix(number), int(wanted[-1]) + 1
        table = snapshot.addresses("fields", prefix, wanted, count, directory)
        found = []
        for (which, one), own in zip(listed.items(), self.own, strict=True):
            address = int(table[which])
            length = layout.bulk_length(rows.window(address, HEADER.size))
            value = rows.window(address, HEADER.size + length)
            found.append(Segment(one, directory(memoryview(value), which), value, own))  # type: ignore[arg-type]
        return found


def load(reader: Reader, collection: int, state: State) -> FieldIndex | None:
    """The field index of a collection; None if there is none that counts."""
    if not isinstance(reader, Snapshot):
        return load_anew(reader, collection, state)
    key = ("fields", collection)
    if key not in reader.cache:
        reader.cache[key] = load_anew(reader, collection, state)
    found: FieldIndex | None = reader.cache[key]
    return found


def load_anew(reader: Reader, collection: int, state: State) -> FieldIndex | None:
    """The field index as the file has it; nothing is remembered."""
    if not counts(reader, collection, state):
        return None
    manifest = read_manifest(reader, collection)
    # Of a range whose blocks were all given back nothing lives.
    there = [one for one in manifest.segments if one.range * RANGE_WORDS < state.blocks]
    own = tuple(read_rows(reader, collection, listed) for listed in there)
    return FieldIndex(collection, replace(manifest, segments=tuple(there)), own)


def counts(reader: Reader, collection: int, state: State) -> bool:
    """Whether every write since segments were written knew of them."""
    found = reader.get("fields", layout.collection_key(collection))
    return found is not None and bytes(found) == layout.pack_generation(state.generation)


def read_manifest(reader: Reader, collection: int) -> Manifest:
    """Which segments there are."""
    where = f"fields: manifest of collection {collection}"
    value = reader.get("fields", field_layout.manifest_key(collection))
    return Manifest() if value is None else Manifest.unpack(value, where)


def read_rows(reader: Reader, collection: int, listed: Listed) -> Words:
    """For which rows a segment speaks; CorruptionError if that is damaged."""
    where = f"fields: segment {listed.number} of collection {collection}"
    value = reader.get("fields", field_layout.rows_key(collection, listed.number))
    if value is None:
        raise CorruptionError(f"{where}: its rows are missing")
    return field_layout.read_rows(value, collection, listed)


def segment(
    reader: Reader, collection: int, listed: Listed, own: Words, *, verify: bool = False
) -> Segment:
    """A segment that speaks for some rows; `verify` its checksum to write it anew."""
    where = f"fields: segment {listed.number} of collection {collection}"
    value = reader.get("fields", field_layout.segment_key(collection, listed.number))
    if value is None:
        raise CorruptionError(f"{where} is missing")
    if verify:
        layout.verify_bulk(value, where)
    return Segment(listed, field_layout.read_segment(value, collection, listed), value, own)
