"""How does a vector become a code of 1, 2 or 4 bits a dimension, and a tile of 32 codes?

The estimator is RaBitQ's (Gao and Long, SIGMOD 2024; extended to more bits, SIGMOD 2025): the
residual r = x - centroid is rotated at random, each of its numbers becomes the nearest of 2 ** bits
levels, and the inner product with a query is estimated without bias by

    <r, q>  ~  scale * <levels of r, rotated q>,    scale = |r|^2 / <levels of r, r>.

What the score of a row has besides (under l2 its distance from the centroid) is its offset, so that
score = centroid's score + offset + scale * <levels, q>. See `kernels.py` for the shape of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vecstore.index_layout import GROUP_BYTES, tiles_bytes
from vecstore.layout import TILE_ROWS
from vecstore.spec import Metric
from vecstore.vectors import Vectors

# Groups of 4 bits are scanned 16 at a time.
GROUPS_AT_ONCE = 16
BITS = (1, 2, 4)
# The best levels for numbers of a normal distribution (Max, Quantizing for minimum distortion,
# 1960); only the positive ones of a symmetric set, in units of the standard deviation.
_HALF_LEVELS = {
    1: (1.0,),
    2: (0.4528, 1.5104),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326),
}
ENCODED_AT_ONCE = 8192

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
        rows: uint32 (n,).
    """

    groups: Bytes
    scales: Vectors
    offsets: Vectors
    rows: NDArray[np.uint32]

    def take(self, places: NDArray[np.intp] | NDArray[np.bool_] | slice) -> Codes:
        """Some of the rows."""
        return Codes(
            self.groups[places], self.scales[places], self.offsets[places], self.rows[places]
        )


def join(parts: list[Codes]) -> Codes:
    """Several together."""
    return Codes(
        np.concatenate([part.groups for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.rows for part in parts]),
    )


def empty(groups: int) -> Codes:
    """The codes of no rows."""
    nothing = np.zeros(0, np.float32)
    return Codes(np.zeros((0, groups), np.uint8), nothing, nothing, np.zeros(0, np.uint32))


def encode(
    residuals: Vectors,
    centres: Vectors | None,
    rotation: Vectors,
    bits: int,
    metric: Metric,
    rows: NDArray[np.uint32],
) -> Codes:
    """Code residuals.

    Args:
        residuals: float32 (n, dim), vectors less their centroids.
        centres: float32 (n, dim), those centroids; needed under l2 alone.
        rotation: float32 (coded, dim), orthonormal rows.
        bits: 1, 2 or 4.
        metric: The collection's metric.
        rows: uint32 (n,), which rows these are.
    """
    count, coded = len(residuals), len(rotation)
    groups = np.zeros((count, groups_of(coded, bits)), np.uint8)
    scales, offsets = np.empty(count, np.float32), np.zeros(count, np.float32)
    for at in range(0, count, ENCODED_AT_ONCE):
        part = slice(at, at + ENCODED_AT_ONCE)
        groups[part], scales[part] = _encode(residuals[part] @ rotation.T, bits, groups.shape[1])
        if metric == "l2":
            assert centres is not None
            # |x - q|^2 = |q - c|^2 + |r|^2 + 2 <r, c> - 2 <r, q>, and scores are minus half of it.
            squares = np.vecdot(residuals[part], residuals[part])
            offsets[part] = -0.5 * squares - np.vecdot(residuals[part], centres[part])
    return Codes(groups, scales, offsets, rows)


def _encode(rotated: Vectors, bits: int, groups: int) -> tuple[Bytes, Vectors]:
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
    return _join_bits(values, bits, groups), scales


def _join_bits(values: Bytes, bits: int, groups: int) -> Bytes:
    """Put the codes of 4 / bits dimensions into one group."""
    dims = 4 // bits
    padded = np.zeros((len(values), groups * dims), np.uint8)
    padded[:, : values.shape[1]] = values
    joined = padded[:, ::dims].copy()
    for number in range(1, dims):
        joined |= padded[:, number::dims] << (number * bits)
    return joined


# Tiles


def pack_tiles(codes: Codes, *, offsets: bool) -> Bytes:
    """The tiles of some rows, uint8; the last is filled up with codes of zero scale."""
    count, groups = codes.groups.shape
    tiles, half = -(-count // TILE_ROWS), TILE_ROWS // 2
    packed = np.zeros((tiles, tiles_bytes(1, groups, offsets)), np.uint8)
    cells = np.zeros((tiles * TILE_ROWS, groups), np.uint8)
    cells[:count] = codes.groups
    halves = cells.reshape(tiles, 2, half, groups)
    low, high = halves[:, 0].transpose(0, 2, 1), halves[:, 1].transpose(0, 2, 1)
    packed[:, : groups * GROUP_BYTES] = (low | high << 4).reshape(tiles, groups * GROUP_BYTES)
    at = groups * GROUP_BYTES
    for values in (codes.scales, codes.offsets)[: 1 + offsets]:
        column = np.zeros(tiles * TILE_ROWS, "<f4")
        column[:count] = values
        packed[:, at : at + TILE_ROWS * 4] = column.view(np.uint8).reshape(tiles, TILE_ROWS * 4)
        at += TILE_ROWS * 4
    return packed.reshape(-1)


def unpack_tiles(
    payload: Bytes | memoryview | bytes, rows: NDArray[np.uint32], groups: int, *, offsets: bool
) -> Codes:
    """The codes of some rows, which the tiles do not name; copies."""
    count, size = len(rows), tiles_bytes(len(rows), groups, offsets)
    packed = np.frombuffer(payload, np.uint8, size).reshape(-1, tiles_bytes(1, groups, offsets))
    halves = packed[:, : groups * GROUP_BYTES].reshape(-1, groups, GROUP_BYTES).transpose(0, 2, 1)
    cells = np.concatenate([halves & 15, halves >> 4], axis=1).reshape(-1, groups)[:count]
    at, columns = groups * GROUP_BYTES, []
    for _ in range(1 + offsets):
        column = np.ascontiguousarray(packed[:, at : at + TILE_ROWS * 4]).view("<f4")
        columns.append(column.reshape(-1)[:count])
        at += TILE_ROWS * 4
    scales = columns[0]
    return Codes(
        np.ascontiguousarray(cells), scales, columns[1] if offsets else np.zeros_like(scales), rows
    )
