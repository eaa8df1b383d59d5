"""Codes against float64: what a code stands for, what it says of a product, how tiles keep it."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore import spec
from vecstore.ann import codes, rotation
from vecstore.ann.codes import Codes, Turns
from vecstore.index_layout import CodeShape

BITS = pytest.mark.parametrize("bits", spec.CODE_BITS)


def stands_for(found: Codes, bits: int, coded: int) -> np.ndarray:
    """The numbers that codes stand for, float64 (n, coded), dimension by dimension."""
    table, a_group = codes.levels(bits).astype(np.float64), 4 // bits
    rows = []
    for groups in found.groups.tolist():
        values = [
            groups[j // a_group] >> bits * (j % a_group) & (1 << bits) - 1 for j in range(coded)
        ]
        rows.append(table[values])
    return np.array(rows).reshape(len(found.rows), coded)


def coded(residuals: np.ndarray, bits: int, centres=None) -> Codes:
    names = np.arange(len(residuals), dtype=np.uint32)
    turns = Turns(lambda unturned: unturned, lambda unturned: unturned)
    return codes.encode(residuals, centres, turns, bits, names)


@BITS
def test_levels_are_symmetric_and_ascend(bits: int) -> None:
    found = codes.levels(bits)

    assert len(found) == 2**bits
    assert (np.diff(found) > 0).all()
    assert np.array_equal(found, -found[::-1])


@BITS
@pytest.mark.parametrize("dim", [2, 3, 16, 65])
def test_each_number_becomes_the_nearest_level(bits: int, dim: int, rng) -> None:
    residuals = rng.normal(size=(40, dim)).astype(np.float32)
    found = stands_for(coded(residuals, bits), bits, dim)

    spread = 1.0 if bits == 1 else np.sqrt((residuals.astype(float) ** 2).mean(axis=1))[:, None]
    off = np.abs((residuals / spread)[:, :, None] - codes.levels(bits).astype(float))
    chosen = np.abs(residuals / spread - found)
    assert (chosen <= off.min(axis=2) + 1e-5).all()


@BITS
def test_a_code_is_right_of_its_own_vector(bits: int, rng) -> None:
    """<r, r> is estimated without an error, whatever the rounding was."""
    residuals = (rng.normal(size=(50, 24)) * 10 ** rng.uniform(-3, 3, (50, 1))).astype(np.float32)
    found = coded(residuals, bits)
    wide = residuals.astype(np.float64)

    estimates = found.scales * np.vecdot(stands_for(found, bits, 24), wide)
    np.testing.assert_allclose(estimates, np.vecdot(wide, wide), rtol=1e-5)


@BITS
def test_estimates_have_no_bias_and_errors_as_small_as_promised(bits: int, rng) -> None:
    dim, count, turns = 64, 200, 24
    residuals = rng.normal(size=(count, dim)).astype(np.float32) * np.linspace(0.2, 2, dim)
    residuals = residuals.astype(np.float32)
    query = residuals[:50].astype(np.float64) + rng.normal(size=(50, dim))
    true, errors = query @ residuals.T.astype(np.float64), []
    for seed in range(turns):
        turn = partial(rotation.turn, signs=rotation.signs(dim, seed))
        names = np.arange(count, dtype=np.uint32)
        found = codes.encode(residuals, None, Turns(turn, turn), bits, names)
        levels = stands_for(found, bits, dim) * found.scales[:, None]
        errors.append(turn(query) @ levels.T - true)
    sizes = np.linalg.norm(query, axis=1)[:, None] * np.linalg.norm(residuals, axis=1)
    relative = np.array(errors) / sizes

    doubt = relative.std() / relative.size**0.5
    # Errors of one rotation are not independent; those of 24 are.
    assert abs(relative.mean()) < 4 * max(doubt, relative.mean(axis=(1, 2)).std() / turns**0.5)
    assert relative.std() < {1: 0.1, 2: 0.05, 4: 0.015}[bits]


def test_offsets_complete_the_score(rng) -> None:
    """With the residual itself for its code, a score is minus half the squared distance."""
    centres = rng.normal(size=(30, 12)).astype(np.float32) * 3
    residuals = rng.normal(size=(30, 12)).astype(np.float32)
    found = coded(residuals, 1, centres)
    query = rng.normal(size=12)
    wide, middles = residuals.astype(np.float64), centres.astype(np.float64)

    base = middles @ query - 0.5 * np.vecdot(middles, middles)
    score = base + found.offsets + wide @ query
    distances = ((wide + middles - query) ** 2).sum(axis=1)
    np.testing.assert_allclose(score, 0.5 * query @ query - 0.5 * distances, atol=1e-4)


@BITS
def test_a_residual_of_zero_has_no_scale(bits: int) -> None:
    found = coded(np.zeros((3, 8), np.float32), bits)

    assert found.scales.tolist() == [0, 0, 0]
    assert np.isfinite(found.offsets).all()


def test_rows_are_coded_in_slices_as_in_one_piece(rng, monkeypatch) -> None:
    residuals = rng.normal(size=(100, 20)).astype(np.float32)
    whole = coded(residuals, 2)
    monkeypatch.setattr(codes, "ENCODED_AT_ONCE", 7)
    sliced = coded(residuals, 2)

    assert np.array_equal(whole.groups, sliced.groups)
    np.testing.assert_allclose(whole.scales, sliced.scales, rtol=1e-6)


@given(st.integers(0, 100), st.integers(1, 3), st.booleans(), st.integers(0, 2**32 - 1))
def test_tiles_give_back_what_was_packed(count: int, words: int, offsets: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = words * codes.GROUPS_AT_ONCE
    scales, away = rng.normal(size=(2, count)).astype(np.float32)
    names = rng.integers(0, 2**32, count, dtype=np.uint32)
    fine = rng.integers(0, 256, (count, codes.fine_bytes(70)), np.uint8)
    kept = Codes(rng.integers(0, 16, (count, groups), np.uint8), scales, away, fine, -scales, names)
    shape = CodeShape(groups, offsets, 70)

    packed = codes.pack_tiles(kept, shape).reshape(-1, shape.tile_bytes)
    behind = codes.pack_fine(kept, shape).reshape(count, shape.fine_bytes)
    found = codes.unpack(packed, behind, names, shape)
    assert np.array_equal(found.fine, fine)
    assert np.array_equal(found.fine_scales, -scales)
    assert np.array_equal(found.groups, kept.groups)
    assert np.array_equal(found.scales, scales)
    assert np.array_equal(found.offsets, away if offsets else np.zeros(count))
    assert np.array_equal(found.rows, names)


def test_taking_and_joining_keep_rows_together(rng) -> None:
    found = coded(rng.normal(size=(20, 8)).astype(np.float32), 1)
    order = rng.permutation(20)
    again = codes.join([found.take(order[:5]), codes.empty(16, 8), found.take(order[5:])])

    assert again.rows.tolist() == order.tolist()
    assert np.array_equal(again.groups, found.groups[order])
    assert np.array_equal(again.scales, found.scales[order])


# Fine codes


@given(st.integers(0, 30), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_each_number_becomes_the_nearest_even_level(count: int, dim: int, seed: int) -> None:
    residuals = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    found = codes.unpack_fine(coded(residuals, 1).fine, dim)

    steps = 0.3352 * np.sqrt((residuals.astype(float) ** 2).mean(axis=1))[:, None]
    levels = np.arange(-7.5, 8)
    off = np.abs((residuals / steps)[:, :, None] - levels)
    assert (np.abs(residuals / steps - found) <= off.min(axis=2, initial=np.inf) + 1e-4).all()


def test_a_fine_code_is_right_of_its_own_vector(rng) -> None:
    residuals = (rng.normal(size=(50, 24)) * 10 ** rng.uniform(-3, 3, (50, 1))).astype(np.float32)
    found, wide = coded(residuals, 1), residuals.astype(np.float64)

    estimates = found.fine_scales * np.vecdot(codes.unpack_fine(found.fine, 24), wide)
    np.testing.assert_allclose(estimates, np.vecdot(wide, wide), rtol=1e-5)


def test_fine_codes_err_far_less_than_codes_of_one_bit(rng) -> None:
    dim, count = 128, 300
    residuals, queries = rng.normal(size=(2, count, dim)).astype(np.float32)
    found = coded(residuals, 1)
    true = queries.astype(np.float64) @ residuals.T
    fine = found.fine_scales * (queries @ codes.unpack_fine(found.fine, dim).T)
    coarse = found.scales * (queries @ stands_for(found, 1, dim).T)

    assert (fine - true).std() < 0.2 * (coarse - true).std()
    assert abs((fine - true).mean()) < 0.01 * true.std()


def test_without_fine_codes_their_scales_are_zero(rng) -> None:
    residuals = rng.normal(size=(5, 8)).astype(np.float32)
    turns = Turns(lambda unturned: unturned, lambda unturned: unturned)
    found = codes.encode(residuals, None, turns, 1, np.arange(5, dtype=np.uint32), fine=False)

    assert not found.fine.any()
    assert not found.fine_scales.any()
    assert np.array_equal(found.groups, coded(residuals, 1).groups)


def test_a_residual_of_zero_has_no_fine_scale() -> None:
    assert coded(np.zeros((3, 8), np.float32), 1).fine_scales.tolist() == [0, 0, 0]
