"""How well does training go? Seen on pairs that are not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from finetune import Sequences, Student
from training import Source

# One in so many pairs of the first source.
KEPT_BACK = 8
Sources = list[Source[Sequences]]


def hold_back(sources: Sources) -> tuple[Source[Sequences], Sources]:
    """Return some pairs of the first source, and the sources without them."""
    first, *others = sources
    away = np.arange(len(first.documents)) % KEPT_BACK == 0
    held, kept = (
        first.changed(lambda side, rows=rows: side.only(rows))
        for rows in (np.flatnonzero(away), np.flatnonzero(~away))
    )
    return held, [kept, *others]


def ranks(student: Student, held: Source[Sequences], mrl: Sequence[int]) -> str:
    """The mean reciprocal rank of the right document, by each prefix, to be printed."""
    rows = np.arange(len(held.documents))
    with torch.no_grad():
        queries, documents = (student(texts, rows).numpy() for texts in held.sides)
    found = []
    for size in reversed(mrl):
        parts = [side[:, :size] for side in (queries, documents)]
        first, second = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts)
        scores = first @ second.T
        places = 1 + (scores > np.diag(scores)[:, None]).sum(axis=1)
        found.append(f"{size}: {(1 / places).mean():.3f}")
    return ", ".join(found)
