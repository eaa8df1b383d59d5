"""Make golden files of the newest format: python tests/data/make_golden.py

Of every format version files are kept that must keep opening (tests/system/test_formats.py). Run
this when a format is new, or has come to hold something new; never make a file anew that has been
released.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vecstore
from vecstore import Chunking
from vecstore.encoders import HashEncoder

FOLDER = Path(__file__).parent
QUERY = [0.5, -1.0, 2.0, 0.25]
# Of the second file: dims, and rows of a collection with an index when it is made, and in the end.
DIM, TRAINED, ROWS = 11, 264, 300


def fill(db: vecstore.Database) -> None:
    """Store a little of everything that the first files of the format held."""
    rng = np.random.default_rng(1)
    for metric in ("cosine", "dot", "l2"):
        points = db.collection(f"points {metric}", dim=4, metric=metric)
        points.add(
            vectors=rng.normal(size=(100, 4)).astype(np.float32),
            ids=[i - 20 if i % 2 else f"id-{i}-é" for i in range(100)],
            metadata=[{"n": i, "even": i % 2 == 0, "third": i / 3} for i in range(100)],
        )
        points.delete([i - 20 for i in range(1, 60, 4)])
        points.update("id-4-é", metadata={"added": True}, vector=[1, 2, 3, 4])
    notes = db.collection("notes", encoder=HashEncoder(dim=16))
    notes.add(["red apple", "green apple", "green pear", "a late train"], ids=[1, 2, 3, 4])
    kinds = db.collection("kinds", dim=2, metric="l2", mrl=(1, 2))
    kinds.add(
        "a text beside a vector",
        vectors=[1e-30, -1e17],
        ids=2**63 - 1,
        metadata={
            "none": None,
            "bool": True,
            "int": -(2**63),
            "large": 2**64 - 1,
            "float": 0.1,
            "str": "a\0é\U0001f600",
            "bytes": b"\0\xff",
            "naive": datetime(2024, 2, 29, 12, 30, 0, 1),
            "utc": datetime(2024, 2, 29, 12, 30, tzinfo=UTC),
            "zoned": datetime(1965, 1, 1, tzinfo=timezone(timedelta(hours=-5, minutes=-30))),
            "list": [1, "a", [None, {"deep": [1.5]}]],
            "dict": {"a": {"b": {}}, "": []},
        },
    )
    db.collection("dropped", dim=3).add(vectors=[1, 2, 3])
    db.drop("dropped")
    db.collection("empty", dim=8192, metric="dot")


def fill_stored(db: vecstore.Database) -> None:
    """Store vectors in every other form, and collections with an index."""
    rng = np.random.default_rng(2)
    few = {"ids": list(range(40)), "metadata": [{"n": n} for n in range(40)]}
    for precision, metric in (("float16", "cosine"), ("int8", "dot"), ("int8", "l2")):
        points = db.collection(f"{precision} {metric}", dim=7, metric=metric, precision=precision)
        points.add(vectors=rng.normal(size=(40, 7)), **few)
        points.delete(list(range(3, 30, 4)))
    bits = db.collection("bits", dim=72, metric="hamming")
    bits.add(vectors=rng.random((40, 72)) < 0.5, **few)
    bits.delete(list(range(3, 30, 4)))
    for name, declared in INDEXED.items():
        _fill_index(db.collection(name, dim=DIM, **declared), rng)


def fill_passages(db: vecstore.Database) -> None:
    """Store records with passages, some of which came and went."""
    for name, metric in (("stories", "cosine"), ("tales", "l2")):
        stories = db.collection(name, encoder=HashEncoder(dim=16), metric=metric)
        texts = [f"Story {n}. " + "It goes on. " * n + f"End of {n}." for n in range(24)]
        metadata = [{"n": n} for n in range(24)]
        for late in (0, 12):
            part = slice(late, late + 12)
            stories.add(
                texts[part],
                ids=list(range(24))[part],
                metadata=metadata[part],
                chunk=Chunking(tokens=24 + late, overlap=late // 2),
            )
        stories.delete([3, 17, 20])
        stories.update(5, text="Story 5 is told anew. " * 9)
        stories.update(6, metadata={"added": True})


INDEXED: dict[str, dict[str, Any]] = {
    "ivf": {"metric": "l2", "index": "ivf"},
    "hash": {"metric": "cosine", "index": "hash", "precision": "int8", "tiers": ((DIM, 2),)},
}


def _fill_index(points: vecstore.Collection, rng: np.random.Generator) -> None:
    """Make an index, and leave rows in its tail, and dead ones in lists and tail."""
    centres = 3 * rng.normal(size=(8, DIM))
    vectors = centres[rng.integers(0, 8, ROWS)] + rng.normal(size=(ROWS, DIM))
    for start, stop in ((0, TRAINED), (TRAINED, ROWS)):
        part = range(start, stop)
        points.add(vectors=vectors[start:stop], ids=part, metadata=[{"n": n} for n in part])
        if start == 0:
            points.optimize()
    points.delete([*range(0, 40, 3), *range(TRAINED, TRAINED + 5)])
    points.update(100, vector=vectors[200])


def describe(db: vecstore.Database) -> dict[str, object]:
    """What a reader of the first file must find, as plain JSON."""
    found: dict[str, object] = {}
    for name in db.collections():
        collection = db.collection(name)
        entry = _spec_and_records(collection)
        if name.startswith("points"):
            for key, where in (("all", None), ("even", {"even": True, "n": {"$gte": 50}})):
                entry[key] = _answer(collection.search(QUERY, k=7, where=where))
        if name == "notes":
            # By a vector: the file must keep opening whatever becomes of the encoder.
            third = list(collection.scan(include=("vector",)))[2]
            entry["all"] = _answer(collection.search(third.vector, k=4))
        found[name] = entry
    return found


def describe_stored(db: vecstore.Database) -> dict[str, object]:
    """What a reader of the second file must find, as plain JSON."""
    found: dict[str, object] = {}
    for name in db.collections():
        collection = db.collection(name)
        if name not in INDEXED:
            entry = _spec_and_records(collection)
            entry["all"] = _answer(collection.search(_query(collection), k=7))
            found[name] = entry
            continue
        stats = collection.stats()
        entry = {
            "spec": collection.spec.to_dict(),
            "index": {key: stats[key] for key in ("index", "codes", "lists", "trained_rows")},
            "tail": stats["tail_rows"],
            "ids": [record.id for record in collection.scan()],
        }
        for key, recall, where in (
            ("exact", "exact", None),
            ("approximate", 0.95, None),
            ("filtered", 0.95, {"n": {"$gte": 22}}),
        ):
            answers = collection.search_many(_queries(), k=7, recall=recall, where=where)
            # Which way is fastest under a filter may change; what is found must not.
            entry[key] = [[None if where else hits.plan.method, _answer(hits)] for hits in answers]
        found[name] = entry
    return found


def describe_passages(db: vecstore.Database) -> dict[str, object]:
    """What a reader of the file with passages must find, as plain JSON."""
    found: dict[str, object] = {}
    for name in db.collections():
        collection = db.collection(name)
        entry = _spec_and_records(collection)
        entry["passages"] = [
            [[item.start, item.end] for item in record.passages] for record in collection.scan()
        ]
        hits = collection.search(_query(collection), k=12)
        entry["all"] = [[*row, hit.passage and hit.passage.index] for row, hit in _pairs(hits)]
        found[name] = entry
    return found


def _pairs(hits: vecstore.Hits) -> list[tuple[list[object], vecstore.Hit]]:
    return list(zip(_answer(hits), hits, strict=True))


def _spec_and_records(collection: vecstore.Collection) -> dict[str, object]:
    records = collection.scan(include=("text", "metadata", "vector"))
    return {
        "spec": collection.spec.to_dict(),
        "records": [
            [item.id, item.text, repr(item.metadata), np.asarray(item.vector).tolist()]
            for item in records
        ],
    }


def _answer(hits: vecstore.Hits) -> list[list[object]]:
    return [[hit.id, hit.score, hit.distance] for hit in hits]


def _query(collection: vecstore.Collection) -> NDArray[Any]:
    wave = np.sin(np.arange(collection.spec.dim))
    return wave > 0 if collection.spec.metric == "hamming" else wave


def _queries() -> NDArray[np.float64]:
    return 3 * np.sin(np.arange(1, 6)[:, None] * np.arange(1, DIM + 1))


Recipe = tuple[Callable[[vecstore.Database], None], Callable[[vecstore.Database], Any]]

# What each file is called, how it is filled, and what is in it.
RECIPES: dict[str, Recipe] = {
    "format_1": (fill, describe),
    "format_1_stored": (fill_stored, describe_stored),
    "format_2_passages": (fill_passages, describe_passages),
}


def make(target: Path, recipe: Recipe) -> None:
    """Write a file and what must be found in it."""
    fill_it, describe_it = recipe
    with vecstore.open(":memory:") as db:
        fill_it(db)
        assert db.check() == []
        assert target.name.startswith(f"format_{db.stats()['format']}")
        answers = describe_it(db)
        db.backup(target)
    target.chmod(0o644)
    text = json.dumps(answers, indent=1, ensure_ascii=True)
    target.with_suffix(".json").write_text(text + "\n")
    print(f"{target.name}: {target.stat().st_size} bytes")


def main() -> None:
    """Make the files that are not there."""
    for name, recipe in RECIPES.items():
        target = FOLDER / f"{name}.vecstore"
        if not target.exists():
            make(target, recipe)


if __name__ == "__main__":
    main()
