"""Vectors that are hard to tell apart, and usual ones."""

import numpy as np

KINDS = ["normal", "far", "alike", "equal", "few values", "zeros", "huge", "tiny", "uneven"]


def drawn(rng, count, dim, kind):
    vectors = rng.normal(size=(count, dim))
    if kind == "far":
        vectors += 1000
    elif kind == "alike":
        vectors = vectors[:1] + 1e-6 * vectors
    elif kind == "equal":
        vectors[:] = vectors[0]
    elif kind == "few values":
        vectors = rng.integers(-1, 2, size=(count, dim)) + 0.0
    elif kind == "zeros":
        vectors[rng.random(count) < 0.5] = 0
    elif kind == "huge":
        vectors *= 1e16
    elif kind == "tiny":
        vectors *= 1e-30
    elif kind == "uneven":
        vectors *= 10.0 ** rng.integers(-6, 7, size=(count, 1))
    return vectors.astype(np.float32)
