"""How is each rival used as a store of records? One adapter per database, and numpy as a bound.

Every store gets the same arrays and dicts and is used as its documentation says.
"""

# ruff: noqa: D102 - what a method does is said once, in Store.

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from data import DIM, Data, Vectors

NAME = "docs"


class Store(ABC):
    """One database with one collection of vectors and metadata under the cosine."""

    name: str
    package: str
    # What a power cut can take from a batch that was acknowledged.
    durability: str

    @abstractmethod
    def open(self, path: Path) -> None:
        """Open the database at a path, made if it is not there."""

    @abstractmethod
    def add(self, ids: list[str], vectors: Vectors, metadata: list[dict[str, Any]]) -> None:
        """Store new records in one transaction, or what comes nearest to one."""

    @abstractmethod
    def search(self, query: Vectors, k: int) -> list[str]:
        """The ids of the nearest records, read with their metadata, best first."""

    @abstractmethod
    def close(self) -> None:
        """Close the database."""

    def fill(self, data: Data, batch: int) -> list[float]:
        """Add all of the data and return the seconds of each batch."""
        taken = []
        for at in range(0, len(data.ids), batch):
            part = slice(at, at + batch)
            start = time.perf_counter()
            self.add(data.ids[part], data.vectors[part], data.metadata[part])
            taken.append(time.perf_counter() - start)
        return taken


class Vecstore(Store):
    """vecstore as it comes."""

    name, package = "vecstore", "vecstore"
    durability = "nothing: every batch is synced"
    durable = True
    index, recall = "auto", "exact"

    def open(self, path: Path) -> None:
        import vecstore

        self.db = vecstore.open(path, durable=self.durable)
        self.collection = self.db.collection(NAME, dim=DIM, index=self.index)

    def add(self, ids: list[str], vectors: Vectors, metadata: list[dict[str, Any]]) -> None:
        self.collection.add(vectors=vectors, ids=ids, metadata=metadata)

    def search(self, query: Vectors, k: int) -> list[str]:
        return [str(hit.id) for hit in self.collection.search(query, k, recall=self.recall)]

    def close(self) -> None:
        self.db.close()


class VecstoreUnsynced(Vecstore):
    """vecstore without a sync per commit."""

    name = "vecstore durable=False"
    durability = "what was written since the last sync"
    durable = False


class VecstoreFlat(Vecstore):
    """vecstore that keeps the vectors as bytes too, for exact search."""

    name = "vecstore flat"
    # Whatever recall is asked for, bytes give all; "exact" would pass them over.
    index, recall = "flat", 0.95


class Lance(Store):
    """LanceDB without an index, fed with Arrow tables."""

    name, package = "LanceDB", "lancedb"
    durability = "what the system has not written back yet: it asks for no sync"

    def open(self, path: Path) -> None:
        import lancedb
        import pyarrow as pa

        self.db = lancedb.connect(str(path))
        self.schema = pa.schema(
            [
                pa.field("id", pa.string()),
                pa.field("vector", pa.list_(pa.float32(), DIM)),
                pa.field("section", pa.string()),
                pa.field("year", pa.int64()),
                pa.field("price", pa.float64()),
                pa.field("free", pa.bool_()),
            ]
        )
        if path.exists() and any(path.iterdir()):
            self.table = self.db.open_table(NAME)
        else:
            self.table = self.db.create_table(NAME, schema=self.schema)

    def add(self, ids: list[str], vectors: Vectors, metadata: list[dict[str, Any]]) -> None:
        import pyarrow as pa

        flat = pa.array(vectors.reshape(-1))
        columns = [pa.array(ids), pa.FixedSizeListArray.from_arrays(flat, DIM)]
        columns += [pa.array([row[name] for row in metadata]) for name in self.schema.names[2:]]
        self.table.add(pa.Table.from_arrays(columns, schema=self.schema))

    def search(self, query: Vectors, k: int) -> list[str]:
        wanted = ["id", "section", "year", "price", "free", "_distance"]
        asked = self.table.search(query).distance_type("cosine").select(wanted).limit(k)
        return [row["id"] for row in asked.to_list()]

    def close(self) -> None:
        del self.table, self.db


class LanceSynced(Lance):
    """LanceDB whose new files are synced after each batch, which makes a batch as safe."""

    name = "LanceDB, then synced"
    durability = "nothing: the caller syncs every new file and folder"

    def open(self, path: Path) -> None:
        super().open(path)
        self.path = path
        self.known: set[Path] = set()

    def add(self, ids: list[str], vectors: Vectors, metadata: list[dict[str, Any]]) -> None:
        super().add(ids, vectors, metadata)
        found = {*self.path.rglob("*")}
        new = found - self.known
        for path in new | {path.parent for path in new}:
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        self.known = found


class Chroma(Store):
    """Chroma in this process; its index, HNSW, is built while records are added."""

    name, package = "Chroma", "chromadb"
    durability = "the last commits of SQLite, and vectors not yet in its index files"

    def open(self, path: Path) -> None:
        import chromadb

        settings = chromadb.Settings(anonymized_telemetry=False)
        self.client = chromadb.PersistentClient(str(path), settings)
        self.collection = self.client.get_or_create_collection(
            NAME, configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )

    def add(self, ids: list[str], vectors: Vectors, metadata: list[dict[str, Any]]) -> None:
        self.collection.add(ids=ids, embeddings=vectors, metadatas=metadata)

    def search(self, query: Vectors, k: int) -> list[str]:
        found = self.collection.query(
            query_embeddings=query[None, :], n_results=k, include=["metadatas", "distances"]
        )
        return list(found["ids"][0])

    def close(self) -> None:
        self.client.close()


def sqlite() -> Any:
    """A module of SQLite that can load extensions."""
    import sqlite3

    if hasattr(sqlite3.Connection, "enable_load_extension"):
        return sqlite3
    import pysqlite3

    return pysqlite3


class SqliteVec(Store):
    """sqlite-vec, which scans; metadata in auxiliary columns."""

    name, package = "sqlite-vec", "sqlite_vec"
    durability = "nothing: WAL with synchronous=FULL, every batch is synced"

    def open(self, path: Path) -> None:
        import sqlite_vec

        self.db = sqlite().connect(str(path))
        self.db.enable_load_extension(True)
        sqlite_vec.load(self.db)
        self.db.execute("pragma journal_mode=wal")
        self.db.execute("pragma synchronous=full")
        self.db.execute(
            f"create virtual table if not exists {NAME} using vec0(id text primary key,"
            f" vector float[{DIM}] distance_metric=cosine,"
            " +section text, +year integer, +price float, +free integer)"
        )

    def add(self, ids: list[str], vectors: Vectors, metadata: list[dict[str, Any]]) -> None:
        rows = [
            (value, vector.tobytes(), row["section"], row["year"], row["price"], row["free"])
            for value, vector, row in zip(ids, vectors, metadata, strict=True)
        ]
        with self.db:
            self.db.executemany(f"insert into {NAME} values (?, ?, ?, ?, ?, ?)", rows)

    def search(self, query: Vectors, k: int) -> list[str]:
        found = self.db.execute(
            f"select id, distance, section, year, price, free from {NAME}"
            " where vector match ? and k = ?",
            (query.tobytes(), k),
        )
        return [row[0] for row in found]

    def close(self) -> None:
        self.db.close()


class Numpy(Store):
    """No database: one product with a matrix in memory, the bound of exact search."""

    name, package = "numpy (no store)", "numpy"
    durability = "everything"

    def open(self, path: Path) -> None:
        self.matrix = np.empty((0, DIM), np.float32)
        self.ids: list[str] = []

    def add(self, ids: list[str], vectors: Vectors, metadata: list[dict[str, Any]]) -> None:
        self.matrix, self.ids = np.concatenate([self.matrix, vectors]), self.ids + ids

    def search(self, query: Vectors, k: int) -> list[str]:
        scores = self.matrix @ query
        best = np.argpartition(-scores, k)[:k]
        return [self.ids[i] for i in best[np.argsort(-scores[best])]]

    def close(self) -> None:
        del self.matrix, self.ids


RIVALS: list[type[Store]] = [Lance, Chroma, SqliteVec]
STORES = {kind.name: kind for kind in (Vecstore, VecstoreUnsynced, LanceSynced, Numpy, *RIVALS)}
