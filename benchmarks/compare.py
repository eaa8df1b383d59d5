"""How does vecstore stand beside its rivals? Run it: `python benchmarks/compare.py --help`.

Rivals are imported by `rivals.py` (as stores of records) and `engines.py` (as approximate indexes)
and nowhere else. One that is not installed is named and passed over. Every rival gets the same
arrays, is used as its documentation says, and runs in turns with vecstore.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from data import load
from measure import Report
from rivals import RIVALS, STORES, Lance, Store

if TYPE_CHECKING:
    from approximate import Plan

APPROXIMATE, CONTRACT, MILLION = "approximate", "contract", "million"
# What is measured on sets that `make_data.py` wrote.
ON_SETS = APPROXIMATE, CONTRACT, MILLION


def installed(report: Report) -> list[type[Store]]:
    """The rivals that can be imported; the others are named."""
    found = []
    for kind in RIVALS:
        if importlib.util.find_spec(kind.package) is None:
            report.line(f"{kind.name} is not installed (pip install {kind.package}): left out")
        else:
            found.append(kind)
    return found


def first_query(name: str, path: Path, query: Path) -> dict[str, Any]:
    """In a fresh process: import, then open a file and answer one query."""
    vector = np.load(query)
    store = STORES[name]()
    start = time.perf_counter()
    importlib.import_module(store.package)
    if name == Lance.name:
        import pyarrow  # noqa: F401
    imported = time.perf_counter()
    store.open(path)
    opened = time.perf_counter()
    ids = store.search(vector, 10)
    found = time.perf_counter()
    store.search(vector, 10)
    return {
        "import": imported - start,
        "open": opened - imported,
        "first": found - opened,
        "second": time.perf_counter() - found,
        "ids": ids,
        "numba": "numba" in sys.modules,
    }


def on_sets(report: Report, asked: argparse.Namespace) -> None:
    """What is measured on sets."""
    import alone
    import approximate

    if asked.sets is None:
        raise SystemExit(f"{', '.join(ON_SETS)} need --sets")
    if CONTRACT in asked.figures:
        named = [asked.set] if asked.set else []
        names = named or sorted(path.parent.name for path in asked.sets.glob("*/set.json"))
        alone.contract(report, asked.sets, names)
    if {APPROXIMATE, MILLION}.isdisjoint(asked.figures):
        return
    if asked.cache is None:
        raise SystemExit(f"{APPROXIMATE} and {MILLION} need --cache")
    plan = approximate.Plan(
        asked.cache,
        tuple(asked.depth or (10,)),
        rounds=2 if asked.quick else asked.rounds,
        seconds=0.5 if asked.quick else 2.0,
        core=asked.core,
        nice=asked.nice,
    )
    if MILLION in asked.figures:
        alone.million(report, asked.sets, asked.set or "static-1m", plan)
    if APPROXIMATE in asked.figures:
        approximately(report, asked, plan)


def approximately(report: Report, asked: argparse.Namespace, plan: Plan) -> None:
    """Compare approximate search on one set."""
    import approximate
    import datasets
    import engines

    kinds = engines.choose(asked.engines.split(","))
    queries = 200 if asked.quick else 1000
    name = asked.set or "minilm"
    data = datasets.load(asked.sets, name, asked.queries, asked.rows, queries)
    found = approximate.run(report, kinds, data, plan)
    approximate.tell(report, found, data, plan)
    if asked.picture is not None:
        approximate.picture(found, data, plan, asked.picture)


def arguments(figures: list[str]) -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(description="Compare vecstore with other stores.")
    names = f"{', '.join(figures)}; and on sets {', '.join(ON_SETS)}"
    parser.add_argument(
        "figures", nargs="*", metavar="FIGURE", help=f"{names}; the former if none is named"
    )
    parser.add_argument("--data", type=Path, help="a folder with real vectors; else synthetic ones")
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--first-query", nargs=3, help=argparse.SUPPRESS)
    more = parser.add_argument_group(", ".join(ON_SETS))
    more.add_argument("--sets", type=Path, help="the folder that make_data.py wrote")
    more.add_argument("--cache", type=Path, help="where built indexes are kept between runs")
    more.add_argument("--set", help="which of the sets (minilm; all; static-1m)")
    more.add_argument("--queries", default="docs", help="which of its queries (docs)")
    more.add_argument("--rows", type=int, help="only its first rows")
    more.add_argument(
        "--engines", default="all", help="names or beginnings of names, libraries, databases, all"
    )
    more.add_argument("--depth", type=int, action="append", help="hits asked for (10)")
    more.add_argument("--rounds", type=int, default=5, help="rounds in turns (5)")
    more.add_argument("--core", type=int, help="hold every engine to this core")
    more.add_argument("--nice", type=int, default=0, help="the niceness of builds")
    more.add_argument("--picture", type=Path, help="write the curves to this PNG file")
    return parser


def main() -> None:
    """Run the figures that were asked for."""
    import figures

    parser = arguments(list(figures.FIGURES))
    asked = parser.parse_args()
    if asked.first_query:
        name, path, query = asked.first_query
        print(json.dumps(first_query(name, Path(path), Path(query))))
        return
    unknown = set(asked.figures) - {*figures.FIGURES, *ON_SETS}
    if unknown:
        parser.error(f"there is no figure {', '.join(sorted(unknown))}")
    report = Report(asked.out, quick=asked.quick)
    chosen = [name for name in asked.figures or figures.FIGURES if name not in ON_SETS]
    if chosen:
        bench = figures.Bench(report, installed(report), asked.data, asked.scratch, load)
        for name in chosen:
            figures.FIGURES[name](bench)
    if not {*ON_SETS}.isdisjoint(asked.figures):
        on_sets(report, asked)


if __name__ == "__main__":
    main()
