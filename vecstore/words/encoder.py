"""How do word vectors become the vector of a text? Weighted means, or the least and the largest.

A text's vector depends on that text alone, bit for bit, whatever texts are beside it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vecstore.encoders import Kind, check_kind, check_texts
from vecstore.errors import EncoderError, UsageError
from vecstore.spec import MAX_DIM, show
from vecstore.words.lookup import Found, WordVectors
from vecstore.words.tokens import groups, tokens

Pooling = Literal["sif", "idf", "mean", "minmax"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
# Vectors of tokens that were looked up before are remembered, up to so many bytes.
REMEMBERED = 32 << 20
# Words of a text that are pooled together.
POOLED = 4096
# What an entry takes beside the numbers, about.
_ENTRY = 500
# Arora et al. found 1e-3 to 1e-4 best.
_SIF = 1e-3
_EULER = 0.5772156649

# Of each word that a token stands for: its numbers times its weight, and the weight.
_Rows = tuple[NDArray[np.float32], ...]


class WordEncoder:
    """An encoder of texts by the vectors of their words; made by `WordVectors.encoder`.

    Args:
        words: The word vectors.
        pooling: What becomes of a text's words, each as often as it is there:
            "sif": their mean, weighted by a / (a + p), where p is the word's share of all words and
                a is 0.001 (Arora, Liang, Ma: A Simple but Tough-to-Beat Baseline for Sentence
                Embeddings, 2017; without the removal of a common direction). The shares are those
                counted in the file, or else follow from the ranks by Zipf's law.
            "idf": their mean, weighted by 1 + log((1 + texts) / (1 + texts with the word)), as
                counted by `WordVectors.fit_idf`.
            "mean": their mean.
            "minmax": the least and the largest of each number, joined end to end, so that `dim`
                doubles (De Boom et al.: Representation learning for very short texts using weighted
                word embedding aggregation, 2016).

    Raises:
        UsageError: There is no such pooling, or it needs `fit_idf` first, or too many dims.
    """

    def __init__(self, words: WordVectors, pooling: Pooling = "sif") -> None:
        if pooling not in POOLINGS:
            known = ", ".join(POOLINGS)
            raise UsageError(f"pooling={show(pooling)} is unknown; use one of {known}")
        about = words.about
        idf = about.get("idf")
        if pooling == "idf" and idf is None:
            raise UsageError(
                "pooling='idf' needs to know in how many texts each word is: call"
                " words.fit_idf(texts) first, or use pooling='sif'"
            )
        spec = words.collection.spec
        self._words, self._pooling = words, pooling
        self._dim = 2 * spec.dim if pooling == "minmax" else spec.dim
        if self._dim > MAX_DIM:
            raise UsageError(f"pooling='minmax' makes {self._dim} numbers, over {MAX_DIM}")
        self._name = f"{spec.name}-{pooling}"
        weights = idf["digest"] if pooling == "idf" and idf else None
        identity = ["words-1", about["digest"], spec.precision, pooling, weights]
        self._fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
        self._weigh = _weights(pooling, about)
        self._known: dict[str, _Rows] = {}
        self._most = REMEMBERED // (4 * spec.dim + _ENTRY)

    @property
    def name(self) -> str:
        """The collection's name and the pooling."""
        return self._name

    @property
    def dim(self) -> int:
        """Numbers per vector."""
        return self._dim

    @property
    def mrl(self) -> tuple[int, ...]:
        """No prefix lengths."""
        return ()

    @property
    def fingerprint(self) -> str:
        """A digest of words, vectors, their precision, the pooling and its weights."""
        return self._fingerprint

    def encode(self, texts: Sequence[str], kind: Kind = "document") -> NDArray[np.float32]:
        """Return float32 of shape (len(texts), dim); `kind` changes nothing.

        Raises:
            UsageError: A text is no str, is empty, has a lone surrogate, or no word that is known.
            EncoderError: The vectors of a text's words cancel out.
        """
        checked = check_texts(texts)
        check_kind(kind)
        vectors = np.empty((len(checked), self._dim), np.float32)
        at = 0
        for part in groups(checked):
            vectors[at : at + len(part)] = self._encode(part, at)
            at += len(part)
        zero = np.flatnonzero(~vectors.any(axis=1))
        if len(zero):
            at = int(zero[0])
            raise EncoderError(f"the words of text {at} cancel out: {show(checked[at])}")
        return vectors

    def _encode(self, texts: list[str], first: int) -> NDArray[np.float32]:
        """The vectors of some texts, (n, dim), of which the first has a number for messages."""
        split = [tokens(text) for text in texts]
        places, rows = self._gather({token for found in split for token in found})
        width = self._dim if self._pooling == "minmax" else self._dim + 1
        pooled = np.empty((len(texts), width), np.float32)
        for out, text, found in zip(pooled, texts, split, strict=True):
            picked = [place for token in found for place in places[token]]
            if not picked:
                raise UsageError(
                    f"text {first + texts.index(text)} has no word that"
                    f" {self._words.collection.name!r} knows: {show(text)}"
                )
            self._pool(rows, picked, out)
        return pooled if self._pooling == "minmax" else pooled[:, :-1] / pooled[:, -1:]

    def _pool(self, rows: NDArray[np.float32], picked: list[int], out: NDArray[np.float32]) -> None:
        """Pool the rows of one text, a piece at a time: a text may be long."""
        half = self._dim // 2
        for at in range(0, len(picked), POOLED):
            some = rows.take(picked[at : at + POOLED], axis=0)
            if self._pooling != "minmax":
                total = np.add.reduce(some, axis=0)
                out[:] = out + total if at else total
                continue
            least, most = some[:, :-1].min(axis=0), some[:, :-1].max(axis=0)
            out[:half] = np.minimum(out[:half], least) if at else least
            out[half:] = np.maximum(out[half:], most) if at else most

    def _gather(self, wanted: set[str]) -> tuple[dict[str, range], NDArray[np.float32]]:
        """Which rows belong to each token; the rows, weighted and with the weight behind."""
        held = {token: self._known.get(token) for token in wanted}
        fresh = self._read([token for token, rows in held.items() if rows is None])
        places: dict[str, range] = {}
        gathered: list[NDArray[np.float32]] = []
        for token, known in held.items():
            rows = fresh[token] if known is None else known
            places[token] = range(len(gathered), len(gathered) + len(rows))
            gathered += rows
        if not gathered:
            return places, np.empty((0, 0), np.float32)
        return places, np.stack(gathered)

    def _read(self, missing: list[str]) -> dict[str, _Rows]:
        """Look tokens up, and remember what was found."""
        if not missing:
            return {}
        fresh = {
            token: tuple(map(self._row, found))
            for token, found in self._words.find(missing).items()
        }
        if len(self._known) + len(fresh) > self._most:
            self._known.clear()
        if len(fresh) <= self._most:
            self._known.update(fresh)
        return fresh

    def _row(self, found: Found) -> NDArray[np.float32]:
        weight = self._weigh(found)
        row = np.empty(len(found.vector) + 1, np.float32)
        row[:-1], row[-1] = found.vector, weight
        row[:-1] *= row[-1]
        return row

    def __repr__(self) -> str:
        return f"WordEncoder({self._words!r}, pooling={self._pooling!r})"


def _weights(pooling: Pooling, about: dict[str, Any]) -> Callable[[Found], float]:
    """How much a word counts; one that is known by its n-grams alone counts as never seen."""
    if pooling == "idf":
        total = about["idf"]["texts"]
        return lambda found: (
            1 + math.log((1 + total) / (1 + (found.metadata.get("documents") or 0)))
        )
    if pooling != "sif":
        return lambda found: 1.0
    counted: int = about["tokens"]
    # The sum of 1 / rank over all ranks.
    harmonic = math.log(about["ranks"]) + _EULER

    def weight(found: Found) -> float:
        # Words that a user has added have neither.
        count, rank = found.metadata.get("count"), found.metadata.get("rank")
        if counted and count:
            return _SIF / (_SIF + float(count / counted))
        return _SIF / (_SIF + 1 / (harmonic * float(rank))) if rank and not counted else 1.0

    return weight
