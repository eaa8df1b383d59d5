"""What does a filter cost a search? vecstore, LanceDB, Chroma, sqlite-vec, Qdrant Edge and Zvec.

    python benchmarks/filtered.py --sets SETS --scratch FOLDER --out figures.jsonl

SETS is a folder that `make_data.py` wrote. Every record has numbers beside its vector, and filters
are ranges of these: drawn at random, of the rows nearest to where the queries lie, and of the rows
farthest from there. The last two are what an index that looks near the query is best and worst
prepared for. Every store answers in a process of its own, with one thread, and is measured in turns
with the others, under the same filters. Run it under `taskset -c 1`. The recall of a slow store is
that of as many queries as it answers in three times `--seconds`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from approximate import Worker, slug
from data import Vectors
from datasets import ROUNDING, unit
from engine import Setting
from filtered_stores import STORES, VECSTORE, K, Range
from measure import Report, alternate, disk_bytes
from numpy.typing import NDArray
from worker import SINGLE

ANCHORS = 4
SHARES = (0.5, 0.1, 0.01, 0.001, 0.0001)
RANDOM, CORRELATED, ANTI = KINDS = ("random", "correlated", "anti-correlated")
# Where queries lie, by their rank of similarity to an anchor, and how far from there they move.
_NEAR, _MOVED = (100, 600), 0.2
QUERIES, PER_ANCHOR = 100, 25
# The unfiltered recall at which a store's setting is accepted.
_LEVEL = 0.95
MS = 1e3


# What is asked


@dataclass(frozen=True, slots=True)
class Part:
    """A filter and the numbers of the queries that are asked under it."""

    where: Range | None
    queries: list[int]


@dataclass(frozen=True, slots=True)
class Data:
    """Vectors with their fields, and queries: at random first, then those near each anchor."""

    base: Vectors
    fields: dict[str, NDArray[np.float64]]
    queries: Vectors

    def parts(self, kind: str, share: float) -> list[Part]:
        """What is asked in one cell of the table."""
        if kind == RANDOM:
            return [Part(Range("r", share, below=True), list(range(QUERIES)))]
        near = [
            Range(f"near{j}", share, below=True)
            if kind == CORRELATED
            else Range(f"near{j}", 1 - share, below=False)
            for j in range(ANCHORS)
        ]
        starts = [QUERIES + PER_ANCHOR * j for j in range(ANCHORS)]
        return [
            Part(where, list(range(at, at + PER_ANCHOR)))
            for where, at in zip(near, starts, strict=True)
        ]


def prepare(sets: Path, name: str, rows: int | None) -> Data:
    """Read vectors and random queries, and draw fields and the queries near anchors."""
    base = unit(np.load(sets / name / "base.npy", mmap_mode="r")[:rows])
    count = len(base)
    rng = np.random.default_rng(7)
    fields = {"r": rng.random(count)}
    queries = [unit(np.load(sets / name / "other.queries.npy", mmap_mode="r")[:QUERIES])]
    for j, anchor in enumerate(rng.choice(count, ANCHORS, replace=False)):
        order = np.argsort(-(base @ base[anchor]), kind="stable")
        ranks = np.empty(count)
        # Halves, so that no rank falls on a limit.
        ranks[order] = (np.arange(count) + 0.5) / count
        fields[f"near{j}"] = ranks
        near = base[rng.choice(order[slice(*_NEAR)], PER_ANCHOR, replace=False)]
        moved = unit(rng.normal(size=near.shape)) * np.float32(_MOVED)
        queries.append(unit(near + moved))
    return Data(base, fields, np.concatenate(queries))


# In the process that asks


class _Worker(Worker):
    """A process that has opened one store."""

    def __init__(self, name: str, source: Path, folder: Path) -> None:
        self.name = name
        with (folder.parent / "serve.log").open("w") as log:
            self._process = subprocess.Popen(
                _command("serve", name, source, folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **SINGLE},
            )
        self.started = self._read()


def _command(*arguments: object) -> list[str]:
    script = Path(__file__).with_name("filtered_stores.py")
    return [sys.executable, str(script), *map(str, arguments)]


def built(name: str, source: Path) -> dict[str, Any]:
    """What building a store took; it is built if it is not there yet."""
    place = source / slug(name)
    facts = place / "built.json"
    if not facts.exists():
        shutil.rmtree(place, ignore_errors=True)
        (place / "index").mkdir(parents=True)
        command = _command("build", name, source, place / "index")
        with (place / "build.log").open("w") as log:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **SINGLE},
                check=False,
            )
        if done.returncode != 0 or not done.stdout:
            raise RuntimeError(f"{name} did not build: {(place / 'build.log').read_text()[-1500:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        found["disk_bytes"] = disk_bytes(place / "index")
        facts.write_text(json.dumps(found))
    result: dict[str, Any] = json.loads(facts.read_text())
    return {**result, "folder": place / "index"}


@dataclass(slots=True)
class Figure:
    """What one store gave in one cell.

    Attributes:
        seconds: The median of each round.
        first: Seconds of first queries under filters not seen before.
        short: Queries with fewer hits than qualify.
        least: The fewest hits of a query.
        wrong: Hits that do not qualify.
        answered: Queries of which the recall is.
    """

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    recall: float = 0.0
    short: int = 0
    least: int = K
    wrong: int = 0
    answered: int = 0
    methods: list[str] = field(default_factory=list)

    @property
    def ms(self) -> float:
        """Milliseconds of a query, the median of rounds."""
        return statistics.median(self.seconds) * MS


class Judge:
    """Knows every similarity, and so what the right answers are."""

    def __init__(self, data: Data) -> None:
        self._fields = data.fields
        self._scores = data.queries.astype(np.float64) @ data.base.T.astype(np.float64)

    def matching(self, where: Range | None) -> NDArray[np.bool_]:
        """Which rows qualify."""
        if where is None:
            return np.ones(self._scores.shape[1], bool)
        return where.matching(self._fields)

    def judge(self, figure: Figure, parts: Sequence[Part], given: dict[str, Any]) -> None:
        """Compare the hits of each query with the exact ones.

        A row as near as the last of the true ones counts as well as that one; a row that is
        returned twice counts once.
        """
        rows = dict(zip(given["queries"], given["rows"], strict=True))
        shares = []
        for part in parts:
            matching = self.matching(part.where)
            wanted = min(K, int(matching.sum()))
            for number in part.queries:
                if number not in rows:
                    continue
                scores = self._scores[number]
                hits = np.array(list(dict.fromkeys(rows[number])), int)
                right = hits[matching[hits]]
                figure.wrong += len(hits) - len(right)
                figure.short += len(right) < wanted
                figure.least = min(figure.least, len(right))
                if wanted:
                    last = np.partition(scores[matching], -wanted)[-wanted]
                    shares.append((scores[right] >= last - ROUNDING).sum() / wanted)
        figure.recall = float(np.mean(shares)) if shares else 1.0
        figure.answered, figure.methods = len(rows), given["methods"]


@dataclass(frozen=True, slots=True)
class Contender:
    """One store in a run, at the setting with which it is asked."""

    worker: _Worker
    facts: dict[str, Any]
    setting: Setting

    def ask(self, parts: Sequence[Part], seconds: float, **how: Any) -> dict[str, Any]:
        """Have queries timed under filters, within these seconds."""
        order = {"setting": self.setting, "unseen": False, "seconds": seconds, **how}
        return self.worker.ask(parts=[asdict(part) for part in parts], **order)


def opened(worker: _Worker, facts: dict[str, Any], judge: Judge) -> tuple[Contender, Figure]:
    """A store at its cheapest setting that is good enough without a filter, and how good it is."""
    everything = [Part(None, list(range(QUERIES)))]
    settings = worker.started["settings"]
    for setting in settings:
        contender, figure = Contender(worker, facts, setting), Figure()
        given = contender.ask(everything, 30.0)
        judge.judge(figure, everything, given)
        figure.seconds.append(statistics.median(given["seconds"]))
        if figure.recall >= _LEVEL:
            break
    return contender, figure


def cell(
    contenders: dict[str, Contender],
    parts: list[Part],
    judge: Judge,
    rounds: int,
    seconds: float,
    number: int,
) -> dict[str, Figure]:
    """Measure all stores in turns under the filters of one cell."""
    whole = [Part(None, part.queries) for part in parts]
    asked: dict[str, tuple[Contender, list[Part], dict[str, Any]]] = {
        name: (contender, parts, {}) for name, contender in contenders.items()
    }
    if VECSTORE in contenders:
        own = contenders[VECSTORE]
        asked["unfiltered"] = own, whole, {}
        asked["exact"] = own, parts, {"setting": {"recall": "exact"}}
    figures = {name: Figure() for name in asked}
    counts = dict.fromkeys(asked, 0)

    def once(name: str) -> float:
        contender, wanted, how = asked[name]
        figure, turn = figures[name], counts[name]
        counts[name] += 1
        # The first round is what recall is told from: it may take longer.
        given = contender.ask(wanted, seconds if turn else 3 * seconds, **how)
        if not turn:
            judge.judge(figure, wanted, given)
        if name in contenders:
            unseen = [
                Part(part.where.unseen(number * rounds + turn), part.queries)
                for part in wanted
                if part.where
            ]
            figure.first += contender.ask(unseen, seconds, unseen=True)["seconds"]
        return statistics.median(given["seconds"])

    turns: dict[str, Callable[[], float]] = {name: partial(once, name) for name in asked}
    for name, values in alternate(rounds, turns).items():
        figures[name].seconds = values
    return figures


def _shown(figure: Figure) -> str:
    notes = [f"{figure.recall:.3f}"]
    if figure.short:
        notes.append(f"{figure.short} of {figure.answered} short, least {figure.least}")
    if figure.wrong:
        notes.append(f"{figure.wrong} wrong")
    return f"{_number(figure.ms)} ({', '.join(notes)})"


def _number(value: float) -> str:
    """Three digits, or thousandths."""
    places = next((n for n, limit in ((3, 1), (2, 10), (1, 100)) if value < limit), 0)
    return f"{value:.{places}f}"


def heading(names: Sequence[str]) -> list[str]:
    """The head of the table."""
    own = ["vecstore", "by", "unfiltered", "x unfiltered", "first", "exact"]
    head = ["filter", "s", "rows", *(own if VECSTORE in names else [])]
    head += [name for name in names if name != VECSTORE]
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]


def line(
    kind: str, share: float, rows: str, figures: dict[str, Figure], names: Sequence[str]
) -> str:
    """One line of the table: milliseconds and, in brackets, recall and what is missing."""
    cells = [kind, f"{share:g}", rows]
    if VECSTORE in names:
        own, free = figures[VECSTORE], figures["unfiltered"]
        cells += [_shown(own), "/".join(own.methods), _shown(free), f"{own.ms / free.ms:.2f}"]
        cells += [_number(statistics.median(own.first) * MS), _shown(figures["exact"])]
    cells += [_shown(figures[name]) for name in names if name != VECSTORE]
    return f"| {' | '.join(cells)} |"


def run(report: Report, arguments: argparse.Namespace) -> None:
    """Build what is missing, then measure cell by cell."""
    data = prepare(arguments.sets, arguments.set, arguments.rows)
    count, dim = data.base.shape
    source = arguments.scratch / f"filtered-{arguments.set}-{count}"
    source.mkdir(parents=True, exist_ok=True)
    np.save(source / "base.npy", data.base)
    np.save(source / "queries.npy", data.queries)
    np.savez(source / "fields.npz", **data.fields)
    report.title(f"{arguments.set}: {count:,} x {dim}, k = {K}, one thread")
    ready = {}
    for name in chosen(arguments.engines):
        try:
            ready[name] = built(name, source)
        except RuntimeError as error:
            report.line(str(error))
            continue
        facts = ready[name]
        report.line(f"{name} {facts['version']}: built in {facts['build_s']:.0f} s")
    if arguments.build:
        return
    judge = Judge(data)
    contenders: dict[str, Contender] = {}
    with ExitStack() as stack:
        for name, facts in ready.items():
            worker = stack.enter_context(_Worker(name, source, facts["folder"]))
            contenders[name], free = opened(worker, facts, judge)
            setting = " ".join(f"{key} {value}" for key, value in contenders[name].setting.items())
            report.line(f"{name}: {setting}; without a filter {_shown(free)}")
            context = {"set": arguments.set, "count": count, "dim": dim, "engine": name}
            told = {**context, "setting": contenders[name].setting, "recall": free.recall}
            report.figure("filtered store", **told, **{**facts, "folder": None}, ms=free.ms)
        print("\nMilliseconds per query, median (recall@10)\n")
        print(*heading(list(contenders)), sep="\n", flush=True)
        cells = [(kind, share) for kind in KINDS for share in arguments.shares]
        for number, (kind, share) in enumerate(cells):
            parts = data.parts(kind, share)
            sizes = [int(judge.matching(part.where).sum()) for part in parts]
            figures = cell(contenders, parts, judge, arguments.rounds, arguments.seconds, number)
            rows = f"{int(np.mean(sizes)):,}"
            print(line(kind, share, rows, figures, list(contenders)), flush=True)
            for name, figure in figures.items():
                found = asdict(figure)
                found["first_ms"] = [value * MS for value in found.pop("first")]
                found["rounds_ms"] = [value * MS for value in found.pop("seconds")]
                context = {"set": arguments.set, "count": count, "dim": dim, "k": K}
                what = {"filter": kind, "share": share, "matching": sizes, "engine": name}
                report.figure("filtered", **context, **what, ms=figure.ms, **found)


def chosen(names: str | None) -> list[str]:
    """The installed stores whose names begin with one of these, whatever their case."""
    wanted = names.lower().split(",") if names else [""]
    found = [name for name in STORES if any(name.lower().startswith(part) for part in wanted)]
    present = [name for name in found if importlib.util.find_spec(STORES[name].package)]
    for name in set(found) - set(present):
        print(f"{name} is not installed: left out")
    return present


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", type=Path, required=True, help="folder of sets")
    parser.add_argument("--set", default="minilm", help="which of them")
    parser.add_argument("--scratch", type=Path, required=True, help="built stores are kept here")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--engines", help="beginnings of names, with commas between")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a store per round and cell")
    parser.add_argument("--build", action="store_true", help="build and no more")
    parser.add_argument("--out", type=Path, help="file for JSON lines")
    arguments = parser.parse_args()
    run(Report(arguments.out, quick=arguments.rows < 100_000), arguments)


if __name__ == "__main__":
    main()
