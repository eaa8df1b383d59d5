"""Which engine answers most queries a second at equal recall? Sweeps, rounds in turns, curves.

Each engine builds once into a folder that later runs use again, and answers in a process of its
own, with one thread and on one core. All its settings are tried on some queries; those that are
near the best at the recalls of interest are then timed in rounds, in turns with the other engines.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from curves import draw
from data import Vectors
from datasets import Set
from engine import Engine, Setting
from measure import Report, alternate, disk_bytes, percentile
from worker import SINGLE

MS, US, MB = 1e3, 1e6, 1e-6
LEVELS = (0.95, 0.98)
# Speeds of a point, and how tables call them.
RATES = {"qps": "q/s", "many_qps": "at once", "cpu_qps": "per cpu s"}
# Of the settings that another one beats in both, those that come this near stay: the first pass is
# one pass, and rounds may tell otherwise.
_SLACK = 1.15
# Settings outside say nothing about the levels.
_WINDOW = (0.88, 0.995)
# Queries on which all settings are tried, and seconds per query after which a pass ends early.
_TRIED = 200
_LONGEST = 0.03


@dataclass(slots=True)
class Point:
    """What one setting gave.

    Attributes:
        qps: Queries a second by the clock.
        cpu_qps: Queries per second of the processor, which others on the machine disturb less.
        many_qps: Queries a second by the clock, where all are handed over at once.
    """

    setting: Setting
    k: int
    recall: float
    qps: float
    cpu_qps: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    answered: int = 0
    many_qps: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        cache: Where built indexes are kept.
        depths: How many hits are asked for.
        rounds: Rounds in turns.
        seconds: The most that one setting takes in one round.
        fresh: Fresh processes for the time of opening.
        core: The core that every engine is held to, or None.
        nice: Added to the niceness of builds.
    """

    cache: Path
    depths: Sequence[int] = (10,)
    rounds: int = 5
    seconds: float = 2.0
    fresh: int = 3
    core: int | None = None
    nice: int = 0


class Worker:
    """A process that has opened the index of one engine.

    Attributes:
        started: Seconds of the import, of opening and of the first query.
    """

    def __init__(self, kind: type[Engine], folder: Path, queries: Path, core: int | None) -> None:
        self.name = kind.name
        self._process = subprocess.Popen(
            _command("serve", kind.name, folder, queries),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **SINGLE},
            preexec_fn=_holding(core),
        )
        self.started = self._read()

    def ask(self, **order: Any) -> dict[str, Any]:
        """Give an order and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Not terminated politely: some databases wait for threads that never end.
        self._process.kill()
        self._process.wait()


def _holding(core: int | None) -> Callable[[], None] | None:
    """What a child does first to stay on one core."""
    return None if core is None else lambda: os.sched_setaffinity(0, {core})


def _command(what: str, *arguments: object) -> list[str]:
    script = Path(__file__).with_name("worker.py")
    return [sys.executable, str(script), what, *map(str, arguments)]


# Building


def slug(name: str) -> str:
    """A name as a folder has it."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def built(kind: type[Engine], data: Set, plan: Plan) -> dict[str, Any]:
    """Where the index of an engine is and what it took; it is built if it is not there yet."""
    place = _place(data, plan) / slug(kind.name)
    facts = place / "built.json"
    if facts.exists():
        return {**json.loads(facts.read_text()), "folder": place / "index"}
    shutil.rmtree(place, ignore_errors=True)
    (place / "index").mkdir(parents=True)
    source = _kept(data.base, _place(data, plan) / "base.f32.npy")
    command = _command("build", kind.name, source, place / "index")
    done = subprocess.run(
        ["nice", "-n", str(plan.nice), *command],
        capture_output=True,
        text=True,
        env={**os.environ, **SINGLE},
        preexec_fn=_holding(plan.core),
        check=False,
    )
    if done.returncode != 0 or not done.stdout:
        raise RuntimeError(f"{kind.name} did not build: {done.stderr[-1500:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    found["disk"] = disk_bytes(place / "index")
    facts.write_text(json.dumps(found))
    return {**found, "folder": place / "index"}


def _place(data: Set, plan: Plan) -> Path:
    return plan.cache / f"{data.name.rpartition('-')[0]}-{len(data.base)}"


def _kept(vectors: Vectors, path: Path) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, vectors)
    return path


# Measuring


@dataclass(slots=True)
class Contender:
    """One engine in a run."""

    kind: type[Engine]
    facts: dict[str, Any]
    worker: Worker
    points: list[Point] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)


def run(report: Report, kinds: Sequence[type[Engine]], data: Set, plan: Plan) -> list[Contender]:
    """Build what is missing, then measure all in turns."""
    count, dim = data.base.shape
    report.title(f"{data.name}: {count:,} x {dim}, {len(data.queries):,} queries, one thread")
    ready: list[tuple[type[Engine], dict[str, Any]]] = []
    for kind in kinds:
        try:
            ready.append((kind, built(kind, data, plan)))
        except RuntimeError as error:
            report.line(str(error))
            continue
        report.line(f"{kind.name}: built in {ready[-1][1]['build_s']:.1f} s")
    queries = _kept(data.queries, _place(data, plan) / f"{data.name}-{len(data.queries)}.npy")
    with ExitStack() as stack:
        contenders = []
        for kind, facts in ready:
            try:
                worker = stack.enter_context(_opened(kind, facts, queries, plan))
                contenders.append(Contender(kind, facts, worker))
                _explore(contenders[-1], data, plan)
            except RuntimeError as error:
                report.line(f"left out: {error}")
                contenders = [found for found in contenders if found.kind is not kind]
        _rounds(contenders, plan)
        for contender in contenders:
            contender.memory = contender.worker.ask(memory=True)
    return contenders


def _opened(kind: type[Engine], facts: dict[str, Any], queries: Path, plan: Plan) -> Worker:
    """A worker; how long fresh processes take is kept among the facts."""
    starts = []
    for _ in range(plan.fresh - 1):
        with Worker(kind, facts["folder"], queries, plan.core) as worker:
            starts.append(worker.started)
    worker = Worker(kind, facts["folder"], queries, plan.core)
    starts.append(worker.started)
    for part in worker.started:
        facts[part] = statistics.median(start[part] for start in starts)
    return worker


def _explore(contender: Contender, data: Set, plan: Plan) -> None:
    """Try every setting on some queries, and those that are worth timing on all of them."""
    for k in plan.depths:
        settings = contender.kind().settings()
        tried = [_try(contender, data, setting, k, _TRIED) for setting in settings]
        contender.points += [
            _try(contender, data, point.setting, k, len(data.queries)) for point in worth(tried)
        ]


def _try(contender: Contender, data: Set, setting: Setting, k: int, queries: int) -> Point:
    answer = contender.worker.ask(
        setting=setting, k=k, queries=queries, seconds=queries * _LONGEST, rows=True
    )
    answered = len(answer["rows"])
    # One pass is not enough to go by the clock.
    rate = answered / answer["cpu_s"]
    return Point(setting, k, data.recall(answer["rows"], k), rate, answered=answered)


def worth(points: Sequence[Point]) -> list[Point]:
    """The fastest point of each hundredth of recall, near the front and near the levels.

    The neighbours of a level stay however slow they seem: the rounds are to judge them.
    """
    bins: dict[int, Point] = {}
    for point in sorted(points, key=lambda point: point.qps):
        bins[int(point.recall * 100)] = point
    ordered = sorted(bins.values(), key=lambda point: point.recall)
    wanted = {
        i
        for i, point in enumerate(ordered)
        if _WINDOW[0] <= point.recall <= _WINDOW[1]
        and not any(
            other.recall >= point.recall and other.qps > _SLACK * point.qps for other in points
        )
    }
    for level in LEVELS:
        above = sum(point.recall < level for point in ordered)
        wanted |= {i for i in (above - 1, above) if 0 <= i < len(ordered)}
    return [ordered[i] for i in sorted(wanted)]


def _rounds(contenders: Sequence[Contender], plan: Plan) -> None:
    """Time the points of all contenders in turns: the first point of each, then the second."""
    order: dict[str, tuple[Contender, Point]] = {}
    for number in range(max((len(found.points) for found in contenders), default=0)):
        for found in contenders:
            if number < len(found.points):
                order[f"{found.kind.name} {number}"] = found, found.points[number]
    latencies: dict[str, list[list[float]]] = {name: [] for name in order}
    used: dict[str, list[float]] = {name: [] for name in order}

    def once(name: str) -> float:
        contender, point = order[name]
        answer = contender.worker.ask(
            setting=point.setting, k=point.k, queries=10**9, seconds=plan.seconds, rows=False
        )
        taken: list[float] = answer["seconds"]
        latencies[name].append(taken)
        used[name].append(len(taken) / answer["cpu_s"])
        return len(taken) / sum(taken)

    def at_once(name: str) -> float:
        contender, point = order[name]
        answer = contender.worker.ask(
            setting=point.setting, k=point.k, at_once=True, seconds=plan.seconds
        )
        return float(answer["queries"] / answer["seconds"])

    rates = alternate(plan.rounds, {name: partial(once, name) for name in order})
    together = alternate(plan.rounds, {name: partial(at_once, name) for name in order})
    for name, (_, point) in order.items():
        point.qps = statistics.median(rates[name])
        point.many_qps = statistics.median(together[name])
        point.cpu_qps = statistics.median(used[name])
        shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
        for part, share in shares.items():
            middle = statistics.median(percentile(taken, share) for taken in latencies[name])
            setattr(point, part, middle)


# Reporting


def at(points: Sequence[Point], level: float, rate: str = "qps") -> float | None:
    """Queries a second at a recall, or None where the points do not reach it.

    Interpolated between the two neighbouring points of the front, linear in the logarithm of the
    speed. An engine that is better than asked at its fastest is given that speed, as it could not
    use less recall to be faster.

    Args:
        points: Of one engine and one depth.
        level: The recall.
        rate: Which speed, one of `RATES`.
    """
    front = _front(points, rate)
    if not front or front[-1].recall < level:
        return None
    above = next(i for i, point in enumerate(front) if point.recall >= level)
    right, high = front[above], getattr(front[above], rate)
    if above == 0:
        return float(high)
    left, low = front[above - 1], getattr(front[above - 1], rate)
    share = (level - left.recall) / (right.recall - left.recall)
    return math.exp((1 - share) * math.log(low) + share * math.log(high))


def _front(points: Sequence[Point], rate: str = "qps") -> list[Point]:
    """The points that none beats in both recall and speed, by recall."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.recall, -getattr(point, rate))):
        if not front or getattr(point, rate) > getattr(front[-1], rate):
            front.append(point)
    return front[::-1]


def tell(report: Report, contenders: Sequence[Contender], data: Set, plan: Plan) -> None:
    """Print the tables and write their JSON lines."""
    context = {"set": data.name, "count": len(data.base), "dim": data.base.shape[1]}
    for contender in contenders:
        for point in contender.points:
            report.figure(
                "approximate point",
                **context,
                engine=contender.kind.name,
                version=contender.facts["version"],
                setting=point.setting,
                k=point.k,
                recall=point.recall,
                qps=point.qps,
                cpu_qps=point.cpu_qps,
                many_qps=point.many_qps,
                p50_us=point.p50 * US,
                p95_us=point.p95 * US,
                p99_us=point.p99 * US,
                recall_over=point.answered,
                rounds=plan.rounds,
            )
    for k in plan.depths:
        _summary(report, contenders, context, k)


def _summary(
    report: Report, contenders: Sequence[Contender], context: dict[str, Any], k: int
) -> None:
    """One line per engine, the fastest at the first level on top."""
    head = [f"k = {k}"]
    head += [f"{title} at {level}" for title in RATES.values() for level in LEVELS]
    head += ["p50", "p95", "p99 us", "build s", "cpu s", "disk MB", "memory MB"]
    head += ["open ms", "first ms", "recall at setting"]
    lines = []
    for found in contenders:
        points = [point for point in found.points if point.k == k]
        if points:
            rates = [at(points, level, rate) for rate in RATES for level in LEVELS]
            lines.append((rates[0] or 0.0, _row(found, points, rates)))
            _write(report, found, rates, {**context, "k": k})
    rows = [head, *(row for _, row in sorted(lines, key=lambda line: -line[0]))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    report.line("")
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        report.line("  ".join([row[0].ljust(widths[0]), *cells[1:-1], row[-1]]))


def _row(found: Contender, points: Sequence[Point], rates: Sequence[float | None]) -> list[str]:
    facts, front = found.facts, _front(points)
    shown = next((point for point in front if point.recall >= LEVELS[0]), front[-1])
    setting = " ".join(f"{name} {value}" for name, value in shown.setting.items())
    return [
        found.kind.name,
        *("-" if rate is None else f"{rate:,.0f}" for rate in rates),
        *(f"{value * US:,.0f}" for value in (shown.p50, shown.p95, shown.p99)),
        f"{facts['build_s']:.1f}",
        f"{facts['build_cpu_s']:.1f}",
        f"{facts['disk'] * MB:.0f}",
        f"{found.memory['rss'] * MB:.0f}",
        f"{facts['open_s'] * MS:.1f}",
        f"{facts['first_s'] * MS:.1f}",
        f"{shown.recall:.4f} {setting}",
    ]


def _write(
    report: Report, found: Contender, rates: Sequence[float | None], context: dict[str, Any]
) -> None:
    facts = found.facts
    names = [f"{rate}_at_{level}" for rate in RATES for level in LEVELS]
    report.figure(
        "approximate summary",
        **context,
        engine=found.kind.name,
        version=facts["version"],
        **dict(zip(names, rates, strict=True)),
        build_s=facts["build_s"],
        build_cpu_s=facts["build_cpu_s"],
        disk_bytes=facts["disk"],
        resident_bytes=found.memory["rss"],
        resident_grown_bytes=found.memory["grown"],
        import_ms=facts["import_s"] * MS,
        open_ms=facts["open_s"] * MS,
        first_ms=facts["first_s"] * MS,
    )


def picture(contenders: Sequence[Contender], data: Set, plan: Plan, path: Path) -> None:
    """Draw the curves of the first depth."""
    k = plan.depths[0]
    curves = {}
    for found in contenders:
        front = _front([point for point in found.points if point.k == k])
        curves[found.kind.name] = [(point.recall, point.qps) for point in front]
    draw(curves, f"{data.name}, {len(data.base):,} x {data.base.shape[1]}, recall@{k}", path)
