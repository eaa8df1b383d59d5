"""How does quality fall as vectors get smaller? A picture of a report, for people."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vecstore.errors import MissingExtraError, StoreError, UsageError
from vecstore.evaluation.intervals import Interval
from vecstore.evaluation.report import EncoderFigures, Report
from vecstore.evaluation.retrieval import Measured
from vecstore.evaluation.setups import NUMBER_BYTES

# Drawn in this order, each with what a reader tells it by.
LOOKS = {
    "float32": {"marker": "o", "linestyle": "-"},
    "float16": {"marker": "D", "linestyle": "--"},
    "int8": {"marker": "v", "linestyle": ":"},
    "tiers": {"marker": "s", "linestyle": "none", "markerfacecolor": "white"},
    "index": {"marker": "^", "linestyle": "none", "markerfacecolor": "white"},
}
FLOAT = NUMBER_BYTES["float32"]
# Labels of neighbouring points lean away from each other.
LEANINGS = {
    "float32": (7, -13),
    "float16": (7, -13),
    "int8": (-7, 6),
    "tiers": (8, -13),
    "index": (8, 5),
}

Point = tuple[float, Interval, str]


def draw(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a PNG: quality against the bytes of each vector that a search compares.

    Args:
        report: What to draw.
        path: The file to write; its suffix tells the format, as .png, .svg or .pdf.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: The suffix is of no format that matplotlib writes.
        StoreError: The file cannot be written.
    """
    figure_of = check_picture(path)
    panels = [bool(report.retrieval), bool(report.pairs)]
    figure = figure_of(figsize=(2.5 + 4.8 * sum(panels), 5), layout="constrained")
    axes = iter(figure.subplots(1, sum(panels), squeeze=False)[0])
    if report.retrieval is not None:
        title = f"{report.retrieval.name}, nDCG@{report.sweep.k} x 100"
        _panel(next(axes), title, [_retrieval(one) for one in report.encoders], report)
    if report.pairs is not None:
        title = f"{report.pairs.name}, Spearman x 100"
        _panel(next(axes), title, [_similarity(one) for one in report.encoders], report)
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from None


def check_picture(path: str | os.PathLike[str]) -> Any:
    """Return matplotlib's Figure, which needs no display.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: The suffix is of no format that it writes.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError(
            "a picture needs matplotlib: pip install 'vecstore[plot]'"
        ) from None
    kinds = FigureCanvasAgg.get_supported_filetypes()
    if Path(path).suffix.lower().removeprefix(".") not in kinds:
        raise UsageError(f"{path}: a picture is one of .{', .'.join(sorted(kinds))}")
    return Figure


def _panel(
    axes: Any, title: str, encoders: Sequence[dict[str, list[Point]]], report: Report
) -> None:
    several = len(encoders) > 1
    sizes: set[float] = set()
    for number, (series, encoder) in enumerate(zip(encoders, report.encoders, strict=True)):
        for kind, points in series.items():
            sizes |= {size for size, _, _ in points}
            label = f"{encoder.name}, {kind}" if several else kind
            # One encoder's kinds have a colour each; of several, each encoder has one.
            color = number if several else list(LOOKS).index(kind)
            _series(axes, points, kind, f"C{color}", label)
    ticks = sorted(sizes)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{size:,.0f}" for size in ticks], rotation=45)
    axes.minorticks_off()
    axes.margins(x=0.12, y=0.08)
    axes.set_xlabel("bytes of each vector that a search compares")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    if several or len(encoders[0]) > 1:
        axes.legend(fontsize=8, loc="lower right")


def _series(axes: Any, points: list[Point], kind: str, color: str, label: str) -> None:
    points = sorted(points, key=lambda point: point[0])
    values = [100 * interval.value for _, interval, _ in points]
    bounds = [
        [100 * (interval.value - interval.low) for _, interval, _ in points],
        [100 * (interval.high - interval.value) for _, interval, _ in points],
    ]
    axes.errorbar(
        [size for size, _, _ in points],
        values,
        yerr=bounds,
        color=color,
        label=label,
        capsize=2,
        elinewidth=0.7,
        alpha=0.9,
        **LOOKS[kind],
    )
    for (size, _, name), value in zip(points, values, strict=True):
        axes.annotate(
            name,
            (size, value),
            xytext=LEANINGS[kind],
            textcoords="offset points",
            ha="right" if LEANINGS[kind][0] < 0 else "left",
            fontsize=8,
            color=color,
        )


def _retrieval(encoder: EncoderFigures) -> dict[str, list[Point]]:
    """The points of each kind of setup."""
    series: dict[str, list[Point]] = {}
    for one in encoder.retrieval:
        kind, name = _kind(one)
        series.setdefault(kind, []).append((one.compared, one.ndcg, name))
    return {kind: series[kind] for kind in LOOKS if kind in series}


def _kind(one: Measured) -> tuple[str, str]:
    setup = one.setup
    if setup.first is not None:
        return "tiers", f"{setup.first} → {setup.dims}"
    if setup.index is not None:
        codes = "" if setup.codes is None else " {} x {}".format(*setup.codes)
        return "index", f"{setup.index}{codes}"
    return setup.precision, str(setup.dims)


def _similarity(encoder: EncoderFigures) -> dict[str, list[Point]]:
    points = [(float(FLOAT * one.dims), one.spearman, str(one.dims)) for one in encoder.similarity]
    return {"float32": points}
