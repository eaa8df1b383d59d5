"""Where are the segments of a collection, and which rows do they speak for?

A release that does not know of them leaves them as they are while it changes records. So they count
only while the generation beside them is that of the counters, as with digests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vecstore import field_layout, layout
from vecstore.errors import CorruptionError
from vecstore.field_layout import RANGE_WORDS, Directory, Listed, Manifest
from vecstore.fields.segments import Segment
from vecstore.layout import State
from vecstore.rows import Words
from vecstore.store import Reader, Snapshot

# Directories that are kept from version to version.
DIRECTORIES = 1024


@dataclass(frozen=True, slots=True)
class FieldIndex:
    """The field index of a collection in one version of a file.

    Attributes:
        collection: The collection's number.
        manifest: Which segments there are.
        rows: For which rows each speaks, uint64 (RANGE_WORDS,).
    """

    collection: int
    manifest: Manifest
    rows: tuple[Words, ...]

    def covered(self, blocks: int) -> Words:
        """The rows for which any segment speaks, uint64 (blocks,)."""
        ranges = 1 + max((one.range for one in self.manifest.segments), default=-1)
        words = np.zeros(max(blocks, ranges * RANGE_WORDS), np.uint64)
        for listed, own in zip(self.manifest.segments, self.rows, strict=True):
            start = listed.range * RANGE_WORDS
            words[start : start + RANGE_WORDS] |= own
        return words[:blocks]

    def segments(self, reader: Reader) -> Iterator[Segment]:
        """The segments; what they view lives no longer than the reader."""
        for listed, rows in zip(self.manifest.segments, self.rows, strict=True):
            yield segment(reader, self.collection, listed, rows)


def load(reader: Reader, collection: int, state: State) -> FieldIndex | None:
    """The field index of a collection; None if there is none that counts."""
    if not isinstance(reader, Snapshot):
        return _load(reader, collection, state)
    key = ("fields", collection)
    if key not in reader.cache:
        reader.cache[key] = _load(reader, collection, state)
    found: FieldIndex | None = reader.cache[key]
    return found


def load_anew(reader: Reader, collection: int, state: State) -> FieldIndex | None:
    """The field index as the file has it; nothing is remembered."""
    return _load(reader, collection, state)


def _load(reader: Reader, collection: int, state: State) -> FieldIndex | None:
    if not counts(reader, collection, state):
        return None
    manifest = read_manifest(reader, collection)
    # Of a range whose blocks were all given back nothing lives.
    there = [one for one in manifest.segments if one.range * RANGE_WORDS < state.blocks]
    rows = tuple(read_rows(reader, collection, listed) for listed in there)
    return FieldIndex(collection, replace(manifest, segments=tuple(there)), rows)


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
    reader: Reader, collection: int, listed: Listed, rows: Words, *, verify: bool = False
) -> Segment:
    """A segment that speaks for some rows; `verify` its checksum to write it anew."""
    value = reader.get("fields", field_layout.segment_key(collection, listed.number))
    if value is None:
        raise CorruptionError(
            f"fields: segment {listed.number} of collection {collection} is missing"
        )
    if verify:
        layout.verify_bulk(value, f"fields: segment {listed.number} of collection {collection}")

    def read() -> Directory:
        return field_layout.read_segment(value, collection, listed)

    # Of a transaction that is rolled back nothing may be left.
    known = isinstance(reader, Snapshot)
    name = layout.collection_key(collection) + listed.edition
    directory = reader.store.tables.keep("fields", name, DIRECTORIES, read) if known else read()
    return Segment(listed, directory, value, rows)
