"""Where are the buckets of binary vectors, and how are they made?

A binary vector is cut into *bands* of at most 16 bits. For each band the rows are sorted into
buckets by its bits: rows that differ from a query in few bits share a bucket with it in one of the
bands, or nearly do (Norouzi, Punjani and Fleet, Fast exact search in Hamming space with multi-index
hashing, 2014). Rows of blocks that are not listed are in no bucket, and are compared all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore import index_layout, layout, rows
from vecstore.ann import index
from vecstore.ann.index import Kind
from vecstore.catalog import Entry
from vecstore.index_layout import PLAN
from vecstore.layout import BLOCK_ROWS, NO_BLOCK, State
from vecstore.rows import Words
from vecstore.store import Reader, Snapshot, Transaction

# Of fewer rows there are no buckets: all are compared before a bucket is found.
LEAST_ROWS = 2048
# Bits of a band; the more buckets, the fewer rows in each, and as many as rows are enough.
LEAST_BITS, MOST_BITS = 8, 16
# The rows' bits that are sorted take at most so many bytes; blocks are read so many at once.
NUMBERS_BYTES, BLOCKS_AT_ONCE = 256 << 20, 512


class Bands:
    """How vectors of so many bits are cut into bands of nearly equal widths.

    Bit i of a vector is bit i & 63 of its word i >> 6.

    Attributes:
        count: How many bands.
        widths: int64 (count,), the bits of each.
    """

    def __init__(self, dim: int, count: int) -> None:
        edges = np.arange(count + 1) * dim // count
        self.count, self.widths = count, np.diff(edges)
        self._word, self._shift = edges[:-1] >> 6, (edges[:-1] & 63).astype(np.uint64)
        # Bands that end in the word behind the one in which they begin.
        self._split = np.flatnonzero(edges[1:] - 1 >> 6 > self._word)
        self._mask = (np.uint64(1) << self.widths.astype(np.uint64)) - np.uint64(1)

    def numbers(self, words: NDArray[np.uint64]) -> NDArray[np.uint16]:
        """The bits of each band as a number, uint16 (n, count), of vectors (n, words)."""
        found = words[:, self._word] >> self._shift
        split = self._split
        if len(split):
            found[:, split] |= words[:, self._word[split] + 1] << (64 - self._shift[split])
        return (found & self._mask).astype(np.uint16)


@lru_cache
def bands_of(dim: int, count: int) -> Bands:
    """The bands of vectors of so many bits, made once."""
    return Bands(dim, count)


def bands_for(dim: int, count: int) -> int:
    """How many bands suit so many rows: of about as many buckets as there are rows."""
    width = min(max(count.bit_length() - 1, LEAST_BITS), MOST_BITS)
    return -(-dim // width)


@dataclass(frozen=True, slots=True)
class Buckets:
    """The index of a collection of binary vectors.

    Attributes:
        rows: How many rows are in the buckets of each band, dead ones too.
        bands: How vectors are cut.
        listed: bool (blocks,), blocks whose rows are in buckets.
    """

    rows: int
    bands: Bands
    listed: NDArray[np.bool_]

    def bytes_of(self) -> list[int]:
        """The bytes of the buckets of each band."""
        return [index_layout.band_bytes(width, self.rows) for width in self.bands.widths.tolist()]


@index.mendable()
def load(reader: Reader, entry: Entry, state: State) -> Buckets | None:
    """The buckets of a collection, or None while it has none; of other metrics see `index`."""
    if entry.spec.metric != "hamming":
        return None
    if not isinstance(reader, Snapshot):
        return load_anew(reader, entry, state)
    key = ("buckets", entry.number)
    if key not in reader.cache:
        reader.cache[key] = load_anew(reader, entry, state)
    found: Buckets | None = reader.cache[key]
    return found


def load_anew(reader: Reader, entry: Entry, state: State) -> Buckets | None:
    """The buckets of a collection of binary vectors as the file has them."""

    def check(plan: dict[str, Any]) -> None:
        bands, count = plan["bands"], plan["trained"]
        if not isinstance(bands, int) or not 0 < bands <= entry.spec.dim <= bands * MOST_BITS:
            raise ValueError(f"{bands!r} bands of {entry.spec.dim} bits")
        if not isinstance(count, int) or not 0 < count <= state.blocks * BLOCK_ROWS:
            raise ValueError(f"{count!r} rows in buckets, of {state.blocks} blocks")

    plan = index.read_plan(reader, entry.number, check)
    if plan is None or plan.get("edition") is None:
        return None
    listed = index.read_listed(reader, entry.number, state.blocks)
    return Buckets(plan["trained"], bands_of(entry.spec.dim, plan["bands"]), listed)


# Making


def make(txn: Transaction, entry: Entry, state: State, kind: Kind) -> None:
    """Sort the rows of all whole blocks into buckets; where there are few, drop the buckets."""
    number, state.backlog = entry.number, 0
    index.clear(txn, number)
    words = rows.live(txn, number, state).copy()
    if state.open_block != NO_BLOCK:
        words[state.open_block] = 0
    named = rows.members(words).astype(np.uint32)
    if len(named) < LEAST_ROWS:
        index.save_kind(txn, number, kind)
        return
    bands = bands_of(entry.spec.dim, bands_for(entry.spec.dim, len(named)))
    for band, numbers in columns(txn, entry, state, words, bands):
        width = int(bands.widths[band])
        offsets = np.zeros((1 << width) + 1, np.uint32)
        np.cumsum(np.bincount(numbers, minlength=1 << width), out=offsets[1:])
        sequence = named[np.argsort(numbers, kind="stable")]
        value = index_layout.pack_band(number, band, width, offsets, sequence, txn.page)
        txn.put("lists", index_layout.list_key(number, band), value)
    index.save_listed(txn, number, words != 0)
    plan = {"kind": kind, "edition": index.edition(), "trained": len(named), "bands": bands.count}
    txn.put("index", index_layout.index_key(number, PLAN), layout.pack_meta(plan))


def columns(
    reader: Reader, entry: Entry, state: State, words: Words, bands: Bands
) -> Iterator[tuple[int, NDArray[np.uint16]]]:
    """Each band, and its bits as a number for each of the rows that are set in `words`."""
    count = rows.count(words)
    at_once = max(1, NUMBERS_BYTES // (2 * max(1, count)))
    for first in range(0, bands.count, at_once):
        part = slice(first, min(first + at_once, bands.count))
        table = np.empty((part.stop - first, count), np.uint16)
        at = 0
        for found in vectors(reader, entry, state, words):
            table[:, at : at + len(found)] = bands.numbers(found)[:, part].T
            at += len(found)
        yield from enumerate(table, first)


def vectors(
    reader: Reader, entry: Entry, state: State, words: Words
) -> Iterator[NDArray[np.uint64]]:
    """The stored words, uint64 (n, words), of the rows that are set in `words`, some at a time.

    The rows are of whole blocks.
    """
    blocks = np.flatnonzero(words)
    for at in range(0, len(blocks), BLOCKS_AT_ONCE):
        part = blocks[at : at + BLOCKS_AT_ONCE]
        runs = rows.runs(reader, entry.number, state, entry.form, part)
        numbers = np.concatenate([run.packed.numbers for run in runs])
        inside = rows.members(words[part])
        yield numbers[inside >> 6, inside & 63]
