"""Which text is the rotation fitted on? Package descriptions and dictionary glosses.

No text of an evaluation set is read here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from corpus.cleaning import sentences
from corpus.pairs import Pair, read_pairs

NEEDED = ["debian_descriptions", "wordnet_glosses", "wordnet_examples"]


def fitting_texts(corpus: Path, *, seed: int = 7) -> list[str]:
    """Return some 50,000 distinct short texts in a random order that the seed fixes."""
    chance = random.Random(seed)
    descriptions, glosses, examples = (read_pairs(corpus / f"{name}.jsonl.gz") for name in NEEDED)
    texts = list(_openings(descriptions[:26_000], chance))
    for words, gloss, _ in glosses[:24_000]:
        texts.append(gloss if chance.random() < 0.5 else f"{words}: {gloss}")
    texts += [example for example, _, _ in examples[:10_000]]
    texts = list(dict.fromkeys(text for text in texts if len(text) > 8))
    chance.shuffle(texts)
    return texts


def _openings(descriptions: list[Pair], chance: random.Random) -> Iterator[str]:
    for title, text, _ in descriptions:
        share = chance.random()
        # Titles, sentences and openings, because users store and ask texts of every length.
        if share < 0.35:
            yield title
        elif share < 0.7:
            yield chance.choice(sentences(text))[:300]
        else:
            yield f"{title}. {text}"[:350]
