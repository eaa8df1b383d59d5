"""How does a file of word vectors become a collection? Once, in batches, all or nothing.

Two collections are made. NAME has a record per word: the word is its id, and its metadata are
`rank`, its place in the file from 1 on, and `count`, where the file says it. NAME.extra has what is
no word: the vectors of n-grams, under the numbers of their buckets, and the record `about`. Until
the last word is stored both have other names, and one transaction renames them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vecstore import arguments, bars, batches, catalog, database, ingest, layout
from vecstore.catalog import Entry
from vecstore.collection import Collection
from vecstore.database import Database
from vecstore.errors import AlreadyExistsError, EncoderError, ReadOnlyError, StoreError, UsageError
from vecstore.spec import MAX_ID_BYTES, Precision, check_name, show
from vecstore.store import Transaction
from vecstore.words.fasttext import FastTextFile
from vecstore.words.files import Batch, BinaryFile, Kind, TextFile, WordFile, detect

Subwords = Literal["all", "used", "none"]
SUBWORDS: tuple[Subwords, ...] = get_args(Subwords)

ABOUT = "about"
EXTRA, UNFINISHED = ".extra", ".unfinished"
# With a smaller share of words that have capitals, a vocabulary counts as one without.
FEW_CAPITALS = 0.01

_FILES: dict[Kind, Callable[[str | os.PathLike[str]], WordFile]] = {
    "text": TextFile,
    "word2vec": BinaryFile,
    "fasttext": FastTextFile,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was stored of a file of word vectors.

    Attributes:
        name: The collection's name.
        kind: The file's form: "text", "word2vec" or "fasttext".
        words: How many words are stored.
        dim: Numbers per vector.
        skipped: How many words are not stored, by the reason: "zero" (a vector without direction),
            "duplicate" (the first one is), "long" (over 506 bytes), "empty", "not UTF-8".
        ngrams: How many vectors of n-grams are stored.
        used: How many of the file's n-gram vectors any of the words uses; the others were never
            trained, unless on words that were left out.
        digest: SHA-256 of words and vectors.
    """

    name: str
    kind: Kind
    words: int
    dim: int
    skipped: dict[str, int]
    ngrams: int
    used: int
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes as a dict."""
        return {key: getattr(self, key) for key in self.__slots__}


def extra_name(name: str) -> str:
    """The name of the collection of what belongs to words and is no word."""
    return check_name(f"{check_name(name)}{EXTRA}")


def convert(
    path: str | os.PathLike[str],
    db: Database | str | os.PathLike[str],
    name: str = "words",
    *,
    kind: Kind | None = None,
    limit: int | None = None,
    lower: bool = False,
    precision: Precision | None = None,
    subwords: Subwords = "all",
    progress: bool | None = None,
) -> Conversion:
    """Store a file of word vectors as a collection; needed once.

    Args:
        path: word2vec (text or binary), GloVe, fastText (`.vec` or `.bin`); gzipped ones too.
        db: A database, or the path of one.
        name: The collection to make; NAME.extra is made too.
        kind: The file's form, where its contents are not to tell it.
        limit: Store only the first so many words of the file, which are the commonest as a rule.
        lower: Store the words in lower case; of those that are then the same, the first.
        precision: How vectors are stored: "float32" (the default), "float16" or "int8".
        subwords: Which vectors of n-grams are stored of a fastText model: "all", those that are
            "used" by the words that are stored, or "none".
        progress: Show a progress bar on stderr; by default if that is a terminal.

    Raises:
        ModelNotFoundError: There is no such file.
        EncoderError: The file is damaged, or of no known form; nothing is stored.
        AlreadyExistsError: The file has a collection of this name.
        UsageError: An argument is wrong.
        StoreError: Inside `db.transaction()`, which a long conversion does not fit into.
    """
    if subwords not in SUBWORDS:
        raise UsageError(f"subwords={show(subwords)} is unknown; use one of {', '.join(SUBWORDS)}")
    most = None if limit is None else arguments.whole(limit, "limit", 1)
    if not isinstance(path, str | os.PathLike) or not isinstance(db, Database | str | os.PathLike):
        raise UsageError(f"a file and a database, or their paths, not {show(path)} and {show(db)}")
    if check_name(name).endswith((UNFINISHED, EXTRA)):
        raise UsageError(f"name={show(name)} ends as the names of what belongs to words do")
    extra_name(name + UNFINISHED)
    source = _FILES[detect(path, kind)](path)
    with contextlib.ExitStack() as stack:
        if not isinstance(db, Database):
            db = stack.enter_context(database.open(db))
        _check_free(db, name)
        try:
            writer = _Writer(db, name, source, precision, lower)
            with bars.counting(progress, _total(source, most, subwords)) as advance:
                writer.store_words(source.batches(most), advance)
                if isinstance(source, FastTextFile) and subwords != "none":
                    writer.store_ngrams(source.ngrams(subwords == "used"), advance)
            # A file may have a name that is no text.
            file = Path(path).name.encode(errors="replace").decode()
            done = writer.finish(file)
        except BaseException:
            with contextlib.suppress(StoreError):
                _drop(db, name + UNFINISHED)
            raise
        # Once, and not each time that the words have become four times as many.
        db.collection(name).optimize(progress=progress)
    return done


def _check_free(db: Database, name: str) -> None:
    if db.read_only:
        raise ReadOnlyError(f"{db.path} was opened for reading only")
    with db.reading() as reader:
        if isinstance(reader, Transaction):
            raise StoreError(
                "this thread is inside db.transaction(), and words are stored in many of them;"
                " end it first"
            )
    for taken in (name, extra_name(name)):
        if taken in db.collections():
            raise AlreadyExistsError(
                f"a collection {taken!r} exists already; choose another name, or drop it"
            )
    left = name + UNFINISHED
    if left in db.collections() and extra_name(left) not in db.collections():
        raise AlreadyExistsError(
            f"a collection {left!r} exists, which no conversion has made; rename it, or choose"
            f" another name than {name!r}"
        )
    # What a conversion that was killed has left.
    _drop(db, left)


def _drop(db: Database, name: str) -> None:
    """Drop both collections in one transaction, so that one is never left without the other."""
    there = [one for one in (name, extra_name(name)) if one in db.collections()]
    if there:
        with db.transaction():
            for one in there:
                db.drop(one)


def _total(source: WordFile, limit: int | None, subwords: Subwords) -> int | None:
    if source.words is None:
        return limit
    words = source.words if limit is None else min(limit, source.words)
    if subwords == "none" or not isinstance(source, FastTextFile):
        return words
    return words + source.buckets if subwords == "all" else None


def _write(db: Database, name: str, change: Callable[[Transaction, Entry], None]) -> None:
    """Change a collection without the care for its index that its own methods take.

    That of words is made once, at the end; n-grams are never searched for, and have none.
    """

    def work(txn: Transaction) -> None:
        entry = catalog.find(txn, name)
        if entry is None:
            raise catalog.missing(txn, name)
        change(txn, entry)

    db.writing(work)


def write_about(db: Database, name: str, values: dict[str, Any]) -> None:
    """Change what is known of word vectors: values are merged into what there is."""
    extra = db.collection(extra_name(name))
    batch = batches.prepare_update(extra.spec, ABOUT, None, None, values)
    _write(db, extra.name, lambda txn, entry: ingest.update(txn, entry, batch))


class _Writer:
    """Stores what a file holds, and keeps count and digest of it."""

    def __init__(
        self,
        db: Database,
        name: str,
        source: WordFile,
        precision: Precision | None,
        lower: bool,
    ) -> None:
        self._db, self._name, self._source, self._lower = db, name, source, lower
        made = name + UNFINISHED
        with db.transaction():
            self._words = db.collection(made, dim=source.dim, precision=precision)
            # Vectors of n-grams are averaged and not compared; they may be zero.
            self._extra = db.collection(
                extra_name(made), dim=source.dim, precision=precision, metric="dot"
            )
        self._names, self._numbers = hashlib.sha256(), hashlib.sha256()
        self._skipped: Counter[str] = Counter()
        self._read = self._stored = self._ngrams = self._capitals = self._tokens = 0

    def store_words(self, batches: Iterator[Batch], advance: Callable[[int], None]) -> None:
        """Store all words that can be asked for and compared."""
        for batch in batches:
            words = [self._text(word) for word in batch.words]
            self._check_finite(batch.vectors, words)
            words = self._without_zeros(words, batch.vectors)
            kept = self._new(words)
            if kept:
                self._store(words, kept, batch)
            self._read += len(words)
            advance(len(words))
        if not self._stored:
            raise EncoderError(
                f"none of the {self._read} words of the file can be stored ({self._why()})"
            )

    def _why(self) -> str:
        return (
            ", ".join(f"{reason}: {n}" for reason, n in (+self._skipped).items()) or "it has none"
        )

    def _text(self, word: bytes) -> str | None:
        """The word as it is stored; None, and counted, if it cannot be asked for."""
        try:
            text = word.decode().lower() if self._lower else word.decode()
        except UnicodeDecodeError:
            self._skipped["not UTF-8"] += 1
            return None
        if text and len(text.encode()) <= MAX_ID_BYTES:
            return text
        self._skipped["long" if text else "empty"] += 1
        return None

    def _check_finite(self, vectors: NDArray[np.float32], words: list[str | None]) -> None:
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            at = int(bad[0])
            value = vectors[at][~np.isfinite(vectors[at])][0]
            raise EncoderError(
                f"word {self._read + at + 1} of the file, {show(words[at])}, has the number"
                f" {value}: the file is damaged, or its numbers are beyond float32's range"
            )

    def _without_zeros(
        self, words: list[str | None], vectors: NDArray[np.float32]
    ) -> list[str | None]:
        for place in np.flatnonzero(~vectors.any(axis=1)).tolist():
            if words[place] is not None:
                self._skipped["zero"] += 1
                words[place] = None
        return words

    def _new(self, words: list[str | None]) -> list[int]:
        """The places of words that are new, in this batch and in the file."""
        first: dict[str, int] = {}
        for place, word in enumerate(words):
            if word is not None:
                self._skipped["duplicate"] += word in first
                first.setdefault(word, place)
        with self._db.reading() as reader:
            number = self._number(reader)
            keys = layout.id_keys(number, list(first))
            known = reader.get_many("ids", keys) if keys else {}
        self._skipped["duplicate"] += len(known)
        places = zip(keys, first.values(), strict=True)
        return [place for key, place in places if key not in known]

    def _number(self, reader: Any) -> int:
        entry = catalog.find(reader, self._name + UNFINISHED)
        assert entry is not None
        return entry.number

    def _store(self, words: list[str | None], kept: list[int], batch: Batch) -> None:
        ids = [word for word in map(words.__getitem__, kept) if word is not None]
        vectors = batch.vectors[kept]
        metadata = [{"rank": self._read + place + 1} for place in kept]
        if batch.counts is not None:
            for item, place in zip(metadata, kept, strict=True):
                item["count"] = batch.counts[place]
                self._tokens += batch.counts[place]
        self._add(self._words, ids, vectors, metadata)
        self._stored += len(ids)
        self._capitals += sum(word != word.lower() for word in ids)

    def _add(
        self,
        collection: Collection,
        ids: list[Any],
        vectors: NDArray[np.float32],
        metadata: list[Any] | None = None,
    ) -> None:
        """Store records; digests are kept of them."""
        batch = batches.prepare(collection.spec, None, vectors, ids, metadata)
        _write(self._db, collection.name, lambda txn, entry: ingest.add(txn, entry, batch))
        self._names.update("".join(f"{value}\0" for value in ids).encode())
        self._numbers.update(vectors.astype("<f4", copy=False).tobytes())

    def store_ngrams(
        self,
        batches: Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]],
        advance: Callable[[int], None],
    ) -> None:
        """Store the vectors of n-grams."""
        for buckets, vectors in batches:
            if not np.isfinite(vectors).all():
                raise EncoderError("an n-gram's vector holds NaN or infinity: the file is damaged")
            self._add(self._extra, buckets.tolist(), vectors)
            self._ngrams += len(buckets)
            advance(len(buckets))

    def finish(self, file: str) -> Conversion:
        """Write what is known of the words, and give the collections their names."""
        source, used = self._source, 0
        about: dict[str, Any] = {
            "file": file,
            "kind": source.kind,
            "words": self._stored,
            "ranks": self._read,
            "tokens": self._tokens,
            "capitals": self._capitals > FEW_CAPITALS * self._stored,
            "subwords": None,
        }
        if isinstance(source, FastTextFile):
            used = int(np.count_nonzero(source.used))
            if self._ngrams:
                about["subwords"] = [source.minn, source.maxn, source.buckets]
        parts = repr(about["subwords"]).encode() + self._names.digest() + self._numbers.digest()
        about["digest"] = hashlib.sha256(parts).hexdigest()
        with self._db.transaction():
            zero = np.zeros((1, source.dim), np.float32)
            self._add(self._extra, [ABOUT], zero, [about])
            self._db.rename(self._words.name, self._name)
            self._db.rename(self._extra.name, extra_name(self._name))
        return Conversion(
            name=self._name,
            kind=source.kind,
            words=self._stored,
            dim=source.dim,
            skipped=dict(+self._skipped),
            ngrams=self._ngrams,
            used=used,
            digest=about["digest"],
        )
