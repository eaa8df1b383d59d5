import pytest

from vecstore.words import tokens as cutting
from vecstore.words.tokens import groups, parts, spellings, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat.", ["The", "cat", "sat"]),
        ("state-of-the-art, isn't it?", ["state-of-the-art", "isn't", "it"]),
        ("don\u2019t", ["don't"]),
        ("3.14 U.S. snake_case", ["3.14", "U.S", "snake_case"]),
        ("--- ... '' !?", []),
        ("हिन्दी भाषा।", ["हिन्दी", "भाषा"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),
        ("日本語", ["日本語"]),
    ],
)
def test_tokens_are_runs_of_letters_and_what_joins_them(text, expected):
    assert tokens(text) == expected


def test_a_token_is_spelled_as_it_is_or_in_lower_case():
    assert spellings("King") == ["King", "king"]
    assert spellings("king") == ["king"]


def test_a_token_is_cut_at_its_joins():
    assert parts("state-of_the.art's") == ["state", "of", "the", "art", "s"]
    assert parts("word") == ["word"]


def test_texts_are_grouped_by_number_and_by_length(monkeypatch):
    monkeypatch.setattr(cutting, "TEXTS", 3)
    monkeypatch.setattr(cutting, "LETTERS", 10)
    texts = ["a", "b", "c", "d", "e" * 99, "f" * 6, "g" * 6, "h"]

    assert [len(group) for group in groups(texts)] == [3, 2, 2, 1]
    assert [text for group in groups(texts) for text in group] == texts
