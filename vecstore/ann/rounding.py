"""How is a vector rounded to bytes, so that most rows are ruled out without reading their vectors?

A flat index keeps every vector a second time, in int8 with a scale, and with the length of what the
rounding lost. So a comparison with the bytes is off by a known amount at most, and what it rules
out for certain is never read. What is coded is what is compared: under cosine, vectors of unit
length. See `kernels.compare` for the bounds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vecstore import index_layout, layout
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.layout import BLOCK_ROWS, BYTE_TIER
from vecstore.spec import CollectionSpec, Metric
from vecstore.store import Reader, Transaction
from vecstore.vectors import Vectors

# Rounds up whatever float64 and float32 arithmetic may have rounded down.
UPWARDS = 1 + 2.0**-22
ENCODED_AT_ONCE = 4096


class Rounded(NamedTuple):
    """Vectors rounded to bytes.

    Attributes:
        columns: float32 (3, n): scales, lengths of what was lost (or a little more), and lengths
            of the vectors (or a little more).
        numbers: int8 (n, dim), from -127 to 127; times its scale each is its vector, roughly.
    """

    columns: NDArray[np.float32]
    numbers: NDArray[np.int8]


def suits(spec: CollectionSpec) -> bool:
    """Whether a flat index of such a collection keeps bytes: int8 vectors are bytes already."""
    return spec.precision in ("float32", "float16")


def encode(vectors: Vectors, metric: Metric) -> Rounded:
    """Round vectors, float32 (n, dim)."""
    count = len(vectors)
    found = Rounded(np.empty((3, count), np.float32), np.empty(vectors.shape, np.int8))
    for at in range(0, count, ENCODED_AT_ONCE):
        part = slice(at, at + ENCODED_AT_ONCE)
        wide = _as_compared(vectors[part], metric)
        largest = np.abs(wide).max(axis=1, initial=0.0)
        # A scale that float32 cannot hold says nothing, and the length of what is lost says all.
        scales = (largest / 127).astype(np.float32).astype(np.float64)
        usable = scales > np.finfo(np.float32).tiny
        numbers = np.rint(wide / np.where(usable, scales, np.inf)[:, None]).clip(-127, 127)
        lost = wide - numbers * scales[:, None]
        found.numbers[part] = numbers
        with np.errstate(over="ignore"):
            found.columns[:, part] = scales, _up(_lengths(lost)), _up(_lengths(wide))
    return found


def holds(found: Rounded, vectors: Vectors, metric: Metric) -> NDArray[np.bool_]:
    """Of which vectors, float32 (n, dim), the bounds are true, bool (n,)."""
    wide = _as_compared(vectors, metric)
    scales, errors, sizes = found.columns.astype(np.float64)
    lost = wide - found.numbers * scales[:, None]
    true: NDArray[np.bool_] = (_lengths(lost) <= errors) & (_lengths(wide) <= sizes)
    return true


def _as_compared(vectors: Vectors, metric: Metric) -> NDArray[np.float64]:
    """Vectors in float64, under cosine of unit length."""
    wide = vectors.astype(np.float64)
    if metric == "cosine":
        sizes = _lengths(wide)
        wide /= np.where(sizes > 0, sizes, 1.0)[:, None]
    return wide


def _lengths(wide: NDArray[np.float64]) -> NDArray[np.float64]:
    sizes: NDArray[np.float64] = np.sqrt(np.vecdot(wide, wide))
    return sizes


def _up(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths that stay as large in float32."""
    return np.where(lengths > 0, lengths * UPWARDS + np.finfo(np.float32).tiny, 0.0)


def save(txn: Transaction, entry: Entry, rows: NDArray[np.intp], vectors: Vectors) -> None:
    """Write the bytes of new rows, ascending; those that their blocks hold already stay."""
    if len(rows) == 0:
        return
    found, blocks = encode(vectors, entry.spec.metric), rows >> 6
    edges = np.flatnonzero(np.diff(blocks, prepend=-1, append=-1))
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        block, inside = int(blocks[start]), rows[start:stop] & 63
        columns = np.zeros((3, BLOCK_ROWS), np.float32)
        numbers = np.zeros((BLOCK_ROWS, entry.spec.dim), np.int8)
        if inside[0] > 0:
            old = read(txn, entry, block)
            if len(old.numbers) != inside[0]:
                raise CorruptionError(
                    f"bytes of block {block} of collection {entry.number} are of"
                    f" {len(old.numbers)} rows, {inside[0]} are there"
                )
            columns[:, : inside[0]], numbers[: inside[0]] = old.columns, old.numbers
        columns[:, inside], numbers[inside] = (
            found.columns[:, start:stop],
            found.numbers[start:stop],
        )
        value = index_layout.pack_bytes(
            entry.number, block, int(inside[-1]) + 1, columns, numbers, txn.page
        )
        txn.put("tiers", layout.block_key(entry.number, block, BYTE_TIER), value)


def read(reader: Reader, entry: Entry, block: int) -> Rounded:
    """The bytes of the rows of a block; the checksum is verified."""
    number, dim, where = entry.number, entry.spec.dim, f"bytes of block {block}"
    value = reader.get("tiers", layout.block_key(number, block, BYTE_TIER))
    if value is None:
        raise CorruptionError(f"{where} of collection {number} are missing")
    layout.verify_bulk(value, where)
    held = index_layout.check_bytes(value, number, block, dim)
    columns, numbers = index_layout.unpack_bytes(value, dim)
    return Rounded(columns[:, :held].copy(), numbers[:held])
