"""What is a training pair, which pairs are worth keeping, and how are they kept?"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable
from pathlib import Path
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


def write_pairs(path: Path, pairs: list[Pair]) -> None:
    """Write one pair a line; the same pairs give the same bytes."""
    lines = (json.dumps(pair._asdict(), ensure_ascii=False) + "\n" for pair in pairs)
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.write("".join(lines).encode())


def read_pairs(path: Path) -> list[Pair]:
    """Return the pairs of a file that `write_pairs` wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [Pair(**json.loads(line)) for line in lines]
