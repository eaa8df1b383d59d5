"""Does any sequence of calls leave what a plain dict would hold? A state machine decides."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strategies as own
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)
from reference import (
    Model,
    ids_in_order,
    pairs_of,
    same_record,
    same_value,
    values_in_order,
)

import vecstore
from vecstore import AlreadyExistsError, Chunking, NotFoundError, Record, UsageError, chunking
from vecstore.encoders import HashEncoder
from vecstore.fields import upkeep
from vecstore.store import whole
from vecstore.values import instant

DIM = 8
ENCODER = HashEncoder(DIM)
EVERYTHING = ("text", "metadata", "vector")
PARTS = (*EVERYTHING, "end")
# Few and with duplicates, so that ties and unchanged vectors are common.
POOL = np.random.default_rng(3).normal(size=(12, DIM)).astype(np.float32)
POOL[10:] = POOL[:2]

ids = st.sampled_from([*range(40), *"abcdefgh", "1", "2", ""])
vectors = st.integers(0, len(POOL) - 1).map(lambda number: POOL[number])
texts = st.sampled_from(["red apples", "green apples", "a late train", "a train", "late apples"])
# What is cut into passages, of a sentence or two.
stories = st.lists(texts, min_size=1, max_size=6).map(lambda parts: ". ".join(parts).capitalize())
CHUNKING = Chunking(tokens=6, overlap=3)
values = st.none() | own.metadata
# What the collections of bare vectors are made with.
KINDS: dict[str, dict[str, Any]] = {
    "cosine": {},
    "dot": {"metric": "dot"},
    "l2": {"metric": "l2"},
    "half": {"precision": "float16"},
    "half l2": {"precision": "float16", "metric": "l2"},
    "bytes": {"precision": "int8"},
    "bytes dot": {"precision": "int8", "metric": "dot"},
    "bits": {"metric": "hamming"},
}
names = st.sampled_from([*KINDS, "texts"])
# When a record expires, in seconds from now; negative ones have expired before they are there.
ends = st.sampled_from([None, None, None, -1, 1, 5, 60])
batches = st.lists(
    st.tuples(ids, vectors, st.none() | texts, values, ends),
    min_size=1,
    max_size=70,
    unique_by=lambda item: item[0],
)
# One seed for many records: blocks of 64 rows fill up, and die.
bulks = st.tuples(st.integers(0, 99), st.integers(1, 150))


def embed(text: str) -> np.ndarray:
    return ENCODER.encode([text])[0]


def cut(text: str) -> list[str]:
    spans = chunking.cut(text, chunking.approximate(text), CHUNKING.tokens, CHUNKING.overlap)
    return [text[start:end] for start, end in spans]


class Machine(RuleBasedStateMachine):
    """One file with a collection of each kind and one for texts; models hold the truth."""

    snapshots: Bundle[Any] = Bundle("snapshots")

    @initialize(memory=st.booleans(), least=st.sampled_from([1, 5, 40, 256]))
    def begin(self, memory: bool, least: int) -> None:
        # From so few rows on there are columns of metadata, and so few of them are merged.
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(upkeep, "LEAST", least)
        self.patch.setattr(upkeep, "MERGED", 3)
        # And so little of a file is looked at, whether it should be rewritten.
        self.patch.setattr(whole, "SHORT", 1 << 15)
        self.patch.setattr(whole, "WRITES", least)
        self.now = datetime(2024, 3, 1, tzinfo=UTC)
        self.patch.setattr(time, "time_ns", lambda: instant(self.now) * 1000)
        self.folder = Path(tempfile.mkdtemp())
        self.path = ":memory:" if memory else str(self.folder / "model.vecstore")
        self.db = vecstore.open(self.path, durable=False)
        self.open_views: list[vecstore.View] = []
        self.models: dict[str, Model] = {}
        for name in KINDS:
            self.make(name)
        self.db.collection("texts", encoder=ENCODER)
        self.models["texts"] = Model(DIM, "cosine", embed, cut=cut)

    def make(self, name: str) -> None:
        collection = self.db.collection(name, dim=DIM, **KINDS[name])
        spec = collection.spec
        self.models[name] = Model(DIM, spec.metric, precision=spec.precision)

    def pick(self, name: str) -> tuple[vecstore.Collection, Model]:
        return self.db.collection(name), self.models[name]

    # Writing

    def write(self, name: str, batch: list[tuple], method: str) -> None:
        """Carry out an add or upsert in both worlds."""
        collection, model = self.pick(name)
        keys, given, words, metadata, ends = (list(part) for part in zip(*batch, strict=True))
        ends = [None if end is None else self.now + timedelta(seconds=end) for end in ends]
        embedded = name == "texts"
        if embedded:
            words = [text or "a train" for text in words]
        taken = [key for key in keys if key in model.rows]
        arguments: dict[str, Any] = {"ids": keys, "metadata": metadata, "texts": words}
        if any(ends):
            arguments["expires_at"] = ends
        if not embedded:
            given = [model.own(vector) for vector in given]
            arguments["vectors"] = np.array(given)
        if method == "add" and taken:
            with pytest.raises(AlreadyExistsError, match=re.escape(repr(taken[0]))):
                collection.add(**arguments)
            return
        assert getattr(collection, method)(**arguments) == keys
        for key, vector, text, value, end in zip(keys, given, words, metadata, ends, strict=True):
            model.put(key, None if embedded else vector, text, value, expires_at=end)
        model.expire(self.now)

    @rule(name=names, batch=batches, method=st.sampled_from(["add", "upsert"]))
    def store(self, name: str, batch: list[tuple], method: str) -> None:
        self.write(name, batch, method)

    @rule(
        batch=st.dictionaries(ids, st.tuples(stories, values), min_size=1, max_size=40),
        method=st.sampled_from(["add", "upsert"]),
    )
    def store_chunked(self, batch: dict[Any, tuple], method: str) -> None:
        collection, model = self.pick("texts")
        known = [key for key in batch if key in model.rows]
        if method == "add":
            batch = {key: batch[key] for key in batch if key not in known}
        if not batch:
            return
        words, metadata = (list(part) for part in zip(*batch.values(), strict=True))
        stored = getattr(collection, method)(
            words, ids=list(batch), metadata=metadata, chunk=CHUNKING
        )
        assert stored == list(batch)
        for key, (text, value) in batch.items():
            model.put(key, None, text, value, chunk=True)

    @rule(batch=st.dictionaries(ids, stories, min_size=1, max_size=10))
    def update_stories(self, batch: dict[Any, str]) -> None:
        """What was cut is cut again, and nothing else."""
        collection, model = self.pick("texts")
        known = {key: text for key, text in batch.items() if key in model.rows}
        if known:
            collection.update(list(known), text=list(known.values()))
        for key, text in known.items():
            model.change(key, None, text)

    @rule(name=st.sampled_from([*KINDS]), bulk=bulks)
    def store_many(self, name: str, bulk: tuple[int, int]) -> None:
        first, count = bulk
        picked = [POOL[(first + number) % len(POOL)] for number in range(count)]
        keys = range(1000 + first, 1000 + first + count)
        self.write(
            name,
            [
                (key, v, None, {"a": key}, 5 if first % 5 == 0 else None)
                for key, v in zip(keys, picked, strict=True)
            ],
            "upsert",
        )

    @rule(name=names, batch=batches, changes=st.sets(st.sampled_from(PARTS), min_size=1))
    def update(self, name: str, batch: list[tuple], changes: set[str]) -> None:
        collection, model = self.pick(name)
        known = [item for item in batch if item[0] in model.rows]
        if len(known) < len(batch):
            with pytest.raises(NotFoundError):
                collection.update([item[0] for item in batch], metadata=[{}] * len(batch))
            with pytest.raises(NotFoundError):
                collection.update([item[0] for item in batch], expires_at=None)
        if not known:
            return
        if name != "texts" and "text" in changes:
            changes = {*changes, "vector"}
        keys, given, words, metadata, ends = (list(part) for part in zip(*known, strict=True))
        ends = [... if end == 1 else end and self.now + timedelta(seconds=end) for end in ends]
        given = [model.own(vector) for vector in given]
        collection.update(
            keys,
            vector=np.array(given) if "vector" in changes else None,
            text=words if "text" in changes else None,
            metadata=metadata if "metadata" in changes else None,
            expires_at=ends if "end" in changes else ...,
        )
        for key, vector, text, value, end in zip(keys, given, words, metadata, ends, strict=True):
            model.change(
                key,
                vector if "vector" in changes else None,
                text if "text" in changes else None,
                value if "metadata" in changes else None,
                end if "end" in changes else ...,
            )
        model.expire(self.now)

    @rule(seconds=st.sampled_from([1, 4, 30, 90]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        for model in self.models.values():
            model.expire(self.now)

    @rule(name=names, keys=st.lists(ids, max_size=30))
    def delete_ids(self, name: str, keys: list[Any]) -> None:
        collection, model = self.pick(name)
        assert collection.delete(keys) == model.delete(keys)

    @rule(name=names, where=own.wheres | st.just({"a": {"$gte": 1030}}))
    def delete_where(self, name: str, where: dict[str, Any]) -> None:
        collection, model = self.pick(name)
        assert collection.delete(where=where) == model.delete(model.matching(where))

    @rule(name=names, keys=st.lists(ids, max_size=30), where=own.wheres)
    def delete_those_that_match(self, name: str, keys: list[Any], where: dict[str, Any]) -> None:
        collection, model = self.pick(name)
        doomed = set(keys) & set(model.matching(where))
        assert collection.delete(keys, where=where) == model.delete(doomed)

    @rule(name=names, share=st.integers(2, 5))
    def thin_out(self, name: str, share: int) -> None:
        """Leave blocks sparse, so that they are repacked."""
        collection, model = self.pick(name)
        doomed = [key for number, key in enumerate(model.rows) if number % share]
        assert collection.delete(doomed) == model.delete(doomed)

    # Transactions

    @rule(
        steps=st.lists(st.tuples(names, batches), min_size=1, max_size=3),
        doomed=st.lists(ids, max_size=5),
        fails=st.booleans(),
        nested=st.booleans(),
    )
    def transaction(self, steps: list[tuple], doomed: list[Any], fails: bool, nested: bool) -> None:
        before = {name: model.copy() for name, model in self.models.items()}
        try:
            with self.db.transaction():
                for name, batch in steps:
                    self.write(name, batch, "upsert")
                    collection, model = self.pick(name)
                    with pytest.raises(UsageError, match="record 1"):
                        collection.upsert(
                            texts=["a train", "late"],
                            vectors=model.own(POOL[:2]),
                            ids=["new", "other"],
                            metadata=[{}, {"x": {1}}],
                        )
                    assert collection.delete(doomed) == model.delete(doomed)
                    self.compare(collection, model)
                if nested:
                    self.nested(steps[0])
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            self.models = before

    def nested(self, step: tuple) -> None:
        name, batch = step
        before = self.models[name].copy()
        try:
            with self.db.transaction():
                self.write(name, batch, "upsert")
                self.db.collection(name).delete(where={})
                assert self.db.collection(name).count() == 0
                raise KeyError
        except KeyError:
            self.models[name] = before

    # Snapshots

    @precondition(lambda self: len(self.open_views) < 3)
    @rule(target=snapshots)
    def open_snapshot(self) -> Any:
        view = self.db.snapshot()
        self.open_views.append(view)
        return view, {name: model.copy() for name, model in self.models.items()}

    @rule(pair=snapshots, name=names, query=vectors)
    def read_snapshot(self, pair: Any, name: str, query: np.ndarray) -> None:
        view, models = pair
        if view in self.open_views and name in models:
            collection = view.collection(name)
            self.compare(collection, models[name])
            query = models[name].own(query)
            models[name].check(collection.search(query, 20), query, 20)

    @rule(pair=consumes(snapshots))
    def close_snapshot(self, pair: Any) -> None:
        pair[0].close()
        if pair[0] in self.open_views:
            self.open_views.remove(pair[0])

    # The file

    def close_views(self) -> None:
        for view in self.open_views:
            view.close()
        self.open_views.clear()

    @precondition(lambda self: self.path != ":memory:")
    @rule()
    def reopen(self) -> None:
        self.close_views()
        self.db.close()
        self.db = vecstore.open(self.path, durable=False)
        self.db.collection("texts", encoder=ENCODER)

    @rule(secure=st.booleans())
    def compact(self, secure: bool) -> None:
        self.close_views()
        self.db.compact(secure=secure)

    @rule(name=names)
    def optimize(self, name: str) -> None:
        self.db.collection(name).optimize(progress=False)

    @rule(name=names)
    def drop_and_make_again(self, name: str) -> None:
        old, model = self.pick(name)
        self.db.drop(name)
        with pytest.raises(NotFoundError):
            old.count()
        if model.embed is None:
            self.make(name)
        else:
            self.db.collection(name, encoder=ENCODER)
            model.rows.clear()

    @rule(name=names, query=vectors)
    def rename_and_back(self, name: str, query: np.ndarray) -> None:
        collection, model = self.pick(name)
        query = model.own(query)
        self.db.rename(name, "elsewhere")
        assert collection.name == "elsewhere"
        assert name not in self.db
        model.check(self.db.collection("elsewhere").search(query, 5), query, 5)
        self.db.rename("elsewhere", name)

    # Reading

    @rule(
        name=names,
        query=vectors,
        k=st.integers(1, 40),
        offset=st.integers(0, 20),
        where=st.none() | own.wheres | st.just({"a": {"$lt": 1050}}),
        least=st.none() | st.floats(-3, 1),
        dims=st.none() | st.integers(1, DIM),
    )
    def search(
        self,
        name: str,
        query: np.ndarray,
        k: int,
        offset: int,
        where: Any,
        least: float | None,
        dims: int | None,
    ) -> None:
        collection, model = self.pick(name)
        query = model.own(query)
        if name == "bits":
            dims = dims and DIM
        hits = collection.search(query, k, offset=offset, where=where, min_score=least, dims=dims)
        model.check(hits, query, k, offset=offset, where=where, min_score=least, dims=dims)
        for hit in hits:
            found = Record(
                id=hit.id, text=hit.text, metadata=hit.metadata, expires_at=hit.expires_at
            )
            assert same_record(found, model.record(hit.id))

    @rule(name=names, where=st.none() | own.wheres, cut=st.integers(0, 40))
    def scan_and_resume(self, name: str, where: Any, cut: int) -> None:
        collection, model = self.pick(name)
        first = list(collection.scan(where, limit=cut))
        after = first[-1] if first else None
        rest = list(collection.scan(where, after=after))
        if after is not None:
            assert list(collection.scan(where, after=after.id)) == rest
        assert [record.id for record in first + rest] == model.matching(where)

    @rule(name=names, where=own.wheres, keys=st.lists(ids, max_size=5))
    def count_and_get(self, name: str, where: dict[str, Any], keys: list[Any]) -> None:
        collection, model = self.pick(name)
        assert collection.count(where) == len(model.matching(where))
        for key, found in zip(keys, collection.get(keys, include=EVERYTHING), strict=True):
            expected = model.record(key) if key in model.rows else None
            assert same_record(found, expected, model.metric)
            assert (key in collection) == (expected is not None)

    @rule(name=names, where=st.none() | own.wheres, path=own.paths, descending=st.booleans())
    def values_of_fields(self, name: str, where: Any, path: str, descending: bool) -> None:
        collection, model = self.pick(name)
        records = [model.record(key) for key in model.matching(where)]
        wanted = values_in_order(records, path)
        found = collection.distinct(path, where)
        assert len(found) == len(wanted)
        for value, (pair, _) in zip(found, wanted, strict=True):
            assert same_value(value, pair)
        counts = [facet.records for facet in collection.facets(path, where)]
        assert counts == sorted((count for _, count in wanted), reverse=True)
        rows = collection.scan(where, order_by=path, descending=descending)
        assert [row.id for row in rows] == ids_in_order(records, path, descending)

    @rule(name=names, query=vectors, path=own.paths, k=st.integers(1, 6), size=st.integers(1, 3))
    def groups_of_hits(self, name: str, query: np.ndarray, path: str, k: int, size: int) -> None:
        collection, model = self.pick(name)
        query = model.own(query)
        everything = collection.search(query, len(model.rows) + 1)
        found = collection.search(query, k, group_by=path, group_size=size, include=())
        groups: dict[Any, list[Any]] = {}
        for hit in everything:
            key = frozenset(pairs_of(hit, path)) or ("alone", hit.id)
            own_ids = groups.setdefault(key, [])
            if len(own_ids) < size:
                own_ids.append(hit.id)
        assert found.ids == [key for ids in list(groups.values())[:k] for key in ids]

    def compare(self, collection: vecstore.Collection, model: Model) -> None:
        """Every record is there, in order, and no other."""
        found = list(collection.scan(include=EVERYTHING))
        assert [record.id for record in found] == list(model.rows)
        for record in found:
            assert same_record(record, model.record(record.id), model.metric)
        assert collection.count() == len(collection) == len(model.rows)

    @invariant()
    def everything_is_as_the_models_say(self) -> None:
        if not hasattr(self, "db"):
            return
        problems = self.db.check()
        assert not problems, "; ".join(map(str, problems))
        assert self.db.collections() == sorted(self.models)
        for name, model in self.models.items():
            self.compare(self.db.collection(name), model)

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.patch.undo()
            self.close_views()
            self.db.close()
            shutil.rmtree(self.folder)


Machine.TestCase.settings = settings(stateful_step_count=30)
TestMachine = Machine.TestCase
