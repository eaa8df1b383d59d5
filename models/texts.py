"""Which pairs of the corpus does a recipe use, and how much of each text?"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from base import Base
from corpus.pairs import read_pairs

# Texts on which ranges are measured.
SAMPLE = 300
# Sentences that are used beside pairs, the most of each source; tokens kept of each.
SENTENCES = {
    "wordnet_glosses": 60_000,
    "wordnet_examples": 60_000,
    "gcide": 30_000,
    "foldoc": 20_000,
    "debian_descriptions": 25_000,
    "wikipedia": 20_000,
    "plos_paragraphs": 12_000,
    "jargon": 10_000,
    "docs_python": 6_000,
    "perl_docs": 6_000,
    "gnome_help": 5_000,
    "gene_ontology": 4_000,
}
SENTENCE_TOKENS = 48
# Where sentences end, and how many words one has.
_ENDS = re.compile(r"(?<=[.;?!])\s+(?=[A-Z])")
_FEW, _MANY = 3, 28


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
    corpus: Path, most: Mapping[str, int], length: int, base: Base, *, seed: int = 11
) -> Texts:
    """Return different sentences of both texts of some sources' pairs, in random order.

    Args:
        corpus: Where they are.
        most: How many of each source are taken at most.
        length: Tokens kept of each.
        base: Whose tokens.
        seed: Fixes which are taken, and their order.
    """
    chance = random.Random(seed)
    found: dict[str, None] = {}
    for name, count in most.items():
        texts = (text for pair in read_pairs(corpus / f"{name}.jsonl.gz") for text in pair[:2])
        parts = (part for text in texts for part in _ENDS.split(text))
        usable = [part for part in parts if _FEW <= len(part.split()) <= _MANY]
        new = [part for part in dict.fromkeys(usable) if part not in found]
        found |= dict.fromkeys(chance.sample(new, min(count, len(new))))
    order = list(found)
    chance.shuffle(order)
    return [base.encode(text, length) for text in order]
