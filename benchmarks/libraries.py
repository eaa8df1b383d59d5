"""How do libraries search approximately? FAISS, hnswlib, USearch and SVS.

They hold vectors in memory, without records, transactions or updates on disk.
"""

# ruff: noqa: D102 - what a method does is said once, in Engine.

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data import Vectors
from engine import WIDTHS, Engine, Setting, grid, lists_for

SEED = 20_240
PROBES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)


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

    def search_many(self, queries: Vectors, k: int) -> Any:
        return self.index.search(queries, k)

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
        return grid(nprobe=PROBES, refine=(2, 4, 8, 16, 32))

    def tune(self, setting: Setting) -> None:
        self.lists.nprobe = setting["nprobe"]
        self.index.k_factor = setting["refine"]


class FaissPq(_FaissLists):
    """IVF-PQ with 4-bit codes of two dimensions each, scanned in registers."""

    name = "FAISS IVF-PQ fast-scan"

    def codes(self, dim: int, count: int) -> Any:
        import faiss

        kind = faiss.METRIC_INNER_PRODUCT
        return faiss.index_factory(dim, f"IVF{lists_for(count)},PQ{dim // 2}x4fs", kind)


class FaissResidualPq(_FaissLists):
    """The same with codes of what is left after the list's centre."""

    name = "FAISS IVF-PQ fast-scan, residual"

    def codes(self, dim: int, count: int) -> Any:
        import faiss

        kind = faiss.METRIC_INNER_PRODUCT
        return faiss.index_factory(dim, f"IVF{lists_for(count)},PQ{dim // 2}x4fsr", kind)


class FaissRabitq(_FaissLists):
    """IVF-RaBitQ of one bit after a random rotation, scanned in registers."""

    name = "FAISS IVF-RaBitQ"
    bits = ""

    def codes(self, dim: int, count: int) -> Any:
        import faiss

        description = f"RR{dim},IVF{lists_for(count)},RaBitQfs{self.bits}"
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
        return grid(ef=WIDTHS)

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
        return grid(ef=WIDTHS)

    def tune(self, setting: Setting) -> None:
        self.index.set_ef(setting["ef"])

    def search(self, query: Vectors, k: int) -> Any:
        return self.index.knn_query(query, k, num_threads=1)

    def search_many(self, queries: Vectors, k: int) -> Any:
        return self.index.knn_query(queries, k, num_threads=1)

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
        return grid(expansion=WIDTHS)

    def tune(self, setting: Setting) -> None:
        self.index.expansion_search = setting["expansion"]

    def search(self, query: Vectors, k: int) -> Any:
        return self.index.search(query, k, threads=1)

    def search_many(self, queries: Vectors, k: int) -> Any:
        return self.index.search(queries, k, threads=1)

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
        return grid(window=WIDTHS)

    def tune(self, setting: Setting) -> None:
        self.index.search_window_size = setting["window"]

    def search(self, query: Vectors, k: int) -> Any:
        return self.index.search(query, k)

    def search_many(self, queries: Vectors, k: int) -> Any:
        return self.index.search(queries, k)

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


LIBRARIES: Sequence[type[Engine]] = (
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
