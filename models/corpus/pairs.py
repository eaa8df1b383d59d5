"""What is a training pair, and which pairs are worth keeping?"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import NamedTuple

from corpus.cleaning import clean, latin_share, shorten

MOST_WORDS_A, MOST_WORDS_B = 60, 300


class Pair(NamedTuple):
    """A short text, the passage that belongs to it, and the topic that they share."""

    a: str
    b: str
    group: str = ""


def keep_good(pairs: Iterable[Pair], *, seed: str, limit: int = 0, least: int = 5) -> list[Pair]:
    """Return the usable pairs, cleaned, in a random order that the seed fixes.

    A passage has at least `least` words and occurs once; `limit` pairs are kept, or all for 0.
    """
    kept: dict[str, Pair] = {}
    for pair in pairs:
        tidy = Pair(clean(pair.a), shorten(clean(pair.b), MOST_WORDS_B), clean(pair.group))
        if _usable(tidy, least):
            kept.setdefault(tidy.b.lower(), tidy)
    order = list(kept.values())
    random.Random(seed).shuffle(order)
    return order[:limit] if limit else order


def _usable(pair: Pair, least: int) -> bool:
    return (
        len(pair.a) >= 3
        and len(pair.a.split()) <= MOST_WORDS_A
        and len(pair.b.split()) >= least
        and pair.a.lower() != pair.b.lower()
        and latin_share(pair.b) >= 0.9
    )
