"""Which figures must vecstore reach? Each function measures one of them beside a rival."""

from __future__ import annotations

import gzip
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
from data import DIM, Data, exact
from measure import Report, alternate, child, disk_bytes, paired, percentile, scratch, written
from rivals import Lance, LanceSynced, Numpy, Store, Vecstore, VecstoreFlat, VecstoreUnsynced

BATCH = 1000
K = 10
MS = 1e3


@dataclass(frozen=True, slots=True)
class Bench:
    """What every figure needs.

    Attributes:
        report: Where results go.
        rivals: The rivals that are installed.
        folder: The folder with real vectors, or None.
        scratch: The folder on the disk to be measured, or None for the temporary folder.
        load: Makes the data.
    """

    report: Report
    rivals: list[type[Store]]
    folder: Path | None
    scratch: Path | None
    load: Callable[[Path | None, int, int], Data]

    def data(self, count: int, queries: int = 100) -> Data:
        """Vectors and queries of this run."""
        data = self.load(self.folder, count, queries)
        self.report.line(f"data: {data.name}, {DIM} dimensions")
        return data


# import


_IMPORT = """
import json, sys, time
start = time.perf_counter()
import {0}
taken = time.perf_counter() - start
heavy = [name for name in ("numba", "onnxruntime", "tokenizers") if name in sys.modules]
print(json.dumps({{"seconds": taken, "heavy": heavy}}))
"""


def imports(bench: Bench) -> None:
    """`import vecstore` beside `import numpy`, in fresh processes."""
    report, rounds = bench.report, 7 if bench.report.quick else 40
    report.title("import: fresh processes, in turns")
    heavy: set[str] = set()

    def run(package: str) -> float:
        found = child(["-c", _IMPORT.format(package)])
        if package == "vecstore":
            heavy.update(found["heavy"])
        return float(found["seconds"])

    names = ["numpy", "vecstore"]
    taken = alternate(rounds, {name: lambda name=name: run(name) for name in names}, discard=1)
    others = [kind.package for kind in bench.rivals]
    taken |= alternate(
        max(3, rounds // 5), {name: lambda name=name: run(name) for name in others}, discard=1
    )
    base = statistics.median(taken["numpy"])
    for name, values in taken.items():
        middle = statistics.median(values)
        report.line(
            f"import {name:<12} median {middle * MS:7.1f} ms, {(middle - base) * MS:+8.1f} ms"
            f" beside numpy ({len(values)} runs)"
        )
        report.figure("import", package=name, median_ms=middle * MS, runs=len(values))
    more = statistics.median(a - b for a, b in zip(taken["vecstore"], taken["numpy"], strict=True))
    report.target("import vecstore beyond import numpy, ms", more * MS, 150)
    report.target(f"of numba, onnxruntime, tokenizers imported {sorted(heavy)}", len(heavy), 0)


# open


def opening(bench: Bench) -> None:
    """Open an existing file and answer the first query, in fresh processes."""
    report, rounds = bench.report, 5 if bench.report.quick else 25
    report.title("open: from import to first hits, 10,000 vectors, fresh processes, in turns")
    data = bench.data(10_000)
    kinds = [Vecstore, *bench.rivals]
    with scratch(bench.scratch) as folder:
        query = folder / "query.npy"
        np.save(query, data.queries[0])
        for kind in kinds:
            store = kind()
            store.open(folder / kind.name)
            store.fill(data, BATCH)
            store.close()
        script = str(Path(__file__).with_name("compare.py"))
        found: dict[str, list[dict[str, Any]]] = {kind.name: [] for kind in kinds}

        def run(name: str) -> float:
            result = child([script, "--first-query", name, str(folder / name), str(query)])
            found[name].append(result)
            return float(result["open"] + result["first"])

        subjects = {kind.name: lambda name=kind.name: run(name) for kind in kinds}
        taken = alternate(rounds, subjects, discard=1)
    want = {data.ids[i] for i in exact(data.vectors, data.queries[:1], K)[0]}
    for name, values in taken.items():
        runs = found[name][1:]
        middle = {
            part: statistics.median(run[part] for run in runs) * MS
            for part in ("import", "open", "first", "second")
        }
        total = statistics.median(values) * MS
        recall = len(want & set(runs[-1]["ids"])) / K
        ratio = paired(values, taken["vecstore"])
        report.line(
            f"{name:<12} {total:7.1f} ms ({ratio:5.2f} x vecstore) = open {middle['open']:6.1f} +"
            f" first query {middle['first']:6.1f}; second query {middle['second']:5.1f};"
            f" import {middle['import']:6.0f}; recall@{K} {recall:.3f}"
        )
        report.figure("open", store=name, total_ms=total, recall=recall, runs=len(values), **middle)
    report.target("open and first exact query, ms", statistics.median(taken["vecstore"]) * MS, 20)


# ingest


def ingest(bench: Bench) -> None:
    """Add vectors with metadata in batches, each durable."""
    report, quick = bench.report, bench.report.quick
    count, rounds = (5_000, 2) if quick else (100_000, 5)
    report.title(f"ingest: {count:,} x {DIM} float32 with 4 fields, batches of {BATCH:,}, in turns")
    data = bench.data(count)
    fast = [kind for kind in bench.rivals if kind.name != "Chroma"]
    if any(kind.name == Lance.name for kind in fast):
        fast.append(LanceSynced)
    _ingest(bench, data, [Vecstore, VecstoreUnsynced, *fast], rounds)
    slow = [kind for kind in bench.rivals if kind.name == "Chroma"]
    if slow:
        part = count if quick else 20_000
        report.line(f"Chroma takes minutes for more, so it and vecstore get {part:,} here")
        less = Data(
            data.name, data.vectors[:part], data.queries, data.ids[:part], data.metadata[:part]
        )
        _ingest(bench, less, [Vecstore, *slow], 2 if quick else 3)


def _ingest(bench: Bench, data: Data, kinds: list[type[Store]], rounds: int) -> None:
    report = bench.report
    count = len(data.ids)
    synced: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    batches: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    sizes: dict[str, int] = {}

    def run(kind: type[Store]) -> float:
        with scratch(bench.scratch) as folder:
            # Nobody pays for what another one left to be written.
            os.sync()
            store, path = kind(), folder / "store"
            store.open(path)
            taken = store.fill(data, BATCH)
            start = time.perf_counter()
            os.sync()
            synced[kind.name].append(sum(taken) + time.perf_counter() - start)
            store.close()
            batches[kind.name] += taken
            sizes[kind.name] = disk_bytes(path)
            return sum(taken)

    taken = alternate(rounds, {kind.name: lambda kind=kind: run(kind) for kind in kinds})
    for kind in kinds:
        values = taken[kind.name]
        rate = count / statistics.median(values)
        ratio = paired(values, taken["vecstore"])
        share = sizes[kind.name] / data.raw_bytes
        report.line(
            f"{kind.name:<22} {rate:9,.0f} records/s, {ratio:6.2f} x vecstore's time"
            f" ({paired(synced[kind.name], synced['vecstore']):6.2f} with a last sync);"
            f" batch p50 {percentile(batches[kind.name], 0.5) * MS:6.1f}"
            f" p99 {percentile(batches[kind.name], 0.99) * MS:6.1f} ms;"
            f" disk {share:5.2f} x raw; at risk in a power cut: {kind.durability}"
        )
        report.figure(
            "ingest",
            store=kind.name,
            records=count,
            records_per_s=rate,
            times_vecstore=ratio,
            times_vecstore_synced=paired(synced[kind.name], synced["vecstore"]),
            seconds=values,
            disk_share=share,
            durability=kind.durability,
        )
        if kind.name == "LanceDB":
            report.target("LanceDB's time / vecstore's", ratio, 1, least=True)
        if kind.name == "Chroma":
            report.target("Chroma's time / vecstore's", ratio, 5, least=True)
    report.target("disk / raw vectors", sizes["vecstore"] / data.raw_bytes, 1.3)


# upsert


class Bare:
    """One LMDB database and nothing around it."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.env = lmdb.open(str(path), map_size=64 << 30, subdir=False, sync=durable)

    def put(self, key: bytes, value: bytes) -> None:
        """Store one value in a transaction of its own."""
        with self.env.begin(write=True) as txn:
            txn.put(key, value)


def upsert(bench: Bench) -> None:
    """One record per transaction, beside one bare put of the record's own bytes."""
    report, quick = bench.report, bench.report.quick
    held, count = (2_000, 200) if quick else (10_000, 2_000)
    report.title(f"upsert: {count:,} single records into {held:,}, alternating with bare LMDB puts")
    data = bench.data(held + count)
    for durable in (True, False):
        for fresh in (True, False):
            _upsert(bench, data, held, durable=durable, fresh=fresh)


def _upsert(bench: Bench, data: Data, held: int, *, durable: bool, fresh: bool) -> None:
    report = bench.report
    count = len(data.ids) - held
    packed = [
        vector.tobytes() + msgpack.packb(row)
        for vector, row in zip(data.vectors, data.metadata, strict=True)
    ]
    places = np.random.default_rng(0).permutation(held).tolist()
    times: dict[str, list[float]] = {"vecstore": [], "bare put": []}
    pages: dict[str, list[int]] = {"vecstore": [], "bare put": []}
    dirty: dict[str, list[int]] = {"vecstore": [], "bare put": []}
    with scratch(bench.scratch) as folder:
        store = Vecstore() if durable else VecstoreUnsynced()
        store.open(folder / "store")
        bare = Bare(folder / "bare", durable=durable)
        for at in range(0, held, BATCH):
            part = slice(at, min(at + BATCH, held))
            store.add(data.ids[part], data.vectors[part], data.metadata[part])
            with bare.env.begin(write=True) as txn:
                for name, value in zip(data.ids[part], packed[part], strict=True):
                    txn.put(name.encode(), value)
        os.sync()
        for i in range(count):
            # A record that is replaced gets the vector and metadata of another one.
            name = data.ids[held + i] if fresh else data.ids[places[i % held]]
            vector, row, value = data.vectors[held + i], data.metadata[held + i], packed[held + i]
            works: dict[str, Callable[[], object]] = {
                "vecstore": lambda name=name, vector=vector, row=row: store.collection.upsert(
                    vectors=vector, ids=name, metadata=row
                ),
                "bare put": lambda name=name, value=value: bare.put(name.encode(), value),
            }
            for who in sorted(works, reverse=bool(i % 2)):
                before = written()
                start = time.perf_counter()
                works[who]()
                times[who].append(time.perf_counter() - start)
                after = written()
                pages[who].append(after[0] - before[0])
                dirty[who].append(after[1] - before[1])
        assert store.db.check() == []
        store.close()
        bare.env.close()
    kind = "new" if fresh else "replaced"
    mode = "durable" if durable else "durable=False"
    base = statistics.median(times["bare put"])
    for who in times:
        middle, high = statistics.median(times[who]), percentile(times[who], 0.99)
        given, made = statistics.mean(pages[who]), statistics.mean(dirty[who])
        report.line(
            f"{mode:<13} {kind:<8} {who:<8} median {middle * MS:7.3f} ms, p99 {high * MS:7.3f},"
            f" max {max(times[who]) * MS:7.2f}; {middle / base:5.2f} x and {high / base:5.2f} x the"
            f" bare median; written {given:9,.0f} bytes ({given / 4096:5.1f} pages),"
            f" page cache {made:9,.0f}"
        )
        report.figure(
            "upsert",
            who=who,
            kind=kind,
            durable=durable,
            runs=count,
            median_ms=middle * MS,
            p99_ms=high * MS,
            max_ms=max(times[who]) * MS,
            bytes_written=given,
            page_cache_bytes=made,
            record_bytes=len(packed[0]),
        )
    if durable:
        ours, bares = times["vecstore"], times["bare put"]
        name = f"upsert of a {kind} record"
        report.target(f"{name}: median / bare median", statistics.median(ours) / base, 1.5)
        report.target(f"{name}: p99 / bare median", percentile(ours, 0.99) / base, 10)
        report.line(
            f"   p99 / bare p99: {percentile(ours, 0.99) / percentile(bares, 0.99):.2f};"
            f" median of the paired ratios: {paired(ours, bares):.2f}"
        )


# search


def search(bench: Bench) -> None:
    """Exact search beside the scans of others, and beside numpy on a matrix in memory."""
    for count in (2_000,) if bench.report.quick else (10_000, 100_000):
        _search(bench, count)


def _search(bench: Bench, count: int) -> None:
    report, asked = bench.report, 20 if bench.report.quick else 100
    report.title(f"search: the {K} nearest of {count:,} x {DIM}, one query at a time, in turns")
    data = bench.data(count, asked)
    want = exact(data.vectors, data.queries, K)
    kinds = [Vecstore, VecstoreFlat, Numpy, *bench.rivals]
    if count > 20_000:
        kinds = [kind for kind in kinds if kind.name != "Chroma"]
        report.line("Chroma is left out here: its index takes minutes to build")
    with scratch(bench.scratch) as folder:
        stores: dict[str, Store] = {}
        for kind in kinds:
            stores[kind.name] = store = kind()
            store.open(folder / kind.name)
            store.fill(data, BATCH)
        hits: dict[str, list[set[str]]] = {name: [] for name in stores}

        def run(name: str) -> float:
            query = data.queries[len(hits[name])]
            start = time.perf_counter()
            found = stores[name].search(query, K)
            taken = time.perf_counter() - start
            hits[name].append(set(found))
            return taken

        for store in stores.values():
            store.search(data.queries[0], K)
        taken = alternate(asked, {name: lambda name=name: run(name) for name in stores})
        for name, values in taken.items():
            same = sum(
                len({data.ids[i] for i in row} & got)
                for row, got in zip(want, hits[name], strict=True)
            )
            recall, middle = same / (K * asked), statistics.median(values)
            ratio = paired(values, taken["vecstore"])
            report.line(
                f"{name:<18} p50 {middle * MS:7.2f} ms, p95 {percentile(values, 0.95) * MS:7.2f},"
                f" {ratio:5.2f} x vecstore; recall@{K} {recall:.3f}"
            )
            report.figure(
                "search",
                store=name,
                records=count,
                p50_ms=middle * MS,
                p95_ms=percentile(values, 0.95) * MS,
                times_vecstore=ratio,
                recall=recall,
            )
        _search_many(bench, data, want, stores)
        for store in stores.values():
            store.close()


def _search_many(bench: Bench, data: Data, want: Any, stores: dict[str, Store]) -> None:
    report, asked = bench.report, len(data.queries)
    theirs = stores[Numpy.name]
    assert isinstance(theirs, Numpy)
    found: dict[str, Any] = {}

    def vecstore_many(name: str) -> float:
        ours = stores[name]
        assert isinstance(ours, Vecstore)
        start = time.perf_counter()
        hits = ours.collection.search_many(data.queries, K, recall=ours.recall)
        found[name] = [{hit.id for hit in one} for one in hits]
        return time.perf_counter() - start

    def numpy_many() -> float:
        start = time.perf_counter()
        scores = data.queries @ theirs.matrix.T
        best = np.argpartition(-scores, K, axis=1)[:, :K]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        rows = np.take_along_axis(best, order, 1)
        found["numpy"] = [{data.ids[i] for i in row} for row in rows]
        return time.perf_counter() - start

    names = Vecstore.name, VecstoreFlat.name
    ours = {name: partial(vecstore_many, name) for name in names}
    taken = alternate(5, {**ours, "numpy": numpy_many}, discard=1)
    for name, values in taken.items():
        same = sum(
            len({data.ids[i] for i in row} & ids)
            for row, ids in zip(want, found[name], strict=True)
        )
        rate, recall = asked / statistics.median(values), same / (K * asked)
        report.line(
            f"search_many, {asked} queries: {name:<10} {rate:8,.0f} queries/s,"
            f" {paired(values, taken['vecstore']):5.2f} x vecstore's time; recall@{K} {recall:.3f}"
        )
        report.figure(
            "search_many", store=name, records=len(data.ids), queries_per_s=rate, recall=recall
        )


# text


def text(bench: Bench) -> None:
    """Add texts, embedded by the model that comes with vecstore, beside the model alone."""
    import vecstore

    report, quick = bench.report, bench.report.quick
    texts = _texts(bench.folder, 256 if quick else 2_000)
    letters = sum(map(len, texts)) / len(texts)
    report.title(f"text: {len(texts):,} texts of {letters:.0f} characters, the bundled model")
    with scratch(bench.scratch) as folder, vecstore.open(folder / "store") as db:
        notes = db.collection("notes")
        encoder = db.encoder(b"")
        encoder.encode(texts[:8], kind="document")
        size = 128

        def alone() -> float:
            start = time.perf_counter()
            encoder.encode(part, kind="document")
            return time.perf_counter() - start

        def stored() -> float:
            start = time.perf_counter()
            notes.add(part)
            return time.perf_counter() - start

        taken: dict[str, list[float]] = {"alone": [], "stored": []}
        for at in range(0, len(texts) - size + 1, size):
            part = texts[at : at + size]
            for name, values in alternate(1, {"alone": alone, "stored": stored}).items():
                taken[name] += values
    rates = {name: size * len(values) / sum(values) for name, values in taken.items()}
    ratio = paired(taken["stored"], taken["alone"])
    report.line(
        f"encoder alone {rates['alone']:,.0f} texts/s, add {rates['stored']:,.0f} texts/s:"
        f" {ratio:.2f} x the encoder's time"
    )
    report.figure("text", texts=len(texts), characters=letters, times_encoder=ratio, **rates)


def _texts(folder: Path | None, count: int) -> list[str]:
    for path in sorted(folder.glob("*/docs.jsonl.gz")) if folder else ():
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            found = [json.loads(line)["text"] for line, _ in zip(lines, range(count), strict=False)]
        if len(found) == count:
            return found
    words = [
        "a",
        "store",
        "keeps",
        "records",
        "and",
        "finds",
        "those",
        "whose",
        "meaning",
        "is",
        "near",
    ]
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, 60)) for _ in range(count)]


FIGURES: dict[str, Callable[[Bench], None]] = {
    "import": imports,
    "open": opening,
    "ingest": ingest,
    "upsert": upsert,
    "search": search,
    "text": text,
}
