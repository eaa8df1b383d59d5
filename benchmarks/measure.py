"""How is something measured? Alternating rounds, medians, ratios, one JSON line per figure.

The machine may be busy with other things, so nothing is worth comparing but what ran in turns in
the same minutes: a figure is a ratio, and absolute times are its context.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Report:
    """Prints tables and writes what they hold as JSON lines."""

    def __init__(self, out: Path | None, *, quick: bool) -> None:
        self._out = out
        self.quick = quick

    def title(self, text: str) -> None:
        """Print a heading with the load of the machine."""
        load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
        print(f"\n## {text}\n   ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load {load})", flush=True)

    def line(self, text: str) -> None:
        """Print one line."""
        print(f"   {text}", flush=True)

    def figure(self, name: str, **values: Any) -> None:
        """Write one JSON line."""
        if self._out is None:
            return
        load = [round(value, 2) for value in os.getloadavg()]
        head = {"figure": name, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        context = {"cpus": os.cpu_count(), "python": platform.python_version(), "load": load}
        with self._out.open("a") as file:
            file.write(json.dumps({**head, **values, "quick": self.quick, **context}) + "\n")

    def target(self, name: str, value: float, limit: float, *, least: bool = False) -> None:
        """Print and write a figure that has a target: at most, or at least, the limit."""
        reached = value >= limit if least else value <= limit
        bound = "at least" if least else "at most"
        verdict = "reached" if reached else "MISSED"
        print(f"   => {name}: {value:.3g} (target: {bound} {limit:g}) {verdict}", flush=True)
        self.figure(name, value=value, limit=limit, bound=bound, reached=reached)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is at least this share of all values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def alternate(
    rounds: int, subjects: dict[str, Callable[[], float]], *, discard: int = 0
) -> dict[str, list[float]]:
    """Call each subject once per round, in turn, and return what they measured.

    Every other round goes backwards, so that no subject always follows the same one.
    """
    found: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + discard):
        names = list(subjects) if number % 2 == 0 else list(reversed(subjects))
        for name in names:
            value = subjects[name]()
            if number >= discard:
                found[name].append(value)
    return found


def paired(values: list[float], others: list[float]) -> float:
    """The median of the ratios of what was measured in the same rounds."""
    return statistics.median(a / b for a, b in zip(values, others, strict=True))


@contextmanager
def scratch(folder: Path | None) -> Iterator[Path]:
    """A folder on the disk that is measured; it is removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="vecstore-bench-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def child(code: Sequence[str]) -> dict[str, Any]:
    """Run a fresh interpreter that prints a JSON object in its last line, and return that.

    Bytecode is cached, as it is for an installed package.
    """
    hidden = ("PYTHONDONTWRITEBYTECODE", "PYTHONPROFILEIMPORTTIME")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def disk_bytes(path: Path) -> int:
    """Bytes that a file, or all files of a folder, take on the disk; lock files count too."""
    siblings = [found for found in path.parent.glob(path.name + "*") if found.is_file()]
    files = siblings if path.is_file() else [found for found in path.rglob("*") if found.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)


def written() -> tuple[int, int]:
    """Bytes that this process gave to write calls, and bytes of pages it made dirty; Linux only."""
    try:
        lines = Path("/proc/self/io").read_text().split()
    except OSError:
        return 0, 0
    return int(lines[lines.index("wchar:") + 1]), int(lines[lines.index("write_bytes:") + 1])
