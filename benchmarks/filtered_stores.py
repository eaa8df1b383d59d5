"""How is each database asked under a filter? Stores of vectors with numbers, one process each.

They are built and searched as `databases.py` does it, with an index of every number where the
database has such indexes. One JSON object a line is an order, and one a line answers it.
"""

# ruff: noqa: D102 - what a method does is said once, in Filtered and in Engine.

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

# Not `datasets`: once a module of that name is there, LanceDB takes it for another's.
from data import Vectors
from databases import BATCH, NAME, Chroma, LanceRq, Qdrant, SqliteVec, Vecstore, Zvec
from engine import Engine, Setting, grid
from numpy.typing import NDArray
from worker import SINGLE, answer, quiet, version

# How many hits are asked for.
K = 10


@dataclass(frozen=True, slots=True)
class Range:
    """A filter: a field is below a number, or at least as large."""

    name: str
    value: float
    below: bool

    def matching(self, fields: dict[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
        """Which rows qualify."""
        values = fields[self.name]
        return values < self.value if self.below else values >= self.value

    def unseen(self, number: int) -> Range:
        """A filter of another value, which lets through very nearly the same rows."""
        share = self.value if self.below else 1 - self.value
        share *= 1 + 1e-7 * (number + 1)
        return Range(self.name, share if self.below else 1 - share, self.below)


class Filtered(Engine):
    """A database whose records have numbers that searches are filtered by.

    Attributes:
        fields: The numbers, to be set before a build.
    """

    fields: dict[str, NDArray[np.float64]]
    where: Any = None

    @abstractmethod
    def restrict(self, asked: Range | None) -> None:
        """Search under this filter from now on; None for no filter."""

    def method(self, found: Any) -> str:
        """How the store says that it searched, if it does."""
        return ""

    def records(self, at: int, size: int) -> list[dict[str, float]]:
        """The fields of some rows as dicts."""
        columns = {name: values[at : at + size].tolist() for name, values in self.fields.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class FilteredVecstore(Filtered, Vecstore):
    """vecstore with its index, asked for ids and scores."""

    def build(self, vectors: Vectors, folder: Path) -> None:
        import vecstore

        with vecstore.open(folder / "file") as db:
            collection = db.collection(NAME, dim=vectors.shape[1])
            for at in range(0, len(vectors), 10_000):
                part = vectors[at : at + 10_000]
                ids = range(at, at + len(part))
                collection.add(vectors=part, ids=ids, metadata=self.records(at, 10_000))
            collection.optimize(progress=False)

    def settings(self) -> list[Setting]:
        return [{"recall": 0.95}]

    def restrict(self, asked: Range | None) -> None:
        from vecstore import F

        self.where = None
        if asked is not None:
            name = F(asked.name)
            self.where = name < asked.value if asked.below else name >= asked.value

    def search(self, query: Vectors, k: int) -> Any:
        return self.collection.search(query, k, where=self.where, recall=self.recall, include=())

    def rows(self, found: Any) -> list[int]:
        return list(found.ids)

    def method(self, found: Any) -> str:
        return str(found.plan.method)


class FilteredLance(Filtered, LanceRq):
    """LanceDB with IVF-RaBitQ, refined, and B-trees of the fields."""

    def build(self, vectors: Vectors, folder: Path) -> None:
        import lancedb
        import pyarrow as pa
        from lancedb.index import BTree

        count, dim = vectors.shape
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
        rows = pa.table({"id": pa.array(range(count), pa.int64()), "vector": flat, **self.fields})
        table = lancedb.connect(str(folder)).create_table(NAME, rows)
        table.create_index("vector", config=self.index(dim, count))
        for name in self.fields:
            table.create_index(name, config=BTree())

    def settings(self) -> list[Setting]:
        return grid(nprobes=(8, 16, 32, 64), refine=(10,))

    def restrict(self, asked: Range | None) -> None:
        self.where = None if asked is None else _expression(asked)

    def search(self, query: Vectors, k: int) -> Any:
        asked = self.table.search(query).distance_type("cosine").select(["id", "_distance"])
        probes, refine = self.setting["nprobes"], self.setting["refine"]
        asked = asked.limit(k).nprobes(probes).refine_factor(refine)
        if self.where is not None:
            # More lists where these hold too few rows that qualify, as is advised under filters.
            asked = asked.where(self.where, prefilter=True).maximum_nprobes(0)
        return asked.to_arrow()


class FilteredChroma(Filtered, Chroma):
    """Chroma with its HNSW."""

    def build(self, vectors: Vectors, folder: Path) -> None:
        client = self._client(folder)
        hnsw = {"space": "cosine", "ef_construction": 200, "max_neighbors": 16, "num_threads": 1}
        collection = client.create_collection(
            NAME, configuration={"hnsw": hnsw}, embedding_function=None
        )
        for at in range(0, len(vectors), BATCH):
            part = vectors[at : at + BATCH]
            ids = [str(at + i) for i in range(len(part))]
            collection.add(ids=ids, embeddings=part, metadatas=self.records(at, BATCH))
        client.close()

    def settings(self) -> list[Setting]:
        return grid(ef=(100, 200, 400))

    def restrict(self, asked: Range | None) -> None:
        self.where = None
        if asked is not None:
            self.where = {asked.name: {"$lt" if asked.below else "$gte": asked.value}}

    def search(self, query: Vectors, k: int) -> Any:
        return self.collection.query(
            query_embeddings=query[None], n_results=k, where=self.where, include=["distances"]
        )


class FilteredSqliteVec(Filtered, SqliteVec):
    """sqlite-vec, which scans, with the fields in metadata columns."""

    def build(self, vectors: Vectors, folder: Path) -> None:
        db = self._connect(folder)
        columns = [f"vector float[{vectors.shape[1]}] distance_metric=cosine"]
        columns += [f"{name} float" for name in self.fields]
        db.execute(f"create virtual table {NAME} using vec0({', '.join(columns)})")
        numbers = zip(*(values.tolist() for values in self.fields.values()), strict=True)
        marks = ", ".join("?" * (2 + len(self.fields)))
        with db:
            rows = (
                (i, vector.tobytes(), *row)
                for i, (vector, row) in enumerate(zip(vectors, numbers, strict=True))
            )
            names = ", ".join(["rowid", "vector", *self.fields])
            db.executemany(f"insert into {NAME}({names}) values ({marks})", rows)
        db.close()

    def restrict(self, asked: Range | None) -> None:
        self.where = asked

    def search(self, query: Vectors, k: int) -> Any:
        asked = f"select rowid, distance from {NAME} where vector match ? and k = ?"
        values = [query.tobytes(), k]
        if self.where is not None:
            asked += f" and {self.where.name} {'<' if self.where.below else '>='} ?"
            values.append(self.where.value)
        return self.db.execute(asked, values).fetchall()


class FilteredQdrant(Filtered, Qdrant):
    """Qdrant Edge with its HNSW and indexes of the fields."""

    def prepare(self, shard: Any) -> None:
        import qdrant_edge as qdrant

        # Before the graph is made, which then gets links within ranges of the fields too.
        for name in self.fields:
            kind = qdrant.PayloadSchemaType.Float
            shard.update(qdrant.UpdateOperation.create_field_index(name, kind))

    def points(self, part: list[list[float]], first: int) -> list[Any]:
        import qdrant_edge as qdrant

        pairs = enumerate(zip(part, self.records(first, BATCH), strict=True), first)
        return [qdrant.Point(number, *pair) for number, pair in pairs]

    def settings(self) -> list[Setting]:
        return grid(ef=(100, 200, 400))

    def restrict(self, asked: Range | None) -> None:
        import qdrant_edge as qdrant

        self.where = None
        if asked is not None:
            limits = {"lt" if asked.below else "gte": asked.value}
            condition = qdrant.FieldCondition(asked.name, range=qdrant.RangeFloat(**limits))
            self.where = qdrant.Filter(must=[condition])

    def search(self, query: Vectors, k: int) -> Any:
        nearest = self.qdrant.Query.Nearest(query.tolist())
        asked = self.qdrant.QueryRequest(
            limit=k, query=nearest, params=self.params, filter=self.where
        )
        return self.shard.query(asked)


class FilteredZvec(Filtered, Zvec):
    """Zvec with its HNSW and inverted indexes of the fields."""

    def build(self, vectors: Vectors, folder: Path) -> None:
        import zvec

        zvec.init(query_threads=1, optimize_threads=1)
        graph = zvec.HnswIndexParam(zvec.MetricType.COSINE, m=16, ef_construction=200)
        kind = zvec.DataType.VECTOR_FP32
        column = zvec.VectorSchema("vector", kind, vectors.shape[1], index_param=graph)
        ranges = zvec.InvertIndexParam(enable_range_optimization=True)
        fields = [
            zvec.FieldSchema(name, zvec.DataType.DOUBLE, index_param=ranges) for name in self.fields
        ]
        schema = zvec.CollectionSchema(name=NAME, fields=fields, vectors=column)
        collection = zvec.create_and_open(str(folder / "collection"), schema)
        for at in range(0, len(vectors), 1000):
            part, rows = vectors[at : at + 1000].tolist(), self.records(at, 1000)
            collection.insert(
                [
                    zvec.Doc(id=str(at + i), vectors={"vector": vector}, fields=row)
                    for i, (vector, row) in enumerate(zip(part, rows, strict=True))
                ]
            )
        collection.optimize(zvec.OptimizeOption(concurrency=1))
        collection.flush()

    def settings(self) -> list[Setting]:
        return grid(ef=(100, 200, 400))

    def restrict(self, asked: Range | None) -> None:
        self.where = None if asked is None else _expression(asked)

    def search(self, query: Vectors, k: int) -> Any:
        asked = self.zvec.Query(field_name="vector", vector=query, param=self.params)
        return self.collection.query(asked, topk=k, filter=self.where, output_fields=[])


def _expression(asked: Range) -> str:
    return f"{asked.name} {'<' if asked.below else '>='} {asked.value!r}"


STORES: dict[str, type[Filtered]] = {
    kind.name: kind
    for kind in (
        FilteredVecstore,
        FilteredLance,
        FilteredChroma,
        FilteredSqliteVec,
        FilteredQdrant,
        FilteredZvec,
    )
}
VECSTORE = FilteredVecstore.name


# In the process of a store


def build(name: str, source: Path, folder: Path) -> dict[str, Any]:
    """Build a store from arrays in files; importing and reading are not counted."""
    store = STORES[name]()
    vectors = np.load(source / "base.npy")
    store.fields = dict(np.load(source / "fields.npz"))
    importlib.import_module(store.package)
    start, used = time.perf_counter(), time.process_time()
    store.build(vectors, folder)
    return {
        "build_s": time.perf_counter() - start,
        "build_cpu_s": time.process_time() - used,
        "version": version(store.package),
    }


def serve(name: str, source: Path, folder: Path, answers: TextIO) -> None:
    """Open a store, then answer orders."""
    queries = np.load(source / "queries.npy")
    store = STORES[name]()
    store.open(folder)
    setting = store.settings()[0]
    store.tune(setting)
    answer(answers, {"settings": store.settings()})
    for line in sys.stdin:
        order = json.loads(line)
        if order["setting"] != setting:
            setting = order["setting"]
            store.tune(setting)
        if order["unseen"]:
            answer(answers, {"seconds": list(_unseen(store, queries, order))})
        else:
            answer(answers, _timed(store, queries, order))


def _unseen(store: Filtered, queries: Vectors, order: dict[str, Any]) -> Iterator[float]:
    """The seconds of the first query under each filter."""
    for part in order["parts"]:
        where = Range(**part["where"])
        start = time.perf_counter()
        store.restrict(where)
        store.rows(store.search(queries[part["queries"][0]], K))
        yield time.perf_counter() - start


def _timed(store: Filtered, queries: Vectors, order: dict[str, Any]) -> dict[str, Any]:
    """Time single queries under each filter in turn, after one that is not counted."""
    taken: list[float] = []
    found: list[Any] = []
    asked: list[int] = []
    for part in order["parts"]:
        store.restrict(part["where"] and Range(**part["where"]))
        store.search(queries[part["queries"][-1]], K)
        with quiet():
            end = time.perf_counter() + order["seconds"] / len(order["parts"])
            for number in part["queries"]:
                start = time.perf_counter()
                result = store.search(queries[number], K)
                now = time.perf_counter()
                taken.append(now - start)
                found.append(result)
                asked.append(number)
                if now > end:
                    break
    methods = sorted({store.method(result) for result in found} - {""})
    rows = [store.rows(result) for result in found]
    return {"seconds": taken, "queries": asked, "rows": rows, "methods": methods}


def main(what: str, name: str, *places: str) -> None:
    """Build a store, or open it and answer."""
    os.environ.update(SINGLE)
    # What libraries print must not get among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    source, folder = map(Path, places)
    if what == "build":
        answer(answers, build(name, source, folder))
    else:
        with contextlib.suppress(BrokenPipeError):
            serve(name, source, folder, answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
