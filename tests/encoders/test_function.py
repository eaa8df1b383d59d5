from __future__ import annotations

import numpy as np
import pytest

from vecstore.encoders import Encoder, FunctionEncoder
from vecstore.errors import EncoderError, UsageError


def lengths(texts):
    return [[len(text), text.count("a"), 1] for text in texts]


def make(function=lengths, **arguments):
    return FunctionEncoder(function, **{"name": "lengths", **arguments})


def test_output_becomes_float32_in_order():
    found = make().encode(["banana", "kiwi"])

    assert isinstance(make(), Encoder)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, [[6, 3, 1], [4, 0, 1]])


def test_dim_is_found_by_one_call():
    calls = []
    encoder = make(lambda texts: calls.append(texts) or lengths(texts))

    assert (encoder.dim, encoder.dim) == (3, 3)
    assert len(calls) == 1


def test_no_texts_call_nothing_when_dim_is_given():
    assert make(lambda texts: 1 / 0, dim=3).encode([]).shape == (0, 3)


def test_queries_use_the_query_function():
    encoder = make(query_function=lambda texts: np.zeros((len(texts), 3)))

    assert encoder.encode(["a"], kind="query").sum() == 0
    assert encoder.encode(["a"]).sum() == 3


def test_the_callers_array_is_copied():
    kept = np.ones((1, 3), dtype=np.float32)

    make(lambda texts: kept).encode(["a"])[:] = 7

    assert kept.sum() == 3


def test_an_exception_of_the_function_is_the_cause():
    with pytest.raises(EncoderError, match="encoder 'lengths' failed: ZeroDivision") as caught:
        make(lambda texts: 1 / 0).encode(["a"])

    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[1, 2, 3]], "shape"),
        ([1.0, 2.0], "shape"),
        (np.zeros((2, 3, 1)), "shape"),
        ([[1, 2, 3], [1, 2]], "not a matrix"),
        ([["a", "b", "c"]] * 2, "not a matrix"),
        (np.zeros((2, 3), dtype=complex), "not a matrix"),
        (None, "not a matrix"),
        ([[1, 2, 3], [1, np.nan, 3]], "not finite for text 1"),
        (np.full((2, 3), 1e300), "not finite for text 0"),
        ([[1, 2]] * 2, "2 numbers, expected 3"),
    ],
)
def test_bad_output_is_an_encoder_error(answer, message):
    with pytest.raises(EncoderError, match=message):
        make(lambda texts: answer, dim=3).encode(["a", "b"])


@pytest.mark.parametrize("width", [1, 9000])
def test_a_dim_found_out_of_range_is_an_encoder_error(width):
    with pytest.raises(EncoderError, match=f"{width} numbers"):
        _ = make(lambda texts: np.zeros((len(texts), width))).dim


def test_a_dim_found_below_the_prefixes_is_an_encoder_error():
    with pytest.raises(EncoderError, match="less than mrl"):
        _ = make(mrl=(2, 64)).dim


def test_name_version_and_dim_make_the_fingerprint():
    first = make()
    others = [make(name="x"), make(version="2"), make(lambda t: np.zeros((len(t), 4)))]

    assert first.fingerprint == make(dim=3).fingerprint
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        {"function": 3},
        {"query_function": 3},
        {"name": ""},
        {"version": 2},
        {"dim": 1},
        {"dim": "3"},
        {"dim": 8, "mrl": (16,)},
        {"mrl": (4, 2)},
        {"mrl": 5},
        {"mrl": ("a",)},
    ],
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(UsageError):
        make(**arguments)


def test_prefixes_are_kept():
    assert make(dim=3, mrl=[2, 3]).mrl == (2, 3)
