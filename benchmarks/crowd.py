"""Do many readers ever see half a batch, an index of another moment, or memory that was given up?

One process writes: each transaction gives all records a new number, vectors that follow from it and
from the id, and metadata with it; between them it optimizes, makes the index anew as another kind
and lets records expire. Several processes, with several threads each, search, filter, scan, count
and get meanwhile, through views and without, and compute what each answer must be from the number
that it carries. Answers are kept for a while and looked at again. A process that is killed while it
holds a view, and one that forks, are among the readers.

    python benchmarks/crowd.py --minutes 10
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from measure import Report

import vecstore
from vecstore import Collection, Hits

DIM, STABLE, EXTRA = 16, 400, 90
KEPT = 50


@functools.lru_cache(maxsize=64)
def vectors(number: int) -> np.ndarray:
    """All vectors of one batch, float32 (STABLE + EXTRA, DIM)."""
    shape = (STABLE + EXTRA, DIM)
    return np.random.default_rng(number).normal(size=shape).astype(np.float32)


def write(path: str, minutes: float, told: Any) -> None:
    """Write batches until the time is up."""
    kinds = ("hash", "ivf", "flat", "ivf")
    end = time.monotonic() + 60 * minutes
    number = 0
    with vecstore.open(path, durable=False) as db:
        points = db.collection("points")
        while time.monotonic() < end:
            number += 1
            with db.transaction():
                extra = range(STABLE, STABLE + EXTRA)
                points.delete(extra)
                made = vectors(number)
                metadata = [{"n": number, "place": place} for place in range(STABLE + EXTRA)]
                ids = list(range(STABLE))
                points.upsert(vectors=made[:STABLE], ids=ids, metadata=metadata[:STABLE])
                points.add(vectors=made[STABLE:], ids=list(extra), metadata=metadata[STABLE:])
            if number % 7 == 0:
                points.optimize(progress=False)
            if number % 20 == 0:
                points.reindex(kinds[number // 20 % len(kinds)], progress=False)
            time.sleep(0.01)
        told.put(("writer", number, [str(problem) for problem in db.check()]))


def check_hits(hits: Hits, query: np.ndarray, count: int) -> int:
    """Assert that hits are of one batch, with its vectors and their scores; return its number."""
    assert len(hits) == len(set(hits.ids)) == count, (len(hits), count)
    numbers = {hit.metadata["n"] for hit in hits if hit.metadata}
    assert len(numbers) == 1, numbers
    (number,) = numbers
    made, wide = vectors(number), query.astype(np.float64)
    for hit in hits:
        assert isinstance(hit.id, int)
        assert hit.metadata == {"n": number, "place": hit.id}
        expected = made[hit.id].astype(np.float64)
        if hit.vector is not None:
            assert np.allclose(hit.vector, expected, rtol=1e-6), hit.id
        score = -float(np.sqrt(((expected - wide) ** 2).sum()))
        assert abs(score - hit.score) < 1e-5, (score, hit.score)
    assert list(hits.scores) == sorted(hits.scores, reverse=True)
    return int(number)


def look(points: Collection, query: np.ndarray, *, frozen: bool) -> tuple[int, Hits]:
    """Ask in several ways; of a view all answers are of one batch."""
    hits = points.search(query, 10, include=("metadata", "vector"))
    number = check_hits(hits, query, 10)
    place = random.randrange(300)
    where = {"place": {"$gte": place, "$lt": place + 20}}
    second = check_hits(points.search(query, 20, where=where), query, 20)
    third = check_hits(points.search(query, 5, recall="exact"), query, 5)
    found = points.get([3, STABLE + 3], include=("metadata",))
    assert all(found), "a record was not there for a moment"
    assert len({one.metadata["n"] for one in found if one and one.metadata}) == 1
    facets = points.facets("n")
    assert [facet.records for facet in facets] == [STABLE + EXTRA], facets
    if frozen:
        assert number == second == third == facets[0].value
        assert points.count({"n": number}) == points.count() == STABLE + EXTRA
        assert {record.id for record in points.scan()} == set(range(STABLE + EXTRA))
    else:
        assert number <= second <= third
    return number, hits


def read(path: str, threads: int, stop: Any, told: Any, seed: int) -> None:
    """Read in several threads until told to stop."""
    wrong: list[str] = []
    counts = [0] * threads

    def work(own: int) -> None:
        rng = np.random.default_rng(seed * 100 + own)
        kept: deque[tuple[Hits, np.ndarray]] = deque()
        last = 0
        try:
            while not stop.is_set():
                query = rng.normal(size=DIM).astype(np.float32)
                if counts[own] % 2:
                    with db.snapshot() as view:
                        number, hits = look(view.collection("points"), query, frozen=True)
                else:
                    number, hits = look(db.collection("points"), query, frozen=False)
                assert number >= last, (number, last)
                last = number
                counts[own] += 1
                kept.append((hits, query))
                if len(kept) > KEPT:
                    # Their snapshots have ended, and the file has changed since.
                    check_hits(*kept.popleft(), 10)
                if counts[own] % 97 == 0:
                    # Nobody closes these.
                    db.snapshot().collection("points").search(query, 1)
        except BaseException as error:
            wrong.append(f"{type(error).__name__}: {error}")

    with vecstore.open(path, read_only=seed % 2 == 1) as db:
        started = [threading.Thread(target=work, args=(own,)) for own in range(threads)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
    told.put(("reader", sum(counts), wrong))


def hold(path: str) -> None:
    """Hold a view and search until killed; fork before, and let the child end."""
    db = vecstore.open(path, read_only=True)
    view = db.snapshot()
    if os.fork() == 0:
        os._exit(0)
    while True:
        view.collection("points").search(np.ones(DIM), 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report = Report(options.out, quick=options.minutes < 10)
    report.title(f"{options.minutes:g} minutes of one writer and many readers")
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "crowd.vecstore")
        with vecstore.open(path, durable=False) as db:
            points = db.collection("points", dim=DIM, metric="l2", index="ivf")
            metadata = [{"n": 0, "place": place} for place in range(STABLE + EXTRA)]
            points.add(vectors=vectors(0), ids=list(range(STABLE + EXTRA)), metadata=metadata)
        stop, told = spawn.Event(), spawn.Queue()
        readers = [
            spawn.Process(target=read, args=(path, options.threads, stop, told, seed))
            for seed in range(options.processes)
        ]
        for reader in readers:
            reader.start()
        writer = spawn.Process(target=write, args=(path, options.minutes, told))
        writer.start()
        killed = 0
        while writer.is_alive():
            holder = spawn.Process(target=hold, args=(path,))
            holder.start()
            writer.join(random.uniform(2, 4))
            assert holder.pid is not None
            os.kill(holder.pid, signal.SIGKILL)
            holder.join()
            killed += 1
        stop.set()
        answers = [told.get(timeout=120) for _ in range(len(readers) + 1)]
        for reader in readers:
            reader.join()
        exits = [process.exitcode for process in (*readers, writer)]
        size = Path(path).stat().st_size
    batches = next(count for kind, count, _ in answers if kind == "writer")
    rounds = sum(count for kind, count, _ in answers if kind == "reader")
    wrong = [what for _, _, found in answers for what in found]
    report.line(
        f"{batches:,} batches written, {rounds:,} rounds of reading, {killed} readers killed"
    )
    report.line(f"the file has {size / 2**20:.1f} MiB")
    for what in wrong[:20]:
        report.line(f"WRONG: {what}")
    report.target("crowd_wrong", len(wrong) + sum(code != 0 for code in exits), 0)


if __name__ == "__main__":
    main()
