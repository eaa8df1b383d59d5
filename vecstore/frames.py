"""How does the compiled search get its arguments? As one list of addresses.

To take two dozen arrays apart, one by one, would be a tenth of a search.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The arguments of a search that are arrays, in their order: dtype and number of axes.
ARRAYS: dict[str, tuple[Any, int]] = {
    "queries": (np.float32, 2),
    "integers": (np.int64, 1),
    "floats": (np.float32, 1),
    "mean": (np.float32, 1),
    "directions": (np.uint8, 3),
    "direction_scales": (np.float32, 1),
    "signs": (np.int8, 2),
    "centroids": (np.uint8, 3),
    "centroid_scales": (np.float32, 1),
    "bias": (np.float32, 1),
    "patterns": (np.float32, 2),
    "lists": (np.uint64, 1),
    "blocks": (np.uint64, 1),
    "codes": (np.uint64, 1),
    "tail": (np.int64, 1),
    "mask": (np.uint64, 1),
    "tail_mask": (np.uint64, 1),
    "weights": (np.float32, 1),
    "excerpts": (np.uint64, 1),
    "orders": (np.uint64, 2),
    "scores": (np.float64, 2),
    "counts": (np.int64, 1),
    "stats": (np.int64, 2),
    "missing": (np.int64, 1),
}
OUTPUTS = ("orders", "scores", "counts", "stats", "missing")
_EMPTY: dict[str, NDArray[Any]] = {
    name: np.zeros((0,) * axes, dtype) for name, (dtype, axes) in ARRAYS.items()
}
# What does not depend on the queries.
SHARED = tuple(name for name in ARRAYS if name not in ("queries", *OUTPUTS))
# Of each array its address and the lengths of up to three axes.
WORDS = 4


def words(name: str, array: NDArray[Any]) -> list[int]:
    """What a frame says of one array.

    Raises:
        TypeError: The array is not what a search takes under this name.
    """
    dtype, axes = ARRAYS[name]
    sound = array.dtype == dtype and array.ndim == axes and array.flags.c_contiguous
    if not sound or (name in OUTPUTS and not array.flags.writeable):
        raise TypeError(
            f"{name}: {array.dtype} {array.shape}; a search takes {np.dtype(dtype)} of {axes} axes,"
            " C-contiguous" + (" and writeable" if name in OUTPUTS else "")
        )
    return [array.ctypes.data, *array.shape, *[0] * (WORDS - 1 - axes)]


def filled(names: Iterable[str], given: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """The arrays of these names, in this order; those that are not given are empty."""
    return [given.get(name, _EMPTY[name]) for name in names]


def partly(**given: NDArray[Any]) -> Frame:
    """A frame of some arrays; the others are empty."""
    return Frame(filled(ARRAYS, given))


class Frame:
    """The arrays of a call, kept alive, and what is said of them.

    Attributes:
        arrays: One for each of `ARRAYS`.
        address: Where the words of all of them lie, one after the other.
    """

    __slots__ = ("_words", "address", "arrays")

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self.arrays = tuple(arrays)
        said = zip(ARRAYS, self.arrays, strict=True)
        self._words = np.array([word for pair in said for word in words(*pair)], np.uint64)
        self.address = int(self._words.ctypes.data)
