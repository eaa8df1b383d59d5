from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecstore.encoders import Encoder, HashEncoder
from vecstore.errors import UsageError

GOLDEN = [
    [
        -0.4455663859844208,
        -0.24753688275814056,
        0.4455663859844208,
        -0.04950737580657005,
        -0.3465516269207001,
        0.5445811748504639,
        0.04950737580657005,
        -0.3465516269207001,
    ],
    [
        0.2857142984867096,
        -0.4285714328289032,
        0.4285714328289032,
        0.2857142984867096,
        0.1428571492433548,
        0.4285714328289032,
        -0.4285714328289032,
        -0.2857142984867096,
    ],
]


def test_vectors_are_the_same_in_every_release():
    found = HashEncoder(dim=8).encode(["Red apples", "…!"])

    np.testing.assert_array_equal(found, np.array(GOLDEN, dtype=np.float32))
    assert HashEncoder(dim=8).fingerprint == "79000312017c9604b64545cac65f7c69"


@given(st.lists(st.text(min_size=1).filter(lambda text: not text.isspace()), max_size=5))
def test_every_text_gets_a_unit_vector(texts):
    found = HashEncoder(dim=32).encode(texts)

    assert found.shape == (len(texts), 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_shared_words_count_more_than_shared_letters_and_both_more_than_nothing():
    asked, word, letters, nothing = HashEncoder(dim=256).encode(
        ["blue house", "old house", "bluest horses", "map"]
    )

    assert asked @ word > asked @ letters > asked @ nothing


def test_case_is_ignored_and_kind_changes_nothing():
    encoder = HashEncoder()

    np.testing.assert_array_equal(encoder.encode(["Red"]), encoder.encode(["rED"], kind="query"))


def test_seed_and_dim_change_the_vectors_and_the_fingerprint():
    encoders = [HashEncoder(), HashEncoder(seed=1), HashEncoder(dim=65)]

    assert len({encoder.fingerprint for encoder in encoders}) == 3
    assert not np.array_equal(encoders[0].encode(["a"]), encoders[1].encode(["a"]))


def test_it_is_an_encoder_without_prefixes():
    encoder = HashEncoder()

    assert isinstance(encoder, Encoder)
    assert (encoder.name, encoder.dim, encoder.mrl) == ("hash", 64, ())
    assert encoder.encode([]).shape == (0, 64)


@pytest.mark.parametrize("arguments", [{"dim": 1}, {"dim": 8193}, {"dim": 4.0}, {"seed": "x"}])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(UsageError, match=next(iter(arguments))):
        HashEncoder(**arguments)
