"""How much of a text is read, and how much was cut off?"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

# Characters of a text that are tokenized at first, for each token that is kept: words are shorter.
_CHARACTERS = 32
_GROWTH = 8
# No more than that is tokenized of a text, unless so many tokens are kept that they need more.
_MOST_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True)
class Truncated:
    """What an encoder has cut so far.

    Attributes:
        texts: Texts that were encoded.
        cut: Those of them that had more tokens than the encoder keeps.
        characters: Characters cut off, of all texts together.
    """

    texts: int = 0
    cut: int = 0
    characters: int = 0


class Tally:
    """A running count of what was cut; threads may share it."""

    def __init__(self) -> None:
        self._total = Truncated()
        self._lock = threading.Lock()

    @property
    def total(self) -> Truncated:
        """What was counted so far."""
        return self._total

    def add(self, lost: Sequence[int]) -> None:
        """Count texts, given how many characters were cut off each."""
        with self._lock:
            total = self._total
            self._total = Truncated(
                total.texts + len(lost),
                total.cut + sum(map(bool, lost)),
                total.characters + sum(lost),
            )

    def after_fork(self) -> None:
        """Replace a lock that a thread of the parent may have held."""
        self._lock = threading.Lock()


def characters(max_length: int) -> int:
    """How many characters of a text are tokenized at first."""
    return _CHARACTERS * max_length


def prefixes(text: str, max_length: int) -> Iterator[str]:
    """Yield longer and longer beginnings of a text; the last is all that is read of it.

    So that nothing is spent on the rest of an enormous text, whose first words are all that counts.
    """
    size, most = characters(max_length), _most(max_length)
    while size < min(len(text), most):
        yield text[:size]
        size *= _GROWTH
    yield text[:most]


def _most(max_length: int) -> int:
    """How many characters of a text are tokenized at all."""
    return max(characters(max_length), _MOST_CHARACTERS)


def is_enough(encoding: tokenizers.Encoding) -> bool:
    """Whether a beginning has so many tokens that the rest of the text cannot change the first."""
    return len(encoding.overflowing) >= 2


def lost(text: str, prompt: str, encoding: tokenizers.Encoding, max_length: int) -> int:
    """How many characters were cut off a text that was tokenized with a prompt before it."""
    if encoding.overflowing:
        kept = max(stop for _, stop in encoding.offsets) - len(prompt)
    else:
        kept = _most(max_length) - len(prompt)
    return max(0, len(text) - max(0, kept))
