"""How far do the numbers go that enter each matrix of a transformer? Measured on some texts.

A matrix that multiplies in 8 bits needs a step for what enters it. Runtimes that choose the step
for each batch let texts change each other's vectors; a step that is fixed beforehand does not, and
needs no pass over the numbers. A few of a transformer's numbers are ten times as large as all
others, and would make the step coarse; they are divided before, and the matrix's rows multiplied
(Xiao, Lin, Seznec, Wu, Demouth and Han, SmoothQuant, 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from vecstore.encoders.transformer import Graph, Range, Shape, build

Floats = NDArray[np.float32]
LEVELS = 255
# Tokens kept of a text, so that long ones do not decide alone.
TOKENS = 8
# Numbers larger than this share of all, by their largest, are divided down to it.
USUAL = 0.98
# Dividing costs a pass over the numbers: it has to undo that share of the rounding error.
WORTH = 0.5
# What share of the largest and of the least number is tried as an end of the range.
HIGH_ENDS = (1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15)
LOW_ENDS = (1, 0.8, 0.6, 0.4)


def measure(
    tensors: Mapping[str, NDArray[np.float32]],
    shape: Shape,
    texts: Iterable[list[int]],
    *,
    branches: Mapping[int, int] | None = None,
    seed: int = 0,
) -> dict[str, Range]:
    """Return the range of what enters each matrix, by the matrix's name.

    Args:
        tensors: The transformer's weights.
        shape: Its sizes.
        texts: Numbers of tokens, special ones included; some hundred texts of all lengths.
        branches: Layers beside the others, as in `build`.
        seed: Fixes which tokens of long texts are kept.
    """
    entering: dict[str, str] = {}

    def finish(graph: Graph, _values: list[str]) -> None:
        entering.update(graph.entering)
        for value in dict.fromkeys(entering.values()):
            graph.output(value, "batch", "sequence", f"size of {value}")

    model = build(tensors, shape, quantized=False, finish=finish, branches=branches)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = list(dict.fromkeys(entering.values()))
    chance = np.random.default_rng(seed)
    seen: dict[str, list[Floats]] = {name: [] for name in names}
    for text in texts:
        ids = np.array([text])
        kept = chance.permutation(len(text))[:TOKENS]
        found = session.run(names, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        for name, values in zip(names, found, strict=True):
            seen[name].append(values[0][kept])
    ranges = {name: _range(np.concatenate(values)) for name, values in seen.items()}
    return {matrix: ranges[value] for matrix, value in entering.items()}


def _range(values: Floats) -> Range:
    """The range that rounds values, float32 (n, in), with the least squared error."""
    plain_error, plain = _best(values, None)
    largest = np.maximum(np.abs(values).max(axis=0), 1e-6)
    factors = np.minimum(1, np.quantile(largest, USUAL) / largest).astype(np.float32)
    error, found = _best(values, factors)
    return found if error < (1 - WORTH) * plain_error else plain


def _best(values: Floats, factors: Floats | None) -> tuple[float, Range]:
    scaled = values if factors is None else values * factors
    low, high = min(float(scaled.min()), 0.0), max(float(scaled.max()), 1e-6)
    tried = [Range(low * below, high * above, factors) for above in HIGH_ENDS for below in LOW_ENDS]
    errors = [_error(values, scaled, one) for one in tried]
    best = int(np.argmin(errors))
    return errors[best], tried[best]


def _error(values: Floats, scaled: Floats, found: Range) -> float:
    step = (found.high - found.low) / LEVELS
    zero = np.rint(-found.low / step)
    rounded = (np.clip(np.rint(scaled / step) + zero, 0, LEVELS) - zero) * step
    if found.factors is not None:
        rounded = rounded / found.factors
    return float(np.square(rounded - values).mean())
