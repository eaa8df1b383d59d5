"""Which texts are run together? Those of like length, as many as the processor's cache holds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Padded tokens that a processor runs at once: with more, what a layer makes of them leaves its
# cache; with fewer, the weights are read too often.
TOKENS = 512
# An accelerator has no such limit, and is kept busy by many.
ACCELERATED_TOKENS = 32 * TOKENS
# Padding is at most this share of what is run.
WASTE = 0.1


def batches(
    sizes: NDArray[np.intp], most: int | None = None, budget: int = TOKENS
) -> Iterator[NDArray[np.intp]]:
    """Yield the texts of each batch, the longest first; each text is in one.

    A batch is padded to its longest text. Texts that are longer than the budget run alone.

    Args:
        sizes: Tokens of each text, (n,).
        most: Texts of a batch, at most; None for as many as the budget allows.
        budget: Tokens of a batch, padding included.

    Yields:
        Places in `sizes`, (m,).
    """
    # Equal ones stay in their order.
    order = np.argsort(-sizes, kind="stable")
    start = 0
    while start < len(order):
        longest = int(sizes[order[start]])
        fitting = max(1, budget // max(1, longest))
        part = order[start : start + min(fitting, most or fitting)]
        padded = longest * np.arange(1, len(part) + 1)
        full = np.cumsum(sizes[part]) >= (1 - WASTE) * padded
        # The share of padding only grows, from none in the first.
        part = part[full]
        yield part
        start += len(part)
