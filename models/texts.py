"""Which pairs of the corpus does a recipe use, and how much of each text?"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from base import Base
from corpus.pairs import read_pairs

# Texts on which ranges are measured.
SAMPLE = 300
# Where sentences end, and how many words one has.
_ENDS = re.compile(r"(?<=[.;?!])\s+(?=[A-Z])")
_FEW, _MANY = 5, 24


class Part(NamedTuple):
    """What is used of a source of the corpus.

    Attributes:
        share: How often batches are of it, beside others.
        pairs: The most pairs that are taken of it.
        query: Tokens kept of the shorter text.
        document: Tokens kept of the longer one.
    """

    share: float
    pairs: int
    query: int
    document: int


Texts = list[list[int]]


class Pairs(NamedTuple):
    """Queries and the documents that belong to them, as numbers of tokens."""

    queries: Texts
    documents: Texts


def used_pairs(corpus: Path, name: str, part: Part, base: Base, *, seed: int = 3) -> Pairs:
    """Return the pairs that are used of a source."""
    pairs = read_pairs(corpus / f"{name}.jsonl.gz")
    random.Random(seed).shuffle(pairs)
    kept = pairs[: part.pairs]
    return Pairs(
        [base.encode(pair.a, part.query) for pair in kept],
        [base.encode(pair.b, part.document) for pair in kept],
    )


def sample(pairs: Mapping[str, Pairs], *, seed: int = 5) -> Texts:
    """Return some texts of all sources."""
    texts = [text for part in pairs.values() for side in part for text in side]
    return random.Random(seed).sample(texts, min(SAMPLE, len(texts)))


def sentences(
    corpus: Path, names: Iterable[str], count: int, length: int, base: Base, *, seed: int = 7
) -> Pairs:
    """Return sentences that follow each other in the longer texts of some sources.

    Args:
        corpus: Where they are.
        names: The sources.
        count: How many pairs.
        length: Tokens kept of each.
        base: Whose tokens.
        seed: Fixes which are taken.
    """
    found: dict[tuple[str, str], None] = {}
    for name in names:
        for pair in read_pairs(corpus / f"{name}.jsonl.gz"):
            parts = _ENDS.split(pair.b)
            good = [_FEW <= len(part.split()) <= _MANY for part in parts]
            both = zip(pairwise(parts), pairwise(good), strict=True)
            found |= dict.fromkeys(two for two, usable in both if all(usable))
    order = list(found)
    random.Random(seed).shuffle(order)
    firsts, seconds = zip(*order[:count], strict=True)
    return Pairs(*([base.encode(text, length) for text in side] for side in (firsts, seconds)))
