"""How do a user's arrays become safe? dtype, shape, finite values, length, stored form."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vecstore.errors import VectorError
from vecstore.layout import Packed
from vecstore.spec import CollectionSpec, Metric, Precision

Vectors = NDArray[np.float32]
# Binary vectors, eight bits in each number, as numpy.packbits makes them.
Bits = NDArray[np.uint8]

# Beyond this length an inner product of two vectors could overflow float32.
LONGEST = 1e18
# A vector this close to unit length is stored as it is: scores divide by its true length anyway.
UNIT_SLACK = 1e-6
_FLOAT32 = np.dtype(np.float32)
WIDENED_AT_ONCE = 64
LARGEST_FLOAT16 = 65504.0
LARGEST_INT8 = 127
# With so few bits in a scale, its product with a code of 7 bits is exact in float32's 24.
SCALE_BITS = 17
SMALLEST_SCALE = np.float32(2.0**-149)


def as_vectors(values: ArrayLike, dim: int, what: str = "vectors") -> Vectors:
    """Return vectors as a C-contiguous float32 array of shape (n, dim), copied only if needed.

    Raises:
        VectorError: Wrong shape, a dtype without numbers, NaN, infinity, or a value that float32
            cannot hold; the message names the first offender.
    """
    return _as_floats(_as_array(values, what), dim, what)


def as_vector(values: ArrayLike, dim: int, what: str = "the vector") -> Vectors:
    """Return one vector as float32 of shape (dim,); checks as in `as_vectors`."""
    array = _as_array(values, what)
    if array.ndim != 1:
        raise VectorError(f"{what} has shape {array.shape}; expected ({dim},)")
    if array.shape[0] != dim:
        raise VectorError(f"{what} has {array.shape[0]} numbers, the collection has dim={dim}")
    vector: Vectors = _as_floats(array[None], dim, what)[0]
    return vector


def as_bits(values: ArrayLike, dim: int, what: str = "vectors") -> Bits:
    """Return binary vectors as uint8 of shape (n, dim / 8), the first bit the highest of a byte.

    Args:
        values: Packed like that, as integers of 0 to 255; or booleans of shape (n, dim).
        dim: Bits per vector.
        what: What messages call them.

    Raises:
        VectorError: Another shape or dtype, or an integer that is no byte.
    """
    return _as_bytes(_as_array(values, what, booleans=True), dim, what)


def _as_bytes(array: NDArray[Any], dim: int, what: str) -> Bits:
    width = dim if array.dtype.kind == "b" else dim // 8
    if array.dtype.kind == "f":
        raise VectorError(
            f"{what}: dtype {array.dtype}; binary vectors are packed: uint8 of shape"
            f" (n, {dim // 8}), as numpy.packbits(vectors > 0, axis=-1) makes them, or booleans"
        )
    if array.ndim != 2:
        raise VectorError(f"{what}: shape {array.shape}; expected (n, {width})")
    if array.shape[1] != width:
        raise VectorError(
            f"{what}: {array.shape[1]} {'bits' if width == dim else 'bytes'} each, the collection"
            f" has dim={dim}: {dim // 8} bytes (uint8), or {dim} booleans"
        )
    if array.dtype.kind == "b":
        return np.packbits(array, axis=1)
    if len(array) and (array.min() < 0 or array.max() > 255):
        row, column = np.argwhere((array < 0) | (array > 255))[0].tolist()
        raise VectorError(
            f"{what}: row {row} holds {array[row, column]} at position {column}; packed bits are"
            " integers of 0 to 255"
        )
    return np.ascontiguousarray(array, dtype=np.uint8)


def as_queries(
    values: ArrayLike, spec: CollectionSpec, dims: int | None = None, what: str = "queries"
) -> Vectors | Bits:
    """Return queries as float32 (m, dim), or uint8 (m, dim / 8) under hamming; checked.

    With `dims` they may be prefixes of that length already, and prefixes are what is returned.
    """
    array = _as_array(values, what, booleans=spec.metric == "hamming")
    return _as_queries(array, spec, dims, what)


def as_query(value: ArrayLike, spec: CollectionSpec, dims: int | None = None) -> Vectors | Bits:
    """Return one query as an array of one; as `as_queries`."""
    what, binary = "the query", spec.metric == "hamming"
    array = _as_array(value, what, booleans=binary)
    if array.ndim == 1 and (binary or array.shape[0] in (spec.dim, dims)):
        return _as_queries(array[None], spec, dims, what)
    if binary:
        raise VectorError(f"{what} has shape {array.shape}; expected ({spec.dim // 8},)")
    return as_vector(array, spec.dim, what)[None]


def _as_queries(
    array: NDArray[Any], spec: CollectionSpec, dims: int | None, what: str
) -> Vectors | Bits:
    binary = spec.metric == "hamming"
    packed = 8 if binary and array.dtype.kind != "b" else 1
    short = dims is not None and array.ndim == 2 and array.shape[1] == dims // packed
    dim = dims if short and dims is not None else spec.dim
    return prefixes((_as_bytes if binary else _as_floats)(array, dim, what), dims)


def prefixes(queries: Vectors | Bits, dims: int | None) -> Vectors | Bits:
    """The first `dims` numbers or bits of each query; all of them for None."""
    if dims is None:
        return queries
    return queries[:, : dims // 8 if queries.dtype == np.uint8 else dims]


def shorten(vectors: Vectors, dim: int) -> Vectors:
    """Return prefixes of `dim` numbers, scaled to the lengths of the vectors that they begin."""
    cut = vectors[:, :dim]
    part = lengths(cut)
    factors = lengths(vectors) / np.where(part > 0, part, 1.0)
    with np.errstate(over="ignore"):
        return (cut * factors[:, None]).astype(np.float32)


def as_words(bits: Bits) -> NDArray[np.uint64]:
    """Return bits, uint8 (n, bytes), in whole words: uint64 (n, words), with zeros behind."""
    words = np.zeros((len(bits), -(-bits.shape[1] // 8)), "<u8")
    words.view(np.uint8)[:, : bits.shape[1]] = bits
    return words


def pack(values: ArrayLike, spec: CollectionSpec, what: str = "vectors") -> Packed:
    """Return a user's vectors as a collection stores them; checks as in `as_vectors`, `as_bits`."""
    if spec.metric != "hamming":
        return store_form(as_vectors(values, spec.dim, what), spec.metric, spec.precision)
    words = as_words(as_bits(values, spec.dim, what))
    return Packed(count_bits(words).astype(np.float64), words)


def unpack(packed: Packed, spec: CollectionSpec) -> Vectors | Bits:
    """Return the user's vectors again: float32 (n, dim), or uint8 (n, dim / 8) under hamming."""
    if spec.metric != "hamming":
        return original(packed, spec.metric)
    bits: Bits = packed.numbers.view(np.uint8)[:, : spec.dim // 8].copy()
    return bits


def count_bits(words: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """How many bits are set in each row, uint16 (n,), of uint64 (n, words)."""
    # numpy adds up short rows slowly.
    total = np.zeros(len(words), np.uint16)
    for column in range(words.shape[1]):
        total += np.bitwise_count(words[:, column])
    return total


def store_form(vectors: Vectors, metric: Metric, precision: Precision = "float32") -> Packed:
    """Return vectors, float32 (n, dim), as they are stored.

    Under cosine they are scaled to unit length, and `norms` are the original lengths. Under dot
    and l2 they are stored as they are, and `norms` are the lengths of what is stored.

    Returns:
        Whose numbers may be `vectors` itself.

    Raises:
        VectorError: Zero length under cosine, a length over 1e18 under dot and l2, or a number
            that float16 cannot hold.
    """
    norms = check_lengths(vectors, metric, "vector")
    if metric == "cosine":
        far = np.abs(norms - 1.0) > UNIT_SLACK
        norms[~far] = 1.0
        if far.any():
            # Dividing by 1.0 keeps the bits.
            vectors = (vectors / norms[:, None]).astype(np.float32)
    if precision == "float32":
        return Packed(norms, vectors)
    packed = _narrow_half(vectors, norms) if precision == "float16" else _narrow(vectors, norms)
    return packed if metric == "cosine" else replace(packed, norms=lengths(widen(packed)))


def _narrow_half(vectors: Vectors, norms: NDArray[np.float64]) -> Packed:
    far = np.abs(vectors) > LARGEST_FLOAT16
    if far.any():
        row, column = np.argwhere(far)[0].tolist()
        raise VectorError(
            f"vector {row} holds {vectors[row, column]:g} at position {column}; precision"
            f" 'float16' holds numbers up to {LARGEST_FLOAT16:g}: scale the vectors down, or make"
            " the collection with precision 'float32'"
        )
    return Packed(norms, vectors.astype(np.float16))


def _narrow(vectors: Vectors, norms: NDArray[np.float64]) -> Packed:
    """Codes of -127 to 127 and a scale per vector, rounded up so that code * scale is exact."""
    largest = np.abs(vectors).max(axis=1).astype(np.float64)
    mantissas, exponents = np.frexp(largest / LARGEST_INT8)
    scales = np.ldexp(np.ceil(np.ldexp(mantissas, SCALE_BITS)), exponents - SCALE_BITS)
    narrow = np.maximum(scales.astype(np.float32), SMALLEST_SCALE)
    codes = vectors / narrow[:, None]
    np.rint(codes, out=codes)
    # A scale below float32's normal range may have been rounded down.
    np.clip(codes, -LARGEST_INT8, LARGEST_INT8, out=codes)
    narrow[largest == 0] = 0
    return Packed(norms, codes.astype(np.int8), narrow)


def widen(packed: Packed) -> Vectors:
    """Return stored numbers as float32 of their shape, exactly; float32 itself without a copy."""
    numbers = packed.numbers
    if numbers.dtype == np.float16:
        # Four times faster than astype: the bits of a float16 in their places in a float32, whose
        # exponent then is too small by 112, also for subnormal numbers.
        bits = numbers.view(np.int16).astype(np.int32).view(np.uint32)
        bits <<= np.uint32(13)
        bits &= np.uint32(0x8FFFFFFF)
        wide = bits.view(np.float32)
        wide *= np.float32(2.0**112)
        return wide
    vectors: Vectors = numbers.astype(np.float32, copy=False)
    if packed.scales is not None:
        vectors *= packed.scales[..., None]
    return vectors


def differ(one: Packed, other: Packed) -> NDArray[np.bool_]:
    """Which of two vectors each are not the same in their stored form, (n,)."""
    found: NDArray[np.bool_] = (one.numbers != other.numbers).any(axis=1)
    found |= one.norms != other.norms
    if one.scales is not None and other.scales is not None:
        found |= one.scales != other.scales
    return found


def unit_slack(packed: Packed) -> float | NDArray[np.float64]:
    """How far from 1 the length of a stored vector may be, for one that had unit length."""
    slack, root = 4 * UNIT_SLACK, math.sqrt(packed.numbers.shape[-1])
    if packed.scales is not None:
        # Each number is off by half a step at most; a little more, for the rounding of quotients.
        steps: NDArray[np.float64] = packed.scales.astype(np.float64)
        return slack + steps * (0.5001 * root)
    if packed.numbers.dtype == np.float16:
        return slack + 2.0**-11 + root * 2.0**-25
    return slack


def check_lengths(vectors: Vectors | Bits, metric: Metric, what: str) -> NDArray[np.float64]:
    """Return the lengths of vectors, having checked that the metric can compare them.

    Raises:
        VectorError: Zero length under cosine, or a length over 1e18 under dot and l2.
    """
    norms = lengths(vectors)
    if metric == "cosine" and np.count_nonzero(norms) < len(norms):
        raise VectorError(
            f"{what} {int(np.argmin(norms))} is zero; it has no direction, so cosine cannot"
            " compare it. Leave it out or use metric 'dot' or 'l2'"
        )
    if metric != "cosine" and np.count_nonzero(norms > LONGEST):
        worst = int(np.argmax(norms))
        raise VectorError(
            f"{what} {worst} has length {norms[worst]:.3g}; metric {metric!r} takes lengths up to"
            f" {LONGEST:g}, scale the vectors down"
        )
    return norms


def as_compared(queries: Vectors | Bits, metric: Metric) -> NDArray[np.float64]:
    """Return queries as they are compared: float64 (m, dim), under cosine of unit length."""
    wide = queries.astype(np.float64)
    if metric == "cosine":
        # Summed by numpy, whose order of additions the kernels know, and not by BLAS.
        wide /= np.sqrt((wide * wide).sum(axis=1))[:, None]
    return wide


def usual_query(query: object, spec: CollectionSpec) -> Vectors | None:
    """A view of a query as an array of one, if it is float32 (dim,); None for any other.

    Most queries are usual. The others need dozens of steps, a large part of a search. Its numbers
    are not checked.
    """
    # Subclasses may compute otherwise, as masked arrays do; the general way takes their numbers.
    if type(query) is not np.ndarray or query.dtype != _FLOAT32 or query.shape != (spec.dim,):
        return None
    return None if spec.metric == "hamming" else query[None]


def original(packed: Packed, metric: Metric) -> Vectors:
    """Return the user's vectors again, float32 (n, dim), as far as the stored form kept them."""
    wide = widen(packed)
    if metric != "cosine":
        return wide.copy() if wide is packed.numbers else wide
    return (wide * packed.norms[..., None]).astype(np.float32)


def lengths(vectors: Vectors | Bits) -> NDArray[np.float64]:
    """Euclidean lengths, float64 (n,), of float32 vectors (n, dim), without overflow."""
    squares = np.empty(len(vectors))
    # Squares of float32 numbers cannot overflow float64. A few rows at a time stay in the cache.
    for at in range(0, len(vectors), WIDENED_AT_ONCE):
        wide = vectors[at : at + WIDENED_AT_ONCE].astype(np.float64)
        np.vecdot(wide, wide, out=squares[at : at + WIDENED_AT_ONCE])
    return np.sqrt(squares)


def unit(vectors: Vectors) -> Vectors:
    """Vectors scaled to unit length, float32 (n, dim), but for zeros and those close to it."""
    with np.errstate(over="ignore"):
        near = np.abs(np.sqrt(np.vecdot(vectors, vectors)) - 1) <= 2 * UNIT_SLACK
    far = np.flatnonzero(~near)
    if not len(far):
        return vectors
    scaled, sizes = vectors.copy(), lengths(vectors[far])[:, None]
    scaled[far] = vectors[far] / np.where(sizes > 0, sizes, 1.0)
    return scaled


def _as_array(values: ArrayLike, what: str, *, booleans: bool = False) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise VectorError(f"{what}: not an array of numbers: {error}") from None
    if array.dtype.kind not in "fiub":
        raise VectorError(
            f"{what}: dtype {array.dtype}; expected float32, or numbers that convert to it"
        )
    if array.dtype.kind == "b" and not booleans:
        raise VectorError(f"{what}: booleans; convert them to 0.0 and 1.0 if that is meant")
    return array


def _as_floats(array: NDArray[Any], dim: int, what: str) -> Vectors:
    if array.ndim != 2:
        raise VectorError(f"{what}: shape {array.shape}; expected (n, {dim})")
    if array.shape[1] != dim:
        raise VectorError(f"{what}: {array.shape[1]} numbers each, the collection has dim={dim}")
    if array.dtype == np.float32:
        result = np.ascontiguousarray(array)
    else:
        with np.errstate(over="ignore"):
            result = np.ascontiguousarray(array, dtype=np.float32)
    # Several times faster than all(), where there is one query.
    if np.count_nonzero(np.isfinite(result)) < result.size:
        _refuse_infinite(array, result, what)
    return result


def _refuse_infinite(array: NDArray[Any], result: Vectors, what: str) -> None:
    bad = np.argwhere(~np.isfinite(result))
    if len(bad) == 0:
        return
    row, column = bad[0].tolist()
    raise VectorError(
        f"{what}: row {row} holds {array[row, column]} at position {column}; every value must be"
        " finite and within float32's range (3.4e38)"
    )


def are_sound(packed: Packed, spec: CollectionSpec) -> NDArray[np.bool_]:
    """Which stored vectors can be such, by their numbers and norms, bool (n,)."""
    if spec.metric == "hamming":
        spare = packed.numbers.view(np.uint8)[:, spec.dim // 8 :]
        bits: NDArray[np.bool_] = (packed.norms == count_bits(packed.numbers)) & ~spare.any(axis=1)
        return bits
    with np.errstate(all="ignore"):
        sizes, norms = lengths(widen(packed)), packed.norms
        finite = np.isfinite(packed.numbers).all(axis=1) & np.isfinite(norms) & np.isfinite(sizes)
        if spec.metric == "cosine":
            right = (abs(sizes - 1) <= unit_slack(packed)) & (norms > 0)
        else:
            right = (abs(norms - sizes) <= 1e-9 * sizes) & (sizes <= LONGEST)
    sound: NDArray[np.bool_] = finite & right
    return sound
