from __future__ import annotations

import numpy as np
import pytest

from vecstore.encoders.pooling import POOLINGS, pool

RNG = np.random.default_rng(1)
TOKENS = RNG.normal(size=(3, 5, 4)).astype(np.float32)
SIZES = (5, 1, 3)
MASK = np.array([[1.0] * size + [0.0] * (5 - size) for size in SIZES], dtype=np.float32)


def naive(mode, tokens):
    weights = np.arange(1, len(tokens) + 1)[:, None]
    return {
        "cls": lambda: tokens[0],
        "lasttoken": lambda: tokens[-1],
        "max": lambda: tokens.max(axis=0),
        "mean": lambda: tokens.mean(axis=0),
        "mean_sqrt_len_tokens": lambda: tokens.sum(axis=0) / len(tokens) ** 0.5,
        "weightedmean": lambda: (tokens * weights).sum(axis=0) / weights.sum(),
    }[mode]()


@pytest.mark.parametrize("mode", POOLINGS)
def test_pooling_ignores_padding_and_equals_its_definition(mode):
    expected = [naive(mode, TOKENS[row, :size]) for row, size in enumerate(SIZES)]

    found = pool(TOKENS, MASK, [mode])

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_several_modes_are_concatenated_in_order():
    found = pool(TOKENS, MASK, ["cls", "mean"])

    assert found.shape == (3, 8)
    np.testing.assert_array_equal(found[:, :4], TOKENS[:, 0])


def test_leading_tokens_can_be_masked_too():
    mask = MASK.copy()
    mask[0, :2] = 0

    np.testing.assert_array_equal(pool(TOKENS, mask, ["cls"])[0], TOKENS[0, 2])
    np.testing.assert_allclose(pool(TOKENS, mask, ["mean"])[0], TOKENS[0, 2:].mean(0), rtol=1e-5)
