"""How do databases search approximately? vecstore, LanceDB, Chroma, Qdrant Edge, sqlite-vec, Zvec.

Rivals hold ids and vectors and return ids and distances, which is the least that they can do.
"""

# ruff: noqa: D102 - what a method does is said once, in Engine.

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from data import Vectors, metadata
from engine import WIDTHS, Engine, Setting, grid, lists_for
from rivals import sqlite

NAME = "docs"
BATCH = 5000


class _Database(Engine):
    database = True


class Vecstore(_Database):
    """vecstore, asked for ids and scores."""

    name, package = "vecstore", "vecstore"
    include: ClassVar[tuple[str, ...]] = ()
    records = False

    def build(self, vectors: Vectors, folder: Path) -> None:
        import vecstore

        rows = metadata(len(vectors)) if self.records else None
        with vecstore.open(folder / "file") as db:
            collection = db.collection(NAME, dim=vectors.shape[1])
            # All at once, as the libraries get them; the index is made by this call.
            collection.add(vectors=vectors, ids=range(len(vectors)), metadata=rows)

    def open(self, folder: Path) -> None:
        import vecstore

        self.db = vecstore.open(folder / "file")
        self.collection = self.db.collection(NAME)

    def settings(self) -> list[Setting]:
        return grid(recall=(0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995))

    def tune(self, setting: Setting) -> None:
        self.recall = setting["recall"]

    def search(self, query: Vectors, k: int) -> Any:
        return self.collection.search(query, k, recall=self.recall, include=self.include)

    def search_many(self, queries: Vectors, k: int) -> Any:
        how: dict[str, Any] = {"recall": self.recall, "include": self.include}
        return self.collection.search_many(queries, k, threads=1, **how)

    def rows(self, found: Any) -> list[int]:
        return [int(hit.id) for hit in found]


class VecstoreRecords(Vecstore):
    """vecstore with everything that it holds of the hits."""

    name = "vecstore, full records"
    include = ("text", "metadata", "vector")
    records = True

    def search(self, query: Vectors, k: int) -> Any:
        found = super().search(query, k)
        return [(hit.id, hit.score, hit.metadata, hit.vector) for hit in found]

    def rows(self, found: Any) -> list[int]:
        return [int(hit[0]) for hit in found]


class _Lance(_Database):
    package = "lancedb"

    @abstractmethod
    def index(self, dim: int, count: int) -> Any:
        """The description of the index."""

    def build(self, vectors: Vectors, folder: Path) -> None:
        import lancedb
        import pyarrow as pa

        count, dim = vectors.shape
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
        rows = pa.table({"id": pa.array(range(count), pa.int64()), "vector": flat})
        table = lancedb.connect(str(folder)).create_table(NAME, rows)
        table.create_index("vector", config=self.index(dim, count))

    def open(self, folder: Path) -> None:
        import lancedb

        self.table = lancedb.connect(str(folder)).open_table(NAME)

    def settings(self) -> list[Setting]:
        return grid(nprobes=(4, 8, 16, 32, 64), refine=(1, 4, 10, 20))

    def tune(self, setting: Setting) -> None:
        self.setting = setting

    def search(self, query: Vectors, k: int) -> Any:
        asked = self.table.search(query).distance_type("cosine").select(["id", "_distance"])
        probes, refine = self.setting["nprobes"], self.setting["refine"]
        return asked.limit(k).nprobes(probes).refine_factor(refine).to_arrow()

    def rows(self, found: Any) -> list[int]:
        return list(found["id"].to_pylist())


class LanceRq(_Lance):
    """LanceDB with IVF-RaBitQ and refinement."""

    name = "LanceDB IVF_RQ"

    def index(self, dim: int, count: int) -> Any:
        from lancedb.index import IvfRq

        return IvfRq(distance_type="cosine", num_partitions=lists_for(count) // 4)


class LancePq(_Lance):
    """LanceDB with IVF-PQ and refinement."""

    name = "LanceDB IVF_PQ"

    def index(self, dim: int, count: int) -> Any:
        from lancedb.index import IvfPq

        parts = next(parts for parts in (dim // 8, dim // 5, 1) if dim % parts == 0)
        lists = lists_for(count) // 4
        return IvfPq(distance_type="cosine", num_partitions=lists, num_sub_vectors=parts)


class Chroma(_Database):
    """Chroma with its HNSW."""

    name, package = "Chroma", "chromadb"

    def _client(self, folder: Path) -> Any:
        import chromadb

        settings = chromadb.Settings(anonymized_telemetry=False)
        return chromadb.PersistentClient(str(folder), settings)

    def build(self, vectors: Vectors, folder: Path) -> None:
        client = self._client(folder)
        hnsw = {"space": "cosine", "ef_construction": 200, "max_neighbors": 16, "num_threads": 1}
        collection = client.create_collection(
            NAME, configuration={"hnsw": hnsw}, embedding_function=None
        )
        for at in range(0, len(vectors), BATCH):
            part = vectors[at : at + BATCH]
            collection.add(ids=[str(at + i) for i in range(len(part))], embeddings=part)
        client.close()

    def open(self, folder: Path) -> None:
        self.folder = folder
        self.client = self._client(folder)
        self.collection = self.client.get_collection(NAME, embedding_function=None)

    def settings(self) -> list[Setting]:
        return grid(ef=WIDTHS)

    def tune(self, setting: Setting) -> None:
        self.collection.modify(configuration={"hnsw": {"ef_search": setting["ef"]}})
        # The index in memory keeps the width with which it was loaded.
        self.client.close()
        self.open(self.folder)

    def search(self, query: Vectors, k: int) -> Any:
        return self.search_many(query[None], k)

    def search_many(self, queries: Vectors, k: int) -> Any:
        return self.collection.query(query_embeddings=queries, n_results=k, include=["distances"])

    def rows(self, found: Any) -> list[int]:
        return [int(row) for row in found["ids"][0]]


class Qdrant(_Database):
    """Qdrant Edge with its HNSW."""

    name, package = "Qdrant Edge", "qdrant_edge"

    def quantization(self) -> Any:
        """The codes that the graph is walked on, or None for the vectors themselves."""
        return None

    def build(self, vectors: Vectors, folder: Path) -> None:
        import qdrant_edge as qdrant

        place = folder / "shard"
        place.mkdir()
        hnsw = qdrant.HnswIndexConfig(
            m=16, ef_construct=200, full_scan_threshold=10_000, max_indexing_threads=1
        )
        config = qdrant.EdgeConfig(
            vectors=qdrant.EdgeVectorParams(vectors.shape[1], qdrant.Distance.Cosine),
            hnsw_config=hnsw,
            quantization_config=self.quantization(),
            optimizers=qdrant.EdgeOptimizersConfig(default_segment_number=1),
            max_search_threads=1,
        )
        shard = qdrant.EdgeShard.create(str(place), config)
        self.prepare(shard)
        for at in range(0, len(vectors), BATCH):
            points = self.points(vectors[at : at + BATCH].tolist(), at)
            shard.update(qdrant.UpdateOperation.upsert_points(points))
        while shard.optimize():
            pass
        shard.flush()
        shard.close()

    def prepare(self, shard: Any) -> None:
        """What comes before the first point."""

    def points(self, part: list[list[float]], first: int) -> list[Any]:
        """Points of some vectors, numbered from `first` on."""
        import qdrant_edge as qdrant

        return [qdrant.Point(number, vector) for number, vector in enumerate(part, first)]

    def open(self, folder: Path) -> None:
        import qdrant_edge as qdrant

        self.shard = qdrant.EdgeShard.load(str(folder / "shard"))

    def settings(self) -> list[Setting]:
        return grid(ef=WIDTHS)

    def tune(self, setting: Setting) -> None:
        import qdrant_edge as qdrant

        self.qdrant = qdrant
        self.params = qdrant.SearchParams(hnsw_ef=setting["ef"])

    def search(self, query: Vectors, k: int) -> Any:
        nearest = self.qdrant.Query.Nearest(query.tolist())
        asked = self.qdrant.QueryRequest(limit=k, query=nearest, params=self.params)
        return self.shard.query(asked)

    def rows(self, found: Any) -> list[int]:
        return [int(point.id) for point in found]


class QdrantByte(Qdrant):
    """Qdrant Edge over int8 codes, rescored."""

    name = "Qdrant Edge int8"

    def quantization(self) -> Any:
        import qdrant_edge as qdrant

        return qdrant.ScalarQuantizationConfig(qdrant.ScalarType.Int8, quantile=0.99)


class SqliteVec(_Database):
    """sqlite-vec, which scans."""

    name, package = "sqlite-vec", "sqlite_vec"

    def _connect(self, folder: Path) -> Any:
        import sqlite_vec

        db = sqlite().connect(str(folder / "file"))
        db.enable_load_extension(True)
        sqlite_vec.load(db)
        return db

    def build(self, vectors: Vectors, folder: Path) -> None:
        db = self._connect(folder)
        column = f"vector float[{vectors.shape[1]}] distance_metric=cosine"
        db.execute(f"create virtual table {NAME} using vec0({column})")
        with db:
            rows = ((i, vector.tobytes()) for i, vector in enumerate(vectors))
            db.executemany(f"insert into {NAME}(rowid, vector) values (?, ?)", rows)
        db.close()

    def open(self, folder: Path) -> None:
        self.db = self._connect(folder)

    def settings(self) -> list[Setting]:
        return [{}]

    def tune(self, setting: Setting) -> None:
        pass

    def search(self, query: Vectors, k: int) -> Any:
        asked = f"select rowid, distance from {NAME} where vector match ? and k = ?"
        return self.db.execute(asked, (query.tobytes(), k)).fetchall()

    def rows(self, found: Any) -> list[int]:
        return [int(row[0]) for row in found]


class Zvec(_Database):
    """Zvec with its HNSW."""

    name, package = "Zvec", "zvec"

    def build(self, vectors: Vectors, folder: Path) -> None:
        import zvec

        zvec.init(query_threads=1, optimize_threads=1)
        graph = zvec.HnswIndexParam(zvec.MetricType.COSINE, m=16, ef_construction=200)
        kind = zvec.DataType.VECTOR_FP32
        column = zvec.VectorSchema("vector", kind, vectors.shape[1], index_param=graph)
        schema = zvec.CollectionSchema(name=NAME, vectors=column)
        collection = zvec.create_and_open(str(folder / "collection"), schema)
        for at in range(0, len(vectors), 1000):
            part = vectors[at : at + 1000].tolist()
            collection.insert(
                [zvec.Doc(id=str(at + i), vectors={"vector": row}) for i, row in enumerate(part)]
            )
        collection.optimize(zvec.OptimizeOption(concurrency=1))
        collection.flush()

    def open(self, folder: Path) -> None:
        import zvec

        self.zvec = zvec
        zvec.init(query_threads=1, optimize_threads=1)
        self.collection = zvec.open(str(folder / "collection"))

    def settings(self) -> list[Setting]:
        return grid(ef=WIDTHS)

    def tune(self, setting: Setting) -> None:
        self.params = self.zvec.HnswQueryParam(ef=setting["ef"])

    def search(self, query: Vectors, k: int) -> Any:
        asked = self.zvec.Query(field_name="vector", vector=query, param=self.params)
        return self.collection.query(asked, topk=k, output_fields=[])

    def rows(self, found: Any) -> list[int]:
        return [int(doc.id) for doc in found]


DATABASES: Sequence[type[Engine]] = (
    Vecstore,
    VecstoreRecords,
    LanceRq,
    LancePq,
    Chroma,
    Qdrant,
    QdrantByte,
    SqliteVec,
    Zvec,
)
