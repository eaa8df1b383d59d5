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

import functools
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

# Float arithmetic may be reordered and contracted; NaN and infinity keep their meaning.
FLOAT_MATH = {"reassoc", "contract", "nsz"}
TILE_ROWS = 32
GROUPS_AT_ONCE = 16
# Lists are ordered by their distance in so many steps.
STEPS = 256
# More lists than this are not left in the first step, if they can be told apart.
CROWD = 16
# Distances count from the nearest list with so large a weight, see `plain`.
CROWDED = np.float32(0.5)
# Tiles that are scanned before their candidates are narrowed; so many may wait then.
TILES_A_STEP = 8
TILES_AHEAD = 4
WAITING = 2 * TILES_A_STEP * TILE_ROWS
# Numbers of a fine code that lie together, and what a code of zero stands for.
FINE_DIMS, FINE_LEAST = 64, np.float32(-7.5)
HEADER = 48
# Orders and norms in front of the vectors of a block; a column of scales too where they are int8.
COLUMNS = 1024
SCALES = 256
# Parts in which numpy adds up as many numbers as a vector may have, at most.
LEAVES = 256
# Entries of the kernels' integer and float parameters.
(
    DIM, DIRECTIONS, COARSE, CODED, GROUPS, OFFSETS, LISTS, K, ROOM, METRIC, PRECISION, LEAST,
    INTEGERS,
) = range(13)  # fmt: skip
GAP, REACH, SLACK, FINE = range(4)
COSINE, DOT, L2 = range(3)
# As `layout.py` numbers them.
FLOAT32, FLOAT16, INT8 = 1, 3, 4
# What a search reports of each query, and which table it found an entry missing in.
# Times are cycles of the processor: shares of the whole are what they are good for.
(
    LISTS_SEEN, ROWS_SEEN, NARROWED, RESCORED, COARSE_TIME, SCAN_TIME, SETTLE_TIME, STAGES,
) = range(8)  # fmt: skip
NOTHING, LIST, CODES, BLOCK, UNSOUND = range(5)
# Squares of longer queries are not compared; `vectors.LONGEST` is a little less.
LONGEST_SQUARED = 1e36 * (1 + 1e-9)
# What a frame leads to, in the order of `frames.ARRAYS`; so many words each: address and shape.
(
    QUERIES, PARAMETERS, FLOATS, MEAN, DIRECTION_VALUES, DIRECTION_SCALES, SIGNS, CENTROID_VALUES,
    CENTROID_SCALES, BIAS, PATTERNS, LIST_TABLE, BLOCK_TABLE, CODE_TABLE, TAIL, MASK, TAIL_MASK,
    WEIGHTS, EXCERPTS, ORDERS, SCORES, COUNTS, STATS, LACKING,
) = range(24)  # fmt: skip
WORDS = 4
# Sizes that change in a search: of the heap, of the buffer, of what waits and what of it was asked
# for, and how many were narrowed.
HELD, KEPT, LEFT, ASKED, DONE, SIZES = range(6)


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
_i32 = _pointer(types.int32)
_i64 = _pointer(types.int64)
_f32 = _pointer(types.float32)
_f64 = _pointer(types.float64)


@intrinsic
def _lowest(context: Any, word: Any) -> Any:
    """The number of the lowest bit that is set in a uint32, which is not zero."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint32(types.uint32), generate


@intrinsic
def _point(context: Any, array: Any) -> Any:
    """A pointer to the first number of an array, which somebody else must keep alive.

    Inside a search nothing but pointers is passed on: of arrays numba counts references,
    atomically, and checks every index for being negative. That took a third of the time.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arrayobj.make_array(array)(target, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), generate


@intrinsic
def _behind(context: Any, pointer: Any, count: Any) -> Any:
    """A pointer so many numbers behind another."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, types.int64), generate


@intrinsic
def _address(context: Any, pointer: Any) -> Any:
    """Where a pointer points to."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], _I64)

    return types.uint64(pointer), generate


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


def _sums_of_fours() -> str:
    """The instruction, as LLVM names it, that adds four products of bytes to each of 16 sums."""
    return "llvm.x86.avx512.vpdpbusd.512" if llvm.get_host_cpu_features().get("avx512vnni") else ""


SUMS_OF_FOURS = _sums_of_fours()
_SUMS = ir.VectorType(_I32, 16)


def _add_fours(builder: Any, total: Any, numbers: Any, fours: Any) -> Any:
    """Add to each of 16 sums the products of 4 bytes without a sign and of 4 with one."""
    if SUMS_OF_FOURS:
        kind = ir.FunctionType(_SUMS, [_SUMS] * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, SUMS_OF_FOURS)
        return builder.call(function, [total, builder.bitcast(numbers, _SUMS), fours])
    wide = ir.VectorType(_I16, 64)
    sums = [
        builder.zext(numbers, wide),
        builder.sext(builder.bitcast(fours, _BYTES), wide),
    ]
    # The shape in which LLVM sees a sum of products of neighbours.
    products = builder.mul(*(builder.sext(part, ir.VectorType(_I32, 64)) for part in sums))
    for width in (32, 16):
        products = builder.add(
            _pick(builder, products, products, range(0, 2 * width, 2)),
            _pick(builder, products, products, range(1, 2 * width, 2)),
        )
    return builder.add(total, products)


def _multiplier(blocks: int, halves: int = 2) -> Any:
    """What multiplies so many blocks of 16 rows at once, which share the loads of the vector.

    With one half it leaves out what rounding the vector lost.
    """

    @intrinsic
    def multiply(
        context: Any, values: Any, scales: Any, numbers: Any, steps: Any, high: Any, low: Any,
        scale: Any, out: Any,
    ) -> Any:  # fmt: skip
        """Write the products of rows of a matrix and a vector, float32.

        `values`, `scales`, `numbers` and `out` are addresses. Of a block, in each of the `steps` of
        16 columns lie 4 times 64 bytes: 4 columns of all rows, number by number plus 128; the
        vector is of int8, and behind it lies what that rounded off, in parts of 1 / 254. `high` and
        `low` are what the 128 make too much of every sum. A sum is multiplied by the row's scale,
        then by `scale`.
        """

        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values, scales, numbers, steps, high, low, scale, out = arguments
            # Several sums at once hide the latency of adding up.
            shares = max(1, 8 // (blocks * halves))
            totals = [
                [cgutils.alloca_once_value(builder, _all(_SUMS, 0)) for _ in range(halves * shares)]
                for _ in range(blocks)
            ]
            width = builder.mul(steps, ir.Constant(_I64, 16))
            length = builder.mul(steps, ir.Constant(_I64, 256))
            starts = [values]
            for _ in range(blocks - 1):
                starts.append(builder.add(starts[-1], length))
            with cgutils.for_range(builder, steps) as loop:
                passed = builder.mul(loop.index, ir.Constant(_I64, 256))
                column = builder.add(numbers, builder.mul(loop.index, ir.Constant(_I64, 16)))
                for number in range(4):
                    four = builder.add(column, ir.Constant(_I64, 4 * number))
                    pair = [
                        _spread(builder, _load(builder, place, _I32, 1))
                        for place in (four, builder.add(four, width))[:halves]
                    ]
                    for start, sums in zip(starts, totals, strict=True):
                        part = builder.add(start, ir.Constant(_I64, 64 * number))
                        eights = _load(builder, builder.add(part, passed), _BYTES, 1)
                        for half, fours in enumerate(pair):
                            total = sums[shares * half + number % shares]
                            builder.store(
                                _add_fours(builder, builder.load(total), eights, fours), total
                            )
            for block, sums in enumerate(totals):
                found = []
                for half, less in enumerate((high, low)[:halves]):
                    parts = map(builder.load, sums[shares * half : shares * (half + 1)])
                    total = functools.reduce(builder.add, parts)
                    found.append(
                        builder.sitofp(builder.sub(total, _spread(builder, less)), _FLOATS)
                    )
                product, place = found[0], ir.Constant(_I64, 64 * block)
                if halves == 2:
                    rest = builder.fmul(found[1], ir.Constant(_FLOATS, [1 / 254] * 16))
                    product = builder.fadd(product, rest)
                factors = _load(builder, builder.add(scales, place), _FLOATS, 4)
                product = builder.fmul(builder.fmul(product, factors), _splat(builder, scale))
                pointer = builder.inttoptr(builder.add(out, place), _FLOATS.as_pointer())
                builder.store(product, pointer).align = 4
            return target.get_dummy_value()

        word, part = types.uint64, types.int32
        kinds = (word, word, word, types.int64, part, part, types.float32, word)
        return types.void(*kinds), generate

    return multiply


BLOCKS_AT_ONCE = 4
_multiply_block, _multiply_blocks = _multiplier(1), _multiplier(BLOCKS_AT_ONCE)
_multiply_rows = _multiplier(BLOCKS_AT_ONCE, halves=1)


def _spread(builder: Any, value: Any) -> Any:
    """16 times the same int32."""
    one = builder.insert_element(ir.Constant(_SUMS, ir.Undefined), value, ir.Constant(_I32, 0))
    return _pick(builder, one, one, [0] * 16)


@intrinsic
def _dot_nibbles(context: Any, codes: Any, numbers: Any, chunks: Any) -> Any:
    """The inner product, an int32, of numbers of 4 bits and of int8, so many times 64 of them.

    A byte of the 32 of a chunk holds the number of a dimension in its low half, and that of the one
    32 dimensions on in its high half.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes, numbers, chunks = arguments
        kind = ir.VectorType(ir.IntType(8), 32)
        total = cgutils.alloca_once_value(builder, _all(_SUMS, 0))
        with cgutils.for_range(builder, chunks) as loop:
            place = builder.add(codes, builder.mul(loop.index, ir.Constant(_I64, 32)))
            both = _load(builder, place, kind, 1)
            low, high = builder.and_(both, _all(kind, 15)), builder.lshr(both, _all(kind, 4))
            wide = _pick(builder, low, high, range(64))
            place = builder.add(numbers, builder.mul(loop.index, ir.Constant(_I64, 64)))
            eights = _load(builder, place, _SUMS, 1)
            builder.store(_add_fours(builder, builder.load(total), wide, eights), total)
        found = builder.load(total)
        for width in (8, 4, 2, 1):
            halves = [_pick(builder, found, found, range(i, i + width)) for i in (0, width)]
            found = builder.add(*halves)
        return builder.extract_element(found, ir.Constant(_I32, 0))

    return types.int32(types.uint64, types.uint64, types.int64), generate


@intrinsic
def _add_and_subtract(context: Any, source: Any, half: Any, target: Any) -> Any:
    """Write the sums of neighbours, then their differences, of 2 * `half` float32 at an address.

    `half` is a multiple of 16.
    """

    def generate(target_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, half, target = arguments
        zero, pace, kind = ir.Constant(_I64, 0), ir.Constant(_I64, 16), _FLOATS.as_pointer()
        behind = builder.add(target, builder.mul(half, ir.Constant(_I64, 4)))
        with cgutils.for_range_slice(builder, zero, half, pace, _I64) as (at, _):
            place = builder.add(source, builder.mul(at, ir.Constant(_I64, 8)))
            both = [
                _load(builder, builder.add(place, ir.Constant(_I64, i)), _FLOATS, 4)
                for i in (0, 64)
            ]
            even, odd = (_pick(builder, *both, range(first, 32, 2)) for first in (0, 1))
            offset = builder.mul(at, ir.Constant(_I64, 4))
            for start, found in (
                (target, builder.fadd(even, odd)),
                (behind, builder.fsub(even, odd)),
            ):
                pointer = builder.inttoptr(builder.add(start, offset), kind)
                builder.store(found, pointer).align = 4
        return target_.get_dummy_value()

    word = types.uint64
    return types.void(word, types.int64, word), generate


@intrinsic
def _write_steps(
    context: Any, values: Any, count: Any, highest: Any, inverse: Any, out: Any
) -> Any:
    """Write (highest - value) * inverse of so many times 16 float32, as bytes.

    It is 255 where it is more, and where a value is not a number.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, count, highest, inverse, out = arguments
        most, kind = ir.Constant(_FLOATS, [255.0] * 16), ir.VectorType(ir.IntType(8), 16)
        with cgutils.for_range(builder, count) as loop:
            place = builder.add(values, builder.mul(loop.index, ir.Constant(_I64, 64)))
            off = builder.fsub(_splat(builder, highest), _load(builder, place, _FLOATS, 4))
            off = builder.fmul(off, _splat(builder, inverse))
            off = builder.select(builder.fcmp_ordered("<", off, most), off, most)
            steps = builder.trunc(builder.fptosi(off, _SUMS), kind)
            place = builder.add(out, builder.mul(loop.index, ir.Constant(_I64, 16)))
            builder.store(steps, builder.inttoptr(place, kind.as_pointer())).align = 1
        return target.get_dummy_value()

    word, real = types.uint64, types.float32
    return types.void(word, types.int64, real, real, word), generate


@intrinsic
def _bytes_below(context: Any, values: Any, bound: Any) -> Any:
    """Which of 16 bytes at an address are below another, in the low bits of a uint32."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, bound = arguments
        kind = ir.VectorType(ir.IntType(8), 16)
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), bound, ir.Constant(_I32, 0))
        bounds = _pick(builder, one, one, [0] * 16)
        below = builder.icmp_unsigned("<", _load(builder, values, kind, 1), bounds)
        return builder.zext(builder.bitcast(below, _I16), _I32)

    return types.uint32(types.uint64, types.uint8), generate


@intrinsic
def _largest(context: Any, values: Any, count: Any) -> Any:
    """The largest of so many times 16 float32 at an address, those that are not numbers aside."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, count = arguments
        least = ir.Constant(_FLOATS, [float("-inf")] * 16)
        largest = cgutils.alloca_once_value(builder, least)
        with cgutils.for_range(builder, count) as loop:
            place = builder.add(values, builder.mul(loop.index, ir.Constant(_I64, 64)))
            some, best = _load(builder, place, _FLOATS, 4), builder.load(largest)
            builder.store(
                builder.select(builder.fcmp_ordered(">", some, best), some, best), largest
            )
        found = builder.load(largest)
        for width in (8, 4, 2, 1):
            some, best = (_pick(builder, found, found, range(i, i + width)) for i in (0, width))
            found = builder.select(builder.fcmp_ordered(">", some, best), some, best)
        return builder.extract_element(found, ir.Constant(_I32, 0))

    return types.float32(types.uint64, types.int64), generate


@intrinsic
def _add_products(context: Any, left: Any, right: Any, count: Any, out: Any) -> Any:
    """Write 8 sums: the n-th is of the products of two rows' n-th, n + 8-th ... float64, in order.

    All are addresses; `count` is how many times 8 numbers there are, at least 1.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right, count, out = arguments
        kind = ir.VectorType(ir.DoubleType(), 8)

        def product(at: Any) -> Any:
            places = (builder.add(row, builder.mul(at, ir.Constant(_I64, 64))) for row in rows)
            return builder.fmul(*(_load(builder, place, kind, 8) for place in places))

        rows, one = (left, right), ir.Constant(_I64, 1)
        total = cgutils.alloca_once_value(builder, product(ir.Constant(_I64, 0)))
        with cgutils.for_range_slice(builder, one, count, one, _I64) as (at, _):
            builder.store(builder.fadd(builder.load(total), product(at)), total)
        pointer = builder.inttoptr(out, kind.as_pointer())
        builder.store(builder.load(total), pointer).align = 8
        return target.get_dummy_value()

    word = types.uint64
    return types.void(word, word, types.int64, word), generate


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
def _to_bytes(vector, size, out, filled):
    """Write the first numbers of a vector as int8, so many with zeros; return the scale."""
    largest = np.float32(0)
    for j in range(size):
        largest = max(largest, abs(vector[j]))
    scale = largest / np.float32(127)
    # The inverse of less is infinite.
    if scale < np.float32(1e-37):
        scale = np.float32(1)
    inverse = np.float32(1) / scale
    for j in range(size):
        # Above zero, where cutting off is rounding down.
        out[j] = np.int8(np.int32(vector[j] * inverse + np.float32(128.5)) - 128)
    for j in range(size, filled):
        out[j] = 0
    return scale


@_quickly
def _to_byte_pairs(vector, size, out, filled):
    """As `_to_bytes`; and behind it what that rounded off, in parts of 1 / 254, as int8.

    Scores of lists must be right to a little of the difference between rows of tight lists.
    """
    scale = _to_bytes(vector, size, out, filled)
    inverse, rest = np.float32(1) / scale, _behind(out, filled)
    for j in range(size):
        off = (vector[j] * inverse - np.float32(out[j])) * np.float32(254)
        rest[j] = np.int8(np.int32(off + np.float32(128.5)) - 128)
    for j in range(size, filled):
        rest[j] = 0
    return scale


@_exactly
def _multiply(values, blocks, steps, scales, numbers, scale, out):
    """out[i] = matrix[i] . vector, of a matrix as `model.Matrix` keeps it and pairs of int8."""
    high, low, rest = np.int32(0), np.int32(0), _behind(numbers, 16 * steps)
    for j in range(16 * steps):
        high += np.int32(numbers[j])
        low += np.int32(rest[j])
    place, vector = _address(values), _address(numbers)
    factors, results = _address(scales), _address(out)
    high, low = np.int32(128 * high), np.int32(128 * low)
    whole = blocks - blocks % BLOCKS_AT_ONCE
    for i in range(0, whole, BLOCKS_AT_ONCE):
        _multiply_blocks(
            place + np.uint64(i * steps * 256), factors + np.uint64(64 * i), vector, steps, high,
            low, scale, results + np.uint64(64 * i),
        )  # fmt: skip
    for i in range(whole, blocks):
        _multiply_block(
            place + np.uint64(i * steps * 256), factors + np.uint64(64 * i), vector, steps, high,
            low, scale, results + np.uint64(64 * i),
        )  # fmt: skip


@_exactly
def _transform(values, size, spare):
    """Multiply the first `size` numbers, a power of two, by Hadamard's matrix of this size.

    In steps that all look alike (Pease 1968), for the sake of vector registers; not normalised.
    """
    half, left, source, target = size >> 1, size, values, spare
    odd = False
    while left > 1:
        if half >= 16:
            _add_and_subtract(_address(source), half, _address(target))
        else:
            for i in range(half):
                target[i] = source[2 * i] + source[2 * i + 1]
                target[half + i] = source[2 * i] - source[2 * i + 1]
        source, target = target, source
        left, odd = left >> 1, not odd
    if odd:
        for i in range(size):
            values[i] = spare[i]


@_exactly
def _turn(vector, size, signs, rounds, dim, out, spare):
    """Write the first numbers of a vector, turned as `rotation.turn` does."""
    stride, rest = max(np.int64(1), size * 3 // 8), np.int64(2)
    while rest > 1:
        a, rest = size, stride
        while a % rest:
            a, rest = rest, a % rest
        stride += rest > 1
    for j in range(size):
        out[j] = vector[j]
    for number in range(rounds):
        flips, place = _behind(signs, number * dim), np.int64(0)
        if number > 0:
            for j in range(size):
                spare[j] = out[place]
                place += stride
                place -= size * (place >= size)
            for j in range(size):
                out[j] = spare[j]
        at = np.int64(0)
        while at < size:
            whole = np.int64(1)
            while 2 * whole <= size - at:
                whole *= 2
            part, factor = _behind(out, at), np.float32(1) / np.sqrt(np.float32(whole))
            for j in range(whole):
                part[j] = part[j] * np.float32(flips[at + j]) * factor
            _transform(part, whole, spare)
            at += whole


@_exactly
def _sink(values, at, size):
    """Let the value at a place of a heap sink: the smallest stands first."""
    value = values[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and values[child + 1] < values[child]:
            child += 1
        if values[child] >= value:
            break
        values[at] = values[child]
        at = child
    values[at] = value


@_exactly
def _keep_best(values, size, room, value):
    """Put a value into a heap of the `room` largest; return the heap's new size."""
    if size == room:
        if value > values[0]:
            values[0] = value
            _sink(values, np.int64(0), size)
        return size
    at = size
    while at > 0 and values[(at - 1) >> 1] > value:
        values[at] = values[(at - 1) >> 1]
        at = (at - 1) >> 1
    values[at] = value
    return size + 1


@_quickly
def _fill_table(rotated, patterns, dims, groups, table):
    """Make the table of a query, (groups, 16) bytes below 64; return start and step of its sums.

    An entry is the inner product of the query and what 4 bits stand for in so many dimensions as
    `patterns` (dims, 16) has rows. It is kept as a multiple of `step` above its group's least.
    `rotated` (groups * dims,) is filled up with zeros.
    """
    # Levels are symmetric: a group's least entry is minus its greatest.
    top = patterns[15]
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
    weights, shapes, out = _address(rotated), _address(patterns), _address(table)
    for group in range(groups):
        size = np.float32(0)
        for number in range(dims):
            size += abs(rotated[group * dims + number])
        place = weights + np.uint64(group * dims * 4)
        _fill_group(place, shapes, dims, -size * top, inverse, out + np.uint64(group * 16))
    return start, step


@_exactly
def _place(block, inside, dim, precision):
    """Address of a stored vector, and its scale."""
    if precision == FLOAT32:
        return block + np.uint64(HEADER + COLUMNS + inside * dim * 4), np.float32(1)
    if precision == FLOAT16:
        return block + np.uint64(HEADER + COLUMNS + inside * dim * 2), np.float32(1)
    scale = _f32(block + np.uint64(HEADER + COLUMNS))[inside]
    return block + np.uint64(HEADER + COLUMNS + SCALES + inside * dim), scale


@_exactly
def _leaves(count, leaves):
    """Write down how numpy adds so many float64 values: halving what is longer than 128.

    `leaves` is int64 (3 * LEAVES + 1,): where each part begins, its size, and how many times the
    sums of the last two parts are added once it is summed up itself; then how many parts there are.
    """
    sizes, merges = _behind(leaves, np.int64(LEAVES)), _behind(leaves, np.int64(2 * LEAVES))
    leaves[0], sizes[0], merges[0] = 0, count, 0
    parts, at = 1, 0
    while at < parts:
        size = sizes[at]
        if size <= 128:
            at += 1
            continue
        half = size // 2
        half -= half % 8
        # The right half is put behind the left one, and takes over what was to be added after both.
        for i in range(parts, at + 1, -1):
            leaves[i], sizes[i], merges[i] = leaves[i - 1], sizes[i - 1], merges[i - 1]
        parts += 1
        leaves[at + 1], sizes[at + 1] = leaves[at] + half, size - half
        merges[at + 1], sizes[at], merges[at] = merges[at] + 1, half, 0
    leaves[3 * LEAVES] = parts


@_exactly
def _sum_products(left, right, leaves, sums):
    """The sum of products of float64 numbers, to the bit that numpy's sum of them has.

    `leaves` are those of `_leaves`, and `sums` is scratch, float64 (LEAVES + 8,).
    """
    sizes, merges = _behind(leaves, np.int64(LEAVES)), _behind(leaves, np.int64(2 * LEAVES))
    eight, held = _behind(sums, np.int64(LEAVES)), 0
    for part in range(leaves[3 * LEAVES]):
        at, size, total = leaves[part], sizes[part], -0.0
        whole = size - size % 8
        if whole > 0:
            places = _address(_behind(left, at)), _address(_behind(right, at))
            _add_products(places[0], places[1], whole >> 3, _address(eight))
            total = ((eight[0] + eight[1]) + (eight[2] + eight[3])) + (
                (eight[4] + eight[5]) + (eight[6] + eight[7])
            )
        for i in range(at + whole, at + size):
            total += left[i] * right[i]
        for _ in range(merges[part]):
            held -= 1
            total = sums[held] + total
        sums[held] = total
        held += 1
    return sums[0]


@_exactly
def _widen(address, precision, scale, dim, out):
    """Write a stored vector as float64."""
    if precision == FLOAT32:
        floats = _f32(address)
        for j in range(dim):
            out[j] = floats[j]
    elif precision == FLOAT16:
        halves = _u16(address)
        for j in range(dim):
            out[j] = _half(halves[j])
    else:
        codes = _i8(address)
        for j in range(dim):
            out[j] = np.float32(codes[j]) * scale


@_exactly
def _settle(wide, query, dim, metric, settling):
    """The exact score in float64, to the bit that `exact.score` computes with numpy."""
    _, spare, leaves, sums = settling
    if metric == L2:
        for j in range(dim):
            spare[j] = wide[j] - query[j]
        return 0.0 - np.sqrt(_sum_products(spare, spare, leaves, sums))
    score = _sum_products(wide, query, leaves, sums)
    if metric == COSINE:
        size = np.sqrt(_sum_products(wide, wide, leaves, sums))
        if size > 0:
            score /= size
        score = min(max(score, -1.0), 1.0)
    return score


# What a frame leads to


@_exactly
def _vector(kind, frame, number):
    words = _u64(frame + np.uint64(8 * WORDS * number))
    return carray(kind(words[0]), (np.int64(words[1]),))


@_exactly
def _matrix(kind, frame, number):
    words = _u64(frame + np.uint64(8 * WORDS * number))
    return carray(kind(words[0]), (np.int64(words[1]), np.int64(words[2])))


@_exactly
def _cube(frame, number):
    words = _u64(frame + np.uint64(8 * WORDS * number))
    shape = np.int64(words[1]), np.int64(words[2]), np.int64(words[3])
    return carray(_u8(words[0]), shape)


# One query: coarse, scan, rescore


@_exactly
def _above(values, count, room):
    """The largest value that leaves at most `room` of the first `count` above it."""
    return _sorted_down(values, count, room, np.empty(count, np.float32))


@_exactly
def _sorted_down(values, count, room, copied):
    order = _point(copied)
    for i in range(count):
        order[i] = values[i]
    for i in range(count // 2 - 1, -1, -1):
        _sink(order, i, count)
    left = count
    for _ in range(count - room - 1):
        left -= 1
        order[0] = order[left]
        _sink(order, np.int64(0), left)
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


@_exactly
def _scan(
    address, source, first, base, ahead, integers, query, fine, mask, limit, scores, waiting, found,
    sizes,
):  # fmt: skip
    """Scan the codes of a bulk value, and narrow what may be among the best; return how many rows.

    Args:
        address: Where the value is, or the excerpt of a list.
        source: Where the list is that it is an excerpt of; 0 if it is none.
        first: Row of the first code, or -1 if the rows are named behind the tiles.
        base: Score of the list.
        ahead: Address of the value that is scanned next: it is asked for meanwhile.
        integers: The parameters.
        query: Address of the table, step, start, noise.
        fine: As in `_narrow`.
        mask: uint64 (blocks,), the rows wanted, all below
        limit: a row.
        scores: float32 (32,), scratch.
        waiting: As in `_narrow`.
        found: As in `_narrow`.
        sizes: int64 (SIZES,).
    """
    table, step, start, noise = query
    hopes, places, names, bases = waiting
    best, groups, offsets, k = found[0], integers[GROUPS], integers[OFFSETS], integers[K]
    held, out = _held(address), _address(scores)
    tiles = (held + TILE_ROWS - 1) // TILE_ROWS
    stride = np.uint64(_tile_bytes(integers))
    tile = address + np.uint64(HEADER)
    named = _u32(tile + np.uint64(tiles) * stride)
    fines = tile + np.uint64(tiles) * (stride + np.uint64(TILE_ROWS * 4 * (first < 0)))
    # An excerpt has there the places of its rows in the list, where their fine codes are.
    origins = _u32(fines)
    if source != 0:
        size = np.uint64((_held(source) + TILE_ROWS - 1) // TILE_ROWS)
        fines = source + np.uint64(HEADER) + size * (stride + np.uint64(TILE_ROWS * 4))
    for number in range(tiles):
        if number > 0 and number % TILES_A_STEP == 0:
            _narrow(integers, waiting, fine, found, sizes, False)
        threshold = best[0] if sizes[HELD] == k else np.float32(-np.inf)
        if ahead != 0 and number < TILES_AHEAD:
            for line in range(0, stride, 64):
                _prefetch(ahead + np.uint64(number) * stride + np.uint64(line))
        if number + TILES_AHEAD < tiles:
            for line in range(0, stride, 64):
                _prefetch(tile + np.uint64(TILES_AHEAD) * stride + np.uint64(line))
        hits = _scan_tile(tile, table, groups, out, base, step, start + noise, threshold, offsets)
        while hits:
            i = np.int64(_lowest(hits))
            hits &= hits - np.uint32(1)
            place = number * TILE_ROWS + i
            if place >= held:
                break
            row = np.int64(named[place]) if first < 0 else first + place
            if row >= limit or not (mask[row >> 6] >> np.uint64(row & 63)) & np.uint64(1):
                continue
            at = sizes[LEFT]
            hopes[at], names[at], bases[at] = scores[i], row, base
            origin = np.int64(origins[place]) if source != 0 else place
            places[at] = fines + np.uint64(origin * fine[0])
            sizes[LEFT] = at + 1
        tile += stride
    _narrow(integers, waiting, fine, found, sizes, False)
    return tiles * TILE_ROWS


@_exactly
def _tile_bytes(integers):
    """How long a tile is."""
    return integers[GROUPS] * 16 + TILE_ROWS * 4 * (1 + integers[OFFSETS])


@_exactly
def _narrow(integers, waiting, fine, found, sizes, everything):
    """Score what waits by its fine codes: what may be among the best goes to the buffer.

    Memory that was asked for in the step before should be there now; the rest is asked for, and
    waits on, unless fewer than k rows are known, which helps most against looking at more of them.

    Args:
        integers: The parameters.
        waiting: Optimistic scores, float32 (WAITING,), addresses of fine codes, rows, and scores of
            their lists.
        fine: Bytes of a fine code, whether there is an offset in front of it (1 or 0), address of
            the query's numbers, their scale, what is taken off sums, noise.
        found: Heap of the k largest pessimistic scores; buffer of candidates: optimistic scores,
            pessimistic ones, float32 (room,), and their rows.
        sizes: int64 (SIZES,).
        everything: Whether nothing may wait.
    """
    hopes, places, names, bases = waiting
    width, offsets, numbers, scale, less, noise = fine
    best, optimistic, likely, rows = found
    k, room, left = integers[K], integers[ROOM], sizes[LEFT]
    until = left if everything or sizes[HELD] < k else sizes[ASKED]
    for i in range(until):
        if sizes[HELD] == k and hopes[i] <= best[0]:
            continue
        factors = _f32(places[i])
        codes = places[i] + np.uint64(4 * (1 + offsets))
        total = _dot_nibbles(codes, numbers, (width - 4 * (1 + offsets)) // 32)
        score = bases[i] + factors[0] * (scale * (np.float32(total) - less))
        if offsets:
            score += factors[1]
        sizes[DONE] += 1
        doubt = noise * factors[0]
        if sizes[HELD] == k and score + doubt <= best[0]:
            continue
        if sizes[KEPT] == room:
            threshold = best[0] if sizes[HELD] == k else np.float32(-np.inf)
            sizes[KEPT] = _prune(
                optimistic, likely, rows, room, threshold, room - max(1, room // 4)
            )
        at = sizes[KEPT]
        optimistic[at], likely[at], rows[at] = score + doubt, score - doubt, names[i]
        sizes[KEPT] = at + 1
        # One that may be better than it is must not raise the bar.
        sizes[HELD] = _keep_best(best, sizes[HELD], k, score - doubt)
    for i in range(until, left):
        at = i - until
        hopes[at], places[at], names[at] = hopes[i], places[i], names[i]
        bases[at] = bases[i]
        for line in range(0, width + 63, 64):
            _prefetch(places[at] + np.uint64(line))
    sizes[LEFT] = sizes[ASKED] = left - until


@_exactly
def _order(bases, count, low, gap, reach, seen, ordering):
    """Write down the nearest lists with scores from `low` on, nearest first; return how many.

    They are told apart in STEPS of distance: within one they come by number, since sorting them
    would take longer than the few rows less are worth. Where the first step would hold many, the
    steps are made smaller, and the farther lists are left for later, as are those that rank and
    distance are certain to put out of reach; `seen` is how many were nearer. `bases` is filled up
    with minus infinity to a multiple of 16. `ordering` is scratch, int64 (STEPS,) and uint8
    (lists + 15,), and the order, int64 (lists,).
    """
    (starts, steps, order), blocks = ordering, (count + 15) >> 4
    highest, lowest = _largest(_address(bases), blocks), low
    if highest == -np.inf:
        return np.int64(0)
    if low == -np.inf:
        lowest = highest
        for i in range(count):
            if -np.inf < bases[i] < lowest:
                lowest = bases[i]
    while True:
        width = (highest - lowest) / np.float32(STEPS - 1.5)
        # Without any width, whatever is farther off at all is out of reach.
        inverse = np.float32(1) / width if width > np.float32(1e-37) else np.float32(3e38)
        _write_steps(_address(bases), blocks, highest, inverse, _address(steps))
        for step in range(STEPS):
            starts[step] = 0
        for i in range(count):
            starts[steps[i]] += 1
        closer = highest - width
        if starts[0] <= CROWD or not lowest < closer < highest:
            break
        lowest = closer
    found, bound = np.int64(0), np.int64(STEPS - 1)
    for step in range(STEPS - 1):
        rank = np.float32(1 + seen + found)
        if step % 8 == 1 and np.log(rank) + width * (step - 1) * gap > reach:
            bound = step
            break
        found, starts[step] = found + starts[step], found
    for at in range(0, count, 16):
        near = _bytes_below(_address(_behind(steps, at)), np.uint8(bound))
        while near:
            i = at + np.int64(_lowest(near))
            near &= near - np.uint32(1)
            order[starts[steps[i]]] = i
            starts[steps[i]] += 1
    return found


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
def _note(missing, room, kind, number):
    """Write down an entry that a table lacks, if there is room."""
    missing[0] = kind
    if missing[1] < room:
        missing[2 + missing[1]] = number
        missing[1] += 1


@_exactly
def _worth(score, metric, shift):
    """What a code that is right says where the exact score is this one."""
    return shift - 0.5 * score * score if metric == L2 else shift + score


@_exactly
def _compare(
    wide, integers, shift, blocks, optimistic, rows, first, last, settling, orders, scores, size
):  # fmt: skip
    """Settle candidates in float64 among the k best, best first; return how many these are.

    One whose optimistic score cannot be among them is passed over. float32 would not do: far from
    the origin it rounds off all that neighbours differ by.
    """
    stored = settling[0]
    dim, precision, metric, k = integers[DIM], integers[PRECISION], integers[METRIC], integers[K]
    width = dim * (4 if precision == FLOAT32 else 2 if precision == FLOAT16 else 1)
    ahead = first
    for i in range(first, last):
        # Rows lie scattered: their memory is asked for while the ones before are scored.
        while ahead < last and ahead < i + 8:
            place, _ = _place(blocks[rows[ahead] >> 6], rows[ahead] & 63, dim, precision)
            for offset in range(0, width, 64):
                _prefetch(place + np.uint64(offset))
            ahead += 1
        if size == k and optimistic[i] <= _worth(scores[k - 1], metric, shift):
            continue
        block, inside = blocks[rows[i] >> 6], rows[i] & 63
        place, scale = _place(block, inside, dim, precision)
        _widen(place, precision, scale, dim, stored)
        score = _settle(stored, wide, dim, metric, settling)
        order = _u64(block + np.uint64(HEADER))[inside]
        at = size
        while at > 0 and (
            scores[at - 1] < score or (scores[at - 1] == score and orders[at - 1] > order)
        ):
            if at < k:
                scores[at], orders[at] = scores[at - 1], orders[at - 1]
            at -= 1
        if at < k:
            scores[at], orders[at] = score, order
            size = min(size + 1, k)
    return size


@_exactly
def _held(address):
    """The rows of a bulk value, as its header says."""
    return np.int64(_u32(address + np.uint64(8))[0])


@_exactly
def _check_blocks(blocks, optimistic, likely, rows, count, missing, room):
    """Drop candidates that no block holds, and note blocks that the table lacks."""
    kept = 0
    for i in range(count):
        block = rows[i] >> 6
        if blocks[block] == 0:
            _note(missing, room, np.int64(BLOCK), block)
        elif (rows[i] & 63) >= _held(blocks[block]):
            continue
        optimistic[kept], likely[kept], rows[kept] = optimistic[i], likely[i], rows[i]
        kept += 1
    return kept


@_quickly
def _scan_lists(
    lists, weights, excerpts, bases, top, ordering, integers, gap, reach, query, fine, mask, limit,
    scores, waiting, found, sizes, missing, room,
):  # fmt: skip
    """Scan lists, nearest first, until rank and distance say that the rest is not worth it.

    Returns how many lists and how many rows.
    """
    count, k, seen, scanned = integers[LISTS], integers[K], 0, 0
    # A list farther off than this is out of reach, whatever its rank.
    least, far = np.float32(-np.inf), np.float32(np.inf)
    if gap > 0 and integers[LEAST] <= 1:
        least = top - reach / gap
        if weights.size == 0:
            far = reach
    left, at, (_, steps, order) = np.int64(0), np.int64(0), ordering
    step, before, passed, over = np.int64(-1), 0.0, 0.0, False
    while True:
        # Fewer candidates than wanted: a filter lets few rows through.
        short = sizes[HELD] < k and missing[1] == 0
        if at == left:
            if over:
                break
            step = np.int64(-1)
            left, at = _order(bases, count, least, gap, far, seen, ordering), np.int64(0)
            if left == 0 and short and least > -np.inf:
                least, far = np.float32(-np.inf), np.float32(np.inf)
                left = _order(bases, count, least, gap, far, seen, ordering)
            if left == 0:
                break
        number, base = order[at], bases[order[at]]
        if steps[number] != step:
            if over:
                break
            step, before = np.int64(steps[number]), passed
        # Lists of one step come by number: as if each were the first of them, but for crowds.
        rank = np.log(np.float32(1 + max(before, passed - CROWD)))
        at += 1
        # Not to be ordered again.
        bases[number] = -np.inf
        if rank + (top - base) * gap > reach and seen >= integers[LEAST] and not short:
            # Others of its step may be nearer.
            over = True
            continue
        seen += 1
        passed += weights[number] if weights.size > 0 else 1.0
        if lists[number] == 0:
            _note(missing, room, np.int64(LIST), number)
            continue
        ahead = np.uint64(0)
        if at < left:
            ahead = lists[order[at]]
            if excerpts.size > 0 and excerpts[order[at]] != 0:
                ahead = excerpts[order[at]]
        address, source = lists[number], np.uint64(0)
        if excerpts.size > 0 and excerpts[number] != 0:
            address, source = excerpts[number], address
        scanned += _scan(
            address, source, np.int64(-1), base, ahead, integers, query, fine, mask, limit,
            scores, waiting, found, sizes,
        )  # fmt: skip
    return seen, scanned


@_quickly
def _scan_tail(
    codes, tail, count, base, integers, query, fine, mask, limit, scores, waiting, found, sizes,
    missing, room,
):  # fmt: skip
    """Scan the codes of blocks with rows that are in no list; return how many rows."""
    scanned = 0
    for number in range(count):
        address = codes[tail[number]]
        if address == 0:
            _note(missing, room, np.int64(CODES), tail[number])
            continue
        scanned += _scan(
            address, np.uint64(0), tail[number] << 6, base, np.uint64(0), integers, query, fine,
            mask, limit,
            scores, waiting, found, sizes,
        )  # fmt: skip
    return scanned


@_quickly
def _answer(
    wide, mean, integers, floats, directions, direction_scales, signs, centroids, centroid_scales,
    bias, patterns, lists, blocks, codes, tail, mask, tail_mask, weights, excerpts, orders, scores,
    stats, missing, scratch,
):  # fmt: skip
    """Answer one query; return how many rows were found, or -1 if entries were missing."""
    metric, dim, count, k = integers[METRIC], integers[DIM], integers[LISTS], integers[K]
    (own, directed, rotated, turned, spare, numbers, bases, table, tile), rest = scratch
    waits, kept, ordered, settling, sizes = rest
    best, optimistic, likely, rows = kept
    lacking, room = _point(missing), missing.size - 2
    places, limit = _point(blocks), np.int64(mask.size) << 6
    begun = _clock()
    # What the scores of codes are more than exact ones, but for half a square of distances.
    shift = 0.0
    for j in range(dim):
        # Far from the origin float32 would round off what is left.
        own[j] = np.float32(wide[j] - mean[j] if integers[OFFSETS] else wide[j])
        shift -= wide[j] * mean[j]
    size, whole, top, base = _aim(
        own, directed, rotated, turned, spare, numbers, bases, integers, directions,
        direction_scales, signs, centroids, centroid_scales, bias,
    )  # fmt: skip
    start, step = _fill_table(rotated, _point(patterns), patterns.shape[0], integers[GROUPS], table)
    chunks = (dim + FINE_DIMS - 1) // FINE_DIMS
    scale, total = _to_bytes(turned, dim, numbers, chunks * FINE_DIMS), np.int64(0)
    for j in range(dim):
        total += np.int64(numbers[j])
    if weights.size > 0:
        top = _pass_over(bases, weights, count)
    if integers[OFFSETS]:
        # Of unit vectors half the squared distance is 1 - cosine.
        shift = 0.5 * whole - (metric == COSINE)
    gap = floats[GAP] / _span(whole, top, integers)
    coarse = _address(table), step, start, floats[SLACK] * np.sqrt(size)
    fine = (
        4 * (1 + integers[OFFSETS]) + 32 * chunks, integers[OFFSETS], _address(numbers), scale,
        np.float32(-FINE_LEAST * total), floats[FINE] * np.sqrt(whole),
    )  # fmt: skip
    for i in range(SIZES):
        sizes[i] = 0
    seen, scanned = 0, 0
    routed = _clock()
    if count > 0:
        seen, scanned = _scan_lists(
            _point(lists), weights, excerpts, bases, top, ordered, integers, gap, floats[REACH],
            coarse, fine, _point(mask), limit, tile, waits, kept, sizes, lacking, room,
        )  # fmt: skip
    if missing[1] > 0:
        return -1
    scanned += _scan_tail(
        _point(codes), _point(tail), tail.size, base, integers, coarse, fine,
        _point(tail_mask), limit, tile, waits, kept, sizes, lacking, room,
    )  # fmt: skip
    if missing[1] > 0:
        return -1
    _narrow(integers, waits, fine, kept, sizes, True)
    narrowed = _clock()
    bound = best[0] if sizes[HELD] == k else np.float32(-np.inf)
    left = _prune(optimistic, likely, rows, sizes[KEPT], bound, integers[ROOM])
    left = _check_blocks(places, optimistic, likely, rows, left, lacking, room)
    if missing[1] > 0:
        return -1
    held, left = _settle_all(
        wide, integers, shift, places, kept, left, bound, settling, _point(orders), _point(scores)
    )  # fmt: skip
    stats[LISTS_SEEN] = seen
    stats[ROWS_SEEN] = scanned
    stats[NARROWED] = sizes[DONE]
    stats[RESCORED] = left
    stats[COARSE_TIME] = routed - begun
    stats[SCAN_TIME] = narrowed - routed
    stats[SETTLE_TIME] = _clock() - narrowed
    return held


@_exactly
def _span(whole, top, integers):
    """What distances to lists are measured in: `whole` is the query's squared length."""
    if integers[OFFSETS]:
        return np.sqrt(max(whole - np.float32(2) * top, np.float32(1e-30)))
    if integers[METRIC] == DOT:
        return np.sqrt(max(whole, np.float32(1e-30)))
    return np.float32(1)


@_exactly
def _pass_over(bases, weights, count):
    """Leave out lists without a row that is wanted; return where distances count from."""
    top, nearest = np.float32(-np.inf), np.float32(-np.inf)
    for i in range(count):
        if weights[i] == 0:
            bases[i] = -np.inf
        nearest = max(nearest, bases[i])
        if weights[i] >= CROWDED:
            top = max(top, bases[i])
    return nearest if top == -np.inf else top


@_exactly
def _settle_all(
    wide, integers, shift, blocks, kept, count, bound, settling, orders, scores
):  # fmt: skip
    """Compare candidates with a query: those first that are likely to be at least `bound`.

    Returns how many were found, and how many candidates could not be ruled out.
    """
    _, optimistic, likely, rows = kept
    metric, k = integers[METRIC], integers[K]
    front = _divide(optimistic, likely, rows, count, bound)
    held = _compare(
        wide, integers, shift, blocks, optimistic, rows, np.int64(0), front, settling, orders,
        scores, np.int64(0),
    )  # fmt: skip
    left = count
    if held == k:
        left = front + _prune(
            _behind(optimistic, front), _behind(likely, front), _behind(rows, front), count - front,
            np.float32(_worth(scores[k - 1], metric, shift)), integers[ROOM],
        )  # fmt: skip
    held = _compare(
        wide, integers, shift, blocks, optimistic, rows, front, left, settling, orders, scores, held
    )  # fmt: skip
    return held, left


@_quickly
def _aim(
    own, directed, rotated, turned, spare, numbers, bases, integers, directions, direction_scales,
    signs, centroids, centroid_scales, bias,
):  # fmt: skip
    """Compare a query with the centroids, and turn it.

    Returns its squared length as coded, that of all of it, its best score with a list, and that of
    the tail.
    """
    dim, known, coded = integers[DIM], integers[DIRECTIONS], integers[CODED]
    coarse, count = integers[COARSE], integers[LISTS]
    scale = _to_byte_pairs(own, dim, numbers, 4 * directions.shape[1])
    _multiply(
        _point(directions), directions.shape[0], directions.shape[1] >> 2,
        _point(direction_scales), numbers, scale, directed,
    )  # fmt: skip
    flips, rounds = _point(signs), signs.shape[0]
    _turn(own, dim, flips, rounds, dim, turned, spare)
    if known >= coded:
        _turn(directed, coded, flips, rounds, dim, rotated, spare)
    elif coded < dim:
        _turn(own, coded, flips, rounds, dim, rotated, spare)
    else:
        for j in range(dim):
            rotated[j] = turned[j]
    middle = directed if known >= coarse else own
    scale = _to_byte_pairs(middle, coarse, numbers, 4 * centroids.shape[1])
    _multiply(
        _point(centroids), centroids.shape[0], centroids.shape[1] >> 2, _point(centroid_scales),
        numbers, scale, bases,
    )  # fmt: skip
    size, whole = np.float32(0), np.float32(0)
    for i in range(count + 1):
        bases[i] += bias[i]
    base, filled = bases[count], 16 * centroids.shape[0]
    for i in range(count, filled):
        bases[i] = -np.inf
    top = _largest(_address(bases), (count + 15) >> 4)
    for j in range(coded):
        size += rotated[j] * rotated[j]
    for j in range(dim):
        whole += own[j] * own[j]
    return size, whole, top, base


@_exactly
def _room(count, size):
    """Bytes of so many numbers of so many bytes, in whole cache lines."""
    return np.uint64((count * size + 63) & -64)


@_exactly
def _lay_out(at, integers, directions, centroids, groups, coded):
    """The scratch memory of a search that begins at an address, and where it ends."""
    dim, lists, k, room = integers[DIM], integers[LISTS], integers[K], integers[ROOM]
    floats, doubles = _room(dim, 4), _room(dim, 8)
    own, at = _f32(at), at + floats
    turned, at = _f32(at), at + floats
    spare, at = _f32(at), at + floats
    directed, at = _f32(at), at + _room(16 * directions.shape[0], 4)
    rotated, at = _f32(at), at + _room(coded, 4)
    chunks = (dim + FINE_DIMS - 1) // FINE_DIMS
    width = max(8 * directions.shape[1], 8 * centroids.shape[1], chunks * FINE_DIMS)
    numbers, at = _i8(at), at + _room(width, 1)
    bases, at = _f32(at), at + _room(16 * centroids.shape[0], 4)
    table, at = _u8(at), at + _room(16 * groups, 1)
    tile, at = _f32(at), at + _room(TILE_ROWS, 4)
    waits = (
        _f32(at), _u64(at + _room(WAITING, 4)), _i64(at + _room(WAITING, 12)),
        _f32(at + _room(WAITING, 20)),
    )  # fmt: skip
    at += _room(WAITING, 24)
    best, at = _f32(at), at + _room(k, 4)
    optimistic, at = _f32(at), at + _room(room, 4)
    likely, at = _f32(at), at + _room(room, 4)
    rows, at = _i64(at), at + _room(room, 8)
    steps, at = _i64(at), at + _room(STEPS, 8)
    step_of, at = _u8(at), at + _room(lists + 15, 1)
    nearest, at = _i64(at), at + _room(lists, 8)
    stored, at = _f64(at), at + doubles
    differences, at = _f64(at), at + doubles
    leaves, at = _i64(at), at + _room(3 * LEAVES + 1, 8)
    sums, at = _f64(at), at + _room(LEAVES + 8, 8)
    sizes, at = _i64(at), at + _room(SIZES, 8)
    wide, at = _f64(at), at + doubles
    aiming = own, directed, rotated, turned, spare, numbers, bases, table, tile
    found = best, optimistic, likely, rows
    ordering, settling = (steps, step_of, nearest), (stored, differences, leaves, sums)
    return wide, (aiming, (waits, found, ordering, settling, sizes)), at


@_exactly
def _compared(query, dim, metric, wide, settling):
    """Write a query as `vectors.as_compared`, to the bit; return whether the metric can compare it.

    Not one with a number that is not finite; nor zeros, under cosine, nor one that is too long.
    """
    _, _, leaves, sums = settling
    for j in range(dim):
        wide[j] = query[j]
    square = _sum_products(wide, wide, leaves, sums)
    if metric != COSINE:
        return square <= LONGEST_SQUARED
    if not 0 < square < np.inf:
        return False
    size = np.sqrt(square)
    for j in range(dim):
        wide[j] /= size
    return True


# What every kernel takes and gives.
ENTRY = types.int64(types.uint64, types.int64)


def search(frame, first):
    """Answer queries from `first` on; return the number of the first that is not answered.

    That is the number of queries, or a query that met entries missing in a table: `missing` then
    holds their kind, how many they are and their numbers. Or one that the metric cannot compare:
    the kind is UNSOUND then.

    Args:
        frame: Where the words of a `frames.Frame` are; what they lead to is said there.
        first: Where to begin.
    """
    queries = _matrix(_f32, frame, QUERIES)
    integers = _point(_vector(_i64, frame, PARAMETERS))
    floats = _point(_vector(_f32, frame, FLOATS))
    mean, bias = _vector(_f32, frame, MEAN), _vector(_f32, frame, BIAS)
    directions, centroids = _cube(frame, DIRECTION_VALUES), _cube(frame, CENTROID_VALUES)
    direction_scales = _vector(_f32, frame, DIRECTION_SCALES)
    centroid_scales = _vector(_f32, frame, CENTROID_SCALES)
    signs, patterns = _matrix(_i8, frame, SIGNS), _matrix(_f32, frame, PATTERNS)
    lists, blocks = _vector(_u64, frame, LIST_TABLE), _vector(_u64, frame, BLOCK_TABLE)
    codes, tail = _vector(_u64, frame, CODE_TABLE), _vector(_i64, frame, TAIL)
    mask, tail_mask = _vector(_u64, frame, MASK), _vector(_u64, frame, TAIL_MASK)
    weights, excerpts = _vector(_f32, frame, WEIGHTS), _vector(_u64, frame, EXCERPTS)
    orders, scores = _matrix(_u64, frame, ORDERS), _matrix(_f64, frame, SCORES)
    counts, stats = _vector(_i64, frame, COUNTS), _matrix(_i64, frame, STATS)
    missing = _vector(_i64, frame, LACKING)
    dim, metric, coded = integers[DIM], integers[METRIC], integers[CODED]
    groups = integers[GROUPS]
    padded = max(groups * patterns.shape[0], coded)
    missing[0] = NOTHING
    missing[1] = 0
    needed = _lay_out(np.uint64(0), integers, directions, centroids, groups, padded)[2]
    memory = np.empty(needed + 64, np.uint8)
    begin = (_address(_point(memory)) + np.uint64(63)) & ~np.uint64(63)
    wide, scratch, _ = _lay_out(begin, integers, directions, centroids, groups, padded)
    rotated, settling = scratch[0][2], scratch[1][3]
    _leaves(dim, settling[2])
    for j in range(coded, padded):
        rotated[j] = 0
    done, answered = np.int64(0), queries.shape[0]
    for number in range(first, queries.shape[0]):
        if not _compared(_behind(_point(queries), number * dim), dim, metric, wide, settling):
            missing[0] = UNSOUND
            answered = number
            break
        done = _answer(
            wide, mean, integers, floats, directions, direction_scales, signs, centroids,
            centroid_scales, bias, patterns, lists, blocks, codes, tail, mask, tail_mask, weights,
            excerpts, orders[number], scores[number], stats[number], missing, scratch,
        )  # fmt: skip
        if done < 0:
            answered = number
            break
        counts[number] = done
    # numba frees an array after its last use, though its address is still in use.
    memory[0] = 0
    return answered


# What a mask lets through of lists, to be scanned in their place


@_exactly
def _copy_row(old, i, new, j, groups, offsets):
    """Copy the code of row i of a tile to row j of another, which is zero there."""
    source, target = _u8(old + np.uint64(i & 15)), _u8(new + np.uint64(j & 15))
    down, up = np.uint8(4 * (i >> 4)), np.uint8(4 * (j >> 4))
    for group in range(groups):
        target[16 * group] |= (source[16 * group] >> down & np.uint8(15)) << up
    column = np.uint64(16 * groups)
    _f32(new + column)[j] = _f32(old + column)[i]
    if offsets:
        column += np.uint64(4 * TILE_ROWS)
        _f32(new + column)[j] = _f32(old + column)[i]


@_exactly
def _excerpt(source, target, room, integers, mask, limit):
    """Write an excerpt of a list; where fewer rows are let through than expected, rows of none."""
    held, stride, count = _held(source), np.uint64(_tile_bytes(integers)), np.int64(0)
    old, new = source + np.uint64(HEADER), target + np.uint64(HEADER)
    tiles = np.uint64((room + TILE_ROWS - 1) // TILE_ROWS)
    named = _u32(old + np.uint64((held + TILE_ROWS - 1) // TILE_ROWS) * stride)
    names, origins = _u32(new + tiles * stride), _u32(new + tiles * (stride + np.uint64(128)))
    for place in range(held):
        row = np.int64(named[place])
        if row >= limit or not (mask[row >> 6] >> np.uint64(row & 63)) & np.uint64(1):
            continue
        # Its names may be damaged.
        if count == room:
            break
        _copy_row(
            old + np.uint64(place // TILE_ROWS) * stride, place % TILE_ROWS,
            new + np.uint64(count // TILE_ROWS) * stride, count % TILE_ROWS,
            integers[GROUPS], integers[OFFSETS],
        )  # fmt: skip
        names[count], origins[count] = named[place], place
        count += 1
    for place in range(count, room):
        names[place] = np.uint32(0xFFFFFFFF)
    _u32(target + np.uint64(8))[0] = room


def excerpt(frame, first):
    """Write excerpts of lists from `first` on; return how many lists there are.

    Of the frame it reads the parameters (GROUPS, OFFSETS), the mask, the table of the lists that
    are wanted, in the place of the tail how many rows of each the mask lets through, and under
    EXCERPTS where each goes: zeros, for a header, tiles, and names and places of 32 rows a tile.
    """
    integers, mask = _point(_vector(_i64, frame, PARAMETERS)), _vector(_u64, frame, MASK)
    lists, rooms = _vector(_u64, frame, LIST_TABLE), _vector(_i64, frame, TAIL)
    targets, limit = _vector(_u64, frame, EXCERPTS), np.int64(mask.size) << 6
    for number in range(first, lists.size):
        _excerpt(lists[number], targets[number], rooms[number], integers, _point(mask), limit)
    return lists.size


# Comparing all rows: bytes rule out most of them, and vectors settle the rest

# Queries that go over a block together, while it is in the cache.
QUERIES_AT_ONCE = 8
BLOCK_ROWS = 64
# Columns in front of the bytes of a block: scales, errors and lengths of its rows.
BYTE_COLUMNS = 3 * 4 * BLOCK_ROWS
# What rounding adds, with room to spare: to a product of float32, in parts of both lengths; to half
# the square of a length that was rounded up, in parts of it; and to a float64 score, in parts of
# the query's squared length.
PRODUCT_ERROR, SQUARE_ERROR = np.float32(2.0**-20), np.float32(2.0**-19)
QUERY_ERROR, LEAST_ERROR = 2.0**-38, 1e-30
# Entries of what a query is compared with bytes by.
SCALE, OF_ERRORS, OF_LENGTHS, ALWAYS, BYTE_FACTORS = range(5)


@_exactly
def _aim_at_bytes(wide, dim, steps, own, numbers, factors, extra):
    """Make ready to compare a query with bytes: its numbers, and what it may be off by."""
    for j in range(dim):
        own[j] = np.float32(wide[j])
    scale = _to_bytes(own, dim, numbers, 16 * steps)
    total, off, whole = np.int32(0), 0.0, 0.0
    for j in range(dim):
        total += np.int32(numbers[j])
        lost = wide[j] - np.float64(scale) * numbers[j]
        off += lost * lost
        whole += wide[j] * wide[j]
    length, off = np.sqrt(whole), np.sqrt(off)
    factors[SCALE] = scale
    factors[OF_ERRORS] = (length + off) * (1 + 1e-6)
    factors[OF_LENGTHS] = (off + length * np.float64(PRODUCT_ERROR)) * (1 + 1e-6)
    factors[ALWAYS] = whole * QUERY_ERROR + LEAST_ERROR
    # What the 128 that are added to each byte make too much of every sum.
    extra[0] = np.int32(128 * total)


@_quickly
def _doubt(columns, squared, factors, hopes, doubts):
    """Turn the products of a block's rows into optimistic scores; note how far off they may be."""
    errors, lengths = _behind(columns, np.int64(BLOCK_ROWS)), _behind(columns, 2 * BLOCK_ROWS)
    of_errors, of_lengths, always = factors[OF_ERRORS], factors[OF_LENGTHS], factors[ALWAYS]
    for i in range(BLOCK_ROWS):
        doubt = errors[i] * of_errors + lengths[i] * of_lengths + always
        half = squared * lengths[i] * lengths[i]
        doubt += half * SQUARE_ERROR
        hope = (hopes[i] - half) + doubt
        # What overflowed may be anything.
        hopes[i] = hope if hope == hope else np.float32(np.inf)
        doubts[i] = doubt


@_exactly
def _admit(word, first, hopes, doubts, integers, kept, sizes):
    """Take the rows of a block that may be among the best into the buffer of candidates."""
    best, optimistic, likely, rows = kept
    k, room = integers[K], integers[ROOM]
    for i in range(BLOCK_ROWS):
        threshold = best[0] if sizes[HELD] == k else np.float32(-np.inf)
        if not (word >> np.uint64(i)) & np.uint64(1) or hopes[i] < threshold:
            continue
        if sizes[KEPT] == room:
            sizes[KEPT] = _prune(optimistic, likely, rows, room, threshold, room)
            if sizes[KEPT] > room - (room >> 2):
                # Bytes do not tell these rows apart.
                sizes[DONE] = -1
                return
        worst = hopes[i] - np.float32(2) * doubts[i]
        if worst != worst:
            worst = np.float32(-np.inf)
        at = sizes[KEPT]
        optimistic[at], likely[at], rows[at] = hopes[i], worst, first + i
        sizes[KEPT] = at + 1
        sizes[HELD] = _keep_best(best, sizes[HELD], k, worst)


@_exactly
def _part_of(scratch, number, integers, width):
    """The scratch memory of one of the queries that go together."""
    numbers, factors, extra, best, optimistic, likely, rows, sizes, wides = scratch
    k, room = integers[K], integers[ROOM]
    found = (
        _behind(best, number * k), _behind(optimistic, number * room),
        _behind(likely, number * room), _behind(rows, number * room),
    )  # fmt: skip
    return (
        _behind(numbers, number * width), _behind(factors, number * BYTE_FACTORS),
        _behind(extra, np.int64(number)), found, _behind(sizes, number * SIZES),
        _behind(wides, number * integers[DIM]),
    )  # fmt: skip


@_exactly
def _compare_bytes(coded, mask, count, steps, together, integers, scratch, hopes, doubts, lacking):
    """Let some queries go over all blocks; return how many rows these have."""
    seen, width, squared = 0, 16 * steps, np.float32(0.5 if integers[METRIC] == L2 else 0.0)
    for block in range(count):
        if mask[block] == 0:
            continue
        if coded[block] == 0:
            _note(lacking[0], lacking[1], np.int64(CODES), block)
            continue
        columns = coded[block] + np.uint64(HEADER)
        values, factors_of_rows = columns + np.uint64(BYTE_COLUMNS), _f32(columns)
        seen += BLOCK_ROWS
        for number in range(together):
            numbers, factors, extra, found, sizes, _ = _part_of(scratch, number, integers, width)
            if sizes[DONE] < 0:
                continue
            _multiply_rows(
                values, columns, _address(numbers), steps, extra[0], np.int32(0), factors[SCALE],
                _address(hopes),
            )  # fmt: skip
            _doubt(factors_of_rows, squared, factors, hopes, doubts)
            best = found[0][0] if sizes[HELD] == integers[K] else np.float32(-np.inf)
            if _largest(_address(hopes), np.int64(4)) >= best:
                _admit(mask[block], block * BLOCK_ROWS, hopes, doubts, integers, found, sizes)
    return seen


@_exactly
def _settle_bytes(wide, integers, blocks, found, sizes, settling, orders, scores, lacking):
    """Compare what bytes could not rule out; return how many were found and compared.

    Of a query that has too many candidates 0 and -1, of one that met entries missing anything.
    """
    best, optimistic, likely, rows = found
    if sizes[DONE] < 0:
        return np.int64(0), np.int64(-1)
    bound = best[0] if sizes[HELD] == integers[K] else np.float32(-np.inf)
    left = _prune(optimistic, likely, rows, sizes[KEPT], bound, sizes[KEPT])
    left = _check_blocks(blocks, optimistic, likely, rows, left, lacking[0], lacking[1])
    if lacking[0][1] > 0:
        return np.int64(0), np.int64(0)
    shift = 0.0
    if integers[METRIC] == L2:
        for j in range(integers[DIM]):
            shift += wide[j] * wide[j]
    return _settle_all(
        wide, integers, 0.5 * shift, blocks, found, left, bound, settling, orders, scores
    )


@_exactly
def _lay_out_bytes(at, integers, steps):
    """The scratch memory of a comparison that begins at an address, and where it ends."""
    dim, k, room, each = integers[DIM], integers[K], integers[ROOM], QUERIES_AT_ONCE
    own, at = _f32(at), at + _room(dim, 4)
    hopes, at = _f32(at), at + _room(BLOCK_ROWS, 4)
    doubts, at = _f32(at), at + _room(BLOCK_ROWS, 4)
    numbers, at = _i8(at), at + _room(each * 16 * steps, 1)
    factors, at = _f32(at), at + _room(each * BYTE_FACTORS, 4)
    extra, at = _i32(at), at + _room(each, 4)
    best, at = _f32(at), at + _room(each * k, 4)
    optimistic, at = _f32(at), at + _room(each * room, 4)
    likely, at = _f32(at), at + _room(each * room, 4)
    rows, at = _i64(at), at + _room(each * room, 8)
    sizes, at = _i64(at), at + _room(each * SIZES, 8)
    wides, at = _f64(at), at + _room(each * dim, 8)
    stored, at = _f64(at), at + _room(dim, 8)
    differences, at = _f64(at), at + _room(dim, 8)
    leaves, at = _i64(at), at + _room(3 * LEAVES + 1, 8)
    parts, at = _f64(at), at + _room(LEAVES + 8, 8)
    scratch = numbers, factors, extra, best, optimistic, likely, rows, sizes, wides
    return (own, hopes, doubts, scratch, (stored, differences, leaves, parts)), at


def compare(frame, first):
    """Compare queries from `first` on with all rows; return as `search` does.

    Of the frame it reads the queries, the parameters (DIM, K, ROOM, METRIC, PRECISION), the table
    of blocks, that of their bytes (in the place of codes) and the mask. A query with so many
    candidates that bytes are no help finds nothing and has compared -1. The twin is `exact.Exact`,
    which finds the same hits with the same scores.
    """
    queries = _matrix(_f32, frame, QUERIES)
    integers = _point(_vector(_i64, frame, PARAMETERS))
    blocks, coded = _vector(_u64, frame, BLOCK_TABLE), _vector(_u64, frame, CODE_TABLE)
    mask = _vector(_u64, frame, MASK)
    orders, scores = _matrix(_u64, frame, ORDERS), _matrix(_f64, frame, SCORES)
    counts, stats = _vector(_i64, frame, COUNTS), _matrix(_i64, frame, STATS)
    missing = _vector(_i64, frame, LACKING)
    dim, metric, steps = integers[DIM], integers[METRIC], (integers[DIM] + 15) // 16
    missing[0] = NOTHING
    missing[1] = 0
    lacking = _point(missing), missing.size - 2
    memory = np.empty(_lay_out_bytes(np.uint64(0), integers, steps)[1] + 64, np.uint8)
    begin = (_address(_point(memory)) + np.uint64(63)) & ~np.uint64(63)
    (own, hopes, doubts, scratch, settling), _ = _lay_out_bytes(begin, integers, steps)
    _leaves(dim, settling[2])
    answered = queries.shape[0]
    for start in range(first, queries.shape[0], QUERIES_AT_ONCE):
        together, begun = min(QUERIES_AT_ONCE, queries.shape[0] - start), _clock()
        for number in range(together):
            part = _part_of(scratch, number, integers, 16 * steps)
            numbers, factors, extra, _, sizes, wide = part
            _compared(_behind(_point(queries), (start + number) * dim), dim, metric, wide, settling)
            _aim_at_bytes(wide, dim, steps, own, numbers, factors, extra)
            for i in range(SIZES):
                sizes[i] = 0
        seen = _compare_bytes(
            _point(coded), _point(mask), mask.size, steps, together, integers, scratch, hopes,
            doubts, lacking,
        )  # fmt: skip
        scanned = _clock()
        for number in range(together):
            part = _part_of(scratch, number, integers, 16 * steps)
            _, _, _, found, sizes, wide = part
            at, since = start + number, _clock()
            if missing[1] == 0:
                counts[at], stats[at, RESCORED] = _settle_bytes(
                    wide, integers, _point(blocks), found, sizes, settling, _point(orders[at]),
                    _point(scores[at]), lacking,
                )  # fmt: skip
            if missing[1] > 0:
                answered = at
                break
            stats[at, LISTS_SEEN], stats[at, ROWS_SEEN] = 0, seen
            stats[at, NARROWED], stats[at, COARSE_TIME] = sizes[KEPT], 0
            stats[at, SCAN_TIME] = (scanned - begun) // together
            stats[at, SETTLE_TIME] = _clock() - since
        if missing[1] > 0:
            break
    # As in a search.
    memory[0] = 0
    return answered


# Comparing some rows: all of them by their vectors

# Rows whose memory is asked for while the ones before are compared.
AHEAD_ROWS = 8
# How far from unit length vectors may be that are taken to have it, see `vectors`.
UNIT_SLACK = 1e-6
# Where the norms of a block begin.
NORMS = HEADER + 512


@_exactly
def _lay_out_rows(at, integers, count):
    """The scratch memory of a comparison of so many rows, and where it ends."""
    doubles = _room(integers[DIM], 8)
    wide, at = _f64(at), at + doubles
    stored, at = _f64(at), at + doubles
    differences, at = _f64(at), at + doubles
    leaves, at = _i64(at), at + _room(3 * LEAVES + 1, 8)
    sums, at = _f64(at), at + _room(LEAVES + 8, 8)
    optimistic, at = _f32(at), at + _room(count, 4)
    rows, at = _i64(at), at + _room(count, 8)
    own, at = _f32(at), at + _room(integers[DIM], 4)
    hopes, at = _f64(at), at + _room(count, 8)
    best, at = _f64(at), at + _room(integers[K], 8)
    left, at = _i64(at), at + _room(count, 8)
    return wide, optimistic, rows, (stored, differences, leaves, sums), (own, hopes, best, left), at


@_quickly
def _product(left, right, dim):
    """The product of two vectors of float32, in float32."""
    total = np.float32(0)
    for j in range(dim):
        total += left[j] * right[j]
    return total


@_exactly
def _rule_out(wide, integers, blocks, rows, count, scratch):
    """Write down which rows may be among the k best, by products of float32; return how many.

    The bounds of their errors are those of `exact.Exact`.
    """
    own, hopes, best, left = scratch
    dim, metric, k, squared, size = integers[DIM], integers[METRIC], integers[K], 0.0, np.int64(0)
    for j in range(dim):
        own[j] = np.float32(wide[j])
        squared += wide[j] * wide[j]
    length, unit = np.sqrt(squared), (dim + 8) * 2.0**-23
    for i in range(min(AHEAD_ROWS, count)):
        place, _ = _place(blocks[rows[i] >> 6], rows[i] & 63, dim, np.int64(FLOAT32))
        for offset in range(0, 4 * dim, 64):
            _prefetch(place + np.uint64(offset))
    for i in range(count):
        if i + AHEAD_ROWS < count:
            ahead = rows[i + AHEAD_ROWS]
            place, _ = _place(blocks[ahead >> 6], ahead & 63, dim, np.int64(FLOAT32))
            for offset in range(0, 4 * dim, 64):
                _prefetch(place + np.uint64(offset))
        block, inside = blocks[rows[i] >> 6], rows[i] & 63
        place, _ = _place(block, inside, dim, np.int64(FLOAT32))
        score, slack = np.float64(_product(_f32(place), own, dim)), unit + 2 * UNIT_SLACK
        if metric != COSINE:
            norm = _f64(block + np.uint64(NORMS))[inside]
            slack = unit * length * norm + dim * 2.0**-125
            if metric == L2:
                score -= norm * norm / 2
                slack += (dim + 8) * 2.0**-51 * (norm * norm + squared)
        hopes[i] = score + slack
        # What is no number is not ruled out.
        if score - slack == score - slack:
            size = _keep_best(best, size, k, score - slack)
    kept = np.int64(0)
    for i in range(count):
        if size < k or not hopes[i] < best[0]:
            left[kept] = rows[i]
            kept += 1
    return kept


def compare_rows(frame, first):
    """Compare queries from `first` on with some rows; return as `search` does.

    Of the frame it reads the queries, the parameters (DIM, K, METRIC, PRECISION), the table of
    blocks, and the rows in the place of the tail. The twin is `exact.Exact`, which finds the same
    hits with the same scores.
    """
    queries = _matrix(_f32, frame, QUERIES)
    integers = _point(_vector(_i64, frame, PARAMETERS))
    blocks, asked = _vector(_u64, frame, BLOCK_TABLE), _vector(_i64, frame, TAIL)
    orders, scores = _matrix(_u64, frame, ORDERS), _matrix(_f64, frame, SCORES)
    counts, stats = _vector(_i64, frame, COUNTS), _matrix(_i64, frame, STATS)
    missing = _vector(_i64, frame, LACKING)
    dim, metric, count = integers[DIM], integers[METRIC], np.int64(0)
    missing[0] = NOTHING
    missing[1] = 0
    memory = np.empty(_lay_out_rows(np.uint64(0), integers, asked.size)[5] + 64, np.uint8)
    begin = (_address(_point(memory)) + np.uint64(63)) & ~np.uint64(63)
    wide, optimistic, rows, settling, scratch, _ = _lay_out_rows(begin, integers, asked.size)
    _leaves(dim, settling[2])
    for i in range(asked.size):
        block = asked[i] >> 6
        if not 0 <= block < blocks.size:
            continue
        if blocks[block] == 0:
            _note(_point(missing), missing.size - 2, np.int64(BLOCK), block)
        elif (asked[i] & 63) < _held(blocks[block]):
            optimistic[count], rows[count] = np.inf, asked[i]
            count += 1
    answered = queries.shape[0] if missing[1] == 0 else first
    for number in range(first, answered):
        begun = _clock()
        if not _compared(_behind(_point(queries), number * dim), dim, metric, wide, settling):
            missing[0] = UNSOUND
            answered = number
            break
        left, kept = rows, count
        if integers[PRECISION] == FLOAT32 and count > integers[K]:
            kept = _rule_out(wide, integers, _point(blocks), rows, count, scratch)
            left = scratch[3]
        counts[number] = _compare(
            wide, integers, 0.0, _point(blocks), optimistic, left, np.int64(0), kept, settling,
            _point(orders[number]), _point(scores[number]), np.int64(0),
        )  # fmt: skip
        for stage in range(STAGES):
            stats[number, stage] = 0
        stats[number, RESCORED] = count
        stats[number, SETTLE_TIME] = _clock() - begun
    # As in a search.
    memory[0] = 0
    return answered


# Comparing all binary rows: how many bits differ, and a heap of the nearest

# A row is ranked by one number: the differing bits above so many bits of its order, all flipped, so
# that the best is the largest. No collection gets near so many orders.
ORDER_BITS = 50
# Bytes of the next block that are asked for while one is compared.
AHEAD = 4096
_ORDER_BITS, _ORDERS = np.uint64(ORDER_BITS), np.uint64((1 << ORDER_BITS) - 1)


@intrinsic
def _ones(context: Any, word: Any) -> Any:
    """How many bits of a word are set."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


_FOUR = ir.VectorType(_I64, 4)


def _count_ones(builder: Any, words: Any) -> Any:
    """How many bits of each of four words are set."""
    kind = ir.FunctionType(_FOUR, [_FOUR])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.ctpop.v4i64")
    return builder.call(function, [words])


def _add_neighbours(builder: Any, left: Any, right: Any) -> Any:
    """The sums of the neighbours of two times four numbers."""
    even, odd = (_pick(builder, left, right, range(first, 8, 2)) for first in (0, 1))
    return builder.add(even, odd)


@intrinsic
def _count_differing(context: Any, rows: Any, query: Any, words: Any, fours: Any, out: Any) -> Any:
    """Write in how many bits so many times four rows differ from a query, uint64; return the least.

    All are addresses; rows and query have `words` words. The words are counted four at a time,
    which are those of a row: so that nothing is left to how a compiler sees a loop.
    """

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, query, words, fours, out = arguments
        zero, one, four = (ir.Constant(_I64, number) for number in (0, 1, 4))
        whole = builder.and_(words, ir.Constant(_I64, -4))
        least = cgutils.alloca_once_value(builder, _all(_FOUR, 2**62))
        sums = [cgutils.alloca_once(builder, _FOUR) for _ in range(4)]
        total = cgutils.alloca_once(builder, _FOUR)

        def behind(address: Any, count: Any) -> Any:
            return builder.add(address, builder.mul(count, ir.Constant(_I64, 8)))

        with cgutils.for_range(builder, fours) as loop:
            first = builder.mul(builder.mul(loop.index, four), words)
            starts = [
                behind(rows, builder.add(first, builder.mul(words, ir.Constant(_I64, i))))
                for i in range(4)
            ]
            for place in sums:
                builder.store(_all(_FOUR, 0), place)
            with cgutils.for_range_slice(builder, zero, whole, four, _I64) as (at, _):
                own = _load(builder, behind(query, at), _FOUR, 8)
                for start, place in zip(starts, sums, strict=True):
                    some = builder.xor(_load(builder, behind(start, at), _FOUR, 8), own)
                    builder.store(
                        builder.add(builder.load(place), _count_ones(builder, some)), place
                    )
            a, b, c, d = (builder.load(place) for place in sums)
            pairs = _add_neighbours(builder, a, b), _add_neighbours(builder, c, d)
            builder.store(_add_neighbours(builder, *pairs), total)
            with cgutils.for_range_slice(builder, whole, words, one, _I64) as (at, _):
                own, some = _load(builder, behind(query, at), _I64, 8), ir.Constant(_FOUR, None)
                for i, start in enumerate(starts):
                    word = builder.xor(_load(builder, behind(start, at), _I64, 8), own)
                    some = builder.insert_element(some, word, ir.Constant(_I32, i))
                builder.store(builder.add(builder.load(total), _count_ones(builder, some)), total)
            found, known = builder.load(total), builder.load(least)
            place = builder.inttoptr(behind(out, builder.mul(loop.index, four)), _FOUR.as_pointer())
            builder.store(found, place).align = 8
            less = builder.icmp_unsigned("<", found, known)
            builder.store(builder.select(less, found, known), least)
        found, smallest = builder.load(least), ir.Constant(_I64, 2**62)
        for i in range(4):
            one_of = builder.extract_element(found, ir.Constant(_I32, i))
            less = builder.icmp_unsigned("<", one_of, smallest)
            smallest = builder.select(less, one_of, smallest)
        return smallest

    word = types.uint64
    return types.uint64(word, word, types.int64, types.int64, word), generate


@_exactly
def _compare_block(block, word, query, words, k, counted, best, size):
    """Put the allowed rows of a block into the heap of the k best; return its new size."""
    named, numbers = _u64(block + np.uint64(HEADER)), block + np.uint64(HEADER + COLUMNS)
    held = _held(block)
    whole = held & ~3
    least = _count_differing(numbers, query, words, whole >> 2, _address(counted))
    for i in range(whole, held):
        row, total = _u64(numbers + np.uint64(8 * words * i)), np.uint64(0)
        for at in range(words):
            total += _ones(row[at] ^ _u64(query)[at])
        counted[i], least = total, min(least, total)
    bound = ~best[0] >> _ORDER_BITS if size == k else ~np.uint64(0)
    if least > bound:
        return size
    for i in range(held):
        if counted[i] <= bound and (word >> np.uint64(i)) & np.uint64(1):
            rank = (counted[i] << _ORDER_BITS) | (named[i] & _ORDERS)
            size = _keep_best(best, size, k, ~rank)
            bound = ~best[0] >> _ORDER_BITS if size == k else ~np.uint64(0)
    return size


@_exactly
def _rank(best, size, scores):
    """Turn a heap into orders and scores, best first."""
    for last in range(size - 1, 0, -1):
        best[0], best[last] = best[last], best[0]
        _sink(best, np.int64(0), np.int64(last))
    for i in range(size):
        rank = ~best[i]
        scores[i] = 0.0 - np.float64(rank >> _ORDER_BITS)
        best[i] = rank & _ORDERS


def compare_bits(frame, first):
    """Compare binary queries from `first` on with all rows; return as `search` does.

    Of the frame it reads the queries (uint64, as float32 of the same bits), the parameters (DIM,
    K), the table of blocks and the mask. The twin is `exact.ExactBits`, which finds the same hits.
    """
    integers = _point(_vector(_i64, frame, PARAMETERS))
    words, k = (integers[DIM] + 63) // 64, integers[K]
    asked = _matrix(_f32, frame, QUERIES)
    queries, counted = _address(_point(asked)), np.empty(BLOCK_ROWS, np.uint64)
    blocks, mask = _vector(_u64, frame, BLOCK_TABLE), _vector(_u64, frame, MASK)
    orders, scores = _matrix(_u64, frame, ORDERS), _matrix(_f64, frame, SCORES)
    counts, stats = _vector(_i64, frame, COUNTS), _matrix(_i64, frame, STATS)
    missing = _vector(_i64, frame, LACKING)
    missing[0] = NOTHING
    missing[1] = 0
    for start in range(first, asked.shape[0], QUERIES_AT_ONCE):
        together, begun, seen = min(QUERIES_AT_ONCE, asked.shape[0] - start), _clock(), 0
        for at in range(start, start + together):
            counts[at] = 0
        for number in range(mask.size):
            if mask[number] == 0:
                continue
            block = blocks[number]
            if block == 0:
                _note(_point(missing), missing.size - 2, np.int64(BLOCK), number)
                continue
            seen += _held(block)
            if number + 1 < mask.size and blocks[number + 1] != 0:
                # Blocks lie on pages of their own, which no processor foresees.
                ahead = blocks[number + 1] + np.uint64(HEADER + COLUMNS)
                for offset in range(0, min(8 * words * BLOCK_ROWS, AHEAD), 64):
                    _prefetch(ahead + np.uint64(offset))
            for at in range(start, start + together):
                counts[at] = _compare_block(
                    block, mask[number], queries + np.uint64(8 * words * at), words, k,
                    _point(counted), _point(orders[at]), counts[at],
                )  # fmt: skip
        if missing[1] > 0:
            return start
        for at in range(start, start + together):
            _rank(_point(orders[at]), counts[at], _point(scores[at]))
            for stage in range(STAGES):
                stats[at, stage] = 0
            stats[at, ROWS_SEEN] = stats[at, RESCORED] = seen
            stats[at, SCAN_TIME] = (_clock() - begun) // together
    # As in a search.
    counted[0] = 0
    return asked.shape[0]
