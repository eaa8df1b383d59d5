"""Texts that are tokenized word by word have the tokens that the tokenizer gives them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from vecstore.encoders import bundled, wordwise
from vecstore.encoders.wordwise import Wordwise

ASCII = st.characters(min_codepoint=0, max_codepoint=127)
WORDS = st.sampled_from(
    ["the", "Embedded", "vector-database", "x" * 99, "x" * 101, "[CLS]", "[sep]", "3.14", "it's"]
)
TEXTS = st.lists(st.one_of(WORDS, st.text(ASCII, max_size=8)), max_size=12).map(" ".join)


@pytest.fixture(scope="module")
def file() -> Path:
    return bundled().folder.tokenizer


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> Tokenizer:
    found = Tokenizer.from_file(str(file))
    found.no_truncation()
    found.no_padding()
    return found


@pytest.fixture(scope="module")
def quick(tokenizer: Tokenizer) -> Wordwise:
    found = wordwise.wordwise(tokenizer)
    assert found is not None
    return found


@given(text=TEXTS)
@example(text="")
@example(text="a\x0bb\x0cc\x1cd")
@example(text="a\tb\r\nc\x00d\x7fe")
@example(text="say [MASK] and [Mask]")
@example(text="supercalifragilisticexpialidocious " * 3)
def test_texts_have_the_tokens_of_the_tokenizer(
    tokenizer: Tokenizer, quick: Wordwise, text: str
) -> None:
    assert quick.ids(text) in (None, tokenizer.encode(text).ids)


@given(text=st.text(max_size=20))
def test_any_text_has_the_tokens_of_the_tokenizer_or_is_left_to_it(
    tokenizer: Tokenizer, quick: Wordwise, text: str
) -> None:
    assert quick.ids(text) in (None, tokenizer.encode(text).ids)


def test_plain_texts_are_not_left_to_the_tokenizer(quick: Wordwise) -> None:
    assert quick.ids("How do I reset my password (quickly)?\nThanks!") is not None
    assert quick.ids("caf\u00e9") is None


def test_words_are_forgotten_when_there_are_too_many(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wordwise, "_REMEMBERED", 5)
    found = wordwise.wordwise(tokenizer)
    assert found is not None
    text = " ".join(f"word{number} and" for number in range(50))
    assert found.ids(text) == tokenizer.encode(text).ids
    assert len(found._known) <= 5


def test_long_words_are_not_remembered(tokenizer: Tokenizer) -> None:
    found = wordwise.wordwise(tokenizer)
    assert found is not None
    for letters in (32, 33, 5000):
        text = "q" * letters
        assert found.ids(text) == tokenizer.encode(text).ids
    assert "q" * 32 in found._known
    assert max(map(len, found._known)) == 32


@pytest.mark.parametrize(
    ("added", "plain"),
    [
        (["[A1]", "<b>"], True),
        # A tab becomes a blank, and a letter loses its accent, before these are looked for.
        (["red apple"], False),
        (["caf\u00e9"], False),
        ([f"[unused{number}]" for number in range(100)], False),
    ],
)
@pytest.mark.parametrize("normalized", [True, False])
def test_added_tokens_are_found(
    file: Path, added: list[str], plain: bool, normalized: bool
) -> None:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_tokens([AddedToken(token, normalized=normalized) for token in added])
    found = wordwise.wordwise(tokenizer)
    assert (found is not None) == plain
    if found is None:
        return
    for text in ("x [a1] <B> y", "[A1]", "a<b>c", "[ a1 ]"):
        assert found.ids(text) in (None, tokenizer.encode(text).ids)
    assert found.ids("plain words") is not None


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", None),
        ("normalizer", {"type": "Lowercase"}),
        (
            "normalizer",
            {
                "type": "BertNormalizer",
                "clean_text": False,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
        ),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("pre_tokenizer", {"type": "BertPreTokenizer"}),
    ],
)
def test_tokenizers_of_another_kind_are_left_alone(file: Path, part: str, value: object) -> None:
    content = json.loads(file.read_text())
    known = content[part] == value
    content[part] = value
    found = Tokenizer.from_str(json.dumps(content))
    found.no_truncation()
    found.no_padding()
    assert (wordwise.wordwise(found) is not None) == known


def test_a_cased_tokenizer_keeps_its_letters(file: Path) -> None:
    content = json.loads(file.read_text())
    content["normalizer"]["lowercase"] = False
    content["model"]["vocab"]["Hello"] = len(content["model"]["vocab"])
    cased = Tokenizer.from_str(json.dumps(content))
    cased.no_truncation()
    cased.no_padding()
    found = wordwise.wordwise(cased)
    assert found is not None
    for text in ("Hello hello", "HELLO, Wor[cls]d"):
        assert found.ids(text) in (None, cased.encode(text).ids)
    assert found.ids("Hello hello") == cased.encode("Hello hello").ids


def test_a_tokenizer_without_special_tokens_has_none_here(file: Path) -> None:
    content = json.loads(file.read_text())
    content["post_processor"] = None
    bare = Tokenizer.from_str(json.dumps(content))
    bare.no_truncation()
    bare.no_padding()
    found = wordwise.wordwise(bare)
    assert found is not None
    assert found.ids("") == []
    assert found.ids("plain words") == bare.encode("plain words").ids


def test_tokens_in_a_second_segment_are_left_to_the_tokenizer(file: Path) -> None:
    content = json.loads(file.read_text())
    for part in content["post_processor"]["single"]:
        next(iter(part.values()))["type_id"] = 1
    other = Tokenizer.from_str(json.dumps(content))
    other.no_truncation()
    other.no_padding()
    assert wordwise.wordwise(other) is None
