"""How does each rival search approximately? One adapter per kind of index, over unit vectors.

Every engine gets the same float32 matrix, of which a row's number is its id, builds with one
thread and answers one query at a time with one thread. Parameters of building are those that the
makers recommend for this size; those of searching are swept, so that nobody is judged by a default.
"""

# ruff: noqa: D102 - what a method does is said once, in Engine.

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from data import Vectors, metadata
from rivals import sqlite

Setting = dict[str, Any]

NAME = "docs"
BATCH = 5000
SEED = 20_240
# Candidates that a graph keeps while it is searched.
WIDTHS = (10, 14, 20, 28, 40, 56, 80, 112, 160, 240, 360)
PROBES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class Engine(ABC):
    """One index over one matrix.

    Attributes:
        name: How tables and files name it.
        package: The module that must be there.
        database: Whether it is a database rather than a library of indexes.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    database: ClassVar[bool] = False

    @abstractmethod
    def build(self, vectors: Vectors, folder: Path) -> None:
        """Index a matrix and leave everything that searching needs in an empty folder."""

    @abstractmethod
    def open(self, folder: Path) -> None:
        """Open what was built."""

    @abstractmethod
    def settings(self) -> list[Setting]:
        """The search parameters to try."""

    @abstractmethod
    def tune(self, setting: Setting) -> None:
        """Search with these parameters from now on."""

    @abstractmethod
    def search(self, query: Vectors, k: int) -> Any:
        """The nearest of one query, in whatever form the engine gives them."""

    def rows(self, found: Any) -> list[int]:
        """The row numbers in what a search returned."""
        return [int(row) for row in found]


def _lists(count: int) -> int:
    """Lists of an inverted file: about 3 sqrt(n) at 100,000, 4 sqrt(n) at a million."""
    return int(2 ** round(np.log2(max(16.0, 3.2 * np.sqrt(count)))))


def _grid(**choices: Iterable[Any]) -> list[Setting]:
    return [dict(zip(choices, chosen, strict=True)) for chosen in product(*choices.values())]


# FAISS


class _Faiss(Engine):
    package = "faiss"

    @abstractmethod
    def make(self, vectors: Vectors) -> Any:
        """A trained and filled index."""

    def build(self, vectors: Vectors, folder: Path) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        faiss.write_index(self.make(vectors), str(folder / "index"))

    def open(self, folder: Path) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self.index = faiss.read_index(str(folder / "index"))

    def search(self, query: Vectors, k: int) -> Any:
        return self.index.search(query[None], k)

    def rows(self, found: Any) -> list[int]:
        return [int(row) for row in found[1][0]]


class _FaissLists(_Faiss):
    """An inverted file of codes whose best are scored again from float32 vectors."""

    @abstractmethod
    def codes(self, dim: int, count: int) -> Any:
        """The untrained index of codes."""

    def make(self, vectors: Vectors) -> Any:
        import faiss

        count, dim = vectors.shape
        codes = self.codes(dim, count)
        lists = faiss.extract_index_ivf(codes)
        # FAISS's own default until the sample would pass 262,144 vectors.
        lists.cp.max_points_per_centroid = max(39, min(256, 262_144 // lists.nlist))
        codes.train(vectors)
        refined = faiss.IndexRefineFlat(codes)
        refined.add(vectors)
        # The wrapper does not hold its parts.
        self.parts = codes
        return refined

    def open(self, folder: Path) -> None:
        import faiss

        super().open(folder)
        self.lists = faiss.extract_index_ivf(self.index.base_index)

    def settings(self) -> list[Setting]:
        return _grid(nprobe=PROBES, refine=(2, 4, 8, 16, 32))

    def tune(self, setting: Setting) -> None:
        self.lists.nprobe = setting["nprobe"]
        self.index.k_factor = setting["refine"]


class FaissPq(_FaissLists):
    """IVF-PQ with 4-bit codes of two dimensions each, scanned in registers."""

    name = "FAISS IVF-PQ fast-scan"

    def codes(self, dim: int, count: int) -> Any:
        import faiss

        kind = faiss.METRIC_INNER_PRODUCT
        return faiss.index_factory(dim, f"IVF{_lists(count)},PQ{dim // 2}x4fs", kind)


class FaissResidualPq(_FaissLists):
    """The same with codes of what is left after the list's centre."""

    name = "FAISS IVF-PQ fast-scan, residual"

    def codes(self, dim: int, count: int) -> Any:
        import faiss

        kind = faiss.METRIC_INNER_PRODUCT
        return faiss.index_factory(dim, f"IVF{_lists(count)},PQ{dim // 2}x4fsr", kind)


class FaissRabitq(_FaissLists):
    """IVF-RaBitQ of one bit after a random rotation, scanned in registers."""

    name = "FAISS IVF-RaBitQ"
    bits = ""

    def codes(self, dim: int, count: int) -> Any:
        import faiss

        description = f"RR{dim},IVF{_lists(count)},RaBitQfs{self.bits}"
        return faiss.index_factory(dim, description, faiss.METRIC_INNER_PRODUCT)


class FaissRabitq4(FaissRabitq):
    """The same with four bits."""

    name = "FAISS IVF-RaBitQ 4 bits"
    bits = "4"


class FaissHnsw(_Faiss):
    """A graph over float32 vectors."""

    name = "FAISS HNSW"

    def make(self, vectors: Vectors) -> Any:
        import faiss

        index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 200
        index.add(vectors)
        return index

    def settings(self) -> list[Setting]:
        return _grid(ef=WIDTHS)

    def tune(self, setting: Setting) -> None:
        self.index.hnsw.efSearch = setting["ef"]


# Other libraries


class Hnswlib(Engine):
    """hnswlib with the parameters of its documentation."""

    name, package = "hnswlib", "hnswlib"

    def build(self, vectors: Vectors, folder: Path) -> None:
        import hnswlib

        index = hnswlib.Index("ip", vectors.shape[1])
        index.init_index(len(vectors), ef_construction=200, M=16, random_seed=SEED)
        index.add_items(vectors, num_threads=1)
        index.save_index(str(folder / "index"))
        (folder / "dim").write_text(str(vectors.shape[1]))

    def open(self, folder: Path) -> None:
        import hnswlib

        self.index = hnswlib.Index("ip", int((folder / "dim").read_text()))
        self.index.load_index(str(folder / "index"))
        self.index.set_num_threads(1)

    def settings(self) -> list[Setting]:
        return _grid(ef=WIDTHS)

    def tune(self, setting: Setting) -> None:
        self.index.set_ef(setting["ef"])

    def search(self, query: Vectors, k: int) -> Any:
        return self.index.knn_query(query, k, num_threads=1)

    def rows(self, found: Any) -> list[int]:
        return [int(row) for row in found[0][0]]


class Usearch(Engine):
    """USearch over float32."""

    name, package = "USearch f32", "usearch"
    stored = "f32"

    def build(self, vectors: Vectors, folder: Path) -> None:
        from usearch.index import Index

        index = Index(ndim=vectors.shape[1], metric="ip", dtype=self.stored)
        index.add(np.arange(len(vectors)), vectors, threads=1)
        index.save(str(folder / "index"))

    def open(self, folder: Path) -> None:
        from usearch.index import Index

        index = Index.restore(str(folder / "index"))
        if index is None:
            raise RuntimeError("USearch does not know its own file")
        self.index = index

    def settings(self) -> list[Setting]:
        return _grid(expansion=WIDTHS)

    def tune(self, setting: Setting) -> None:
        self.index.expansion_search = setting["expansion"]

    def search(self, query: Vectors, k: int) -> Any:
        return self.index.search(query, k, threads=1)

    def rows(self, found: Any) -> list[int]:
        return [int(row) for row in found.keys]


class UsearchHalf(Usearch):
    """USearch over float16."""

    name, stored = "USearch f16", "f16"


class UsearchBfloat(Usearch):
    """USearch over bfloat16."""

    name, stored = "USearch bf16", "bf16"


class Svs(Engine):
    """SVS Vamana over float32."""

    name, package = "SVS Vamana f32", "svs"

    def loader(self, source: Path, dim: int) -> Any:
        """The vectors of a file in the form that is searched."""
        import svs

        return svs.VectorDataLoader(str(source), svs.float32, dim)

    def saved(self, folder: Path) -> Any:
        """The vectors of a saved index."""
        import svs

        return svs.VectorDataLoader(str(folder), svs.float32)

    def build(self, vectors: Vectors, folder: Path) -> None:
        import svs

        source = folder / "vectors.fvecs"
        svs.write_vecs(vectors, str(source))
        how = svs.VamanaBuildParameters(alpha=1.2, graph_max_degree=64, window_size=128)
        data = self.loader(source, vectors.shape[1])
        index = svs.Vamana.build(how, data, svs.DistanceType.L2, num_threads=1)
        index.save(*(str(folder / part) for part in ("config", "graph", "data")))
        source.unlink()

    def open(self, folder: Path) -> None:
        import svs

        self.index = svs.Vamana(
            str(folder / "config"),
            svs.GraphLoader(str(folder / "graph")),
            self.saved(folder / "data"),
            svs.DistanceType.L2,
            num_threads=1,
        )

    def settings(self) -> list[Setting]:
        return _grid(window=WIDTHS)

    def tune(self, setting: Setting) -> None:
        self.index.search_window_size = setting["window"]

    def search(self, query: Vectors, k: int) -> Any:
        return self.index.search(query, k)

    def rows(self, found: Any) -> list[int]:
        return [int(row) for row in np.ravel(found[0])]


class SvsLvq(Svs):
    """SVS Vamana over 4-bit codes with 8-bit residuals."""

    name = "SVS Vamana LVQ4x8"

    def loader(self, source: Path, dim: int) -> Any:
        import svs

        return svs.LVQLoader(super().loader(source, dim), primary=4, residual=8)

    def saved(self, folder: Path) -> Any:
        import svs

        return svs.LVQLoader(str(folder))


class SvsLeanVec(Svs):
    """SVS Vamana over fewer dimensions in 8 bits, rescored from 8-bit codes of all of them."""

    name = "SVS Vamana LeanVec"

    def loader(self, source: Path, dim: int) -> Any:
        import svs

        kinds = svs.LeanVecKind.lvq8, svs.LeanVecKind.lvq8
        return svs.LeanVecLoader(super().loader(source, dim), max(16, dim * 5 // 12), *kinds)

    def saved(self, folder: Path) -> Any:
        import svs

        return svs.LeanVecLoader(str(folder))


# Databases


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
            for at in range(0, len(vectors), BATCH):
                part = vectors[at : at + BATCH]
                collection.add(
                    vectors=part,
                    ids=list(range(at, at + len(part))),
                    metadata=rows[at : at + BATCH] if rows else None,
                )
            if hasattr(collection, "optimize"):
                collection.optimize()

    def open(self, folder: Path) -> None:
        import vecstore

        self.db = vecstore.open(folder / "file")
        self.collection = self.db.collection(NAME)

    def settings(self) -> list[Setting]:
        return _grid(recall=(0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995))

    def tune(self, setting: Setting) -> None:
        self.recall = setting["recall"]

    def search(self, query: Vectors, k: int) -> Any:
        return self.collection.search(query, k, recall=self.recall, include=self.include)

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
        return _grid(nprobes=(4, 8, 16, 32, 64), refine=(1, 4, 10, 20))

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

        return IvfRq(distance_type="cosine", num_partitions=_lists(count) // 4)


class LancePq(_Lance):
    """LanceDB with IVF-PQ and refinement."""

    name = "LanceDB IVF_PQ"

    def index(self, dim: int, count: int) -> Any:
        from lancedb.index import IvfPq

        parts = next(parts for parts in (dim // 8, dim // 5, 1) if dim % parts == 0)
        lists = _lists(count) // 4
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
        return _grid(ef=WIDTHS)

    def tune(self, setting: Setting) -> None:
        self.collection.modify(configuration={"hnsw": {"ef_search": setting["ef"]}})
        # The index in memory keeps the width with which it was loaded.
        self.client.close()
        self.open(self.folder)

    def search(self, query: Vectors, k: int) -> Any:
        return self.collection.query(
            query_embeddings=query[None], n_results=k, include=["distances"]
        )

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
        for at in range(0, len(vectors), BATCH):
            part = vectors[at : at + BATCH].tolist()
            points = [qdrant.Point(at + i, vector) for i, vector in enumerate(part)]
            shard.update(qdrant.UpdateOperation.upsert_points(points))
        while shard.optimize():
            pass
        shard.flush()
        shard.close()

    def open(self, folder: Path) -> None:
        import qdrant_edge as qdrant

        self.shard = qdrant.EdgeShard.load(str(folder / "shard"))

    def settings(self) -> list[Setting]:
        return _grid(ef=WIDTHS)

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
        return _grid(ef=WIDTHS)

    def tune(self, setting: Setting) -> None:
        self.params = self.zvec.HnswQueryParam(ef=setting["ef"])

    def search(self, query: Vectors, k: int) -> Any:
        asked = self.zvec.Query(field_name="vector", vector=query, param=self.params)
        return self.collection.query(asked, topk=k, output_fields=[])

    def rows(self, found: Any) -> list[int]:
        return [int(doc.id) for doc in found]


_LIBRARIES: Sequence[type[Engine]] = (
    FaissPq,
    FaissResidualPq,
    FaissRabitq,
    FaissRabitq4,
    FaissHnsw,
    Hnswlib,
    Usearch,
    UsearchHalf,
    UsearchBfloat,
    Svs,
    SvsLvq,
    SvsLeanVec,
)
_DATABASES: Sequence[type[Engine]] = (
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
ENGINES: dict[str, type[Engine]] = {kind.name: kind for kind in (*_LIBRARIES, *_DATABASES)}


def choose(names: Sequence[str]) -> list[type[Engine]]:
    """The installed engines whose names begin with one of these, whatever their case.

    "libraries", "databases" and "all" mean what they say.
    """
    groups = {"libraries": _LIBRARIES, "databases": _DATABASES, "all": list(ENGINES.values())}
    chosen: dict[str, type[Engine]] = {}
    for name in names:
        found = groups.get(name) or [
            kind for kind in ENGINES.values() if kind.name.lower().startswith(name.lower())
        ]
        if not found:
            raise SystemExit(f"there is no engine {name!r}; there are {', '.join(ENGINES)}")
        chosen |= {kind.name: kind for kind in found}
    return [kind for kind in chosen.values() if importlib.util.find_spec(kind.package)]
