"""How does a shell see answers? Tables that fit a line, and bars of progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vecstore import formats
from vecstore.hits import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vecstore.hits import Hit

# Pipes and log files have no width of their own.
PIPE_WIDTH = 160
MAX_SHOWN = 400
# How columns share a line that is too short for them.
SHARES = {"text": 3, "docstring": 4}


def console(*, stderr: bool = False) -> Console:
    """Where to print: stdout or stderr, without guesses about what is printed."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_WIDTH
    return made


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """Show progress on stderr where that is a terminal; yield what advances it."""
    from rich.progress import Progress

    out = console(stderr=True)
    with Progress(console=out, disable=not out.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def shown(value: object) -> str:
    """A value as a cell of a table."""
    return value if isinstance(value, str) else "" if value is None else formats.dumps(value)


def table(names: Sequence[str], rows: Iterable[Sequence[object]], width: int) -> Table:
    """Lay out rows so that no column vanishes: only the widest are shortened."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    cells = [names, *([one_line(shown(cell)[:MAX_SHOWN]) for cell in row] for row in rows)]
    natural = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    shares = [SHARES.get(name, 2) for name in names]
    widths = natural
    for unit in range(width, 0, -1):
        widths = [min(need, unit * share) for need, share in zip(natural, shares, strict=True)]
        if sum(widths) + 2 * len(names) <= width:
            break
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name, size in zip(names, widths, strict=True):
        made.add_column(name, width=size, overflow="ellipsis", no_wrap=True)
    for row in cells[1:]:
        made.add_row(*map(Text, row))
    return made


def hit_table(hits: Iterable[Hit], width: int) -> Table:
    """Hits as a table."""
    rows = [(f"{hit.score:.3f}", hit.id, hit.shown_text, hit.metadata) for hit in hits]
    return table(("score", "id", "text", "metadata"), rows, width)
