"""Batches of texts by their tokens: what may stand together, and that nothing is lost."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vecstore.encoders import OnnxEncoder
from vecstore.encoders.batching import ACCELERATED_TOKENS, TOKENS, WASTE, batches

SIZES = st.lists(st.integers(1, 300), max_size=200)


@given(SIZES, st.none() | st.integers(1, 9), st.integers(1, 600))
def test_each_text_is_in_one_batch_that_keeps_to_its_bounds(sizes, most, budget):
    array = np.array(sizes, np.intp)
    found = [rows.tolist() for rows in batches(array, most, budget)]
    assert sorted(row for rows in found for row in rows) == list(range(len(sizes)))
    for rows in found:
        lengths = [sizes[row] for row in rows]
        padded = max(lengths) * len(rows)
        assert padded - sum(lengths) <= WASTE * padded + 1e-9
        assert len(rows) == 1 or (padded <= budget and len(rows) <= (most or len(rows)))


@given(SIZES, st.none() | st.integers(1, 9), st.integers(1, 600))
def test_no_batch_had_room_for_the_next_text(sizes, most, budget):
    found = [
        [sizes[row] for row in rows] for rows in batches(np.array(sizes, np.intp), most, budget)
    ]
    for lengths, following in itertools.pairwise(found):
        assert lengths[-1] >= following[0]
        padded = lengths[0] * (len(lengths) + 1)
        wasted = padded - sum(lengths) - following[0]
        full = len(lengths) == most or padded > budget
        assert full or wasted > WASTE * padded - 1e-9


def test_texts_of_one_length_are_not_padded_and_stay_in_order():
    found = [rows.tolist() for rows in batches(np.array([4, 9, 4, 9, 4]), budget=18)]
    assert found == [[1, 3], [0, 2, 4]]


def test_without_a_batch_size_the_lengths_say_how_many_are_run(make_model, monkeypatch):
    encoder = OnnxEncoder(make_model())
    shapes = []
    run = encoder.session.run
    monkeypatch.setattr(
        encoder.session,
        "run",
        lambda found, skipped: shapes.append(len(found)) or run(found, skipped),
    )
    encoder.encode(["hello world"] * 600)
    tokens = len(encoder.session.tokenize(["hello world"], "")[0].ids)
    assert shapes[0] == TOKENS // tokens > 8
    assert sum(shapes) == 600


def test_an_accelerator_gets_more_at_once(make_model):
    path = make_model()
    usual = OnnxEncoder(path, providers=["CPUExecutionProvider"])
    faster = OnnxEncoder(path, providers=[("CUDAExecutionProvider", {}), "CPUExecutionProvider"])
    assert (usual._budget, faster._budget) == (TOKENS, ACCELERATED_TOKENS)
