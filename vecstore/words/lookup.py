"""What is asked of word vectors? Vectors, similar words, analogies, the odd one out.

Words are looked up in their collection, straight from the map: opening reads one record, whatever
the number of words.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vecstore import arguments, catalog
from vecstore.arguments import Where
from vecstore.collection import DEFAULT_RECALL, Collection
from vecstore.database import Database
from vecstore.encoders import check_texts
from vecstore.errors import (
    CorruptionError,
    NotFoundError,
    ReadOnlyError,
    UsageError,
    VecstoreError,
)
from vecstore.filters import F
from vecstore.hits import Hit, Hits
from vecstore.planner import Recall
from vecstore.spec import MAX_ID_BYTES, encode_utf8, show
from vecstore.vectors import Vectors, as_vector
from vecstore.view import View
from vecstore.words import subwords
from vecstore.words.conversion import ABOUT, extra_name, write_about
from vecstore.words.reading import read
from vecstore.words.tokens import groups, parts, spellings, tokens

if TYPE_CHECKING:
    from vecstore.words.encoder import Pooling, WordEncoder

Method = Literal["add", "mul"]
METHODS: tuple[Method, ...] = get_args(Method)
# So many of the best answers by sums are compared by products.
MULTIPLIED = 1000
# What keeps a product from division by zero (Levy and Goldberg).
_EPSILON = 0.001
# Records that are changed by one call, and words whose n-grams are read together.
RECORDS, UNKNOWN = 4096, 256


@dataclass(frozen=True, slots=True)
class Found:
    """What stands for a word of a text.

    Attributes:
        vector: float32 (dim,).
        word: The word as it is stored; None for a vector made of n-grams.
        metadata: That of the word: rank, and where known count and documents.
    """

    vector: NDArray[np.float32]
    word: str | None
    metadata: dict[str, Any]


class WordVectors:
    """Word vectors that `convert` stored; threads may share them.

    Args:
        db: The database that they are in, or a view of it.
        name: The name of their collection.

    Raises:
        NotFoundError: There are no such word vectors.
    """

    def __init__(self, db: Database | View, name: str = "words") -> None:
        if not isinstance(db, Database | View):
            raise UsageError(f"db={show(db)} must be an open database: vecstore.open(path)")
        with db.reading() as reader:
            entry, extra = catalog.find(reader, name), catalog.find(reader, extra_name(name))
        if entry is None or extra is None:
            raise NotFoundError(
                f"there are no word vectors {name!r}; vecstore.words.convert(file, db, {name!r})"
                " makes them of a file"
            )
        self._db, self._words_entry, self._extra_entry = db, entry, extra
        self._words, self._extra = db.collection(name), db.collection(extra_name(name))
        about = self.about
        # Characters of the shortest and of the longest n-grams, and how many buckets there are.
        self._subwords: tuple[int, int, int] | None = None
        if about["subwords"] is not None:
            self._subwords = tuple(about["subwords"])
        self._capitals = bool(about["capitals"])
        self._dim = self._words.spec.dim

    @property
    def collection(self) -> Collection:
        """The collection with a record for each word: the word is its id."""
        return self._words

    @property
    def dim(self) -> int:
        """Numbers per vector."""
        return self._dim

    @property
    def about(self) -> dict[str, Any]:
        """What is known of the words: file, kind, digest, subwords, idf; as it is stored now."""
        record = self._extra.get(ABOUT)
        if record is None or record.metadata is None:
            raise CorruptionError(f"collection {self._extra.name!r} has no record {ABOUT!r}")
        return record.metadata

    def __len__(self) -> int:
        return len(self._words)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, word: object) -> bool:
        # A lone surrogate is no text, and so no word either.
        sound = isinstance(word, str) and not any("\ud800" <= sign <= "\udfff" for sign in word)
        return sound and _fits(str(word)) and word in self._words

    def __repr__(self) -> str:
        try:
            return f"<WordVectors {self._words.name!r} dim={self._dim} words={len(self):,}>"
        except VecstoreError as error:
            return f"<WordVectors that cannot be read: {error}>"

    # Vectors

    def __getitem__(self, word: str) -> NDArray[np.float32]:
        vector: NDArray[np.float32] = self.vectors([word])[0]
        return vector

    def vectors(self, words: Iterable[str]) -> Vectors:
        """Return the vectors of words, float32 (n, dim), as the file has them.

        A word that is not stored gets the mean of its n-grams' vectors, where the file had some.

        Raises:
            NotFoundError: Words are not stored, and there are no n-grams for them.
        """
        wanted = _check_words(words)
        asked = [word for word in dict.fromkeys(wanted) if _fits(word)]
        stored = read(self._db, self._words_entry, asked)
        places = [stored.places.get(word, -1) for word in wanted]
        unknown = [word for word, place in zip(wanted, places, strict=True) if place < 0]
        if not unknown:
            return stored.vectors[places]
        made = self._from_subwords(unknown)
        missing = [word for word in unknown if word not in made]
        if missing:
            shown = ", ".join(map(show, missing[:3])) + (", ..." if len(missing) > 3 else "")
            raise NotFoundError(f"{self._words.name!r} has no vector for {shown}")
        rows = zip(wanted, places, strict=True)
        return np.array([made[word] if at < 0 else stored.vectors[at] for word, at in rows])

    def _from_subwords(self, words: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Means of n-grams' vectors; without the words that have none, or none but zeros."""
        made: dict[str, NDArray[np.float32]] = {}
        if self._subwords is not None:
            wanted = [word for word in words if word and _fits(word)]
            for at in range(0, len(wanted), UNKNOWN):
                part = wanted[at : at + UNKNOWN]
                made |= self._means(
                    {word: subwords.buckets(word, *self._subwords) for word in part}
                )
        return made

    def _means(self, ngrams: dict[str, list[int]]) -> dict[str, NDArray[np.float32]]:
        """Means of the vectors of some buckets each."""
        asked = list(dict.fromkeys(bucket for found in ngrams.values() for bucket in found))
        held = read(self._db, self._extra_entry, asked)
        made = {}
        for word, found in ngrams.items():
            rows = [held.places[bucket] for bucket in found if bucket in held.places]
            if rows:
                mean: NDArray[np.float32] = held.vectors[rows].mean(axis=0)
                if mean.any():
                    made[word] = mean
        return made

    def find(self, wanted: Iterable[str]) -> dict[str, list[Found]]:
        """Return what stands for each token of texts: nothing, a word, or the words it joins.

        A token is looked up as it is written, then in lower case. If neither is stored, it is split
        at its hyphens, apostrophes, full stops and underscores, and so are its parts looked up.
        What is still unknown gets a vector of its n-grams, where the file had some.
        """
        pieces = {token: [token, *parts(token)] for token in wanted}
        asked = dict.fromkeys(
            spelling
            for one in pieces.values()
            for piece in one
            for spelling in spellings(piece)
            if _fits(spelling)
        )
        found = read(self._db, self._words_entry, list(asked), metadata=True)
        stored = {
            word: Found(found.vectors[at], str(word), found.metadata[at])
            for word, at in found.places.items()
        }
        return self._choose(pieces, stored)

    def _choose(
        self, pieces: dict[str, list[str]], stored: dict[Any, Found]
    ) -> dict[str, list[Found]]:
        def known(piece: str) -> Found | None:
            return next((stored[one] for one in spellings(piece) if one in stored), None)

        chosen: dict[str, list[Found]] = {}
        left: dict[str, list[str]] = {}
        for token, (whole, *split) in pieces.items():
            found = known(whole)
            if found is not None:
                chosen[token] = [found]
            elif self._subwords is not None and not any(map(known, split)):
                # A name with a hyphen, say: its n-grams tell more together.
                left[token] = [whole]
            else:
                left[token] = split
        unknown = {one for split in left.values() for one in split if known(one) is None}
        made = self._from_subwords([self._cased(one) for one in unknown])

        def either(piece: str) -> Found | None:
            vector = made.get(self._cased(piece))
            return known(piece) or (None if vector is None else Found(vector, None, {}))

        for token, split in left.items():
            chosen[token] = [found for found in map(either, split) if found is not None]
        return chosen

    def _cased(self, word: str) -> str:
        """The word as the vocabulary would write it; n-grams that it never had mean nothing."""
        return word if self._capitals else word.lower()

    # Questions

    def similarity(self, a: str, b: str) -> float:
        """Return the cosine of the vectors of two words."""
        first, second = _directions(self.vectors([a, b]))
        return float(first @ second)

    def most_similar(
        self,
        positive: str | Vectors | Sequence[str | ArrayLike],
        negative: str | Vectors | Sequence[str | ArrayLike] = (),
        k: int = 10,
        *,
        where: Where = None,
        recall: Recall = DEFAULT_RECALL,
    ) -> Hits:
        """Return the k words nearest to the sum of some words less that of others.

        Each word, or vector, counts by its direction alone. The words asked with are left out. Hits
        have id and score; `collection.get` has the rest.

        Args:
            positive: A word, a vector (an array of shape (dim,)), or several of them.
            negative: The same.
            k: How many words.
            where: A filter, such as `{"rank": {"$lte": 50_000}}` for the commonest words.
            recall: The share of the true neighbours wanted, or "exact".

        Raises:
            NotFoundError: There is no vector for a word.
        """
        return self._near(positive, negative, k, where, recall, vectors=False)

    def _near(
        self, positive: Any, negative: Any, k: int, where: Where, recall: Recall, *, vectors: bool
    ) -> Hits:
        most = arguments.whole(k, "k", 1)
        added, taken = _items(positive, "positive"), _items(negative, "negative")
        if not added and not taken:
            raise UsageError("give a word, at least")
        signs = np.array([1.0] * len(added) + [-1.0] * len(taken))
        target = (signs @ self._units([*added, *taken])).astype(np.float32)
        given = {item for item in [*added, *taken] if isinstance(item, str)}
        hits = self._words.search(
            target,
            most + len(given),
            where=where,
            recall=recall,
            include=("vector",) if vectors else (),
        )
        kept = [hit for hit in hits if hit.id not in given][:most]
        enough = hits.complete == "exhausted" and len(kept) == most
        return Hits(kept, plan=hits.plan, complete="exact" if enough else hits.complete)

    def _units(self, items: list[Any]) -> NDArray[np.float64]:
        """Directions of words and vectors, (n, dim)."""
        words = [item for item in items if isinstance(item, str)]
        found = dict(zip(words, self.vectors(words), strict=True))
        rows = [
            found[item] if isinstance(item, str) else as_vector(item, self._dim, "a vector")
            for item in items
        ]
        return _directions(np.array(rows))

    def analogy(
        self,
        a: str,
        b: str,
        c: str,
        k: int = 10,
        *,
        method: Method = "add",
        where: Where = None,
        recall: Recall = DEFAULT_RECALL,
    ) -> Hits:
        """Return the words that are to `c` as `b` is to `a`, best first.

        Args:
            a: "man", in the usual example.
            b: "king".
            c: "woman".
            k: How many words.
            method: "add": the words nearest to b - a + c. "mul": of the 1,000 best of these, the
                ones of the largest cos(b) cos(c) / cos(a), each cosine put between 0 and 1
                (3CosMul: Levy and Goldberg, Linguistic Regularities in Sparse and Explicit Word
                Representations, 2014); that is the score.
            where: A filter.
            recall: The share of the true neighbours wanted, or "exact".
        """
        if method not in METHODS:
            raise UsageError(f"method={show(method)} is unknown; use one of {', '.join(METHODS)}")
        _check_words([a, b, c])
        if method == "add":
            return self._near([b, c], [a], k, where, recall, vectors=False)
        most = arguments.whole(k, "k", 1)
        near = self._near([b, c], [a], max(most, MULTIPLIED), where, recall, vectors=True)
        if not near:
            return near
        directions = _directions(np.array([hit.vector for hit in near]))
        cosines = (directions @ self._units([a, b, c]).T + 1) / 2
        scores = cosines[:, 1] * cosines[:, 2] / (cosines[:, 0] + _EPSILON)
        best = np.argsort(-scores, kind="stable")[:most].tolist()
        hits = [_scored(near[place], float(scores[place])) for place in best]
        return Hits(hits, plan=near.plan, complete="approximate")

    def doesnt_match(self, words: Iterable[str]) -> str:
        """Return the word that is least like the others: farthest from the mean of all.

        Raises:
            UsageError: There are fewer than two words.
            NotFoundError: There is no vector for a word.
        """
        listed = _check_words(words)
        if len(listed) < 2:
            raise UsageError(f"words={show(listed)}: one among several is looked for")
        directions = self._units(list(listed))
        return listed[int(np.argmin(directions @ directions.sum(axis=0)))]

    # Texts

    def fit_idf(self, texts: Iterable[str]) -> int:
        """Count in how many texts each word is, for `encoder("idf")`, and store that.

        The count becomes the `documents` of the words' metadata. What was fitted before is
        forgotten, and encoders made before then have another fingerprint than those made after.

        Returns:
            How many texts there were.

        Raises:
            UsageError: There are no texts, or one is no text.
        """
        if isinstance(self._db, View):
            raise ReadOnlyError("a view only reads; fit_idf needs the database")
        counts: Counter[str] = Counter()
        total = 0
        for group in groups(_checked(texts)):
            split = [set(tokens(text)) for text in group]
            found = self.find(set().union(*split))
            for wanted in split:
                counts.update({one.word for token in wanted for one in found[token] if one.word})
            total += len(group)
        if not total:
            raise UsageError("there are no texts to count words in")
        listed = sorted(counts.items())
        digest = hashlib.sha256(repr((total, listed)).encode()).hexdigest()
        with self._db.transaction():
            former = F("documents").exists() if "idf" in self.about else None
            if former is not None:
                known = [record.id for record in self._words.scan(former, include=())]
                self._count([(str(word), None) for word in known])
            self._count(listed)
            idf = {"texts": total, "digest": digest}
            write_about(self._db, self._words.name, {"idf": idf})
        return total

    def _count(self, documents: Sequence[tuple[str, int | None]]) -> None:
        for at in range(0, len(documents), RECORDS):
            part = documents[at : at + RECORDS]
            self._words.update(
                [word for word, _ in part], metadata=[{"documents": n} for _, n in part]
            )

    def encoder(self, pooling: Pooling = "sif") -> WordEncoder:
        """Return an encoder of texts, for `db.collection(name, encoder=...)`; see `WordEncoder`."""
        from vecstore.words.encoder import WordEncoder

        return WordEncoder(self, pooling)


def _directions(vectors: Vectors) -> NDArray[np.float64]:
    """Vectors scaled to unit length, float64 (n, dim); zeros stay."""
    wide = vectors.astype(np.float64)
    sizes = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    return wide / np.where(sizes > 0, sizes, 1.0)


def _fits(word: str) -> bool:
    """Whether a word may be one of a vocabulary."""
    return len(word) <= MAX_ID_BYTES and len(encode_utf8(word, "a word")) <= MAX_ID_BYTES


def _check_words(words: Iterable[str]) -> list[str]:
    if isinstance(words, str):
        raise UsageError(f"words is one str, {show(words)}; give a list of them")
    try:
        listed = list(words)
    except TypeError:
        raise UsageError(f"words is {type(words).__name__} {show(words)}, not a list") from None
    for word in listed:
        if not isinstance(word, str):
            raise UsageError(f"a word is a str, got {type(word).__name__} {show(word)}")
    return listed


def _items(given: Any, what: str) -> list[Any]:
    """Words and vectors as a list."""
    # What bytes hold are numbers, not words.
    if isinstance(given, bytes):
        raise UsageError(f"{what} is {show(given)}; a word is a str")
    numbers = isinstance(given, np.ndarray) and given.dtype.kind in "fiu"
    if isinstance(given, str) or (numbers and given.ndim == 1):
        return [given]
    try:
        listed = list(given)
    except TypeError:
        raise UsageError(f"{what} is {show(given)}; give a word, or a list") from None
    # One vector, as a list.
    plain = listed and all(type(number) in (int, float) for number in listed)
    return [np.array(listed, np.float64)] if plain else listed


def _scored(hit: Hit, score: float) -> Hit:
    return replace(hit, score=score, distance=-score, vector=None)


def _checked(texts: Iterable[str]) -> Iterator[str]:
    if isinstance(texts, str):
        raise UsageError("texts is one str; give a list of them")
    for text in texts:
        yield from check_texts([text])
