"""Does any sequence of calls leave an index that answers honestly? A state machine decides.

What `test_model.py` proves of records is not proved again: here collections are large enough for an
index, and everything that makes, changes or drops one is called.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from reference import Model, same_record

import vecstore
from vecstore import maintenance, planner
from vecstore.ann import bits, buckets, compiled, flat, lookup
from vecstore.store import whole

DIM = 8
CENTRES = np.random.default_rng(5).normal(size=(12, DIM))
# A quarter more than lists are trained on.
START = 320
IDS = 700

names = st.sampled_from(["one", "other"])
kinds = st.sampled_from(["auto", "flat", "hash", "ivf"])
declared = st.fixed_dictionaries(
    {
        "index": kinds,
        "metric": st.sampled_from(["cosine", "dot", "l2"]),
        "precision": st.sampled_from(["float32", "float16", "int8"]),
        "tiers": st.sampled_from([(), ((DIM, 4),), ((4, 2),), ((1, 1),)]),
        "mrl": st.sampled_from([(), (4, DIM)]),
    }
)
# Binary vectors: on which sides of so many planes the others lie.
PLANES = np.random.default_rng(6).normal(size=(DIM, 40))
binary = st.fixed_dictionaries(
    {"index": st.sampled_from(["auto", "flat", "hash"]), "metric": st.just("hamming")}
)
seeds = st.integers(0, 999)
# First id and how many.
spans = st.tuples(st.integers(0, IDS - 1), st.integers(1, 250))
wheres = st.none() | st.sampled_from(
    [{"n": {"$lt": 200}}, {"n": {"$gte": 300}}, {"third": 1}, {"third": {"$ne": 0}}, {"n": -1}]
)
changes = st.sampled_from(["metadata", "vector"])


def cloud(seed: int, count: int) -> np.ndarray:
    """Vectors in clusters; of some seeds many are equal."""
    rng = np.random.default_rng(seed)
    near = CENTRES[rng.integers(0, len(CENTRES), count)]
    return (near + (0.3 if seed % 5 else 0.0) * rng.normal(size=near.shape)).astype(np.float32)


def vectors_of(model: Model, seed: int, count: int) -> np.ndarray:
    """Vectors as a collection takes them."""
    found = cloud(seed, count)
    return np.packbits(found @ PLANES > 0, axis=1) if model.metric == "hamming" else found


class IndexMachine(RuleBasedStateMachine):
    """One file with two collections; models hold the truth."""

    snapshots: Bundle[Any] = Bundle("snapshots")
    # To check a file costs more than most steps: not again where the last one changed nothing.
    only_read = False

    @initialize(
        memory=st.booleans(),
        numpy=st.booleans(),
        first=declared,
        second=declared | binary,
    )
    def begin(self, memory: bool, numpy: bool, first: Any, second: Any) -> None:
        self.patch = pytest.MonkeyPatch()
        # So that lists come, grow and are trained anew among hundreds of records.
        self.patch.setattr(maintenance, "AUTO_ROWS", 300)
        self.patch.setattr(maintenance, "AUTO_BYTES", 1)
        self.patch.setattr(maintenance, "BACKLOG", 60)
        self.patch.setattr(maintenance, "BACKLOG_EACH", 1)
        self.patch.setattr(planner, "FEW", 20)
        self.patch.setattr(buckets, "LEAST_ROWS", 64)
        # Of so few rows all would be compared, and by numpy.
        self.patch.setattr(bits, "LEAST_ROWS", 200)
        self.patch.setattr(flat, "LEAST_BYTES", 0)
        self.patch.setattr(flat, "LEAST_A_BLOCK", 1)
        self.patch.setattr(lookup, "COMPILED_COSTS", (10_000.0, 0.0))
        self.patch.setattr(lookup, "START_COST", 0.0)
        self.patch.setattr(lookup, "NUMPY_COSTS", (10_000.0, 0.0))
        self.patch.setattr(whole, "SHORT", 1 << 15)
        self.patch.setattr(whole, "WRITES", 5)
        if numpy:
            self.patch.setattr(compiled, "ready", lambda name: None)
        else:
            compiled.compile_now()
        self.folder = Path(tempfile.mkdtemp())
        self.path = ":memory:" if memory else str(self.folder / "model.vecstore")
        self.db = vecstore.open(self.path, durable=False)
        self.views: list[vecstore.View] = []
        self.models: dict[str, Model] = {}
        for name, spec in (("one", first), ("other", second)):
            self.make(name, spec)
            self.put(name, 0, START, 1)

    def make(self, name: str, spec: dict[str, Any]) -> None:
        dim = PLANES.shape[1] if spec["metric"] == "hamming" else DIM
        precision = self.db.collection(name, dim=dim, **spec).spec.precision
        self.models[name] = Model(dim, spec["metric"], precision=precision)

    def pick(self, name: str) -> tuple[vecstore.Collection, Model]:
        return self.db.collection(name), self.models[name]

    # Writing

    def put(self, name: str, first: int, count: int, seed: int) -> None:
        collection, model = self.pick(name)
        keys, vectors = [*range(first, first + count)], vectors_of(model, seed, count)
        metadata = [{"n": key, "third": key % 3} for key in keys]
        assert collection.upsert(vectors=vectors, ids=keys, metadata=metadata) == keys
        for key, vector, values in zip(keys, vectors, metadata, strict=True):
            model.put(key, vector, None, values)

    @rule(name=names, span=spans, seed=seeds)
    def upsert(self, name: str, span: tuple[int, int], seed: int) -> None:
        self.put(name, *span, seed)

    @rule(name=names, span=spans, seed=seeds, what=changes)
    def update(self, name: str, span: tuple[int, int], seed: int, what: str) -> None:
        collection, model = self.pick(name)
        keys = [key for key in range(span[0], sum(span)) if key in model.rows]
        if not keys:
            return
        given: dict[str, Any] = {
            "metadata": [{"third": seed % 3}] * len(keys),
            "vector": vectors_of(model, seed, len(keys)),
        }
        collection.update(keys, **{what: given[what]})
        for key, value in zip(keys, given[what], strict=True):
            model.change(key, **{what: value})

    @rule(name=names, span=spans)
    def delete(self, name: str, span: tuple[int, int]) -> None:
        collection, model = self.pick(name)
        keys = range(span[0], sum(span))
        assert collection.delete(keys) == model.delete(keys)

    @rule(name=names, share=st.integers(2, 6))
    def thin_out(self, name: str, share: int) -> None:
        """Leave blocks and lists sparse."""
        collection, model = self.pick(name)
        doomed = [key for number, key in enumerate(model.rows) if number % share == 0]
        assert collection.delete(doomed) == model.delete(doomed)

    @rule(name=names)
    def delete_everything(self, name: str) -> None:
        collection, model = self.pick(name)
        assert collection.delete(where={}) == model.delete([*model.rows])

    @rule(name=names, span=spans, seed=seeds, kind=st.none() | kinds, fails=st.booleans())
    def transaction(
        self, name: str, span: tuple[int, int], seed: int, kind: str | None, fails: bool
    ) -> None:
        before = {each: model.copy() for each, model in self.models.items()}
        query = vectors_of(self.models[name], seed, 1)[0]
        try:
            with self.db.transaction():
                self.put(name, *span, seed)
                self.delete(name, (span[0] // 2, 40))
                if kind is not None:
                    self.db.drop(name)
                    former = self.models[name]
                    spec = {"metric": former.metric, "index": kind}
                    if former.metric == "hamming":
                        spec["index"] = "hash"
                    else:
                        spec["precision"] = former.precision
                    self.make(name, spec)
                    self.put(name, 0, START, seed)
                self.check_search(*self.pick(name), query, 7)
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            self.models = before

    # The index, and the file

    @rule(name=names, kind=kinds)
    def reindex(self, name: str, kind: str) -> None:
        collection, model = self.pick(name)
        if model.metric == "hamming" and kind == "ivf":
            with pytest.raises(vecstore.SpecError, match="use 'hash'"):
                collection.reindex(kind)
            return
        report = collection.reindex(kind)
        assert collection.stats()["index"] == kind
        assert collection.stats()["lists"] == report["lists"]

    @rule(name=names)
    def optimize(self, name: str) -> None:
        self.db.collection(name).optimize()

    @rule()
    def compact(self) -> None:
        self.close_views()
        self.db.compact()

    @precondition(lambda self: self.path != ":memory:")
    @rule()
    def reopen(self) -> None:
        self.close_views()
        self.db.close()
        self.db = vecstore.open(self.path, durable=False)

    # Reading

    def check_search(
        self,
        collection: Any,
        model: Model,
        query: np.ndarray,
        k: int,
        where: Any = None,
    ) -> None:
        hits = collection.search(query, k, where=where)
        model.check_near(hits, query, k, where=where)
        exact = collection.search(query, k, where=where, recall="exact")
        model.check(exact, query, k, where=where)
        for hit in hits:
            found = vecstore.Record(id=hit.id, text=hit.text, metadata=hit.metadata)
            assert same_record(found, model.record(hit.id))

    @rule(name=names, seed=seeds, k=st.integers(1, 60), where=wheres)
    def search(self, name: str, seed: int, k: int, where: Any) -> None:
        collection, model = self.pick(name)
        query = vectors_of(model, seed, 1)[0]
        self.check_search(collection, model, query, k, where)
        if model.metric == "hamming":
            radius = seed % (model.dim + 1)
            hits = collection.search(query, k, where=where, min_score=-radius)
            model.check(hits, query, k, where=where, min_score=-radius)
        self.only_read = True

    @rule(name=names, seed=seeds, k=st.integers(1, 20), where=wheres)
    def search_many(self, name: str, seed: int, k: int, where: Any) -> None:
        collection, model = self.pick(name)
        queries = vectors_of(model, seed, 20)
        found = collection.search_many(queries, k, where=where, threads=2, recall=0.9)
        for query, hits in zip(queries, found, strict=True):
            model.check_near(hits, query, k, where=where)
        self.only_read = True

    @precondition(lambda self: len(self.views) < 2)
    @rule(target=snapshots)
    def open_snapshot(self) -> Any:
        view = self.db.snapshot()
        self.views.append(view)
        self.only_read = True
        return view, {name: model.copy() for name, model in self.models.items()}

    @rule(pair=snapshots, name=names, seed=seeds)
    def search_in_a_snapshot(self, pair: Any, name: str, seed: int) -> None:
        view, models = pair
        if view in self.views:
            query = vectors_of(models[name], seed, 1)[0]
            self.check_search(view.collection(name), models[name], query, 9)
        self.only_read = True

    @rule(pair=consumes(snapshots))
    def close_snapshot(self, pair: Any) -> None:
        pair[0].close()
        if pair[0] in self.views:
            self.views.remove(pair[0])
        self.only_read = True

    def close_views(self) -> None:
        for view in self.views:
            view.close()
        self.views.clear()

    @invariant()
    def the_file_is_sound_and_whole(self) -> None:
        if not hasattr(self, "db") or self.only_read:
            self.only_read = False
            return
        assert self.db.check() == []
        for name, model in self.models.items():
            found = self.db.collection(name).scan(include=())
            assert [record.id for record in found] == list(model.rows)

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.close_views()
            self.db.close()
            shutil.rmtree(self.folder)
        if hasattr(self, "patch"):
            self.patch.undo()


IndexMachine.TestCase.settings = settings(
    stateful_step_count=12, max_examples=1 + settings.default.max_examples // 3
)
TestIndexMachine = IndexMachine.TestCase
