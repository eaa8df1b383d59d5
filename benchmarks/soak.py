"""Does a file that is used for an hour stay as small, as quick and as right as it was?

A mixed load over the public API: records come, change, expire and go, searches with and without
filters run between, the file is reopened every minute and optimized every five. A plain dict holds
what must be there. Told each minute, and judged in the end: memory, the file against a compact copy
of it, and the time of calls in the last sixth against the first, in units of a fixed piece of work
that runs beside them, since the machine may be slower or faster then.

    python benchmarks/soak.py --minutes 60
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from array import array
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from measure import Report

import vecstore
from vecstore import Collection, Database

DIM, CLUSTERS = 64, 50
REOPEN, OPTIMIZE = 60.0, 300.0


class _World:
    """What must be in the file."""

    def __init__(self, seed: int, size: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.centres = self.rng.normal(size=(CLUSTERS, DIM)).astype(np.float32)
        self.size = size
        self.rows: dict[int, tuple[np.ndarray, dict[str, Any]]] = {}
        self.following = 0

    def vectors(self, count: int) -> np.ndarray:
        picked = self.centres[self.rng.integers(CLUSTERS, size=count)]
        noise = 0.3 * self.rng.normal(size=(count, DIM))
        return (picked + noise).astype(np.float32)

    def metadata(self) -> dict[str, Any]:
        rng = self.rng
        return {
            "n": int(rng.integers(1000)),
            "word": f"w{rng.integers(40)}",
            "flag": bool(rng.integers(2)),
        }

    def some(self, count: int) -> list[int]:
        known = list(self.rows)
        return [known[i] for i in self.rng.integers(len(known), size=count)] if known else []

    def fresh(self, count: int) -> list[int]:
        self.following += count
        return list(range(self.following - count, self.following))


class _Soak:
    """One run."""

    def __init__(self, path: Path, seed: int, size: int, seconds: float) -> None:
        self.path, self.world = path, _World(seed, size)
        self.rng = self.world.rng
        # When each call of a kind began, and how long it took: in few bytes, for memory is judged,
        # and only those of the first and the last sixth.
        self.seconds = seconds
        self.times: dict[str, array[float]] = defaultdict(lambda: array("d"))
        self.wrong: list[str] = []
        self.calls = 0
        # The file beside a compact copy of it, whenever it was looked at.
        self.longest = 0.0
        self.recalls: list[float] = []
        self.begun = time.monotonic()
        self.db = self.open()
        weights = {
            self.upsert: 20, self.add: 10, self.update: 12, self.delete: 10, self.delete_where: 1,
            self.search: 25, self.search_filtered: 12, self.search_exact: 2, self.get: 6,
            self.count: 4, self.transaction: 4, self.sessions: 4, self.view: 2, self.yardstick: 3,
        }  # fmt: skip
        self.steps = list(weights)
        self.shares = np.array(list(weights.values())) / sum(weights.values())

    def open(self) -> Database:
        return vecstore.open(self.path, durable=False)

    @property
    def docs(self) -> Collection:
        return self.db.collection("docs", dim=DIM, index="ivf")

    def timed(self, name: str, call: Any) -> Any:
        begun = time.perf_counter()
        result = call()
        now = time.perf_counter()
        at = time.monotonic() - self.begun
        if at <= self.seconds / 6 or at >= 5 * self.seconds / 6:
            self.times[name].extend((at, now - begun))
        self.calls += 1
        return result

    def expect(self, told: object, wanted: object, what: str) -> None:
        if told != wanted:
            self.wrong.append(f"{what}: {told!r:.80} instead of {wanted!r:.80}")

    # Steps

    def store(self, ids: list[int], method: str) -> None:
        vectors = self.world.vectors(len(ids))
        metadata = [self.world.metadata() for _ in ids]
        call = getattr(self.docs, method)
        name = f"{method} of one" if len(ids) == 1 else f"{method} of some"
        self.timed(name, lambda: call(vectors=vectors, ids=ids, metadata=metadata))
        for identity, vector, values in zip(ids, vectors, metadata, strict=True):
            self.world.rows[identity] = (vector, values)

    def upsert(self) -> None:
        count = int(self.rng.choice([1, 1, 20]))
        ids = sorted(set(self.world.some(count)))
        if ids:
            self.store(ids, "upsert")

    def add(self) -> None:
        if len(self.world.rows) < self.world.size:
            self.store(self.world.fresh(int(self.rng.choice([1, 40]))), "add")

    def update(self) -> None:
        ids = sorted(set(self.world.some(int(self.rng.integers(1, 8)))))
        if not ids:
            return
        changes = [{"n": int(self.rng.integers(1000))} for _ in ids]
        self.timed("update", lambda: self.docs.update(ids, metadata=changes))
        for identity, change in zip(ids, changes, strict=True):
            vector, values = self.world.rows[identity]
            self.world.rows[identity] = (vector, {**values, **change})

    def delete(self) -> None:
        if len(self.world.rows) > 0.9 * self.world.size:
            ids = self.world.some(int(self.rng.integers(1, 40)))
            count = self.timed("delete", lambda: self.docs.delete(ids))
            self.expect(count, len(set(ids)), "deleted")
            for identity in ids:
                self.world.rows.pop(identity, None)

    def delete_where(self) -> None:
        number = int(self.rng.integers(1000))
        doomed = [key for key, (_, values) in self.world.rows.items() if values["n"] == number]
        count = self.timed("delete where", lambda: self.docs.delete(where={"n": number}))
        self.expect(count, len(doomed), "deleted where")
        for key in doomed:
            del self.world.rows[key]

    def search(self) -> None:
        query = self.world.vectors(1)[0]
        hits = self.timed("search", lambda: self.docs.search(query, 10))
        self.judge(hits, query, None)

    def search_filtered(self) -> None:
        low = int(self.rng.integers(1000))
        where = {"n": {"$gte": low, "$lt": low + 100}}
        query = self.world.vectors(1)[0]
        hits = self.timed("search filtered", lambda: self.docs.search(query, 10, where=where))
        self.judge(hits, query, lambda values: low <= values["n"] < low + 100)

    def search_exact(self) -> None:
        query = self.world.vectors(1)[0]
        hits = self.timed("search exact", lambda: self.docs.search(query, 10, recall="exact"))
        if self.judge(hits, query, None, sample=1.0) not in (1.0, None):
            self.wrong.append("an exact search missed a neighbour")

    def judge(
        self, hits: Any, query: np.ndarray, allowed: Any, sample: float = 0.05
    ) -> float | None:
        """Each hit is there as the dict has it; of some searches the recall is measured."""
        for hit in hits:
            held = self.world.rows.get(hit.id)
            if held is None or held[1] != hit.metadata or (allowed and not allowed(held[1])):
                self.wrong.append(f"a hit {hit.id} that is not so")
        if self.rng.random() >= sample:
            return None
        keys = [
            key for key, (_, values) in self.world.rows.items() if not allowed or allowed(values)
        ]
        if len(hits) != min(10, len(keys)):
            self.wrong.append(f"{len(hits)} hits among {len(keys)}")
        if not keys:
            return None
        stored = np.array([self.world.rows[key][0] for key in keys], np.float64)
        stored /= np.linalg.norm(stored, axis=1, keepdims=True)
        scores = stored @ (query / np.linalg.norm(query.astype(np.float64)))
        best = {keys[i] for i in np.argsort(-scores)[:10].tolist()}
        recall = len(best & set(hits.ids)) / len(best)
        if sample < 1:
            self.recalls.append(recall)
        return recall

    def get(self) -> None:
        ids = [*self.world.some(3), self.world.following + 5]
        found = self.timed("get", lambda: self.docs.get(ids, include=["metadata", "vector"]))
        for identity, record in zip(ids, found, strict=True):
            held = self.world.rows.get(identity)
            same = (record is None) == (held is None)
            if same and held is not None:
                same = record.metadata == held[1] and np.allclose(record.vector, held[0], rtol=1e-5)
            self.expect(same, True, f"get {identity}")

    def count(self) -> None:
        word = f"w{self.rng.integers(40)}"
        wanted = sum(values["word"] == word for _, values in self.world.rows.values())
        self.expect(self.timed("count", lambda: self.docs.count({"word": word})), wanted, "count")
        self.expect(self.docs.count(), len(self.world.rows), "count of all")

    def transaction(self) -> None:
        """Two collections whose sums agree, or nothing of either."""
        fails = self.rng.random() < 0.3
        before = self.total()
        try:
            with self.db.transaction():
                for name in ("debit", "credit"):
                    self.db.collection(name, dim=2).upsert(
                        vectors=[[1, 1]], ids=[int(self.rng.integers(50))], metadata=[{"one": 1}]
                    )
                if fails:
                    raise KeyError
        except KeyError:
            self.expect(self.total(), before, "after a rollback")

    def total(self) -> tuple[int, int]:
        names = ("debit", "credit")
        first, second = (self.db.collection(name, dim=2).count() for name in names)
        return first, second

    def sessions(self) -> None:
        """Records that expire are not found, and do not pile up."""
        now = datetime.now(UTC)
        found = self.db.collection("sessions", dim=8)
        found.add(
            vectors=self.rng.normal(size=(20, 8)),
            metadata=[{"until": now.timestamp() + 2}] * 20,
            expires_at=now + timedelta(seconds=2),
        )
        asked = time.time()
        if any(hit.metadata["until"] < asked for hit in found.search(np.ones(8), 100)):
            self.wrong.append("a hit that had expired")
        if found.stats()["expired"] > 2000:
            self.wrong.append("expired records pile up")

    def view(self) -> None:
        """What a view sees stays while others write."""
        with self.db.snapshot() as view:
            before = view.collection("docs").count()
            self.upsert()
            self.delete()
            self.expect(view.collection("docs").count(), before, "count of a view")

    def yardstick(self) -> None:
        """A fixed piece of work, of the kinds that searches and writes are made of."""
        data = np.arange(200_000, dtype=np.float32)

        def work() -> None:
            for _ in range(5):
                float((data * data).sum())
            sum(range(20_000))

        self.timed("yardstick", work)

    # Around them

    def run(self, report: Report) -> None:
        self.docs.add(
            vectors=self.world.vectors(1),
            ids=self.world.fresh(1),
            metadata=[{"n": 0, "word": "w0", "flag": True}],
        )
        vector = self.docs.get(0, include=["vector"])
        assert vector is not None
        self.world.rows[0] = (np.asarray(vector.vector), {"n": 0, "word": "w0", "flag": True})
        while len(self.world.rows) < 0.95 * self.world.size:
            self.store(self.world.fresh(1000), "add")
        self.docs.optimize(progress=False)
        self.times.clear()
        self.begun = time.monotonic()
        end = self.begun + self.seconds
        reopened = optimized = told = self.begun
        memory: list[int] = []
        names = f"{'minute':>6} {'calls':>9} {'records':>8} {'memory':>9} {'file':>9} {'copy':>9}"
        report.line(f"{names} {'recall':>7} wrong")
        while (now := time.monotonic()) < end:
            self.steps[int(self.rng.choice(len(self.steps), p=self.shares))]()
            if now - reopened > REOPEN:
                self.db.close()
                self.db = self.open()
                reopened = now
            if now - optimized > OPTIMIZE:
                self.docs.optimize(progress=False)
                optimized = now
            if now - told > 60:
                told = now
                memory.append(self.tell(report))
        memory.append(self.tell(report))
        self.verdict(report, memory)

    def tell(self, report: Report) -> int:
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        # What the map holds is the system's to take back.
        shared = int(Path("/proc/self/statm").read_text().split()[2]) * os.sysconf("SC_PAGESIZE")
        copied = self.copy_size()
        recall = statistics.mean(self.recalls[-500:]) if self.recalls else 0.0
        minute = (time.monotonic() - self.begun) / 60
        size = self.path.stat().st_size
        self.longest = max(self.longest, size / copied)
        mib = [f"{value / 2**20:8.1f}M" for value in (resident - shared, size, copied)]
        counts = f"{minute:6.1f} {self.calls:9,} {len(self.world.rows):8,}"
        report.line(f"{counts} {' '.join(mib)} {recall:7.3f} {len(self.wrong)}")
        return resident - shared

    def copy_size(self) -> int:
        with tempfile.TemporaryDirectory() as folder:
            return self.db.backup(Path(folder) / "copy.vecstore")

    def verdict(self, report: Report, memory: list[int]) -> None:
        seconds, sixth = self.seconds, self.seconds / 6
        report.line("")
        report.line(f"{'call':<18} {'first sixth':>12} {'last sixth':>12} {'in yardsticks':>14}")
        yard = [
            self.median("yardstick", 0, sixth),
            self.median("yardstick", seconds - sixth, seconds),
        ]
        for name in sorted(self.times):
            first, last = self.median(name, 0, sixth), self.median(name, seconds - sixth, seconds)
            ratio = last / first / (yard[1] / yard[0])
            report.line(f"{name:<18} {1e6 * first:10.0f}us {1e6 * last:10.0f}us {ratio:14.2f}")
            if name in ("search", "search filtered", "get", "upsert of one", "update"):
                report.target(f"soak_{name.replace(' ', '_')}_last_to_first", ratio, 1.15)
        early = memory[min(len(memory) - 1, max(1, len(memory) // 6))]
        report.target("soak_memory_end_to_early", memory[-1] / early, 1.1)
        report.target("soak_file_to_live", self.longest, 2.0)
        report.target("soak_recall", statistics.mean(self.recalls), 0.95, least=True)
        problems = self.db.check()
        for what in [*self.wrong[:10], *map(str, problems[:10])]:
            report.line(f"WRONG: {what}")
        report.target("soak_wrong", len(self.wrong) + len(problems), 0)
        self.db.close()

    def median(self, name: str, start: float, stop: float) -> float:
        both = self.times[name]
        found = [
            took for at, took in zip(both[::2], both[1::2], strict=True) if start <= at <= stop
        ]
        return statistics.median(found) if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report = Report(options.out, quick=options.minutes < 60)
    report.title(f"{options.minutes:g} minutes of mixed load, seed {options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        soak = _Soak(
            Path(folder) / "soak.vecstore", options.seed, options.records, 60 * options.minutes
        )
        soak.run(report)


if __name__ == "__main__":
    main()
