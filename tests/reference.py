"""The oracle: what a collection must answer, with plain dicts and float64 numpy, no cleverness.

Scores are computed from the vectors as docs/layout.md says they are stored: under cosine scaled to
unit length unless they have it to within 1e-6, then rounded to the collection's precision.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from vecstore import Filter, Hit, Hits, Record, values
from vecstore.fields import groups
from vecstore.filters import parse
from vecstore.values import comparable

Embed = Callable[[str], np.ndarray]
Cut = Callable[[str], list[str]]


@dataclass(frozen=True)
class Row:
    """What a record holds; of passages, `vector` is theirs, (passages, dim)."""

    vector: np.ndarray
    text: str | None = None
    metadata: dict[str, Any] | None = None
    passages: tuple[str, ...] = ()
    expires_at: datetime | None = None


class Model:
    """A collection as a dict: its order is the order of first storing."""

    def __init__(
        self,
        dim: int,
        metric: str,
        embed: Embed | None = None,
        precision: str = "float32",
        cut: Cut | None = None,
    ) -> None:
        self.dim = dim
        self.metric = metric
        self.embed = embed
        self.precision = precision
        self.cut = cut
        self.rows: dict[Any, Row] = {}

    @property
    def dtype(self) -> type:
        """What vectors come as: binary ones in bytes."""
        return np.uint8 if self.metric == "hamming" else np.float32

    def own(self, vectors: np.ndarray) -> np.ndarray:
        """Arrays of any numbers as vectors of this collection: for a binary one, their signs."""
        return np.packbits(np.asarray(vectors) > 0, axis=-1) if self.dtype is np.uint8 else vectors

    def copy(self) -> Model:
        twin = Model(self.dim, self.metric, self.embed, self.precision, self.cut)
        twin.rows = dict(self.rows)
        return twin

    def put(
        self,
        key: Any,
        vector: Any = None,
        text: str | None = None,
        metadata: Any = None,
        *,
        chunk: bool = False,
        expires_at: datetime | None = None,
    ):
        """Add or replace; a dict keeps the place of a key that it has."""
        passages: tuple[str, ...] = ()
        if vector is None:
            vector, passages = self.embedded(text, chunk=chunk)
        # Beside when a record expires, no metadata and empty ones are the same.
        metadata = metadata or None if expires_at else metadata
        row = Row(np.asarray(vector, self.dtype), text, metadata, passages, expires_at)
        self.rows[key] = row

    def embedded(self, text: str, *, chunk: bool) -> tuple[np.ndarray, tuple[str, ...]]:
        """The vector of a text; or those of its passages, and these."""
        parts = self.cut(text) if chunk else [text]
        if len(parts) == 1:
            return self.embed(text), ()
        return np.array([self.embed(part) for part in parts]), tuple(parts)

    def change(
        self,
        key: Any,
        vector: Any = None,
        text: str | None = None,
        metadata: Any = None,
        expires_at: Any = ...,
    ):
        """Update: merge metadata at the top level, embed a new text, cut as the old one was."""
        old = self.rows[key]
        passages = old.passages if vector is None else ()
        if vector is None and text is not None:
            vector, passages = self.embedded(text, chunk=bool(old.passages))
        end = old.expires_at if expires_at is ... else expires_at
        merged = old.metadata if metadata is None else {**(old.metadata or {}), **metadata}
        if end is not None or expires_at is not ...:
            merged = merged or None
        self.rows[key] = replace(
            old,
            expires_at=end,
            passages=passages,
            vector=old.vector if vector is None else np.asarray(vector, self.dtype),
            text=old.text if text is None else text,
            metadata=merged,
        )

    def expire(self, now: datetime) -> None:
        """Drop what is past its time."""
        ends = {key: row.expires_at for key, row in self.rows.items()}
        self.delete([key for key, end in ends.items() if end is not None and end <= now])

    def delete(self, keys: Iterable[Any]) -> int:
        return sum(self.rows.pop(key, None) is not None for key in set(keys))

    def matching(self, where: Mapping[str, Any] | Filter | None = None) -> list[Any]:
        """The ids of the records that satisfy a filter, in the order of storing."""
        if where is None:
            return list(self.rows)
        condition = parse(where)
        return [key for key in self.rows if condition.matches(self.record(key))]

    def record(self, key: Any) -> Record:
        """The record as it comes back: with the vector that the stored form has kept."""
        row = self.rows[key]
        return Record(
            id=key,
            text=row.text,
            metadata=row.metadata,
            vector=self.kept(row.vector),
            expires_at=row.expires_at,
        )

    def kept(self, vector: np.ndarray) -> np.ndarray:
        if self.precision in ("float32", "bits"):
            return vector
        stored = stored_form(vector[None], self.metric, self.precision)[0]
        if self.metric != "cosine":
            return stored.astype(np.float32)
        size = length(vector)
        return (stored * (1.0 if abs(size - 1) <= 1e-6 else size)).astype(np.float32)

    def rank(
        self,
        query: Any,
        where: Any = None,
        min_score: float | None = None,
        dims: int | None = None,
    ):
        """(score, id) of every record that qualifies, best first, ties in the order of storing."""
        keys = self.matching(where)
        if not keys:
            return []
        stored = [np.atleast_2d(self.rows[key].vector) for key in keys]
        query = np.asarray(query, self.dtype)
        each = scores(np.concatenate(stored), query, self.metric, self.precision, dims)
        # A record is as near as the best of its passages.
        ends = np.cumsum([len(part) for part in stored]).tolist()
        found = [max(each[end - len(part) : end]) for end, part in zip(ends, stored, strict=True)]
        ranked = sorted(zip(found, keys, strict=True), key=lambda pair: -pair[0])
        return [pair for pair in ranked if min_score is None or pair[0] >= min_score]

    def check(
        self,
        hits: Hits,
        query: Any,
        k: int,
        *,
        where: Any = None,
        min_score: float | None = None,
        offset: int = 0,
        dims: int | None = None,
    ) -> None:
        """Assert that hits are the right answer.

        Two records may stand in either order only if their scores are equal up to the rounding of
        float64 and their vectors are not the same.
        """
        ranked = self.rank(query, where, min_score, dims)
        expected = ranked[offset : offset + k]
        assert len(hits) == len(expected)
        assert hits.complete == ("exact" if len(hits) == k else "exhausted")
        known = {key: score for score, key in ranked}
        slack = self.slack(query)
        for hit, (score, _) in zip(hits, expected, strict=True):
            assert hit.id in known, f"{hit.id!r} does not qualify"
            assert abs(hit.score - score) <= slack
            assert abs(hit.score - known[hit.id]) <= slack
            assert hit.distance == (1 - hit.score if self.metric == "cosine" else -hit.score)
            self.check_passage(hit, query, dims, slack)
        if hits.ids != [key for _, key in expected]:
            self.check_twins(hits.ids, list(known), whole=offset == 0)

    def check_passage(self, hit: Hit, query: Any, dims: int | None, slack: float) -> None:
        """Assert that a hit tells the passage that its score is of."""
        row = self.rows[hit.id]
        if not row.passages:
            assert hit.passage is None
            return
        place = hit.passage.index
        own = row.vector[place : place + 1]
        query = np.asarray(query, self.dtype)
        (score,) = scores(own, query, self.metric, self.precision, dims)
        assert abs(score - hit.score) <= slack
        assert hit.passage.text == row.passages[place]
        assert row.text[hit.passage.start : hit.passage.end] == hit.passage.text

    def check_near(self, hits: Hits, query: Any, k: int, *, where: Any = None) -> None:
        """Assert that hits may be an approximate answer: better ones may be missing, no more.

        What did not go through an index is to be the right answer.
        """
        if hits.plan.method != "index":
            self.check(hits, query, k, where=where)
            return
        known = {key: score for score, key in self.rank(query, where)}
        assert len(hits) == len(set(hits.ids)) == min(k, len(known))
        assert hits.complete == ("approximate" if len(hits) == k else "exhausted")
        assert hits.scores.tolist() == sorted(hits.scores.tolist(), reverse=True)
        slack = self.slack(query)
        for hit in hits:
            assert hit.id in known, f"{hit.id!r} does not qualify"
            # Of several passages, a lesser one may be found.
            assert hit.score <= known[hit.id] + slack
            assert hit.passage is not None or hit.score >= known[hit.id] - slack
            assert hit.distance == (1 - hit.score if self.metric == "cosine" else -hit.score)
            self.check_passage(hit, query, None, slack)

    def check_twins(self, found: list[Any], ranked: list[Any], *, whole: bool) -> None:
        """Assert that records with equal vectors stand in the order of storing, none left out."""
        qualified = set(ranked)
        twins: dict[bytes, list[Any]] = {}
        for key in self.rows:
            if key in qualified:
                twins.setdefault(self.rows[key].vector.tobytes(), []).append(key)
        groups: dict[bytes, list[Any]] = {}
        for key in found:
            groups.setdefault(self.rows[key].vector.tobytes(), []).append(key)
        for vector, group in groups.items():
            first = 0 if whole else twins[vector].index(group[0])
            assert group == twins[vector][first : first + len(group)]

    def slack(self, query: Any) -> float:
        """How far two float64 computations of one score may lie apart."""
        if self.metric in ("cosine", "hamming"):
            return 1e-12
        longest = max((length(row.vector) for row in self.rows.values()), default=0.0)
        mine = length(np.asarray(query, np.float32))
        return 1e-12 * (longest * mine if self.metric == "dot" else longest + mine)


def length(vector: np.ndarray) -> float:
    return float(np.sqrt((vector.astype(np.float64) ** 2).sum()))


def stored_form(vectors: np.ndarray, metric: str, precision: str) -> np.ndarray:
    """The numbers that stand for float32 vectors (n, dim) in the file, as float64."""
    wide = vectors.astype(np.float64)
    if metric == "cosine":
        norms = np.sqrt((wide**2).sum(axis=1))
        scaled = (wide / norms[:, None]).astype(np.float32).astype(np.float64)
        wide = np.where(np.abs(norms - 1)[:, None] <= 1e-6, wide, scaled)
    if precision == "float16":
        return wide.astype(np.float16).astype(np.float64)
    if precision == "int8":
        return np.array([int8_form(row) for row in wide]).reshape(wide.shape)
    return wide


def int8_form(vector: np.ndarray) -> np.ndarray:
    """Multiples of a 127th of the largest number, rounded up to 17 bits."""
    largest = float(np.abs(vector).max())
    if largest == 0:
        return vector
    step = largest / 127
    unit = 2.0 ** (math.frexp(step)[1] - 17)
    step = max(float(np.float32(math.ceil(step / unit) * unit)), 2.0**-149)
    # Ties in float32's quotients are ties here: a code times a step has few bits.
    codes = np.rint((vector.astype(np.float32) / np.float32(step)).astype(np.float64))
    return np.clip(codes, -127, 127) * step


def scores(
    vectors: np.ndarray,
    query: np.ndarray,
    metric: str,
    precision: str = "float32",
    dims: int | None = None,
) -> list[float]:
    """Scores of float32 vectors (n, dim), or packed bits, against a query of their dtype."""
    if metric == "hamming":
        different = (np.unpackbits(vectors, axis=1) != np.unpackbits(query))[:, :dims]
        return (-different.sum(axis=1, dtype=np.float64)).tolist()
    wide = stored_form(vectors, metric, precision)[:, :dims]
    q = query.astype(np.float64)[:dims]
    if metric == "dot":
        return (wide * q).sum(axis=1).tolist()
    if metric == "l2":
        return (-np.sqrt(((wide - q) ** 2).sum(axis=1))).tolist()
    q = q / np.sqrt((q**2).sum())
    sizes = np.sqrt((wide**2).sum(axis=1))
    found = (wide * q).sum(axis=1) / np.where(sizes > 0, sizes, 1)
    return np.clip(found, -1.0, 1.0).tolist()


def exactly(left: Any, right: Any) -> bool:
    """Whether two values of metadata are equal with their types: 1 is not 1.0 and not True."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(exactly(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(exactly, left, right))
    return bool(left == right)


def same_record(found: Record | None, expected: Record | None, metric: str = "dot") -> bool:
    """Whether a record that came back is the one that was stored."""
    if found is None or expected is None:
        return found is expected
    if found.vector is not None:
        if found.vector.dtype != expected.vector.dtype:
            return False
        if found.vector.shape != expected.vector.shape:
            return False
        if found.vector.dtype == np.uint8:
            return found.vector.tobytes() == expected.vector.tobytes() and same_record(
                replace(found, vector=None), expected
            )
        spacing = np.spacing(np.abs(expected.vector)) * (2 if metric == "cosine" else 0)
        if not (np.abs(found.vector - expected.vector) <= spacing).all():
            return False
    return (
        exactly(found.id, expected.id)
        and exactly(found.text, expected.text)
        and exactly(found.metadata, expected.metadata)
        and exactly(found.expires_at, expected.expires_at)
    )


# The values of fields


def pairs_of(record, path):
    """The values of a record at a path, as `comparable` pairs."""
    if path == "$id":
        found = [record.id]
    elif path == "$text":
        found = [] if record.text is None else [record.text]
    elif path == "$expires_at":
        found = [] if record.expires_at is None else [record.expires_at]
    else:
        found = values.values_at(record.metadata or {}, values.split_path(path))
    return {pair for pair in map(comparable, found) if pair is not None}


def rank_of(pair):
    kind, value = pair
    key = value.encode() if kind == "string" else value
    return groups.KINDS.index(kind), 0 if kind == "null" else key


def values_in_order(records, path):
    """Distinct pairs in order, with their counts."""
    counts = Counter(pair for record in records for pair in pairs_of(record, path))
    return [(pair, counts[pair]) for pair in sorted(counts, key=rank_of)]


def same_value(value, pair):
    kind, wanted = pair
    got = comparable(value)
    return got is not None and got[0] == kind and got[1] == wanted


def ids_in_order(records, path, descending):
    """Ids in the order of a field."""
    there, without = [], []
    for number, record in enumerate(records):
        ranks = sorted(rank_of(pair) for pair in pairs_of(record, path))
        (there if ranks else without).append((ranks, number, record.id))
    distinct = sorted({one for ranks, _, _ in there for one in ranks})
    place = {one: number for number, one in enumerate(distinct)}
    pick, sign = (-1, -1) if descending else (0, 1)
    there.sort(key=lambda item: (sign * place[item[0][pick]], item[1]))
    return [identity for _, _, identity in there + without]
