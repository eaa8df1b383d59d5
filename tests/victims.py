"""Small files with a bit of everything, to be damaged: one for each way to store and to search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecstore
from vecstore import Chunking, Collection, Database, filters, maintenance
from vecstore.ann import bits, buckets, compiled, flat, lookup
from vecstore.encoders import HashEncoder
from vecstore.encoders.adapters import AdaptedEncoder, Adapter
from vecstore.encoders.adapters.adapter import Affine
from vecstore.fields import upkeep

DIM, COUNT = 8, 260
# When some records expire.
LATE = datetime(2999, 1, 1, tzinfo=UTC)


def metadata(number: int) -> dict[str, Any]:
    """Of every kind of value, some of them rare."""
    found: dict[str, Any] = {
        "n": number,
        "third": number % 3,
        "word": f"word {number % 7}",
        "tags": [f"tag {number % 5}", number % 2 == 0],
        "at": datetime(2024, 1, 1 + number % 28, tzinfo=UTC),
        "deep": {"er": {"x": number / 4, "raw": bytes([number % 4])}},
    }
    if number % 9 == 0:
        found["rare"] = None
    return found


def filled(db: Database, name: str, **declared: Any) -> Collection:
    """Records, of which some died and some came later."""
    rng = np.random.default_rng(3)
    points = db.collection(name, dim=DIM, **declared)
    vectors = rng.normal(size=(COUNT, DIM))
    if points.spec.metric == "hamming":
        vectors = vectors > 0
    for part in (slice(0, 200), slice(200, COUNT)):
        numbers = range(COUNT)[part]
        points.add(
            vectors=vectors[part],
            ids=[number if number % 2 else f"id {number}" for number in numbers],
            texts=[f"text {number} " * (number % 4) or None for number in numbers],
            metadata=[metadata(number) for number in numbers],
            expires_at=[LATE if number % 5 == 0 else None for number in numbers],
        )
    points.delete([*range(65, 129, 2), *(f"id {number}" for number in range(64, 128, 2)), 201])
    return points


def _flat(db: Database) -> None:
    filled(db, "points", index="flat")


def _flat_dot(db: Database) -> None:
    filled(db, "points", index="flat", metric="dot", precision="float16", skip_fields=["deep"])


def _lists(db: Database) -> None:
    filled(db, "points", index="ivf", metric="l2").optimize()


def _int8_lists(db: Database) -> None:
    filled(db, "points", index="ivf", precision="int8").optimize()


def _codes(db: Database) -> None:
    filled(db, "points", index="hash", precision="float16", tiers=[(6, 2)])


def _buckets(db: Database) -> None:
    filled(db, "points", metric="hamming", index="hash").optimize()


def _passages(db: Database) -> None:
    base, rng = HashEncoder(DIM), np.random.default_rng(5)
    turned = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0].astype(np.float32)
    encoder = AdaptedEncoder(base, Adapter(dim=DIM, documents=Affine(turned)))
    points = db.collection("points", encoder=encoder)
    texts = [f"Text {number} is long. " * (1 + number % 4) for number in range(30)]
    points.add(texts, ids=list(range(30)), chunk=Chunking(tokens=6), metadata=[{"n": 1}] * 30)
    points.add(["short"], ids=["short"])
    db.collection("empty", dim=4)


VICTIMS: dict[str, Callable[[Database], None]] = {
    "flat": _flat,
    "dot": _flat_dot,
    "lists": _lists,
    "int8": _int8_lists,
    "codes": _codes,
    "buckets": _buckets,
    "passages": _passages,
}


@contextmanager
def small() -> Iterator[None]:
    """Let everything that is made for many rows be made, and used, for few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upkeep, "LEAST", 100)
        patch.setattr(maintenance, "AUTO_ROWS", 200)
        patch.setattr(maintenance, "AUTO_BYTES", 1)
        patch.setattr(maintenance, "BACKLOG", 100)
        patch.setattr(buckets, "LEAST_ROWS", 1)
        patch.setattr(lookup, "START_COST", 0.0)
        patch.setattr(lookup, "NUMPY_COSTS", (1e9, 0.0))
        patch.setattr(lookup, "COMPILED_COSTS", (1e9, 0.0))
        patch.setattr(flat, "LEAST_BYTES", 1)
        patch.setattr(bits, "LEAST_ROWS", 1)
        yield


def make(name: str, path: Path) -> Path:
    """Write one of them."""
    with small(), vecstore.open(path) as db:
        VICTIMS[name](db)
        if name != "flat":
            # That one keeps its free pages.
            db.compact()
        assert db.check() == []
    return path


@contextmanager
def answered_by(engine: str) -> Iterator[None]:
    """By the compiled kernels, or by numpy; never by the other one meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        if engine == "compiled":
            compiled.compile_now()
            patch.setattr(compiled, "ready_after", lambda name, size: compiled.ready(name))
        else:
            patch.setattr(compiled, "ready", lambda name: None)
            patch.setattr(compiled, "ready_after", lambda name, size: None)
        yield


# What can be done with a file


def _ids(points: Collection) -> list[Any]:
    return [number if number % 2 else f"id {number}" for number in range(0, 30, 7)]


def _told(hits: Any) -> list[str]:
    return [repr((hit.id, hit.score, hit.text, hit.metadata)) for hit in hits]


def _query(points: Collection, seed: int = 1) -> Any:
    vector = np.random.default_rng(seed).normal(size=points.spec.dim)
    return vector > 0 if points.spec.metric == "hamming" else vector


RARE = {"$or": [{"n": {"$gte": 12, "$lt": 40}}, {"word": "word 3"}]}
FILTERS: list[dict[str, Any]] = [
    {"third": 1},
    RARE,
    {"tags": {"$in": ["tag 2", True]}, "rare": {"$exists": False}},
    {"$not": {"deep.er.x": {"$lt": 20}}},
    {"word": {"$contains": "ord 5"}},
    {"at": {"$gt": datetime(2024, 1, 20, tzinfo=UTC)}},
    {"deep.er.raw": {"$nin": [b"\0", b"\1"]}},
    {"$expires_at": {"$exists": True}, "third": {"$lt": 2}},
]
Work = Callable[[Collection], Any]


def _explained(points: Collection) -> None:
    # Of these the figures differ from time to time.
    for where in (None, RARE):
        str(points.explain(_query(points), 5, where=where))


READS: dict[str, Work] = {
    "stats": lambda c: {k: v for k, v in c.stats().items() if k != "space"},
    "count": lambda c: [c.count(), *(c.count(where) for where in FILTERS)],
    "scan": lambda c: [
        repr((r.id, r.text, r.metadata, r.vector.tolist()))
        for r in c.scan(include=("text", "metadata", "vector"))
    ],
    "scan where": lambda c: [[r.id for r in c.scan(where)] for where in FILTERS],
    "get": lambda c: [repr(r and (r.id, r.text, r.metadata)) for r in c.get([*_ids(c), 1, 3])],
    "search": lambda c: _told(c.search(_query(c), k=7)),
    "search all": lambda c: sorted(c.search(_query(c), k=400, recall=0.99).ids, key=str),
    "search where": lambda c: [
        _told(c.search(_query(c, seed), k=5, where=where)) for seed, where in enumerate(FILTERS)
    ],
    "search exact": lambda c: _told(c.search(_query(c), k=9, recall="exact")),
    "search few": lambda c: _told(c.search(_query(c), k=3, where={"n": {"$in": [3, 5, 150]}})),
    "search more": lambda c: _told(c.search(_query(c), k=3, offset=4, min_score=-9)),
    "search dims": lambda c: _told(c.search(_query(c)[:8], k=3, dims=8)),
    "search many": lambda c: [
        _told(hits) for hits in c.search_many([_query(c, seed) for seed in range(40)], 2, threads=2)
    ],
    "search groups": lambda c: _told(c.search(_query(c), k=4, group_by="word", group_size=2)),
    "scan in order": lambda c: [r.id for r in c.scan(RARE, order_by="n", limit=30)],
    "facets": lambda c: [repr(c.facets(path)) for path in ("third", "word", "tags", "deep.er.x")],
    "distinct": lambda c: [repr(c.distinct(path)) for path in ("third", "at", "deep.er.raw")],
    "explain": _explained,
    "audit": lambda c: str(c.audit(k=3, sample=10)) and None,
}


def contradictions(points: Collection) -> list[str]:
    """What ways of reading say that others deny, of a file that was found sound."""
    records = list(points.scan(include=("text", "metadata", "vector")))
    ids, found = [record.id for record in records], []
    if len(set(ids)) != len(ids) or points.count() != len(ids):
        found.append("count")
    for where in FILTERS:
        matching = [record.id for record in records if filters.parse(where).matches(record)]
        if [record.id for record in points.scan(where)] != matching:
            found.append(f"scan {where}")
        asked = points.search(_query(points), len(ids) + 1, where=where, recall="exact")
        if sorted(map(repr, asked.ids)) != sorted(map(repr, matching)):
            found.append(f"search {where}")
    exact = points.search(_query(points), len(ids) + 1, recall="exact")
    if sorted(map(repr, exact.ids)) != sorted(map(repr, ids)):
        found.append("search for all")
    if not any(record.passages for record in records):
        scores = _scores(points, records)
        if any(abs(scores[hit.id] - hit.score) > 1e-4 * (1 + abs(hit.score)) for hit in exact):
            found.append("scores")
    right = {hit.id: hit.score for hit in exact}
    some = points.search(_query(points), 7)
    if len(set(some.ids)) != min(7, len(ids)) or any(right[hit.id] != hit.score for hit in some):
        found.append("hits of the index")
    counted = Counter(repr((r.metadata or {}).get("third", ...)) for r in records)
    del counted["Ellipsis"]
    for facet in points.facets("third"):
        counted[repr(facet.value)] -= facet.records
    if any(counted.values()):
        found.append("facets")
    return found


def _scores(points: Collection, records: list[Any]) -> dict[Any, float]:
    query, metric = _query(points), points.spec.metric
    if metric == "hamming":
        bits = [np.unpackbits(record.vector)[: points.spec.dim] for record in records]
        return {r.id: -float((one != query).sum()) for r, one in zip(records, bits, strict=True)}
    vectors = {record.id: record.vector.astype(np.float64) for record in records}
    if metric == "l2":
        return {name: -float(np.linalg.norm(one - query)) for name, one in vectors.items()}
    if metric == "dot":
        return {name: float(one @ query) for name, one in vectors.items()}
    length = np.linalg.norm(query)
    return {n: float(v @ query / length / np.linalg.norm(v)) for n, v in vectors.items()}


def _written(points: Collection, **given: Any) -> None:
    if points.spec.encoder is None:
        given["vectors"] = [_query(points, seed) for seed in range(len(given["ids"]))]
    else:
        given["texts"] = [f"Text {number} is long. " for number in range(len(given["ids"]))]
        given["chunk"] = Chunking(tokens=6)
    points.upsert(**given)


WRITES: dict[str, Work] = {
    "update": lambda c: c.update(3, metadata={"n": -1, "new": "x"}),
    "upsert": lambda c: _written(c, ids=[1, 3, "id 2"], metadata=[{"n": 1}] * 3),
    "add": lambda c: _written(c, ids=list(range(9000, 9150)), metadata=[metadata(5)] * 150),
    "delete": lambda c: c.delete([5, 7, "id 4", "id 6"]),
    "delete where": lambda c: c.delete(where={"third": 2}),
    "optimize": lambda c: c.optimize() and None,
    "recalibrate": lambda c: c.audit(k=3, sample=10, recalibrate=True) and None,
    "expire": lambda c: c.update(11, expires_at=datetime(2020, 1, 1, tzinfo=UTC)),
    "delete securely": lambda c: c.delete([9], secure=True) and None,
    "flat": lambda c: c.reindex("flat") and None,
    "hash": lambda c: c.reindex("hash") and None,
}
