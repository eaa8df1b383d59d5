"""What does a writer do? Seeded steps over the public API, and what a plain dict would hold."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from indexed import clusters
from reference import Model, Row

import vecstore
from vecstore import Chunking, Database, chunking, maintenance
from vecstore.encoders import FunctionEncoder, HashEncoder
from vecstore.fields import upkeep
from vecstore.store import whole

World = dict[str, Model]
DATA = Path(__file__).parent / "data"
DIM, BITS = 16, 64
HASH = HashEncoder(DIM)
# Whatever takes texts and returns vectors is an encoder.
ENCODER = FunctionEncoder(HASH.encode, dim=DIM, name="cheap")
CHUNKING = Chunking(tokens=12, overlap=3)
DECLARED: dict[str, dict[str, Any]] = {
    "lists": {"dim": DIM, "metric": "l2", "index": "ivf"},
    "codes": {"dim": DIM, "precision": "int8", "index": "hash"},
    "half": {"dim": DIM, "metric": "dot", "precision": "float16"},
    "buckets": {"dim": BITS, "metric": "hamming", "index": "hash"},
    "texts": {"encoder": ENCODER},
}
# Records of a collection; hits of a search.
LARGEST, K = 420, 10
WORDS = ["red", "green", "late", "early", "apple", "pear", "train", "ship", "north", "house"]


def small_parts() -> None:
    """Let little be enough for indexes, columns and rewriting, in this process and its children."""
    maintenance.AUTO_ROWS, maintenance.AUTO_BYTES, maintenance.BACKLOG = 300, 1, 80
    upkeep.LEAST, upkeep.MERGED = 40, 3
    whole.SHORT, whole.WRITES = 1 << 16, 4


def warm() -> None:
    """Import and load in this process what each child would import and load by itself."""
    with vecstore.open(":memory:") as db:
        points = db.collection("points", dim=DIM, index="ivf")
        points.add(vectors=clusters(300))
        points.optimize(progress=False)
        points.search_many(clusters(3), K)
        bits = db.collection("bits", dim=BITS, metric="hamming", index="hash")
        bits.add(vectors=np.packbits(clusters(300).repeat(4, axis=1) > 0, axis=1))
        bits.search(np.zeros(BITS // 8, np.uint8), K)
        assert db.check() == []


def cut(text: str) -> list[str]:
    spans = chunking.cut(text, chunking.approximate(text), CHUNKING.tokens, CHUNKING.overlap)
    return [text[start:end] for start, end in spans]


def embed(text: str) -> np.ndarray:
    return HASH.encode([text])[0]


# Steps


@dataclass(frozen=True)
class Change:
    """A call of a collection that writes."""

    name: str
    method: str
    ids: list[Any] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)

    def carry_out(self, db: Database) -> None:
        if self.method == "make":
            db.collection(self.name, **DECLARED[self.name])
            return
        if self.method == "drop":
            db.drop(self.name)
            return
        points = db.collection(self.name)
        if self.method == "delete":
            points.delete(self.ids or None, **self.parts)
        else:
            getattr(points, self.method)(ids=self.ids, **self.parts)

    def applied(self, world: World) -> None:
        if self.method == "make":
            world[self.name] = new_model(self.name)
        elif self.method == "drop":
            del world[self.name]
        elif self.method == "delete":
            model = world[self.name]
            model.delete(self.ids or model.matching(self.parts["where"]))
        else:
            self._written(world[self.name])

    def _written(self, model: Model) -> None:
        chunk = "chunk" in self.parts
        texts, vectors = self.parts.get("texts"), self.parts.get("vectors")
        changed, metadata = self.parts.get("vector"), self.parts.get("metadata")
        for at, key in enumerate(self.ids):
            text, value = texts and texts[at], metadata and metadata[at]
            if self.method == "update":
                model.change(key, None if changed is None else changed[at], None, value)
            else:
                vector = None if vectors is None else vectors[at]
                model.put(key, vector, text, value, chunk=chunk)


@dataclass(frozen=True)
class Step:
    """What a writer does between two acknowledgements: transactions, one after another.

    Attributes:
        kind: What it is called in the table.
        groups: The changes of each transaction.
        work: What carries it out, if it is not the transactions one by one.
    """

    kind: str
    groups: list[list[Change]] = field(default_factory=list)
    work: Callable[[Database], object] | None = None

    def carry_out(self, db: Database) -> None:
        if self.work is not None:
            self.work(db)
            return
        for group in self.groups:
            # A single call is a transaction of its own.
            alone = len(group) == 1
            with contextlib.nullcontext() if alone else db.transaction():
                for change in group:
                    change.carry_out(db)

    def applied(self, world: World) -> list[World]:
        """The world before, and after each of the transactions."""
        worlds = [world]
        for group in self.groups:
            after = {name: model.copy() for name, model in worlds[-1].items()}
            for change in group:
                change.applied(after)
            worlds.append(after)
        return worlds


class Frozen(Model):
    """What an old file held: its vectors come back as they were read, never rounded again."""

    def kept(self, vector: np.ndarray) -> np.ndarray:
        return vector

    def copy(self) -> Model:
        twin = Frozen(self.dim, self.metric, self.embed, self.precision, self.cut)
        twin.rows = dict(self.rows)
        return twin


def new_model(name: str) -> Model:
    if name == "texts":
        return Model(DIM, "cosine", embed, cut=cut)
    declared = DECLARED[name]
    precision = declared.get("precision", "float32")
    return Model(declared["dim"], declared.get("metric", "cosine"), precision=precision)


class Steps:
    """The stream of a seed: its n-th step follows from the world before it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, number: int, world: World, kind: str | None = None) -> Step:
        rng = np.random.default_rng([self.seed, number])
        missing = [name for name in DECLARED if name not in world]
        if missing and kind is None:
            return Step("make", [[Change(missing[0], "make")]])
        kinds = [*_KINDS] if kind is None else [kind]
        weights = np.array([_KINDS[kind][0] for kind in kinds], float)
        picked = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        return Step(picked, *_KINDS[picked][1](rng, number, world))


Parts = tuple[list[list[Change]], Callable[[Database], object] | None]


def _own(world: World, rng: np.random.Generator) -> str:
    return str(rng.choice([name for name in world if name in DECLARED]))


def _vectors(rng: np.random.Generator, model: Model, count: int) -> np.ndarray:
    given = clusters(count, int(rng.integers(1 << 30)))
    return (
        given if model.metric != "hamming" else rng.integers(0, 256, (count, BITS // 8), np.uint8)
    )


def _metadata(rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    return [
        {"n": int(rng.integers(100)), "word": str(rng.choice(WORDS)), "tags": [i % 3, "t"]}
        for i in range(count)
    ]


def _sentences(rng: np.random.Generator, words: int) -> str:
    picked = [str(word) for word in rng.choice(WORDS, words)]
    for at in range(5, words, 6):
        picked[at] += "."
    return " ".join(picked)


def _records(
    rng: np.random.Generator, world: World, name: str, ids: list[Any], method: str = "add"
) -> Change:
    parts: dict[str, Any] = {"metadata": _metadata(rng, len(ids))}
    if name == "texts":
        chunk = rng.random() < 0.4
        sizes = rng.integers(10, 60, len(ids)) if chunk else rng.integers(1, 9, len(ids))
        parts["texts"] = [_sentences(rng, int(size)) for size in sizes]
        parts |= {"chunk": CHUNKING} if chunk else {}
    else:
        parts["vectors"] = _vectors(rng, world[name], len(ids))
    return Change(name, method, ids, parts)


def _fresh(rng: np.random.Generator, number: int, model: Model) -> list[Any]:
    """New ids, no more than a collection that stays small may have."""
    room = max(1, LARGEST - len(model.rows))
    count = int(rng.integers(1, min(room, 150) + 1))
    texts = rng.random() < 0.5
    return [f"{number}-{at}" if texts else 1000 * number + at for at in range(count)]


def _some(rng: np.random.Generator, model: Model, most: float) -> list[Any]:
    count = int(rng.integers(1, max(2, int(most * len(model.rows)))))
    keys = list(model.rows)
    return [keys[at] for at in rng.permutation(len(keys))[:count]]


def _add(rng: np.random.Generator, number: int, world: World) -> Parts:
    name = _own(world, rng)
    return [[_records(rng, world, name, _fresh(rng, number, world[name]))]], None


def _upsert(rng: np.random.Generator, number: int, world: World) -> Parts:
    name = _own(world, rng)
    ids = _some(rng, world[name], 0.4) + _fresh(rng, number, world[name])[:40]
    return [[_records(rng, world, name, ids, "upsert")]], None


def _update(rng: np.random.Generator, number: int, world: World) -> Parts:
    name = _own(world, rng)
    ids = _some(rng, world[name], 0.6)
    if not ids:
        return _add(rng, number, world)
    parts: dict[str, Any] = {"metadata": _metadata(rng, len(ids))}
    if rng.random() < 0.5 and name != "texts":
        parts["vector"] = _vectors(rng, world[name], len(ids))
    return [[Change(name, "update", ids, parts)]], None


def _delete(rng: np.random.Generator, number: int, world: World) -> Parts:
    # Of old files too.
    name = str(rng.choice(list(world)))
    return [[Change(name, "delete", _some(rng, world[name], 0.7) or ["none"])]], None


def _delete_where(rng: np.random.Generator, number: int, world: World) -> Parts:
    name = _own(world, rng)
    where = [{"n": {"$lt": int(rng.integers(60))}}, {"word": {"$in": WORDS[:4]}}, {"tags": 1}]
    return [[Change(name, "delete", [], {"where": where[int(rng.integers(3))]})]], None


def _transaction(rng: np.random.Generator, number: int, world: World) -> Parts:
    one, other = _own(world, rng), _own(world, rng)
    doomed = _some(rng, world[one], 0.5)
    ids = [f"both-{number}-{at}" for at in range(int(rng.integers(1, 60)))]
    changes = [Change(one, "delete", doomed)] if doomed else []
    changes += [_records(rng, world, one, ids), _records(rng, world, other, ids, "upsert")]
    return [changes], None


def _stream(rng: np.random.Generator, number: int, world: World) -> Parts:
    name, size = _own(world, rng), 30
    whole = _records(rng, world, name, _fresh(rng, number, world[name]))
    groups, items = [], []
    chunk = whole.parts.pop("chunk", False)
    for at in range(0, len(whole.ids), size):
        parts = {key: value[at : at + size] for key, value in whole.parts.items()}
        kept = {**parts, "chunk": chunk} if chunk else parts
        groups.append([Change(name, "add", whole.ids[at : at + size], kept)])
    singular = {"texts": "text", "vectors": "vector", "metadata": "metadata"}
    for at, key in enumerate(whole.ids):
        items.append({"id": key, **{singular[k]: v[at] for k, v in whole.parts.items()}})
    work = lambda db: db.collection(name).add_records(items, batch=size, chunk=chunk)  # noqa: E731
    return groups, work


def _optimize(rng: np.random.Generator, number: int, world: World) -> Parts:
    name = str(rng.choice(list(world)))
    return [], lambda db: db.collection(name).optimize(progress=False)


def _reindex(rng: np.random.Generator, number: int, world: World) -> Parts:
    name = str(rng.choice([name for name in world if name != "buckets" or number % 2]))
    kinds = ("flat", "hash") if world[name].metric == "hamming" else ("ivf", "hash", "auto")
    kind: Any = kinds[int(rng.integers(len(kinds)))]
    return [], lambda db: db.collection(name).reindex(kind)


def _remake(rng: np.random.Generator, number: int, world: World) -> Parts:
    name = _own(world, rng)
    made = {**world, name: new_model(name)}
    again = _records(rng, made, name, _fresh(rng, number, made[name]))
    return [[Change(name, "drop"), Change(name, "make"), again]], None


def _backup(rng: np.random.Generator, number: int, world: World) -> Parts:
    def work(db: Database) -> None:
        target = Path(db.path).with_name("backup.vecstore")
        target.unlink(missing_ok=True)
        db.backup(target)
        with vecstore.open(target, read_only=True) as copy:
            assert copy.collections() == sorted(world)
            assert {n: copy.collection(n).count() for n in world} == {
                name: len(model.rows) for name, model in world.items()
            }
        target.with_name("backup.vecstore-lock").unlink()

    return [], work


def _compact(rng: np.random.Generator, number: int, world: World) -> Parts:
    return [], lambda db: db.compact()


def _delete_securely(rng: np.random.Generator, number: int, world: World) -> Parts:
    name = str(rng.choice(list(world)))
    ids = _some(rng, world[name], 0.3) or ["none"]
    work = lambda db: db.collection(name).delete(ids, secure=True)  # noqa: E731
    return [[Change(name, "delete", ids)]], work


def _sync(rng: np.random.Generator, number: int, world: World) -> Parts:
    return [], lambda db: db.sync()


def _upgrade(rng: np.random.Generator, number: int, world: World) -> Parts:
    """Passages in a collection of a file of format 1."""
    if "notes" not in world:
        return _add(rng, number, world)
    texts = [_sentences(rng, 40) for _ in range(3)]
    parts = {"texts": texts, "chunk": CHUNKING, "metadata": _metadata(rng, 3)}
    return [[Change("notes", "add", [f"long-{number}-{at}" for at in range(3)], parts)]], None


_KINDS: dict[str, tuple[float, Callable[[np.random.Generator, int, World], Parts]]] = {
    "add": (5, _add),
    "upsert": (3, _upsert),
    "update": (3, _update),
    "delete": (2, _delete),
    "delete where": (2, _delete_where),
    "transaction": (4, _transaction),
    "stream": (3, _stream),
    "optimize": (2, _optimize),
    "reindex": (1, _reindex),
    "drop and make": (0.5, _remake),
    "backup": (1, _backup),
    "compact": (2, _compact),
    "secure delete": (1, _delete_securely),
    "sync": (0.5, _sync),
    "upgrade": (1, _upgrade),
}
KINDS = tuple(_KINDS)


def read_world(path: Path) -> World:
    """What an old file holds."""
    world: World = {}
    with vecstore.open(path) as db:
        for name in db.collections():
            points = db.collection(name)
            spec = points.spec
            encoded = {"embed": embed, "cut": cut} if spec.encoder else {}
            model = Frozen(spec.dim, spec.metric, precision=spec.precision, **encoded)
            for record in points.scan(include=("text", "metadata", "vector")):
                model.rows[record.id] = Row(record.vector, record.text, record.metadata)
            world[name] = model
    return world
