"""Make the golden file of the newest format: python tests/data/make_golden.py

One file of every format version is kept and must keep opening (tests/system/test_formats.py). Run
this once, when a format is new; never make a file anew that has been released.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np

import vecstore
from vecstore import layout
from vecstore.encoders import HashEncoder

FOLDER = Path(__file__).parent
QUERY = [0.5, -1.0, 2.0, 0.25]


def fill(db: vecstore.Database) -> None:
    """Store a little of everything that the format can hold."""
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


def describe(db: vecstore.Database) -> dict[str, object]:
    """What a reader of the file must find, as plain JSON."""
    found: dict[str, object] = {}
    for name in db.collections():
        collection = db.collection(name)
        records = list(collection.scan(include=("text", "metadata", "vector")))
        entry: dict[str, object] = {
            "spec": collection.spec.to_dict(),
            "records": [
                [item.id, item.text, repr(item.metadata), np.asarray(item.vector).tolist()]
                for item in records
            ],
        }
        if name.startswith("points"):
            for key, where in (("all", None), ("even", {"even": True, "n": {"$gte": 50}})):
                hits = collection.search(QUERY, k=7, where=where)
                entry[key] = [[hit.id, hit.score, hit.distance] for hit in hits]
        if name == "notes":
            # By a vector: the file must keep opening whatever becomes of the encoder.
            hits = collection.search(records[2].vector, k=4)
            entry["all"] = [[hit.id, hit.score, hit.distance] for hit in hits]
        found[name] = entry
    return found


def main() -> None:
    """Write the file and what must be found in it."""
    target = FOLDER / f"format_{layout.FORMAT}.vecstore"
    with vecstore.open(":memory:") as db:
        fill(db)
        assert db.check() == []
        answers = describe(db)
        db.backup(target)
    target.chmod(0o644)
    text = json.dumps(answers, indent=1, ensure_ascii=True)
    target.with_suffix(".json").write_text(text + "\n")
    print(f"{target.name}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
