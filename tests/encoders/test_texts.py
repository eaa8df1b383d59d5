from __future__ import annotations

import pytest

from vecstore.encoders import HashEncoder, check_kind, check_texts
from vecstore.errors import UsageError


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u2003"])
def test_empty_text_is_refused_with_its_index(text):
    with pytest.raises(UsageError, match="text 1 is empty"):
        check_texts(["fine", text])


@pytest.mark.parametrize(("value", "kind"), [(3, "int"), (None, "NoneType"), (b"x", "bytes")])
def test_other_types_are_refused_with_index_and_type(value, kind):
    with pytest.raises(UsageError, match=f"text 2 is a {kind}"):
        check_texts(["a", "b", value])


def test_a_lone_surrogate_is_refused_with_its_index():
    with pytest.raises(UsageError, match=r"text 0 .*surrogate"):
        check_texts(["caf\ud800"])


@pytest.mark.parametrize("texts", ["one", b"one", 7])
def test_something_else_than_a_list_is_refused(texts):
    with pytest.raises(UsageError, match="takes a list of texts"):
        check_texts(texts)


def test_any_iterable_of_texts_becomes_a_list():
    assert check_texts(text for text in ("a", "ü")) == ["a", "ü"]


def test_an_unknown_kind_is_refused():
    with pytest.raises(UsageError, match="kind='passage'"):
        check_kind("passage")


def test_encoders_check_texts_before_they_start():
    with pytest.raises(UsageError, match="text 1"):
        HashEncoder().encode(["a", ""])
