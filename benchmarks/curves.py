"""How do recall and speed trade against each other? One curve per engine, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def draw(curves: Mapping[str, Sequence[tuple[float, float]]], title: str, path: Path) -> None:
    """Write a PNG of recall against queries a second; needs matplotlib.

    Args:
        curves: By engine, pairs of recall and queries a second in the order of recall.
        title: The data and the depth.
        path: The file to write.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    marks = "osD^vP*X<>hp"
    for number, (name, points) in enumerate(curves.items()):
        own = name.startswith("vecstore")
        axes.plot(
            [recall for recall, _ in points],
            [rate for _, rate in points],
            marker=marks[number % len(marks)],
            color="black" if own else f"C{number % 10}",
            linewidth=2.5 if own else 1.2,
            linestyle="-" if number < 10 else "--",
            label=name,
        )
    axes.set_yscale("log")
    axes.set_xlim(0.85, 1.001)
    axes.set_xlabel("recall")
    axes.set_ylabel("queries a second, one thread")
    axes.set_title(title)
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
