"""How does a user see how far long work is? Bars on stderr, by default if that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


def shown(wanted: bool | None) -> bool:
    """Whether there is to be a bar: as is wanted, or if stderr is a terminal."""
    return sys.stderr.isatty() if wanted is None else wanted


@contextlib.contextmanager
def counting(
    wanted: bool | None, total: int | None, what: str = "storing", unit: str = "records"
) -> Iterator[Callable[[int], None]]:
    """Show how many records are stored, or units of other work done; yield what counts more."""
    if not shown(wanted):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{{task.fields[rate]}} {unit}/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(count: int) -> None:
            bar.advance(task, count)
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            bar.update(task, rate="" if speed is None else f"{speed:.0f}")

        yield advance


@contextlib.contextmanager
def sharing(wanted: bool | None, what: str) -> Iterator[Callable[[float], None]]:
    """Show the share of some work that is done; yield what is told that share, 0 to 1."""
    if not shown(wanted):
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)
