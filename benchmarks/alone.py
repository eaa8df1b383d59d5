"""Which figures must vecstore reach by itself? The recall that is promised, and a million rows."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

import approximate
import datasets
import numpy as np
from approximate import Contender, Plan
from databases import Vecstore
from measure import Report, child, scratch

LEVELS = (0.85, 0.9, 0.95, 0.98)
# How far below the target the measured recall may be.
SHORT = 0.01
K = 10
MS, MB = 1e3, 1e-6
SMALL, LARGE = 100_000, 1_000_000

_FIRST = """
import json, os, sys, time
import numpy as np
import vecstore

path, source = sys.argv[1:]
query = np.load(source)

def resident():
    names = {}
    for line in open("/proc/self/smaps_rollup"):
        name, _, value = line.partition(":")
        if value.endswith("kB\\n"):
            names[name] = 1024 * int(value.split()[0])
    return names

begun = time.perf_counter()
import numba
imported = time.perf_counter()
from vecstore.ann import compiled
assert compiled.ready("search") is not None, "run `vecstore warm` first"
loaded = time.perf_counter()
before = resident()
opened = time.perf_counter()
db = vecstore.open(path, read_only=True)
hits = db.collection("docs").search(query, 10, include=())
answered = time.perf_counter()
after = resident()
grown = {name: after[name] - before[name] for name in ("Rss", "Anonymous")}
print(json.dumps({
    "numba": imported - begun, "load": loaded - imported, "first": answered - opened,
    "grown": grown["Rss"], "own": grown["Anonymous"], "lists": hits.plan.lists,
}))
"""


def contract(report: Report, sets: Path, names: Sequence[str]) -> None:
    """The recall that comes of what was asked for, on every set and kind of queries."""
    report.title("contract: recall measured over 1,000 queries, for what was asked for")
    short = 0.0
    for name in names:
        kinds = sorted(path.name.split(".")[0] for path in (sets / name).glob("*.queries.npy"))
        rows = 10_000 if report.quick else SMALL
        with scratch(None) as folder:
            store = Vecstore()
            for kind in kinds:
                data = datasets.load(sets, name, kind, rows, 1000)
                if kind == kinds[0]:
                    store.build(data.base, folder)
                    store.open(folder)
                found = []
                for level in LEVELS:
                    store.tune({"recall": level})
                    answers = store.search_many(data.queries, K)
                    recall = data.recall([store.rows(hits) for hits in answers], K)
                    expected = answers[0].plan.expected_recall
                    found.append(f"{level} -> {recall:.3f} ({expected:.3f})")
                    short = max(short, level - recall)
                    report.figure(
                        "contract point",
                        set=data.name,
                        count=len(data.base),
                        asked=level,
                        recall=recall,
                        expected=expected,
                    )
                report.line(f"{data.name:<16} {len(data.base):>8,}  " + ", ".join(found))
            store.db.close()
    report.target("largest shortfall of a recall", short, SHORT)


def million(report: Report, sets: Path, name: str, plan: Plan) -> None:
    """A million rows beside a hundred thousand of them: speed, opening, memory, disk."""
    sizes = (10_000, 100_000) if report.quick else (SMALL, LARGE)
    runs = []
    for rows in sizes:
        data = datasets.load(sets, name, "docs", rows, 1000)
        found = approximate.run(report, [Vecstore], data, plan)
        approximate.tell(report, found, data, plan)
        runs.append(found[0])
        query = plan.cache / "query.npy"
        np.save(query, data.queries[0])
        raw = data.base.nbytes
    for level in approximate.LEVELS:
        for rate, what in (("qps", "one by one"), ("many_qps", "in search_many")):
            few, many = (approximate.at(run.points, level, rate) for run in runs)
            grown = few / many if few and many else math.inf
            text = f"time of a query, {sizes[1]:,} / {sizes[0]:,} rows, recall {level}, {what}"
            report.target(text, grown, 3.5)
    facts = runs[1].facts
    report.line(f"build {facts['build_s']:.0f} s by the clock, {facts['build_cpu_s']:.0f} s of CPU")
    report.target("disk / raw vectors", facts["disk"] / raw, 1.45)
    _opening(report, runs[1], query)


def _opening(report: Report, run: Contender, query: Path) -> None:
    """Open and answer the first query, with what the system has cached of the file and without."""
    file = run.facts["folder"] / "file"
    for cold in (False, True):
        found = []
        for _ in range(3):
            _prepare(file, cold=cold)
            found.append(child(["-c", _FIRST, str(file), str(query)]))
        middle = {part: statistics.median(one[part] for one in found) for part in found[0]}
        state = "cold" if cold else "warm"
        parts = (
            f"{state} cache: import numba {middle['numba'] * MS:.0f} ms",
            f"load the kernel {middle['load'] * MS:.0f} ms",
            f"then open and first query {middle['first'] * MS:.0f} ms",
            f"{middle['lists']:.0f} lists",
            f"resident memory grew by {middle['grown'] * MB:.0f} MB",
            f"{middle['own'] * MB:.1f} MB of that not of the file",
        )
        report.line(", ".join(parts))
        report.figure("million opening", cold=cold, **middle)
        if not cold:
            report.target("open and first query, warm cache, ms", middle["first"] * MS, 150)
        report.target(f"resident memory grown, {state} cache, MB", middle["grown"] * MB, 100)


def _prepare(file: Path, *, cold: bool) -> None:
    """Let the system's cache hold all of a file, or nothing."""
    with file.open("rb", buffering=0) as opened:
        if cold:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while opened.read(1 << 24):
                pass
