"""Where are the tokens of a long text, and what are their vectors? Late chunking is made of both.

In late chunking the model reads all of a text, and a passage gets the mean of the vectors of its
tokens, which know of what stands around the passage (Günther, Mohr, Williams, Wang and Xiao, Late
chunking: contextual chunk embeddings using long-context embedding models, 2024). A text that is
longer than the model can read is read in windows that overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vecstore.encoders.pooling import Floats
from vecstore.encoders.session import Session
from vecstore.errors import EncoderError, UsageError
from vecstore.spec import show

if TYPE_CHECKING:
    import tokenizers

Span = tuple[int, int]
# Characters that are tokenized at once: what a tokenizer keeps of each token takes much memory.
SEGMENT = 1 << 16
# What share of a window it has in common with the one before.
SHARED = 4
# How nearly the mean of a text's token vectors has to be its vector, as a cosine.
ALIKE = 0.999
# How near to 1 a length is that was made so.
UNIT = 1e-4
_PROBE = "The mean of these"


def offsets(session: Session, text: str) -> NDArray[np.int64]:
    """Where each token of a text begins and ends, int64 (t, 2), in characters.

    All of the text is tokenized, without prompt and special tokens.
    """
    found = []
    for start, end in _segments(text):
        part = text[start:end]
        places = _word_places(session.tokens(part), part)
        found.append(places[places[:, 0] < places[:, 1]] + start)
    return np.concatenate(found) if found else np.zeros((0, 2), np.int64)


def _word_places(encoding: tokenizers.Encoding, text: str) -> NDArray[np.int64]:
    """Where each token begins and ends, int64 (t, 2), without the blank before it.

    To some tokenizers that belongs to the word, while a passage begins behind it.
    """
    places = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    letters = np.array([not letter.isspace() for letter in text], bool)
    following = np.where(letters, np.arange(len(text)), len(text))
    following = np.append(np.minimum.accumulate(following[::-1])[::-1], len(text))
    behind = np.minimum(following[np.minimum(places[:, 0], len(text))], places[:, 1] - 1)
    places[:, 0] = np.maximum(places[:, 0], behind)
    return places


def _segments(text: str) -> Iterator[Span]:
    """Parts of a text that end with a blank, if there is one."""
    start = 0
    while start < len(text):
        end = start + SEGMENT
        if end < len(text):
            end = max(text.rfind(" ", start, end), text.rfind("\n", start, end)) + 1 or end
        yield start, min(end, len(text))
        start = end


@dataclass(frozen=True, slots=True)
class _Window:
    """A part of a text that the model reads at once, and which of its tokens count.

    Tokens in two windows count in the one that has more text around them.
    """

    start: int
    end: int
    first: float
    last: float


def pool_passages(
    session: Session,
    prompt: str,
    text: str,
    spans: Sequence[Span],
    *,
    at_once: int,
    skip_prompt: bool,
) -> Floats:
    """The vectors of passages of a text that is read as a whole, float32 (len(spans), dim).

    Args:
        session: A model with vectors of tokens.
        prompt: What stands before each window.
        text: The text.
        spans: Where each passage begins and ends; both ascend.
        at_once: How many windows are run together.
        skip_prompt: Whether the prompt's tokens are left out, and the special one before them.

    Raises:
        EncoderError: The model has no vectors of tokens, or their mean is not the text's vector.
    """
    check_output(session)
    pools = _Pools(spans)
    # A place that is none counts in no window.
    leading = np.nan if skip_prompt and prompt else -np.inf
    windows = list(_windows(session, prompt, text))
    for at in range(0, len(windows), at_once):
        part = windows[at : at + at_once]
        parts = [text[one.start : one.end] for one in part]
        encodings = session.encodings(parts, prompt)
        vectors = session.run_tokens(encodings)
        for window, own, encoding, found in zip(part, parts, encodings, vectors, strict=True):
            begins, ends = _word_places(encoding, prompt + own).T - len(prompt)
            places = _places(encoding, begins, window, leading)
            kept = (window.first <= places) & (places < window.last)
            pools.add(places[kept], ends[kept] + window.start, found[: len(places)][kept])
    found = session.finish(pools.means())
    if not session.scales:
        return found
    scaled: Floats = found / np.linalg.norm(found, axis=1, keepdims=True)
    return scaled


def _windows(session: Session, prompt: str, text: str) -> Iterator[_Window]:
    """Windows of as many tokens as the model can read, each beginning with a token."""
    begins, room = offsets(session, text)[:, 0], session.room(prompt)
    # Beginning in the middle of a word, a tokenizer may need a few tokens more.
    room -= room // 16
    shared = room // SHARED
    starts = list(range(0, max(1, len(begins) - shared), max(1, room - shared)))
    for number, at in enumerate(starts):
        begun, over = number == 0, number == len(starts) - 1
        yield _Window(
            0 if begun else int(begins[at]),
            len(text) if over else int(begins[at + room]),
            -np.inf if begun else float(begins[at + shared // 2]),
            np.inf if over else float(begins[starts[number + 1] + shared // 2]),
        )


def _places(
    encoding: tokenizers.Encoding, begins: NDArray[np.int64], window: _Window, leading: float
) -> NDArray[np.float64]:
    """Where in the text each token begins; special ones and those of the prompt are at its ends."""
    special = np.array(encoding.special_tokens_mask, bool)
    special |= begins < 0
    places = begins.astype(np.float64)
    inside = np.flatnonzero(~special)
    before = np.arange(len(places)) < (inside[0] if len(inside) else len(places))
    # They count in the first window, and in the last one.
    behind = window.end if window.last == np.inf else np.inf
    places[special] = np.where(before, leading, behind)[special]
    places[~special] += window.start
    return places


class _Pools:
    """The means of the vectors of tokens that begin in each of some spans.

    A span inside a token, which an unknown word of any length may be, gets that token's vector.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        self._given, self._spans = spans, np.array(spans, np.float64)
        # What stands before all passages, and behind them, belongs to the outermost.
        self._spans[0, 0], self._spans[-1, 1] = -np.inf, np.inf
        self._counts = np.zeros(len(spans))
        self._sums: NDArray[np.float64] | None = None

    def add(self, places: NDArray[np.float64], ends: NDArray[np.int64], vectors: Floats) -> None:
        """Take tokens, in their order."""
        if self._sums is None:
            self._sums = np.zeros((len(self._spans), vectors.shape[1]))
        order = np.argsort(places, kind="stable")
        places, ends, vectors = places[order], ends[order], vectors[order]
        low = np.searchsorted(places, self._spans[:, 0])
        high = np.searchsorted(places, self._spans[:, 1])
        for passage in np.flatnonzero(low < high).tolist():
            chosen = slice(low[passage], high[passage])
            self._sums[passage] += vectors[chosen].sum(axis=0, dtype=np.float64)
            self._counts[passage] += high[passage] - low[passage]
        none = np.flatnonzero((low == high) & (low > 0))
        inside = ends[low[none] - 1] > self._spans[none, 0]
        for passage in none[inside].tolist():
            self._sums[passage] += vectors[low[passage] - 1]
            self._counts[passage] += 1

    def means(self) -> Floats:
        """The means; EncoderError for a span in which no token begins."""
        if self._sums is None or not self._counts.all():
            which = int(np.argmin(self._counts))
            start, end = self._given[which]
            raise EncoderError(f"passage {which}, from {start} to {end}, has no token")
        means: Floats = (self._sums / self._counts[:, None]).astype(np.float32)
        return means


def check_spans(spans: Sequence[Span], text: str) -> None:
    """Raise UsageError unless there are passages, in a text, that begin and end in their order."""
    if not isinstance(spans, Sequence | np.ndarray) or not all(map(_is_span, spans)):
        raise UsageError(f"spans={show(spans)} must be a list of pairs of ints")
    if not len(spans):
        raise UsageError("spans are empty; state one passage at least")
    before = (0, 0)
    for number, (start, end) in enumerate(spans):
        if not (before[0] <= start < end <= len(text) and before[1] <= end):
            raise UsageError(
                f"passage {number}, from {start} to {end}, is not inside a text of"
                f" {len(text)} characters, behind the one before"
            )
        before = start, end


def _is_span(value: object) -> bool:
    if not isinstance(value, Sequence | np.ndarray) or len(value) != 2:
        return False
    return all(isinstance(place, int | np.integer) for place in value)


def check_output(session: Session) -> None:
    """Raise EncoderError unless a model has vectors of tokens whose mean is the text's vector."""
    if session.scales is not None:
        return
    if not session.has_tokens:
        raise EncoderError(
            f"{session.name} has no output {session.tokens_name}, so that late chunking is not"
            " possible; use chunk=True"
        )
    encodings = session.encodings([_PROBE], "")
    whole = session.run(session.tokenize([_PROBE], ""), 0)[0].astype(np.float64)
    tokens = session.run_tokens(encodings)[0][: len(encodings[0].ids)]
    mean = session.finish(tokens.mean(axis=0, keepdims=True))[0].astype(np.float64)
    size = np.linalg.norm(whole)
    if mean.shape != whole.shape or not whole @ mean >= ALIKE * size * np.linalg.norm(mean):
        raise EncoderError(
            f"{session.name} makes a text's vector otherwise than as the mean of those of its"
            " tokens, so that late chunking is not possible; use chunk=True"
        )
    session.scales = bool(abs(size - 1) < UNIT < abs(np.linalg.norm(mean) - 1))
