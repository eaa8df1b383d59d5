"""How does a vector become a code of 1, 2 or 4 bits a dimension, and a tile of 32 codes?

The estimator is RaBitQ's (Gao and Long, SIGMOD 2024; extended to more bits, SIGMOD 2025): the
residual r = x - centroid is rotated at random, each of its numbers becomes the nearest of 2 ** bits
levels, and the inner product with a query is estimated without bias by

    <r, q>  ~  scale * <levels of r, rotated q>,    scale = |r|^2 / <levels of r, r>.

Where scores are minus half the squared distances, rows have an offset besides, so that
score = centroid's score + offset + scale * <levels, q>. See `kernels.py` for the shape of a tile.

A row has a second, fine code of 4 bits of every dimension, with a scale of its own, by which the
few rows that a scan lets through are narrowed down to those whose vectors are worth reading.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore.index_layout import FINE_DIMS, GROUP_BYTES, CodeShape, fine_bytes, tiles_of
from vecstore.layout import TILE_ROWS
from vecstore.vectors import Vectors

# Groups of 4 bits are scanned 16 at a time.
GROUPS_AT_ONCE = 16
# The best levels for numbers of a normal distribution (Max, Quantizing for minimum distortion,
# 1960); only the positive ones of a symmetric set, in units of the standard deviation.
_HALF_LEVELS = {
    1: (1.0,),
    2: (0.4528, 1.5104),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326),
}
ENCODED_AT_ONCE = 8192
# The step between 16 even levels that is best for numbers of a normal distribution (Max 1960), in
# units of the standard deviation; the lowest level in steps.
FINE_STEP, FINE_LEAST = np.float32(0.3352), np.float32(-7.5)

Bytes = NDArray[np.uint8]


def levels(bits: int) -> Vectors:
    """What the values of a code stand for, float32 (2 ** bits,), ascending."""
    half = np.array(_HALF_LEVELS[bits], np.float32)
    return np.concatenate([-half[::-1], half])


def groups_of(coded: int, bits: int) -> int:
    """Groups of 4 bits that hold the codes of `coded` dimensions, a multiple of 16."""
    used = -(-coded * bits // 4)
    return -(-used // GROUPS_AT_ONCE) * GROUPS_AT_ONCE


def patterns(bits: int) -> Vectors:
    """What the 16 values of a group stand for in its dimensions, float32 (4 / bits, 16)."""
    dims, values = 4 // bits, np.arange(16)
    table: Vectors = levels(bits)[(values >> (np.arange(dims)[:, None] * bits)) & (1 << bits) - 1]
    return table


@dataclass(frozen=True, slots=True)
class Codes:
    """The codes of some rows.

    Attributes:
        groups: uint8 (n, groups), 4 bits of code each.
        scales: float32 (n,).
        offsets: float32 (n,).
        fine: uint8 (n, bytes), the fine codes.
        fine_scales: float32 (n,).
        rows: uint32 (n,).
    """

    groups: Bytes
    scales: Vectors
    offsets: Vectors
    fine: Bytes
    fine_scales: Vectors
    rows: NDArray[np.uint32]

    def columns(self) -> list[NDArray[Any]]:
        """The arrays."""
        return [getattr(self, field.name) for field in fields(self)]

    def take(self, places: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Codes:
        """Some of the rows."""
        return Codes(*(column[places] for column in self.columns()))


def join(parts: list[Codes]) -> Codes:
    """Several together."""
    columns = zip(*(part.columns() for part in parts), strict=True)
    return Codes(*(np.concatenate(column) for column in columns))


def empty(groups: int, dim: int) -> Codes:
    """The codes of no rows."""
    nothing, rows = np.zeros(0, np.float32), np.zeros(0, np.uint32)
    fine = np.zeros((0, fine_bytes(dim)), np.uint8)
    return Codes(np.zeros((0, groups), np.uint8), nothing, nothing, fine, nothing, rows)


@dataclass(frozen=True, slots=True)
class Turns:
    """How residuals are turned before they are coded.

    Attributes:
        coarse: To what codes describe, float32 (n, coded), as a part of an orthogonal matrix would.
        fine: To what fine codes describe, float32 (n, dim).
    """

    coarse: Callable[[Vectors], Vectors]
    fine: Callable[[Vectors], Vectors]


def encode(
    residuals: Vectors,
    centres: Vectors | None,
    turns: Turns,
    bits: int,
    rows: NDArray[np.uint32],
    *,
    fine: bool = True,
) -> Codes:
    """Code residuals.

    Args:
        residuals: float32 (n, dim), vectors less their centroids.
        centres: float32 (n, dim), those centroids, if rows are to have offsets; else None.
        turns: How residuals are turned.
        bits: 1, 2 or 4.
        rows: uint32 (n,), which rows these are.
        fine: Whether fine codes are wanted; else these are of zero scale.
    """
    coded, dim = turns.coarse(residuals[:0]).shape[1], residuals.shape[1]
    parts = [empty(groups_of(coded, bits), dim)]
    for at in range(0, len(residuals), ENCODED_AT_ONCE):
        part = residuals[at : at + ENCODED_AT_ONCE]
        groups, scales = _encode(turns.coarse(part), bits)
        fine_codes = np.zeros((len(part), fine_bytes(dim)), np.uint8)
        fine_scales = np.zeros(len(part), np.float32)
        if fine:
            fine_codes, fine_scales = _encode_fine(turns.fine(part))
        offsets = np.zeros(len(part), np.float32)
        if centres is not None:
            # |x - q|^2 = |q - c|^2 + |r|^2 + 2 <r, c> - 2 <r, q>, and scores are minus half of it.
            offsets -= 0.5 * np.vecdot(part, part)
            offsets -= np.vecdot(part, centres[at : at + ENCODED_AT_ONCE])
        named = rows[at : at + ENCODED_AT_ONCE]
        parts.append(Codes(groups, scales, offsets, fine_codes, fine_scales, named))
    return join(parts)


def _encode(rotated: Vectors, bits: int) -> tuple[Bytes, Vectors]:
    table = levels(bits)
    if bits == 1:
        values = (rotated > 0).astype(np.uint8)
        products = np.abs(rotated).sum(axis=1)
    else:
        spread = np.sqrt(np.vecdot(rotated, rotated) / rotated.shape[1])
        spread[spread == 0] = 1
        # A search in 15 edges is slower than counting the edges passed.
        scaled = rotated / spread[:, None]
        values = np.zeros(rotated.shape, np.uint8)
        for edge in (table[1:] + table[:-1]) / 2:
            values += scaled > edge
        products = np.vecdot(table[values], rotated)
    squares = np.vecdot(rotated, rotated)
    scales = np.divide(squares, products, out=np.zeros_like(squares), where=products > 0)
    return _join_bits(values, bits, groups_of(rotated.shape[1], bits)), scales


def _encode_fine(turned: Vectors) -> tuple[Bytes, Vectors]:
    """Code turned residuals in 16 even levels a dimension."""
    count, dim = turned.shape
    squares = np.vecdot(turned, turned)
    step = FINE_STEP * np.sqrt(squares / dim)
    step[step == 0] = 1
    numbers = np.floor(turned / step[:, None])
    np.clip(numbers, -8, 7, out=numbers)
    products = np.vecdot(numbers + np.float32(0.5), turned)
    scales = np.divide(squares, products, out=np.zeros_like(squares), where=products > 0)
    padded = np.zeros((count, -(-dim // FINE_DIMS), 2, FINE_DIMS // 2), np.uint8)
    padded.reshape(count, -1)[:, :dim] = numbers + 8
    return (padded[:, :, 0] | padded[:, :, 1] << 4).reshape(count, fine_bytes(dim)), scales


def unpack_fine(fine: Bytes, dim: int) -> Vectors:
    """The levels of fine codes, float32 (n, dim)."""
    chunks = -(-dim // FINE_DIMS)
    halves = fine.reshape(-1, chunks, 1, FINE_DIMS // 2) >> np.array([[0], [4]], np.uint8) & 15
    return halves.reshape(-1, chunks * FINE_DIMS)[:, :dim] + FINE_LEAST


def _join_bits(values: Bytes, bits: int, groups: int) -> Bytes:
    """Put the codes of 4 / bits dimensions into one group."""
    dims = 4 // bits
    padded = np.zeros((len(values), groups * dims), np.uint8)
    padded[:, : values.shape[1]] = values
    joined = padded[:, ::dims].copy()
    for number in range(1, dims):
        joined |= padded[:, number::dims] << (number * bits)
    return joined


# As the file keeps them


def pack_tiles(codes: Codes, shape: CodeShape) -> Bytes:
    """The tiles of some rows, uint8; the last is filled up with codes of zero scale."""
    count, groups = codes.groups.shape
    tiles, half = tiles_of(count), TILE_ROWS // 2
    packed = np.zeros((tiles, shape.tile_bytes), np.uint8)
    cells = np.zeros((tiles * TILE_ROWS, groups), np.uint8)
    cells[:count] = codes.groups
    halves = cells.reshape(tiles, 2, half, groups)
    low, high = halves[:, 0].transpose(0, 2, 1), halves[:, 1].transpose(0, 2, 1)
    packed[:, : groups * GROUP_BYTES] = (low | high << 4).reshape(tiles, groups * GROUP_BYTES)
    at = groups * GROUP_BYTES
    for values in (codes.scales, codes.offsets)[: 1 + shape.offsets]:
        column = np.zeros(tiles * TILE_ROWS, "<f4")
        column[:count] = values
        packed[:, at : at + TILE_ROWS * 4] = column.view(np.uint8).reshape(tiles, TILE_ROWS * 4)
        at += TILE_ROWS * 4
    return packed.reshape(-1)


def pack_fine(codes: Codes, shape: CodeShape) -> Bytes:
    """The fine codes of some rows, uint8, each behind its scale, and its offset if any."""
    columns = (codes.fine_scales, codes.offsets)[: 1 + shape.offsets]
    heads = np.stack(columns, axis=1).astype("<f4").view(np.uint8)
    return np.concatenate([heads, codes.fine], axis=1).reshape(-1)


def unpack(tiles: Bytes, fine: Bytes, rows: NDArray[np.uint32], shape: CodeShape) -> Codes:
    """The codes of some rows from their tiles and fine codes, see `split_codes`; copies."""
    count, groups = len(rows), shape.groups
    halves = tiles[:, : groups * GROUP_BYTES].reshape(-1, groups, GROUP_BYTES).transpose(0, 2, 1)
    cells = np.concatenate([halves & 15, halves >> 4], axis=1).reshape(-1, groups)[:count]
    columns = np.ascontiguousarray(tiles[:, groups * GROUP_BYTES :]).view("<f4")
    scales = columns[:, :TILE_ROWS].reshape(-1)[:count]
    offsets = columns[:, TILE_ROWS:].reshape(-1)[:count] if shape.offsets else 0 * scales
    heads = np.ascontiguousarray(fine[:, : 4 * (1 + shape.offsets)]).view("<f4")
    codes = fine[:, 4 * (1 + shape.offsets) :].copy()
    cells = np.ascontiguousarray(cells)
    return Codes(cells, scales, offsets, codes, heads[:, 0].copy(), rows.astype(np.uint32))
