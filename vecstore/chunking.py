"""Where may a long text be cut? Into passages of whole paragraphs, sentences, words or characters.

A text is first cut into atoms: sentences, or lines, words and pieces of words where a sentence is
too long for a passage. Then passages are filled with atoms, as many as fit. All of it takes time in
proportion to the text, whatever that is.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]
# int64 (t, 2): where each token of a text begins and ends.
Offsets = NDArray[np.int64]
# Where there is a token, ascending.
Marks = Sequence[int]

# What tokens cover is longer only where a tokenizer does not know it, and makes one token of it.
LONGEST_TOKEN = 16
# How far back an abbreviation is looked for.
LOOK_BACK = 24

_PARAGRAPH = re.compile(r"\n\s*\n|[\f\u2029]")
_ITEM = re.compile(r"\n(?=[^\S\n]*(?:[-*+\u2022\u2023\u25e6\u00b7\u2013\u2014]|#+|\d{1,3}[.)])\s)")
_CLOSERS = r"[\"'\u201d\u2019\u00bb)\]]*"
_WIDE_CLOSERS = r"[\u300d\u300f\u201d\u2019\uff09\u3011]*"
# What follows is looked at elsewhere: here, a long run of dots would be tried from each of them.
_STOP = re.compile(rf"[.!?\u2026]+{_CLOSERS}|[\u3002\uff01\uff1f\uff61]+{_WIDE_CLOSERS}")
_FOLLOWING = re.compile(r"\s*(\S)")
_LINE = re.compile(r"[^\n]+")
# Where there are no spaces, commas part words.
_COMMAS = "\uff0c\u3001\uff1b\uff1a"
_WORD = re.compile(rf"[^\s{_COMMAS}]+[{_COMMAS}]*|[{_COMMAS}]+")
_SHORT = (
    "approx art capt cf ch chap cit col dept dr ed eds eq eqs esp etc ex fig figs gen gov hon inc"
    " jr lt ltd mr mrs ms mt no nos nr op p para pp prof rep rev sec sen sgt sr st tab univ viz"
    " vol vols vs bzw ca ggf hrsg inkl mme mlle nb sig sog str usw vgl zb"
)
_ABBREVIATIONS = frozenset(_SHORT.split())
_WIDE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_APPROXIMATE = re.compile(rf"[{_WIDE}]|[^\W_{_WIDE}]{{1,5}}|[^\w\s]|_")


def approximate(text: str) -> Offsets:
    """Offsets of what stands for tokens where an encoder has none of its own.

    Five letters or digits of a word, a character of Chinese, Japanese or Korean, and any other
    character that is no blank.
    """
    found = (end for match in _APPROXIMATE.finditer(text) for end in match.span())
    return np.fromiter(found, np.int64).reshape(-1, 2)


def cut(text: str, offsets: Offsets, room: int, overlap: int = 0) -> list[Span]:
    """Cut a text into passages.

    A passage ends with a paragraph where one ends in its second half, else with the last sentence
    that fits. A sentence that fits no passage is cut between its lines or words, and a word that
    fits none between its tokens.

    Args:
        text: Any text that is not blank.
        offsets: Its tokens. One that covers more than 16 characters counts for each 16 begun.
        room: How many tokens a passage may have, at least 1.
        overlap: How many tokens a passage may share with the one before it: as many whole
            sentences (or whatever it had to be cut into) as fit; at most half of `room`.

    Returns:
        (start, end) of each, without the blanks around it. Both ascend, and what lies between two
        passages is blank.
    """
    marks = _marks(offsets)
    if len(marks) <= room:
        return [_trimmed(text, 0, len(text))]
    # A number of an array of numpy takes much longer to look at.
    spans, opening = _atoms(text, array("q", marks.tobytes()), room)
    low = np.searchsorted(marks, [start for start, _ in spans]).tolist()
    high = np.searchsorted(marks, [end for _, end in spans]).tolist()
    return [
        (spans[first][0], spans[last - 1][1])
        for first, last in _filled(low, high, opening, room, overlap)
    ]


def _marks(offsets: Offsets) -> NDArray[np.int64]:
    """Where there is a token, ascending; long ones have several marks."""
    begins, ends = offsets[:, 0], offsets[:, 1]
    counts = 1 + np.maximum(ends - begins - 1, 0) // LONGEST_TOKEN
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    steps = np.arange(len(firsts)) - firsts
    return np.sort(np.repeat(begins, counts) + LONGEST_TOKEN * steps)


def _filled(
    low: list[int], high: list[int], opening: list[int], room: int, overlap: int
) -> Iterator[tuple[int, int]]:
    """Which atoms make a passage: the first one, and the one behind the last.

    Args:
        low: How many tokens begin before each atom.
        high: How many begin before its end.
        opening: The atoms that begin a paragraph, ascending.
        room: As in `cut`.
        overlap: As in `cut`.
    """
    first = done = 0
    while done < len(low):
        # An atom may fit no passage: one character that stands for more tokens than that.
        end = max(done + 1, bisect_right(high, low[first] + room))
        if end < len(low):
            # Where a paragraph ends, if that leaves more than a half.
            last = opening[bisect_right(opening, end) - 1]
            if last > done and 2 * (high[last - 1] - low[first]) >= room:
                end = last
        yield first, end
        start = end
        while (
            end < len(low)
            and start - 1 > first
            and high[end - 1] - low[start - 1] <= overlap
            and high[end] - low[start - 1] <= room
        ):
            start -= 1
        first, done = start, end


def _trimmed(text: str, start: int, end: int) -> Span:
    """A span without the blanks around it; an empty one if there is nothing else."""
    part = text[start:end]
    left = len(part) - len(part.lstrip())
    return start + left, start + left + len(part.strip())


def _atoms(text: str, marks: Marks, room: int) -> tuple[list[Span], list[int]]:
    """Spans of at most `room` tokens, and which of them begin a paragraph."""
    spans: list[Span] = []
    opening: list[int] = []
    for whole in _between(text, (match.end() for match in _PARAGRAPH.finditer(text))):
        opening.append(len(spans))
        for sentence in _between(text, _sentence_ends(text, *whole), *whole):
            spans += _fitting(text, sentence, marks, room)
    return spans, opening


def _between(
    text: str, places: Iterator[int], start: int = 0, stop: int | None = None
) -> Iterator[Span]:
    """The spans between places, ascending, that are not blank."""
    stop = len(text) if stop is None else stop
    for place in (*places, stop):
        span = _trimmed(text, start, place)
        start = place
        if span[0] < span[1]:
            yield span


def _sentence_ends(text: str, start: int, stop: int) -> Iterator[int]:
    """Where sentences, and items of lists, end inside a paragraph; ascending."""
    stops = (
        match.end() for match in _STOP.finditer(text, start, stop) if _ends(text, match, start)
    )
    items = (match.end() for match in _ITEM.finditer(text, start, stop))
    return iter(sorted({*stops, *items}))


def _ends(text: str, match: re.Match[str], start: int) -> bool:
    """Whether a sentence ends at a stop; a dot may belong to an abbreviation or to a number."""
    if match[0][0] in "\u3002\uff01\uff1f\uff61":
        return True
    following = _FOLLOWING.match(text, match.end())
    if following is not None and (following.start(1) == match.end() or following[1].islower()):
        return False
    if match[0] != ".":
        return True
    dot = match.start()
    before = text[max(start, dot - LOOK_BACK) : dot]
    word = before[-1:].strip() and before.split()[-1].lstrip("([\"'\u201c\u2018\u00ab")
    # The number of an item: of a line, or of the paragraph.
    if word.isdigit() and len(word) < 4:
        return bool(before[: -len(word)].rpartition("\n")[2].strip())
    initial = len(word) == 1 and word.isalpha()
    return not (initial or "." in word or word.casefold() in _ABBREVIATIONS)


def _fitting(text: str, span: Span, marks: Marks, room: int) -> Iterator[Span]:
    """A span if it fits into a passage, else its lines, words or pieces, all of which do."""
    if _tokens(marks, span) <= room:
        yield span
        return
    for line in _LINE.finditer(text, *span):
        trimmed = _trimmed(text, *line.span())
        if _tokens(marks, trimmed) <= room:
            if trimmed[0] < trimmed[1]:
                yield trimmed
            continue
        for word in _WORD.finditer(text, *trimmed):
            if _tokens(marks, word.span()) <= room:
                yield word.span()
            else:
                yield from _pieces(marks, word.span(), room)


def _tokens(marks: Marks, span: Span) -> int:
    """How many tokens begin inside a span."""
    return bisect_left(marks, span[1]) - bisect_left(marks, span[0])


def _pieces(marks: Marks, span: Span, room: int) -> Iterator[Span]:
    """Cut a word between its tokens."""
    low, high = bisect_left(marks, span[0]), bisect_left(marks, span[1])
    # Beginning in the middle of a word, a tokenizer may need a few tokens more.
    step = max(1, room - room // 8)
    places = [span[0]]
    while low + step < high:
        place = marks[low + step]
        # Several tokens may stand for one character, which stays whole, even if it fits nowhere.
        fits = place > marks[low]
        low = bisect_left(marks, place, low) if fits else bisect_right(marks, place, low, high)
        places += marks[low : low + 1] if low < high else []
    return pairwise([*places, span[1]])
