"""How is one engine run? A process of its own that builds an index, or opens it and answers.

One process per engine keeps their thread pools, allocators and memory apart. It reads one JSON
object a line from its input and answers with one a line; what libraries print goes to the errors.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

# Before anything that makes threads is imported. LanceDB is not among them: with one thread for its
# input and output it waits for itself. What has no such setting is held to one core.
_LIMITS = """
    OMP_NUM_THREADS OPENBLAS_NUM_THREADS MKL_NUM_THREADS NUMBA_NUM_THREADS RAYON_NUM_THREADS
"""
SINGLE = dict.fromkeys(_LIMITS.split(), "1")


def build(name: str, source: str, folder: str) -> dict[str, Any]:
    """Build an index from a matrix in a file; importing and reading are not counted."""
    import importlib

    import numpy as np
    from engines import ENGINES

    engine = ENGINES[name]()
    vectors = np.load(source)
    importlib.import_module(engine.package)
    start, used = time.perf_counter(), time.process_time()
    engine.build(vectors, Path(folder))
    return {
        "build_s": time.perf_counter() - start,
        "build_cpu_s": time.process_time() - used,
        "version": version(engine.package),
    }


def version(package: str) -> str:
    """The version of whatever distribution holds a module."""
    from importlib.metadata import packages_distributions
    from importlib.metadata import version as of

    # Packages installed for editing are not in the table, but are named as their module is.
    return of(packages_distributions().get(package, [package])[0])


def serve(name: str, folder: str, source: str, orders: TextIO, answers: TextIO) -> None:
    """Open an index, answer one query, say how long that took, then do what is ordered."""
    import importlib

    import numpy as np
    from engines import ENGINES

    queries = np.load(source)
    engine = ENGINES[name]()
    start = time.perf_counter()
    importlib.import_module(engine.package)
    imported, before = time.perf_counter(), resident()
    engine.open(Path(folder))
    opened = time.perf_counter()
    engine.tune(engine.settings()[-1])
    engine.search(queries[0], 10)
    first = {
        "import_s": imported - start,
        "open_s": opened - imported,
        "first_s": time.perf_counter() - opened,
    }
    answer(answers, first)
    for line in orders:
        order = json.loads(line)
        if "memory" in order:
            answer(answers, {"rss": resident(), "grown": resident() - before})
        elif "at_once" in order:
            answer(answers, measure_many(engine, queries, order))
        else:
            answer(answers, measure(engine, queries, order))


def measure(engine: Any, queries: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Time single queries until all are answered or the seconds are over.

    The seconds of the processor, of all threads together, tell what a core of one's own would do
    where others share it.
    """
    engine.tune(order["setting"])
    k, asked = order["k"], order["queries"]
    found, taken = [], []
    for query in queries[:3]:
        engine.search(query, k)
    with quiet():
        used = time.process_time()
        end = time.perf_counter() + order["seconds"]
        for query in queries[:asked]:
            start = time.perf_counter()
            result = engine.search(query, k)
            now = time.perf_counter()
            taken.append(now - start)
            if order["rows"]:
                found.append(result)
            if now > end:
                break
        used = time.process_time() - used
    return {"seconds": taken, "cpu_s": used, "rows": [engine.rows(result) for result in found]}


def measure_many(engine: Any, queries: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Time all queries handed over at once, again and again until the seconds are over."""
    engine.tune(order["setting"])
    k, passes = order["k"], 0
    engine.search_many(queries[:16], k)
    with quiet():
        used, start = time.process_time(), time.perf_counter()
        while passes == 0 or time.perf_counter() - start < order["seconds"]:
            engine.search_many(queries, k)
            passes += 1
        took, used = time.perf_counter() - start, time.process_time() - used
    return {"seconds": took, "cpu_s": used, "queries": passes * len(queries)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No collection of garbage while the clock runs."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def resident() -> int:
    """Bytes of memory that this process holds, mapped files among them; Linux only."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def answer(answers: TextIO, value: dict[str, Any]) -> None:
    """Write one line."""
    answers.write(json.dumps(value) + "\n")
    answers.flush()


def main(arguments: Sequence[str]) -> None:
    """Do one of the two."""
    os.environ.update(SINGLE)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    what, *rest = arguments
    if what == "build":
        answer(answers, build(*rest))
    else:
        name, folder, source = rest
        serve(name, folder, source, sys.stdin, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
