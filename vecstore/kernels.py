"""How does a query run at the machine's speed? Every numba kernel, and nothing else of ours.

One file that imports nothing of vecstore, because numba's cache does not notice edits elsewhere.
Kernels trust their arguments: addresses were checked when they entered a table, and whatever is
read from the file besides (rows, counts) is compared with a bound here. Each entry point has one
explicit signature with read-only inputs, releases the GIL and allocates only scratch. Its twin in
`plain.py` does the same with numpy.

Codes are scanned as FastScan does (André, Kermarrec, Le Scouarnec: Cache locality is not enough,
VLDB 2015): 4 bits of a code choose one of 16 entries of a table in a vector register. A tile holds
the codes of 32 rows; 16 bytes of it hold one 4-bit group of all rows, row i in the low half of byte
i and row i + 16 in its high half.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numba as nb
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# Float arithmetic may be reordered and contracted; NaN and infinity keep their meaning.
FLOAT_MATH = {"reassoc", "contract", "nsz"}
TILE_ROWS = 32
GROUPS_AT_ONCE = 16
HEADER = 48
# Orders and norms in front of the vectors of a block; a column of scales too where they are int8.
COLUMNS = 1024
SCALES = 256
# Entries of the kernels' integer and float parameters.
(DIM, GROUPS, OFFSETS, LISTS, K, ROOM, METRIC, PRECISION, LEAST, MOST, INTEGERS) = range(11)
GAP, REACH, SLACK = range(3)
COSINE, DOT, L2 = range(3)
# As `layout.py` numbers them.
FLOAT32, FLOAT16, INT8 = 1, 3, 4
# What a search reports of each query, and which table it found an entry missing in.
# Times are cycles of the processor: shares of the whole are what they are good for.
(LISTS_SEEN, ROWS_SEEN, RESCORED, COARSE_TIME, SCAN_TIME, RESCORE_TIME, SETTLE_TIME, STAGES) = (
    range(8)
)
NOTHING, LIST, CODES, BLOCK = range(4)


# Machine words


def _pointer(kind: Any) -> Any:
    @intrinsic
    def pointer(context: Any, address: Any) -> Any:
        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], target.get_value_type(types.CPointer(kind)))

        return types.CPointer(kind)(types.uint64), generate

    return pointer


_u8 = _pointer(types.uint8)
_i8 = _pointer(types.int8)
_u16 = _pointer(types.uint16)
_u32 = _pointer(types.uint32)
_u64 = _pointer(types.uint64)
_f32 = _pointer(types.float32)


@intrinsic
def _lowest(context: Any, word: Any) -> Any:
    """The number of the lowest bit that is set in a uint32, which is not zero."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint32(types.uint32), generate


@intrinsic
def _prefetch(context: Any, address: Any) -> Any:
    """Ask for the cache line of an address, to be read once."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        hints = [ir.Constant(word, value) for value in (0, 3, 1)]
        builder.call(function, [builder.inttoptr(arguments[0], pointer), *hints])
        return target.get_dummy_value()

    return types.void(types.uint64), generate


@intrinsic
def _clock(context: Any) -> Any:
    """The processor's cycle counter."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(
            cgutils.get_or_insert_function(builder.module, kind, "llvm.readcyclecounter"), []
        )

    return types.int64(), generate


@intrinsic
def _half(context: Any, bits: Any) -> Any:
    """The float32 of the bits of a float16."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half = builder.bitcast(arguments[0], ir.HalfType())
        return builder.fpext(half, ir.FloatType())

    return types.float32(types.uint16), generate


# One tile of codes, in vector registers

_I16, _I32, _I64, _FLOAT = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES = ir.VectorType(ir.IntType(8), 64)
_WORDS = ir.VectorType(_I16, 32)
_FLOATS = ir.VectorType(_FLOAT, 16)


def _shuffles() -> tuple[int, str]:
    """How many bytes this processor looks up at once, and the instruction's name in LLVM."""
    features = llvm.get_host_cpu_features()
    for feature, width, name in (
        ("avx512bw", 64, "llvm.x86.avx512.pshuf.b.512"),
        ("avx2", 32, "llvm.x86.avx2.pshuf.b"),
        ("ssse3", 16, "llvm.x86.ssse3.pshuf.b.128"),
        ("neon", 16, "llvm.aarch64.neon.tbl1.v16i8"),
    ):
        if features.get(feature):
            return width, name
    return 1, ""


SHUFFLES = _shuffles()


def _all(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _pick(builder: Any, a: Any, b: Any, places: Any) -> Any:
    places = list(places)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(places)), places))


def _splat(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(_I32, 0))
    return _pick(builder, one, one, [0] * 16)


def _load(builder: Any, address: Any, kind: Any, align: int) -> Any:
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = align
    return loaded


def _look_up(builder: Any, table: Any, index: Any) -> Any:
    """Four tables of 16 bytes, one for each quarter of an index of 64 bytes below 16."""
    width, name = SHUFFLES
    if not name:
        found = ir.Constant(_BYTES, ir.Undefined)
        for i in range(64):
            place = builder.zext(builder.extract_element(index, ir.Constant(_I32, i)), _I32)
            place = builder.add(place, ir.Constant(_I32, i // 16 * 16))
            value = builder.extract_element(table, place)
            found = builder.insert_element(found, value, ir.Constant(_I32, i))
        return found
    kind = ir.VectorType(ir.IntType(8), width)
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind, kind]), name
    )
    if width == 64:
        return builder.call(function, [table, index])
    parts = []
    for at in range(0, 64, width):
        places = range(at, at + width)
        halves = [_pick(builder, vector, vector, places) for vector in (table, index)]
        parts.append(builder.call(function, halves))
    while len(parts) > 1:
        count = 2 * parts[0].type.count
        parts = [
            _pick(builder, parts[i], parts[i + 1], range(count)) for i in range(0, len(parts), 2)
        ]
    return parts[0]


def _add_groups(builder: Any, tile: Any, table: Any, sums: list[Any]) -> None:
    """Add 16 groups of a tile to its sums: those of 4 are added as bytes, which 6 bits allow."""
    low, high = None, None
    for step in range(0, 256, 64):
        offset = ir.Constant(_I64, step)
        codes = _load(builder, builder.add(tile, offset), _BYTES, 16)
        entries = _load(builder, builder.add(table, offset), _BYTES, 1)
        upper = builder.lshr(builder.bitcast(codes, _WORDS), _all(_WORDS, 4))
        found = [
            _look_up(builder, entries, builder.and_(half, _all(_BYTES, 15)))
            for half in (codes, builder.bitcast(upper, _BYTES))
        ]
        low = found[0] if low is None else builder.add(low, found[0])
        high = found[1] if high is None else builder.add(high, found[1])
    for number, half in enumerate((low, high)):
        # Sums of even bytes plus 256 times those of odd ones; the latter alone are taken off later.
        both = builder.bitcast(half, _WORDS)
        odd = builder.lshr(both, _all(_WORDS, 8))
        for value, total in ((both, sums[2 * number]), (odd, sums[2 * number + 1])):
            builder.store(builder.add(builder.load(total), value), total)


def _fold(builder: Any, both: Any, odd: Any) -> Any:
    """The sums of 16 rows, as floats, from those of the bytes of four quarters."""
    even = builder.sub(both, builder.shl(odd, _all(_WORDS, 8)))
    halves = []
    for total in (even, odd):
        total = builder.add(
            _pick(builder, total, total, range(16)), _pick(builder, total, total, range(16, 32))
        )
        halves.append(
            builder.add(
                _pick(builder, total, total, range(8)), _pick(builder, total, total, range(8, 16))
            )
        )
    rows = _pick(builder, *halves, [place for i in range(8) for place in (i, 8 + i)])
    return builder.uitofp(builder.zext(rows, ir.VectorType(_I32, 16)), _FLOATS)


@intrinsic
def _scan_tile(
    context: Any,
    tile: Any,
    table: Any,
    groups: Any,
    out: Any,
    base: Any,
    step: Any,
    start: Any,
    threshold: Any,
    offsets: Any,
) -> Any:
    """Score the rows of a tile: base + offset + scale * (start + step * sum of table entries).

    `offsets` is 1 if the tile has a column of offsets behind its scales, else 0. Writes float32
    (32,) to the address `out` and returns a uint32 of the rows above the threshold.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tile, table, groups, out, base, step, start, threshold, offsets = arguments
        sums = [cgutils.alloca_once_value(builder, _all(_WORDS, 0)) for _ in range(4)]
        end = builder.mul(groups, ir.Constant(_I64, 16))
        zero, pace = ir.Constant(_I64, 0), ir.Constant(_I64, 16 * GROUPS_AT_ONCE)
        with cgutils.for_range_slice(builder, zero, end, pace, _I64) as (at, _):
            _add_groups(builder, builder.add(tile, at), builder.add(table, at), sums)
        scales, mask = builder.add(tile, end), ir.Constant(_I32, 0)
        # Where there is no column of offsets, the scales are read in its place, times zero.
        column = builder.add(scales, builder.mul(offsets, ir.Constant(_I64, 4 * TILE_ROWS)))
        weight = _splat(builder, builder.sitofp(offsets, _FLOAT))
        for half in range(2):
            both, odd = (builder.load(total) for total in sums[2 * half : 2 * half + 2])
            total, place = _fold(builder, both, odd), ir.Constant(_I64, 64 * half)
            scale = _load(builder, builder.add(scales, place), _FLOATS, 16)
            offset = _load(builder, builder.add(column, place), _FLOATS, 16)
            inner = _add_product(builder, _splat(builder, start), _splat(builder, step), total)
            score = _add_product(builder, _splat(builder, base), weight, offset)
            score = _add_product(builder, score, scale, inner)
            pointer = builder.inttoptr(builder.add(out, place), _FLOATS.as_pointer())
            builder.store(score, pointer).align = 4
            above = builder.fcmp_ordered(">", score, _splat(builder, threshold))
            bits = builder.zext(builder.bitcast(above, _I16), _I32)
            mask = builder.or_(mask, builder.shl(bits, ir.Constant(_I32, 16 * half)))
        return mask

    whole, real = types.uint64, types.float32
    kinds = (whole, whole, types.int64, whole, real, real, real, real, types.int64)
    return types.uint32(*kinds), generate


def _add_product(builder: Any, total: Any, a: Any, b: Any) -> Any:
    flags = tuple(sorted(FLOAT_MATH))
    return builder.fadd(total, builder.fmul(a, b, flags=flags), flags=flags)


@intrinsic
def _dot_four(context: Any, codes: Any, words: Any, count: Any, out: Any) -> Any:
    """Write the inner products, int32 (4,), of four rows of int8 and one of int16.

    The rows of int8 lie behind one another; `count`, their length, is a multiple of 32.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes, words, count, out = arguments
        kind, wide = ir.VectorType(_I32, 16), ir.VectorType(_I32, 32)
        # Four sums at once hide the latency of adding up.
        totals = [cgutils.alloca_once_value(builder, _all(kind, 0)) for _ in range(4)]
        zero, pace = ir.Constant(_I64, 0), ir.Constant(_I64, 32)
        with cgutils.for_range_slice(builder, zero, count, pace, _I64) as (at, _):
            place = builder.add(words, builder.mul(at, ir.Constant(_I64, 2)))
            pairs = builder.sext(_load(builder, place, _WORDS, 1), wide)
            for number, total in enumerate(totals):
                row = builder.add(codes, builder.mul(count, ir.Constant(_I64, number)))
                eights = ir.VectorType(ir.IntType(8), 32)
                numbers = _load(builder, builder.add(row, at), eights, 1)
                # The shape in which LLVM sees a sum of products of neighbours.
                products = builder.mul(builder.sext(builder.sext(numbers, _WORDS), wide), pairs)
                sums = builder.add(
                    _pick(builder, products, products, range(0, 32, 2)),
                    _pick(builder, products, products, range(1, 32, 2)),
                )
                builder.store(builder.add(builder.load(total), sums), total)
        found = [builder.load(total) for total in totals]
        for width in (8, 4, 2, 1):
            found = [
                builder.add(
                    _pick(builder, total, total, range(width)),
                    _pick(builder, total, total, range(width, 2 * width)),
                )
                for total in found
            ]
        for number, total in enumerate(found):
            place = builder.add(out, ir.Constant(_I64, 4 * number))
            one = builder.extract_element(total, ir.Constant(_I32, 0))
            builder.store(one, builder.inttoptr(place, _I32.as_pointer()))
        return target.get_dummy_value()

    word = types.uint64
    return types.void(word, word, types.int64, word), generate


@intrinsic
def _add_eights(context: Any, values: Any, count: Any) -> Any:
    """Add the second, third ... eight float64 at an address to the first eight, in this order."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, count = arguments
        kind = ir.VectorType(ir.DoubleType(), 8)
        total = cgutils.alloca_once_value(builder, _load(builder, values, kind, 8))
        one = ir.Constant(_I64, 1)
        with cgutils.for_range_slice(builder, one, count, one, _I64) as (at, _):
            place = builder.add(values, builder.mul(at, ir.Constant(_I64, 64)))
            more = _load(builder, place, kind, 8)
            builder.store(builder.fadd(builder.load(total), more), total)
        pointer = builder.inttoptr(values, kind.as_pointer())
        builder.store(builder.load(total), pointer).align = 8
        return target.get_dummy_value()

    return types.void(types.uint64, types.int64), generate


@intrinsic
def _fill_group(
    context: Any, weights: Any, patterns: Any, dims: Any, low: Any, inverse: Any, out: Any
) -> Any:
    """Write 16 bytes: (sum of weights[n] * patterns[n] - low) * inverse, rounded to the nearest."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights, patterns, dims, low, inverse, out = arguments
        total = cgutils.alloca_once_value(builder, _all(_FLOATS, 0))
        with cgutils.for_range(builder, dims) as loop:
            place = builder.add(weights, builder.mul(loop.index, ir.Constant(_I64, 4)))
            weight = builder.load(builder.inttoptr(place, _FLOAT.as_pointer()))
            place = builder.add(patterns, builder.mul(loop.index, ir.Constant(_I64, 64)))
            pattern = _load(builder, place, _FLOATS, 4)
            product = builder.fmul(_splat(builder, weight), pattern)
            builder.store(builder.fadd(builder.load(total), product), total)
        above = builder.fsub(builder.load(total), _splat(builder, low))
        scaled = builder.fadd(builder.fmul(above, _splat(builder, inverse)), _all(_FLOATS, 0.5))
        whole = builder.fptosi(scaled, ir.VectorType(_I32, 16))
        entries = builder.trunc(whole, ir.VectorType(ir.IntType(8), 16))
        pointer = builder.inttoptr(out, entries.type.as_pointer())
        builder.store(entries, pointer).align = 1
        return target.get_dummy_value()

    word, real = types.uint64, types.float32
    return types.void(word, word, types.int64, real, real, word), generate


# Small parts of a search

# Said outright, since a function that says nothing does as its first caller.
# Nobody calls these from Python: the wrappers for that would take a tenth of the compiling. And an
# argument that is a literal would make numba compile a function once more, hence np.int64(0).
_exactly = njit(nogil=True, fastmath=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)
_quickly = njit(nogil=True, fastmath=FLOAT_MATH, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@_quickly
def _to_words(vector, out):
    """Write a vector as int16, filled up with zeros, and return the scale.

    Small enough that the inner product with int8 numbers fits 32 bits.
    """
    largest = np.float32(0)
    for j in range(vector.size):
        largest = max(largest, abs(vector[j]))
    most = np.float32(min(32767, 2**31 // (128 * out.size)))
    scale = largest / most
    # The inverse of less is infinite.
    if scale < np.float32(1e-37):
        scale = np.float32(1)
    inverse = np.float32(1) / scale
    for j in range(vector.size):
        out[j] = np.int16(np.int32(vector[j] * inverse))
    for j in range(vector.size, out.size):
        out[j] = 0
    return scale


@_quickly
def _multiply(matrix, scales, words, scale, out):
    """out[i] = matrix[i] . vector, of an int8 matrix with a scale a row and a vector in int16.

    The matrix has a multiple of 4 rows.
    """
    place, width = np.uint64(matrix.ctypes.data), matrix.shape[1]
    vector, totals = np.uint64(words.ctypes.data), np.empty(4, np.int32)
    four = np.uint64(totals.ctypes.data)
    for i in range(0, matrix.shape[0], 4):
        _dot_four(place + np.uint64(i * width), vector, width, four)
        for j in range(4):
            out[i + j] = np.float32(totals[j]) * scales[i + j] * scale


@_exactly
def _sink(values, items, at, size):
    """Let the entry at a place of a heap sink: the smallest value stands first."""
    value, item = values[at], items[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and values[child + 1] < values[child]:
            child += 1
        if values[child] >= value:
            break
        values[at], items[at] = values[child], items[child]
        at = child
    values[at], items[at] = value, item


@_exactly
def _rise(values, items, at):
    """Let the entry at a place of a heap rise."""
    value, item = values[at], items[at]
    while at > 0:
        parent = (at - 1) >> 1
        if values[parent] <= value:
            break
        values[at], items[at] = values[parent], items[parent]
        at = parent
    values[at], items[at] = value, item


@_exactly
def _keep_best(values, items, size, room, value, item):
    """Put an entry into a heap of the `room` largest values; return the heap's new size."""
    if size < room:
        values[size], items[size] = value, item
        _rise(values, items, size)
        return size + 1
    if value > values[0]:
        values[0], items[0] = value, item
        _sink(values, items, np.int64(0), size)
    return size


@_quickly
def _fill_table(rotated, patterns, groups, table):
    """Make the table of a query, (groups, 16) bytes below 64; return start and step of its sums.

    An entry is the inner product of the query and what 4 bits stand for in so many dimensions as
    `patterns` (dims, 16) has rows. It is kept as a multiple of `step` above its group's least.
    `rotated` (groups * dims,) is filled up with zeros.
    """
    dims = patterns.shape[0]
    # Levels are symmetric: a group's least entry is minus its greatest.
    top = patterns[0, 15]
    start, widest = np.float32(0), np.float32(0)
    for group in range(groups):
        size = np.float32(0)
        for number in range(dims):
            size += abs(rotated[group * dims + number])
        start -= size * top
        widest = max(widest, size * top * np.float32(2))
    # The sums of all groups must fit 16 bits.
    most = np.float32(min(63, 65535 // groups))
    step = widest / most
    if step < np.float32(1e-37):
        step = np.float32(1)
    inverse = np.float32(1) / step
    weights, shapes = np.uint64(rotated.ctypes.data), np.uint64(patterns.ctypes.data)
    out = np.uint64(table.ctypes.data)
    for group in range(groups):
        size = np.float32(0)
        for number in range(dims):
            size += abs(rotated[group * dims + number])
        place = weights + np.uint64(group * dims * 4)
        _fill_group(place, shapes, dims, -size * top, inverse, out + np.uint64(group * 16))
    return start, step


@_quickly
def _product(address, precision, scale, dim, query):
    """Inner product of a stored vector and a query."""
    total = np.float32(0)
    if precision == FLOAT32:
        floats = nb.carray(_f32(address), dim)
        for j in range(dim):
            total += floats[j] * query[j]
    elif precision == FLOAT16:
        halves = nb.carray(_u16(address), dim)
        for j in range(dim):
            total += _half(halves[j]) * query[j]
    else:
        codes = nb.carray(_i8(address), dim)
        for j in range(dim):
            total += np.float32(codes[j]) * query[j]
        total *= scale
    return total


@_quickly
def _minus_half_square(address, precision, scale, dim, query):
    """Minus half the squared Euclidean distance of a stored vector and a query."""
    total = np.float32(0)
    if precision == FLOAT32:
        floats = nb.carray(_f32(address), dim)
        for j in range(dim):
            total += (floats[j] - query[j]) * (floats[j] - query[j])
    elif precision == FLOAT16:
        halves = nb.carray(_u16(address), dim)
        for j in range(dim):
            off = _half(halves[j]) - query[j]
            total += off * off
    else:
        codes = nb.carray(_i8(address), dim)
        for j in range(dim):
            off = np.float32(codes[j]) * scale - query[j]
            total += off * off
    return np.float32(-0.5) * total


@_exactly
def _place(block, inside, dim, precision):
    """Address of a stored vector, and its scale."""
    if precision == FLOAT32:
        return block + np.uint64(HEADER + COLUMNS + inside * dim * 4), np.float32(1)
    if precision == FLOAT16:
        return block + np.uint64(HEADER + COLUMNS + inside * dim * 2), np.float32(1)
    scale = nb.carray(_f32(block + np.uint64(HEADER + COLUMNS)), 64)[inside]
    return block + np.uint64(HEADER + COLUMNS + SCALES + inside * dim), scale


@_exactly
def _sum_few(values, at, count):
    """The sum of at most 128 float64 values, as `_pairwise`; it changes the first ones."""
    if count < 8:
        total = -0.0
        for i in range(count):
            total += values[at + i]
        return total
    whole = count - count % 8
    _add_eights(np.uint64(values.ctypes.data) + np.uint64(8 * at), whole >> 3)
    total = ((values[at] + values[at + 1]) + (values[at + 2] + values[at + 3])) + (
        (values[at + 4] + values[at + 5]) + (values[at + 6] + values[at + 7])
    )
    for i in range(at + whole, at + count):
        total += values[i]
    return total


@_exactly
def _pairwise(values, count, todo, done):
    """The sum of float64 values in the order in which numpy adds them, so that no bit differs.

    numpy halves what is longer than 128. Not by recursion, which numba's cache does not survive:
    `todo` int64 (3, 32) is a stack of parts and their depths, `done` float64 (32,) one of sums.
    """
    todo[0, 0], todo[1, 0], todo[2, 0] = 0, count, 0
    left, held = 1, 0
    while left > 0:
        left -= 1
        at, size, depth = todo[0, left], todo[1, left], todo[2, left]
        if size > 128:
            half = size // 2
            half -= half % 8
            todo[0, left], todo[1, left], todo[2, left] = at + half, size - half, depth + 1
            todo[0, left + 1], todo[1, left + 1], todo[2, left + 1] = at, half, depth + 1
            left += 2
            continue
        total = _sum_few(values, at, size)
        # Depths of the sums held descend to the right of a pair that is complete.
        while held > 0 and todo[2, 31 - held] == depth:
            held -= 1
            total = done[held] + total
            depth -= 1
        done[held] = total
        held += 1
        todo[2, 31 - held] = depth
    return done[0]


@_exactly
def _widen(address, precision, scale, dim, out):
    """Write a stored vector as float64."""
    if precision == FLOAT32:
        floats = nb.carray(_f32(address), dim)
        for j in range(dim):
            out[j] = floats[j]
    elif precision == FLOAT16:
        halves = nb.carray(_u16(address), dim)
        for j in range(dim):
            out[j] = _half(halves[j])
    else:
        codes = nb.carray(_i8(address), dim)
        for j in range(dim):
            out[j] = np.float32(codes[j]) * scale


@_exactly
def _settle(wide, query, metric, products, todo, done):
    """The exact score in float64, to the bit that `exact.score` computes with numpy."""
    dim = wide.shape[0]
    if metric == L2:
        for j in range(dim):
            products[j] = (wide[j] - query[j]) ** 2
        return 0.0 - np.sqrt(_pairwise(products, dim, todo, done))
    for j in range(dim):
        products[j] = wide[j] * query[j]
    score = _pairwise(products, dim, todo, done)
    if metric == COSINE:
        for j in range(dim):
            products[j] = wide[j] * wide[j]
        size = np.sqrt(_pairwise(products, dim, todo, done))
        if size > 0:
            score /= size
        score = min(max(score, -1.0), 1.0)
    return score


# One query: coarse, scan, rescore


@_exactly
def _above(values, count, room):
    """The largest value that leaves at most `room` of the first `count` above it."""
    order, items = values[:count].copy(), np.empty(count, np.int64)
    for i in range(count // 2 - 1, -1, -1):
        _sink(order, items, i, count)
    left = count
    for _ in range(count - room - 1):
        left -= 1
        order[0] = order[left]
        _sink(order, items, np.int64(0), left)
    return order[0]


@_exactly
def _prune(optimistic, likely, rows, count, threshold, room):
    """Keep the candidates that reach the threshold, at most `room` of them; return how many."""
    kept = 0
    for i in range(count):
        if optimistic[i] >= threshold:
            optimistic[kept], likely[kept], rows[kept] = optimistic[i], likely[i], rows[i]
            kept += 1
    if kept <= room:
        return kept
    bound = _above(optimistic, kept, room)
    equal = room
    for i in range(kept):
        equal -= optimistic[i] > bound
    count, kept = kept, 0
    for i in range(count):
        at_bound = optimistic[i] == bound
        if optimistic[i] > bound or (at_bound and equal > 0):
            equal -= at_bound
            optimistic[kept], likely[kept], rows[kept] = optimistic[i], likely[i], rows[i]
            kept += 1
    return kept


@_quickly
def _scan(
    tiles, count, first, ahead, groups, offsets, query, mask, scores, best, best_rows,
    optimistic, likely, rows, sizes,
):  # fmt: skip
    """Scan the tiles at an address; candidates go to the buffer, the k likeliest to the heap.

    Args:
        tiles: Address of the first tile.
        count: How many tiles.
        first: Row of the first code, or -1 if the rows are named behind the tiles.
        ahead: Address of what is scanned next: it is asked for meanwhile.
        groups: Groups of a code.
        offsets: 1 if tiles have offsets, else 0.
        query: Address of the table, score of the list, step, start, noise.
        mask: uint64 (blocks,), the rows wanted.
        scores: float32 (32,), scratch.
        best: Heap of the k largest scores, and their rows in
        best_rows: int64 (k,).
        optimistic: Buffer of candidates: scores plus the noise, then less it in
        likely: float32 (room,), and their rows in
        rows: int64 (room,).
        sizes: Sizes of heap and buffer.
    """
    table, base, step, start, noise = query
    out, limit, k = np.uint64(scores.ctypes.data), np.int64(mask.size) << 6, best.size
    stride = np.uint64(groups * 16 + TILE_ROWS * 4 * (1 + offsets))
    names = nb.carray(_u32(tiles + np.uint64(count) * stride), count * TILE_ROWS)
    threshold = best[0] if sizes[0] == k else np.float32(-np.inf)
    coming = np.uint64(0)
    if ahead != 0:
        following = (_held(ahead) + TILE_ROWS - 1) // TILE_ROWS
        coming = ahead + np.uint64(HEADER) + np.uint64(following) * stride
    for number in range(count):
        tile = tiles + np.uint64(number) * stride
        if ahead != 0:
            for line in range(0, stride, 64):
                _prefetch(ahead + np.uint64(number) * stride + np.uint64(line))
            _prefetch(coming + np.uint64(128 * number))
            _prefetch(coming + np.uint64(128 * number + 64))
        hits = _scan_tile(tile, table, groups, out, base, step, start + noise, threshold, offsets)
        if hits == 0:
            continue
        scale = nb.carray(_f32(tile + np.uint64(groups * 16)), TILE_ROWS)
        while hits:
            i = np.int64(_lowest(hits))
            hits &= hits - np.uint32(1)
            place = number * TILE_ROWS + i
            row = np.int64(names[place]) if first < 0 else first + place
            if row >= limit or not (mask[row >> 6] >> np.uint64(row & 63)) & np.uint64(1):
                continue
            if sizes[1] == rows.size:
                sizes[1] = _prune(
                    optimistic, likely, rows, sizes[1], threshold,
                    rows.size - max(1, rows.size // 4),
                )  # fmt: skip
            # What it scores at least: one that may be better than it is must not raise the bar.
            at, value = sizes[1], scores[i] - np.float32(2) * noise * scale[i]
            optimistic[at], likely[at], rows[at] = scores[i], value, row
            sizes[1] = at + 1
            if value > threshold:
                sizes[0] = _keep_best(best, best_rows, sizes[0], k, value, row)
                if sizes[0] == k:
                    threshold = best[0]


@_quickly
def _rank(bases, lists, least, heap, items):
    """Make a heap of the lists with at least a score, the largest first; return its size."""
    count = 0
    for i in range(lists):
        if bases[i] >= least:
            heap[count], items[count] = -bases[i], i
            count += 1
    for i in range(count // 2 - 1, -1, -1):
        _sink(heap, items, i, count)
    return count


@_quickly
def _rescore(
    query, shift, integers, blocks, optimistic, rows, first, last, best, best_rows, size
):  # fmt: skip
    """Score candidates by their stored vectors into the heap of the k best; return its size.

    One whose optimistic score cannot enter the heap any more is passed over.
    """
    dim, precision, metric = integers[DIM], integers[PRECISION], integers[METRIC]
    width = dim * (4 if precision == FLOAT32 else 2 if precision == FLOAT16 else 1)
    ahead = first
    for i in range(first, last):
        # Rows lie scattered: their memory is asked for while the ones before are scored.
        while ahead < last and ahead < i + 4:
            place, _ = _place(blocks[rows[ahead] >> 6], rows[ahead] & 63, dim, precision)
            for offset in range(0, width, 64):
                _prefetch(place + np.uint64(offset))
            ahead += 1
        if size == best.size and optimistic[i] <= best[0]:
            continue
        place, scale = _place(blocks[rows[i] >> 6], rows[i] & 63, dim, precision)
        if metric == L2:
            score = _minus_half_square(place, precision, scale, dim, query) + shift
        else:
            score = _product(place, precision, scale, dim, query)
        size = _keep_best(best, best_rows, size, best.size, score, rows[i])
    return size


@_exactly
def _divide(optimistic, likely, rows, count, bound):
    """Move the candidates that are likely to be at least `bound` to the front; return how many."""
    front = 0
    for i in range(count):
        if likely[i] >= bound:
            score, value, row = optimistic[i], likely[i], rows[i]
            optimistic[i], likely[i], rows[i] = optimistic[front], likely[front], rows[front]
            optimistic[front], likely[front], rows[front] = score, value, row
            front += 1
    return front


@_exactly
def _note(missing, kind, number):
    """Write down an entry that a table lacks, if there is room."""
    missing[0] = kind
    if missing[1] < missing.size - 2:
        missing[2 + missing[1]] = number
        missing[1] += 1


@_exactly
def _finish(wide, metric, precision, dim, blocks, best_rows, size, orders, scores):
    """Settle the best rows in float64 and write their orders and scores, best first."""
    stored, products = np.empty(dim), np.empty(dim)
    todo, done = np.empty((3, 32), np.int64), np.empty(32)
    for i in range(size):
        row = best_rows[i]
        block, inside = blocks[row >> 6], row & 63
        place, scale = _place(block, inside, dim, precision)
        _widen(place, precision, scale, dim, stored)
        score = _settle(stored, wide, metric, products, todo, done)
        order = nb.carray(_u64(block + np.uint64(HEADER)), 64)[inside]
        at = i
        while at > 0 and (
            scores[at - 1] < score or (scores[at - 1] == score and orders[at - 1] > order)
        ):
            scores[at], orders[at] = scores[at - 1], orders[at - 1]
            at -= 1
        scores[at], orders[at] = score, order


@_exactly
def _held(address):
    """The rows of a bulk value, as its header says."""
    return np.int64(nb.carray(_u32(address + np.uint64(8)), 1)[0])


@_exactly
def _check_blocks(blocks, optimistic, likely, rows, count, missing):
    """Drop candidates that no block holds, and note blocks that the table lacks."""
    kept = 0
    for i in range(count):
        block = rows[i] >> 6
        if blocks[block] == 0:
            _note(missing, np.int64(BLOCK), block)
        elif (rows[i] & 63) >= _held(blocks[block]):
            continue
        optimistic[kept], likely[kept], rows[kept] = optimistic[i], likely[i], rows[i]
        kept += 1
    return kept


@_quickly
def _scan_lists(
    lists, bases, heap, items, integers, gap, reach, query, mask, scores, best, best_rows,
    optimistic, likely, rows, sizes, missing,
):  # fmt: skip
    """Scan lists, nearest first, until rank and distance say that the rest is not worth it.

    Returns how many lists and how many rows.
    """
    table, step, start, noise = query
    count, top, seen, scanned = integers[LISTS], np.float32(-np.inf), 0, 0
    for i in range(count):
        top = max(top, bases[i])
    # A list farther off than this is out of reach, whatever its rank.
    least = top - reach / gap if gap > 0 and integers[LEAST] <= 1 else np.float32(-np.inf)
    left = _rank(bases, count, least, heap, items)
    while seen < integers[MOST]:
        # Fewer candidates than wanted: a filter lets few rows through.
        short = sizes[0] < best.size and missing[1] == 0
        if left == 0:
            if not short or least == -np.inf:
                break
            left = _rank(bases, count, np.float32(-np.inf), heap, items)
            for _ in range(seen):
                left -= 1
                heap[0], items[0] = heap[left], items[left]
                _sink(heap, items, np.int64(0), left)
            least = np.float32(-np.inf)
            continue
        number = items[0]
        far = np.log(np.float32(1 + seen)) + (top + heap[0]) * gap
        if far > reach and seen >= integers[LEAST] and not short:
            break
        left -= 1
        heap[0], items[0] = heap[left], items[left]
        _sink(heap, items, np.int64(0), left)
        seen += 1
        if lists[number] == 0:
            _note(missing, np.int64(LIST), number)
            continue
        tiles = (_held(lists[number]) + TILE_ROWS - 1) // TILE_ROWS
        ahead = lists[items[0]] if left > 0 else np.uint64(0)
        scanned += tiles * TILE_ROWS
        _scan(
            lists[number] + np.uint64(HEADER), tiles, np.int64(-1), ahead, integers[GROUPS],
            integers[OFFSETS], (table, bases[number], step, start, noise), mask, scores, best,
            best_rows, optimistic, likely, rows, sizes,
        )  # fmt: skip
    return seen, scanned


@_quickly
def _scan_tail(
    codes, tail, base, integers, query, mask, scores, best, best_rows, optimistic, likely, rows,
    sizes, missing,
):  # fmt: skip
    """Scan the codes of blocks with rows that are in no list; return how many rows."""
    table, step, start, noise = query
    scanned = 0
    for number in range(tail.size):
        address = codes[tail[number]]
        if address == 0:
            _note(missing, np.int64(CODES), tail[number])
            continue
        tiles = (_held(address) + TILE_ROWS - 1) // TILE_ROWS
        scanned += tiles * TILE_ROWS
        _scan(
            address + np.uint64(HEADER), tiles, tail[number] << 6, np.uint64(0),
            integers[GROUPS], integers[OFFSETS], (table, base, step, start, noise), mask, scores,
            best, best_rows, optimistic, likely, rows, sizes,
        )  # fmt: skip
    return scanned


def _in(kind: Any, dims: int) -> Any:
    return types.Array(kind, dims, "C", readonly=True)


def _out(kind: Any, dims: int) -> Any:
    return types.Array(kind, dims, "C")


SEARCH = types.int64(
    *(_in(types.float32, 2),) * 2, _in(types.float64, 2), _in(types.int64, 1),
    _in(types.float32, 1), *(_in(types.int8, 2), _in(types.float32, 1)) * 3, _in(types.float32, 1),
    _in(types.float32, 2), *(_in(types.uint64, 1),) * 3, _in(types.int64, 1),
    *(_in(types.uint64, 1),) * 2, _out(types.uint64, 2), _out(types.float64, 2),
    _out(types.int64, 1), _out(types.int64, 2), _out(types.int64, 1), types.int64,
)  # fmt: skip


def search(
    queries, centred, wide, integers, floats, reduction, reduction_scales, rotation,
    rotation_scales, centroids, centroid_scales, bias, patterns, lists, blocks, codes, tail, mask,
    tail_mask, orders, scores, counts, stats, missing, first,
):  # fmt: skip
    """Answer queries from `first` on; return the number of the first that is not answered.

    That is len(queries), or a query that met entries missing in a table: `missing` then holds
    their kind, how many they are and their numbers.

    Args:
        queries: float32 (m, dim), as they are compared with stored vectors.
        centred: float32 (m, dim), as they are compared with codes: under l2 less the mean.
        wide: float64 (m, dim), as they are compared in the end.
        integers: int64 (INTEGERS,), DIM ... MOST.
        floats: float32 (3,), GAP, REACH and SLACK of the budget.
        reduction: int8 (coarse, dim), to the dimensions of the centroids. The rows and columns of
            this and the next matrices are filled up with zeros to multiples of 4 and of 32.
        reduction_scales: float32 (coarse,), what the rows are multiplied with.
        rotation: int8 (coded, dim), to the dimensions of the codes.
        rotation_scales: float32 (coded,).
        centroids: int8 (lists + 1, coarse); the last belongs to the tail.
        centroid_scales: float32 (lists + 1,).
        bias: float32 (lists + 1,), added to the centroids' products.
        patterns: float32 (dims of a group, 16), what its 4 bits stand for.
        lists: uint64 (lists,), addresses of the lists' values; 0 is missing.
        blocks: uint64 (blocks,), of the blocks of the full tier.
        codes: uint64 (blocks,), of the codes of blocks that are in no list.
        tail: int64 (t,), blocks that are in no list.
        mask: uint64 (blocks,), rows that may be found in lists.
        tail_mask: uint64 (blocks,), rows that may be found in the tail.
        orders: uint64 (m, k) out, the records' orders, best first.
        scores: float64 (m, k) out.
        counts: int64 (m,) out, how many were found.
        stats: int64 (m, STAGES) out.
        missing: int64 (2 + room,) out.
        first: Where to begin.
    """
    k, room, metric, dim = integers[K], integers[ROOM], integers[METRIC], integers[DIM]
    groups, count = integers[GROUPS], integers[LISTS]
    words = np.empty(max(reduction.shape[1], rotation.shape[1]), np.int16)
    reduced_words = np.empty(centroids.shape[1], np.int16)
    reduced = np.empty(reduction.shape[0], np.float32)
    rotated = np.zeros(max(groups * patterns.shape[0], rotation.shape[0]), np.float32)
    bases = np.empty(centroids.shape[0], np.float32)
    found_scores = np.empty(TILE_ROWS, np.float32)
    heap, items = np.empty(count, np.float32), np.empty(count, np.int64)
    table = np.empty((groups, 16), np.uint8)
    entries = np.uint64(table.ctypes.data)
    best, best_rows = np.empty(k, np.float32), np.empty(k, np.int64)
    optimistic, likely = np.empty(room, np.float32), np.empty(room, np.float32)
    rows, sizes = np.empty(room, np.int64), np.empty(2, np.int64)
    missing[0] = NOTHING
    missing[1] = 0
    for number in range(first, queries.shape[0]):
        query, point = queries[number], centred[number]
        begun = _clock()
        scale = _to_words(point, words)
        _multiply(rotation, rotation_scales, words, scale, rotated)
        _multiply(reduction, reduction_scales, words, scale, reduced)
        scale = _to_words(reduced, reduced_words)
        _multiply(centroids, centroid_scales, reduced_words, scale, bases)
        top, size, whole = np.float32(-np.inf), np.float32(0), np.float32(0)
        for i in range(count + 1):
            bases[i] += bias[i]
        for i in range(count):
            top = max(top, bases[i])
        start, step = _fill_table(rotated, patterns, groups, table)
        for j in range(rotation.shape[0]):
            size += rotated[j] * rotated[j]
        for j in range(dim):
            whole += point[j] * point[j]
        noise = floats[SLACK] * np.sqrt(size)
        gap, shift = floats[GAP], np.float32(0)
        if metric == L2:
            shift = np.float32(0.5) * whole
            gap /= np.sqrt(max(np.float32(2) * (shift - top), np.float32(1e-30)))
        elif metric == DOT:
            gap /= np.sqrt(max(whole, np.float32(1e-30)))
        sizes[:] = 0
        seen, scanned = 0, 0
        routed = _clock()
        if count > 0:
            seen, scanned = _scan_lists(
                lists, bases, heap, items, integers, gap, floats[REACH],
                (entries, step, start, noise), mask, found_scores, best, best_rows, optimistic,
                likely, rows, sizes, missing,
            )  # fmt: skip
        if missing[1] > 0:
            return number
        scanned += _scan_tail(
            codes, tail, bases[count], integers, (entries, step, start, noise), tail_mask,
            found_scores, best, best_rows, optimistic, likely, rows, sizes, missing,
        )  # fmt: skip
        if missing[1] > 0:
            return number
        narrowed = _clock()
        bound = best[0] if sizes[0] == k else np.float32(-np.inf)
        found = _prune(optimistic, likely, rows, sizes[1], bound, room)
        found = _check_blocks(blocks, optimistic, likely, rows, found, missing)
        if missing[1] > 0:
            return number
        front = _divide(optimistic, likely, rows, found, bound)
        held = _rescore(
            query,
            shift,
            integers,
            blocks,
            optimistic,
            rows,
            np.int64(0),
            front,
            best,
            best_rows,
            np.int64(0),
        )
        if held == k:
            found = front + _prune(
                optimistic[front:found], likely[front:found], rows[front:found], found - front,
                best[0], room,
            )  # fmt: skip
        held = _rescore(
            query, shift, integers, blocks, optimistic, rows, front, found, best, best_rows, held
        )
        compared = _clock()
        _finish(
            wide[number], metric, integers[PRECISION], dim, blocks, best_rows, held,
            orders[number], scores[number],
        )  # fmt: skip
        counts[number] = held
        stats[number, LISTS_SEEN] = seen
        stats[number, ROWS_SEEN] = scanned
        stats[number, RESCORED] = found
        stats[number, COARSE_TIME] = routed - begun
        stats[number, SCAN_TIME] = narrowed - routed
        stats[number, RESCORE_TIME] = compared - narrowed
        stats[number, SETTLE_TIME] = _clock() - compared
    return queries.shape[0]
