"""Are texts cut where people would cut them, and is nothing lost, whatever the text?"""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vecstore import Chunking, UsageError
from vecstore.chunking import LONGEST_TOKEN, approximate, cut

PIECES = [
    *["red", "apples", "Dr.", "e.g.", "3.14", "J.", "antidisestablishmentarianism", "x" * 40],
    *[". ", "! ", "?” ", "… ", ", ", " ", "  ", "\t", "\n", "\r\n", "\n\n", "\n \n", "\f"],
    *[
        "\n- ",
        "\n2. ",
        "\n# ",
        "日本語",
        "。",
        "\uff01」",
        "、",
        "😀",
        "é",
        "\u0301",
        "\u200b",
        "\u3000",
    ],
]
texts = (
    (st.lists(st.sampled_from(PIECES), max_size=60).map("".join) | st.text(max_size=80))
    .filter(str.strip)
    .filter(lambda text: len(approximate(text)))
)


def count(offsets, start, end):
    """How many tokens begin in a span; a long one counts for each 16 characters begun."""
    marks = [mark for begin, stop in offsets for mark in range(begin, stop, LONGEST_TOKEN)]
    return sum(start <= mark < end for mark in marks)


@given(texts, st.integers(1, 30), st.data())
@example("a\n\nb", 1, None)
def test_passages_are_exact_and_short_enough_and_leave_nothing_out(text, room, data):
    overlap = 0 if data is None else data.draw(st.integers(0, room // 2))
    offsets = approximate(text)
    spans = cut(text, offsets, room, overlap)

    covered = np.zeros(len(text), bool)
    for start, end in spans:
        passage = text[start:end]
        assert passage == passage.strip() != ""
        assert count(offsets.tolist(), start, end) <= room
        covered[start:end] = True
    left = "".join(letter for letter, seen in zip(text, covered, strict=True) if not seen)
    assert not left.strip()
    for (start, end), (later, last) in pairwise(spans):
        assert start < later
        assert end < last
        if overlap == 0:
            assert end <= later
        assert count(offsets.tolist(), later, end) <= overlap
    if count(offsets.tolist(), 0, len(text)) <= room:
        assert len(spans) == 1


@given(texts)
def test_approximate_tokens_stand_side_by_side_and_leave_out_blanks_only(text):
    offsets = approximate(text).tolist()

    at = 0
    for start, end in offsets:
        assert at <= start < end
        assert not text[at:start].strip()
        at = end
    assert not text[at:].strip()


def sentences(text, room):
    """The passages of a text."""
    return [text[start:end] for start, end in cut(text, approximate(text), room)]


@pytest.mark.parametrize(
    "whole",
    [
        ["He was born in Ulm.", "He went to Bern then!", "Did he really do that?"],
        ["Dr. Smith met Mr. Jones.", "They spoke of Prof. Lee."],
        ["It costs 3.14 or 2,718.28 now.", "That is more than 1.5 of it."],
        ["J. R. R. Tolkien wrote that.", "George R. R. Martin did not."],
        ["Some fruit, e.g. apples, is red.", "Others, i.e. pears, are not."],
        ["See Fig. 3 and Eq. 4 for it.", "Nothing else is in Sec. 5 now."],
        ["“Is it you?” she asked him.", "“It is me!” he said to her."],
        ["(This is one in brackets.)", "This is another one there."],
        ["Wait... and then go on now.", "No more of that was heard…"],
        ["これは日本語の文です。", "次の文はここです\uff01", "「そうですか\uff1f」"],
        ["- a first thing to do here", "- a second thing to do here", "* a third thing to do here"],
        ["1. Take an apple from it.", "2. Eat that apple at once."],
    ],
)
@pytest.mark.parametrize("gap", [" ", "\n"])
def test_sentences_stay_whole(whole, gap):
    items = whole[0][0] in "-1"
    # Only a line can begin an item.
    text = ("\n" if items else gap).join(whole)

    # Each fits into a passage, and no two.
    room = max(len(approximate(one)) for one in whole)
    assert sentences(text, room) == whole


def test_a_line_that_goes_on_is_no_sentence_of_its_own():
    assert sentences("one sentence over\ntwo lines here. And a second one here now.", 8) == [
        "one sentence over\ntwo lines here.",
        "And a second one here now.",
    ]


def test_a_passage_ends_with_a_paragraph_if_that_leaves_more_than_a_half():
    first, second = "One two three. Four five six.", "Seven. Eight nine ten."

    assert sentences(f"{first}\n\n{second}", 12) == [first, second]
    assert sentences(f"One.\n\n{first} {second}", 10) == [f"One.\n\n{first}", second]


def test_a_sentence_that_fits_nowhere_is_cut_between_lines_then_words_then_letters():
    assert sentences("a b c\nd e f g h\ni", 4) == ["a b c\nd", "e f g h", "i"]
    assert sentences("one two three four", 2) == ["one two", "three four"]
    assert sentences("一二、三四、五六", 3) == ["一二、", "三四、", "五六"]
    parts = sentences("x" * 50, 3)
    assert "".join(parts) == "x" * 50
    assert all(len(part) <= 15 for part in parts)


def test_what_a_tokenizer_takes_for_one_token_is_cut_if_it_is_long():
    text, unknown = "z" * 100_000, np.array([[0, 100_000]])
    spans = cut(text, unknown, 64)

    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    assert all(end == start for (_, end), (start, _) in pairwise(spans))
    assert max(end - start for start, end in spans) <= 64 * LONGEST_TOKEN


@pytest.mark.parametrize("overlap", [0, 1])
def test_a_character_of_more_tokens_than_a_passage_is_a_passage(overlap):
    # As tokenizers of bytes make them of an emoji.
    text, offsets = "ab😀cd", np.array([[0, 2], *[[2, 3]] * 4, [3, 5]])

    assert [text[start:end] for start, end in cut(text, offsets, 2, overlap)] == ["ab", "😀", "cd"]


def test_whole_sentences_overlap():
    text = "A b c. D e f. G h i. J k l."
    spans = cut(text, approximate(text), 8, 4)

    assert [text[start:end] for start, end in spans] == [
        "A b c. D e f.",
        "D e f. G h i.",
        "G h i. J k l.",
    ]


def test_a_text_that_fits_is_one_passage_without_its_blanks():
    assert cut("  red apples \n", approximate("  red apples \n"), 10) == [(2, 12)]


def test_words_without_end_take_time_in_proportion():
    """Not measured: texts of this size would take hours if it were not so."""
    for text in ("x" * 150_000, "." * 150_000, "\n" * 150_000 + "a b", "a. " * 40_000):
        spans = cut(text, approximate(text), 100, 50)
        assert spans[-1][1] == len(text.rstrip())
        assert len(re.findall(r"\S", text[spans[0][0] : spans[-1][1]])) == len(
            re.findall(r"\S", text)
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokens": 0}, "tokens=0 must be a whole number of at least 1"),
        ({"tokens": True}, "tokens=True"),
        ({"tokens": 2.0}, r"tokens=2\.0"),
        ({"overlap": -1}, "overlap=-1"),
        ({"tokens": 10, "overlap": 6}, "overlap=6 is more than half of the 10 tokens"),
        ({"late": 1}, "late=1 must be True or False"),
    ],
)
def test_a_chunking_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        Chunking(**wrong)
