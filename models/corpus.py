"""Which text is the rotation fitted on? Package descriptions and dictionary glosses.

No text of an evaluation set is read here.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DESCRIPTIONS = Path("debian_packages", "docs.jsonl.gz")
SYNSETS = Path("wordnet", "synsets.jsonl.gz")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a gzipped file with one JSON object a line."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def fitting_texts(data: Path, *, seed: int = 7) -> list[str]:
    """Return some 50,000 distinct short texts in a random order that the seed fixes."""
    chance = random.Random(seed)
    texts = list(_descriptions(read_rows(data / DESCRIPTIONS), chance))
    texts += _glosses(read_rows(data / SYNSETS), chance)
    texts = list(dict.fromkeys(text for text in texts if len(text) > 8))
    chance.shuffle(texts)
    return texts


def _descriptions(
    rows: list[dict[str, Any]], chance: random.Random, limit: int = 26_000
) -> Iterator[str]:
    chance.shuffle(rows)
    for row in rows[:limit]:
        text = " ".join(row["text"].split())
        share = chance.random()
        # Titles, sentences and openings, because users store and ask texts of every length.
        if share < 0.35:
            yield row["title"]
        elif share < 0.7:
            yield chance.choice(re.split(r"(?<=[.!?])\s+", text))[:300]
        else:
            yield f"{row['title']}. {text}"[:350]


def _glosses(
    rows: list[dict[str, Any]],
    chance: random.Random,
    limit: int = 24_000,
    example_limit: int = 10_000,
) -> Iterator[str]:
    chance.shuffle(rows)
    for row in rows[:limit]:
        bare = chance.random() < 0.5
        yield row["gloss"] if bare else f"{', '.join(row['lemmas'][:3])}: {row['gloss']}"
    examples = [text for row in rows for text in row["examples"] if len(text.split()) > 3]
    chance.shuffle(examples)
    yield from examples[:example_limit]
