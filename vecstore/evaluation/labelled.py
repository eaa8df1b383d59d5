"""Which texts belong together? Labelled files: documents, queries, judgements, and scored pairs.

Files are jsonl, judgements also TREC's or BEIR's tables, all of them gzipped or not. They may come
from anywhere: whatever is wrong with one is told with its name, its line and the value.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import numpy as np

from vecstore.errors import UsageError
from vecstore.formats import Lines, objects
from vecstore.spec import encode_utf8, show

# Everything is kept in memory: a small gzip may hold any number of zeros.
MAX_BYTES = 8 << 30
MAX_GRADE = 1e6
GZIP = b"\x1f\x8b"

PathLike = str | os.PathLike[str]
Grades = dict[str, float]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fields:
    """Which keys of the objects of a file mean what.

    Attributes:
        id: The id of a document or a query, a text or an integer; else `_id`, as BEIR calls it.
        text: The text of a document or a query.
        title: The title of a document, put before its text with ". "; None to leave titles out.
        rel: In a query, the object that gives grades to ids of documents.
        split: Which part of the data a query or a pair belongs to.
        first: The first text of a pair.
        second: The second text of a pair.
        score: The score of a pair.
    """

    id: str = "id"
    text: str = "text"
    title: str | None = "title"
    rel: str = "rel"
    split: str = "split"
    first: str = "s1"
    second: str = "s2"
    score: str = "score"


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Documents, queries, and which documents are relevant to which query.

    Attributes:
        name: What reports call it: the folder of the documents.
        ids: The ids of the documents, as str, in the order of the file.
        documents: Their texts.
        queries: The texts of the queries that have a relevant document.
        relevant: For each query the grades of its relevant documents, all above 0. Some of them may
            not be among `ids`: no search can find those, and the figures show it.
        left_out: How many queries were left out, since nothing is relevant to them.
        unknown: How many grades are of documents that are not among `ids`.
        sampled: Whether documents or queries were left out by `sample`.
    """

    name: str
    ids: list[str] = field(repr=False)
    documents: list[str] = field(repr=False)
    queries: list[str] = field(repr=False)
    relevant: list[Grades] = field(repr=False)
    left_out: int = 0
    unknown: int = 0
    sampled: bool = False

    def __post_init__(self) -> None:
        _check_alike("ids and documents", self.ids, self.documents)
        _check_alike("queries and relevant", self.queries, self.relevant)
        if len(set(self.ids)) < len(self.ids):
            raise UsageError("ids of documents must differ from each other")

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the counts."""
        return {
            "name": self.name,
            "documents": len(self.ids),
            "queries": len(self.queries),
            "judgements": sum(map(len, self.relevant)),
            "queries_left_out": self.left_out,
            "judgements_of_unknown_documents": self.unknown,
            "sampled": self.sampled,
        }

    def named(self, text: str) -> str:
        """What a document is called in messages, by its text."""
        return f"document {show(self.ids[self.documents.index(text)])} of {self.name}"

    def named_query(self, text: str) -> str:
        """The same of a query, which has no id."""
        return f"query {self.queries.index(text)} of {self.name}"

    def sample(self, size: int, seed: int = 0) -> Retrieval:
        """Return a part: at most `size` queries, and documents up to `size`.

        All documents that are relevant to the queries stay, the others are drawn at random, so
        searching is easier than among all.
        """
        rng = np.random.default_rng(seed)
        chosen = _drawn(rng, len(self.queries), size)
        there = set(self.ids)
        needed = {item for at in chosen for item in self.relevant[at]}
        others = [at for at, item in enumerate(self.ids) if item not in needed]
        kept = {others[at] for at in _drawn(rng, len(others), size - len(self.ids) + len(others))}
        rows = [at for at, item in enumerate(self.ids) if item in needed or at in kept]
        return replace(
            self,
            ids=[self.ids[at] for at in rows],
            documents=[self.documents[at] for at in rows],
            queries=[self.queries[at] for at in chosen],
            relevant=[self.relevant[at] for at in chosen],
            unknown=sum(len(self.relevant[at].keys() - there) for at in chosen),
            sampled=len(rows) < len(self.ids) or len(chosen) < len(self.queries),
        )


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of texts, and how alike people found them.

    Attributes:
        name: What reports call it: the folder of the file.
        first: One text of each pair.
        second: The other.
        scores: Finite numbers, larger for pairs that are more alike.
        sampled: Whether pairs were left out by `sample`.
    """

    name: str
    first: list[str] = field(repr=False)
    second: list[str] = field(repr=False)
    scores: list[float] = field(repr=False)
    sampled: bool = False

    def __post_init__(self) -> None:
        _check_alike("first and second", self.first, self.second)
        _check_alike("first and scores", self.first, self.scores)
        if not np.isfinite(np.array(self.scores, np.float64)).all():
            raise UsageError("scores of pairs must be finite numbers")

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the count."""
        return {"name": self.name, "pairs": len(self.scores), "sampled": self.sampled}

    def named(self, text: str) -> str:
        """What a text is called in messages."""
        place = [*self.first, *self.second].index(text) % len(self.first)
        return f"a text of pair {place} of {self.name}"

    def sample(self, size: int, seed: int = 0) -> Pairs:
        """Return at most `size` of the pairs, drawn at random."""
        chosen = _drawn(np.random.default_rng(seed), len(self.scores), size)
        return Pairs(
            self.name,
            [self.first[at] for at in chosen],
            [self.second[at] for at in chosen],
            [self.scores[at] for at in chosen],
            sampled=len(chosen) < len(self.scores),
        )


def _check_alike(what: str, one: Sequence[Any], other: Sequence[Any]) -> None:
    """Raise UsageError unless both are lists of one length."""
    for found in (one, other):
        if not isinstance(found, list):
            raise UsageError(f"{what} must be lists, got {show(found)}")
    if len(one) != len(other):
        raise UsageError(f"{what} must be of one length, got {len(one)} and {len(other)}")


def read_retrieval(
    documents: PathLike,
    queries: PathLike,
    qrels: PathLike | None = None,
    *,
    splits: Sequence[str] = (),
    fields: Fields | None = None,
) -> Retrieval:
    """Read documents, queries and judgements.

    Args:
        documents: jsonl of `{"id": ..., "text": ..., "title": ...}`; the title may be missing.
        queries: jsonl of `{"id": ..., "text": ..., "rel": {document: grade}}`.
        qrels: Judgements in a file of their own, in place of "rel": jsonl of `{"query": ...,
            "doc": ..., "grade": ...}`, else lines of four columns (TREC: query, anything, document,
            grade) or of three between tabs (BEIR: query, document, grade, below a header or not).
        splits: Take only the queries of these; all by default.
        fields: Which keys mean what.

    Raises:
        UsageError: A file cannot be read or holds something else, an id stands twice, a judgement
            is of an unknown query, no query of the splits has a relevant document, or none of
            these documents is there. The message names the file, and the line if it is one.
    """
    named = fields or Fields()
    ids, texts = _read_documents(Path(documents), named)
    asked = _read_queries(Path(queries), named, with_grades=qrels is None)
    if qrels is not None:
        known = {query.id for query in asked}
        grades = _read_qrels(Path(qrels), known, str(queries))
        asked = [replace(query, relevant=grades.get(query.id or "", {})) for query in asked]
    asked = _of_splits(asked, [query.split for query in asked], splits, Path(queries))
    judged = [query for query in asked if query.relevant]
    if not judged:
        raise UsageError(f"{qrels or queries}: no query has a relevant document")
    there = set(ids)
    unknown = sum(len(query.relevant.keys() - there) for query in judged)
    if unknown == sum(len(query.relevant) for query in judged):
        example = next(iter(judged[0].relevant))
        raise UsageError(
            f"{qrels or queries}: no relevant document is in {documents}; the first is {example!r}"
        )
    return Retrieval(
        name=_name(documents),
        ids=ids,
        documents=texts,
        queries=[query.text for query in judged],
        relevant=[query.relevant for query in judged],
        left_out=len(asked) - len(judged),
        unknown=unknown,
    )


def read_pairs(
    file: PathLike, *, splits: Sequence[str] = (), fields: Fields | None = None
) -> Pairs:
    """Read scored pairs: jsonl of `{"s1": ..., "s2": ..., "score": ...}`.

    Args:
        file: The file.
        splits: Take only the pairs of these; all by default.
        fields: Which keys mean what.

    Raises:
        UsageError: The file cannot be read or holds something else, there are fewer than two pairs
            in the splits, or all their scores are equal.
    """
    named, path = fields or Fields(), Path(file)
    rows: list[tuple[str, str, float]] = []
    parts: list[str | None] = []
    for place, values in _rows(path):
        one, other = (_text(values, key, place) for key in (named.first, named.second))
        score = _number(_member(values, named.score, place), f"{place}: {named.score!r}")
        rows.append((one, other, score))
        parts.append(_split(values, named, place))
    rows = _of_splits(rows, parts, splits, path)
    if len({score for *_, score in rows}) < 2:
        raise UsageError(f"{path}: {len(rows)} pairs with at most one score cannot be put in order")
    return Pairs(
        name=_name(file),
        first=[one for one, _, _ in rows],
        second=[other for _, other, _ in rows],
        scores=[score for _, _, score in rows],
    )


# The three kinds of files


@dataclass(frozen=True, slots=True)
class _Query:
    id: str | None
    text: str
    relevant: Grades
    split: str | None


def _read_documents(path: Path, fields: Fields) -> tuple[list[str], list[str]]:
    seen: dict[str, str] = {}
    texts = []
    for place, values in _rows(path):
        key = _id(values, fields, place)
        if key is None:
            raise UsageError(f"{place}: no field {fields.id!r} among {_keys(values)}")
        if key in seen:
            raise UsageError(f"{place}: the document {key!r} stood in {seen[key]} already")
        seen[key] = place
        texts.append(_titled(values, fields, place))
    return list(seen), texts


def _titled(values: Mapping[str, Any], fields: Fields, place: str) -> str:
    """The title, ". " and the text; one of them may be missing."""
    if fields.title is None or not values.get(fields.title):
        return _text(values, fields.text, place)
    title = _text(values, fields.title, place)
    return f"{title}. {_text(values, fields.text, place)}" if values.get(fields.text) else title


def _read_queries(path: Path, fields: Fields, *, with_grades: bool) -> list[_Query]:
    found: list[_Query] = []
    seen: set[str] = set()
    for place, values in _rows(path):
        key = _id(values, fields, place)
        if key is None and not with_grades:
            raise UsageError(
                f"{place}: no field {fields.id!r} among {_keys(values)}, which judgements name"
            )
        if key is not None and key in seen:
            raise UsageError(f"{place}: the query {key!r} stands twice")
        seen |= {key} if key is not None else set()
        grades = _grades(values, fields, place) if with_grades else {}
        found.append(
            _Query(key, _text(values, fields.text, place), grades, _split(values, fields, place))
        )
    return found


def _grades(values: Mapping[str, Any], fields: Fields, place: str) -> Grades:
    """The relevant documents of a query and their grades."""
    given = _member(values, fields.rel, place)
    if not isinstance(given, dict):
        raise UsageError(
            f"{place}: {fields.rel!r} is {show(given)}, not an object of grades by document"
        )
    grades = {key: _grade(grade, f"{place}: the grade of {key!r}") for key, grade in given.items()}
    return {key: grade for key, grade in grades.items() if grade > 0}


def _read_qrels(path: Path, known: set[str | None], queries: str) -> dict[str, Grades]:
    found: dict[str, Grades] = {}
    seen: set[tuple[str, str]] = set()
    for place, query, document, grade in _judgements(path):
        if query not in known:
            raise UsageError(f"{place}: the query {query!r} is not in {queries}")
        if (query, document) in seen:
            raise UsageError(f"{place}: document {document!r} of query {query!r} stands twice")
        seen.add((query, document))
        if grade > 0:
            found.setdefault(query, {})[document] = grade
    return found


def _judgements(path: Path) -> Iterator[tuple[str, str, str, float]]:
    """Place, query, document and grade of every line."""
    if {".jsonl", ".ndjson"} & {suffix.lower() for suffix in path.suffixes}:
        for place, values in _rows(path):
            query, document = (
                _as_id(_member(values, key, place), f"{place}: {key!r}") for key in ("query", "doc")
            )
            yield place, query, document, _grade(_member(values, "grade", place), f"{place}: grade")
        return
    with _opened(path) as lines:
        for text in lines:
            if not text.strip():
                continue
            cells = text.strip("\r\n").split("\t")
            if len(cells) != 3:
                cells = text.split()
            if len(cells) == 4:
                del cells[1]
            place = _place(lines)
            if len(cells) != 3:
                raise UsageError(
                    f"{place}: {show(text.strip())} is neither TREC's four columns nor BEIR's three"
                )
            if lines.number == 1 and not _is_number(cells[2]):
                continue
            grade = float(cells[2]) if _is_number(cells[2]) else cells[2]
            yield place, cells[0], cells[1], _grade(grade, f"{place}: the grade")


# Lines


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Lines]:
    """The lines of a file, gzipped or not; whatever reading it raises names the file."""
    lines: Lines | None = None
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == GZIP
            # It reads as any other file does, though its type is none of theirs.
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
            lines = Lines(str(path), stream)
            yield lines
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        after = lines.number if lines else 0
        raise UsageError(f"{path}, after line {after}: damaged gzip: {error}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a jsonl file, each with its place."""
    with _opened(path) as lines:
        empty = True
        for _, values in objects(lines):
            empty = False
            if lines.size > MAX_BYTES:
                raise lines.error(f"more than {MAX_BYTES >> 30} GiB, which are kept in memory")
            yield _place(lines), values
        if empty:
            raise UsageError(f"{path} is empty")


def _place(lines: Lines) -> str:
    return f"{lines.name}, line {lines.number}"


# Values


def _member(values: Mapping[str, Any], key: str, place: str) -> Any:
    if key not in values:
        raise UsageError(f"{place}: no field {key!r} among {_keys(values)}")
    return values[key]


def _keys(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key:.40}" for key in list(values)[:12]) or "nothing"


def _text(values: Mapping[str, Any], key: str, place: str) -> str:
    text = _member(values, key, place)
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"{place}: {key!r} is {show(text)}, not a text with something in it")
    encode_utf8(text, f"{place}: {key!r}")
    return text


def _id(values: Mapping[str, Any], fields: Fields, place: str) -> str | None:
    key = fields.id if fields.id in values else "_id"
    return None if key not in values else _as_id(values[key], f"{place}: {key!r}")


def _as_id(value: object, what: str) -> str:
    """An id as a str: files of judgements know no other."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UsageError(f"{what} is {show(value)}, not a text or an integer")
    return str(value)


def _split(values: Mapping[str, Any], fields: Fields, place: str) -> str | None:
    part = values.get(fields.split)
    if part is not None and not isinstance(part, str):
        raise UsageError(f"{place}: {fields.split!r} is {show(part)}, not a text")
    return part


def _number(value: object, what: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        # Integers may be larger than any float.
        with contextlib.suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    raise UsageError(f"{what} is {show(value)}, not a finite number")


def _grade(value: object, what: str) -> float:
    number = _number(value, what)
    if abs(number) > MAX_GRADE:
        raise UsageError(f"{what} is {show(value)}, more than {MAX_GRADE:,.0f}")
    return number


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _of_splits(
    rows: list[T], parts: list[str | None], splits: Sequence[str], path: Path
) -> list[T]:
    """The rows whose part is one of the splits; all where none is named."""
    for split in splits:
        if split not in parts:
            known = ", ".join(sorted({repr(part) for part in parts if part is not None})[:12])
            raise UsageError(f"{path} has no split {split!r}; it has {known or 'none'}")
    return [row for row, part in zip(rows, parts, strict=True) if not splits or part in splits]


def _name(file: PathLike) -> str:
    return Path(file).resolve().parent.name or str(file)


def _drawn(rng: np.random.Generator, count: int, size: int) -> list[int]:
    """At most `size` of the first `count` numbers, in order."""
    if size >= count:
        return list(range(count))
    return sorted(rng.choice(count, max(0, size), replace=False).tolist())
