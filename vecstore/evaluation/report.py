"""What came out? The figures of one encoder or two, as dicts, as tables and as markdown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vecstore.evaluation.intervals import CONFIDENCE, Interval
from vecstore.evaluation.labelled import Pairs, Retrieval
from vecstore.evaluation.retrieval import Measured
from vecstore.evaluation.setups import Setup, Sweep
from vecstore.evaluation.similarity import Correlation

FIGURES = {"ndcg": "nDCG", "mrr": "MRR", "recall": "recall", "spearman": "Spearman"}


@dataclass(frozen=True, slots=True)
class EncoderFigures:
    """The figures of one encoder.

    Attributes:
        name: The encoder's name.
        fingerprint: Its fingerprint.
        dim: Numbers per vector.
        mrl: Prefixes that it was trained for.
        retrieval: What was measured of each setup.
        similarity: What was measured of each prefix.
    """

    name: str
    fingerprint: str
    dim: int
    mrl: tuple[int, ...]
    retrieval: list[Measured]
    similarity: list[Correlation]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the figures of single queries and pairs."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "dim": self.dim,
            "mrl": list(self.mrl),
            "retrieval": [measured.to_dict() for measured in self.retrieval],
            "similarity": [found.to_dict() for found in self.similarity],
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better the second encoder is.

    Attributes:
        figure: "ndcg", "mrr", "recall" or "spearman".
        setup: Where.
        first: The first encoder's.
        second: The second's.
        difference: second - first, drawn together over the same queries or pairs.
    """

    figure: str
    setup: str
    first: float
    second: float
    difference: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes, and whether the interval excludes 0."""
        return {
            "figure": self.figure,
            "setup": self.setup,
            "first": self.first,
            "second": self.second,
            "difference": self.difference.to_dict(),
            "excludes_zero": self.difference.excludes_zero,
        }


@dataclass(frozen=True, slots=True)
class Table:
    """A heading, the names of columns, and rows of cells."""

    title: str
    names: list[str]
    rows: list[list[str]]

    def to_markdown(self) -> str:
        """Return the table as markdown."""
        lines = [self.names, ["---"] * len(self.names), *self.rows]
        cells = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
        return f"{self.title}\n\n" + "\n".join(f"| {line} |" for line in cells) + "\n"


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation found. Figures are shares; tables show them times 100.

    Attributes:
        encoders: The figures of each encoder.
        differences: Where there are two, how they differ.
        sweep: What was measured.
        retrieval: The documents and queries, or None.
        pairs: The pairs, or None.
    """

    encoders: list[EncoderFigures]
    differences: list[Difference]
    sweep: Sweep
    retrieval: Retrieval | None
    pairs: Pairs | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "data": None if self.retrieval is None else self.retrieval.to_dict(),
            "pairs": None if self.pairs is None else self.pairs.to_dict(),
            "k": self.sweep.k,
            "seed": self.sweep.seed,
            "confidence": CONFIDENCE,
            "bootstrap_samples": self.sweep.samples,
            "encoders": [encoder.to_dict() for encoder in self.encoders],
            "differences": [difference.to_dict() for difference in self.differences],
        }

    def to_markdown(self) -> str:
        """Return the tables as markdown, for documents."""
        return "\n".join([table.to_markdown() for table in self.tables()] + self.notes())

    def tables(self) -> list[Table]:
        """Return the tables: for each encoder two of searches and one of pairs; the differences."""
        found = []
        for encoder in self.encoders:
            if encoder.retrieval:
                found += [self._quality(encoder), self._cost(encoder)]
            if encoder.similarity:
                found.append(self._similarity(encoder))
        if self.differences:
            found.append(self._differences())
        return found

    def notes(self) -> list[str]:
        """Return what has to be known of the figures, a line each."""
        notes = []
        data = self.retrieval
        if data is not None and data.left_out:
            notes.append(f"{data.left_out:,} queries without a relevant document were left out.")
        if data is not None and data.unknown:
            notes.append(
                f"{data.unknown:,} judgements are of documents that are not there; they count as"
                " not found."
            )
        if any(part is not None and part.sampled for part in (data, self.pairs)):
            notes.append("A sample was measured; figures of all documents are lower.")
        bare = {
            one.setup.label
            for encoder in self.encoders
            for one in encoder.retrieval
            if one.setup.index not in (None, "flat") and one.compiled is None
        }
        if bare:
            labels = ", ".join(sorted(bare))
            notes.append(f"So few documents have no index: all were compared under {labels}.")
        least = [encoder.retrieval[0].ceiling for encoder in self.encoders if encoder.retrieval]
        if least and min(least) < 0.9995:
            share = _percent(min(least))
            notes.append(f"Equal scores in any order: by id exact search has {share} of itself.")
        if any(one.compiled is False for encoder in self.encoders for one in encoder.retrieval):
            notes.append("Compiled search was not there yet; `vecstore warm` makes it.")
        return notes

    def _quality(self, encoder: EncoderFigures) -> Table:
        data, k = self.retrieval, self.sweep.k
        assert data is not None
        depth = max(one.depth for one in encoder.retrieval)
        deeper = depth > k
        names = ["search", f"nDCG@{k}", "95 %", "change", f"MRR@{k}", f"recall@{k}"]
        whole = Setup(encoder.dim)
        rows = []
        for one in encoder.retrieval:
            row = [
                one.setup.label,
                _percent(one.ndcg.value),
                _bounds(one.ndcg),
                "" if one.setup == whole else _change(one.change),
                _percent(one.mrr.value),
                _percent(one.recall.value),
            ]
            # A shortlist may not be as long.
            deep = _percent(one.deep_recall.value) if one.depth == depth else ""
            rows.append([*row, deep] if deeper else row)
        counts = f"{len(data.ids):,} documents, {len(data.queries):,} queries"
        title = f"{encoder.name} on {data.name}: {counts}"
        return Table(title, [*names, f"recall@{depth}"] if deeper else names, rows)

    def _cost(self, encoder: EncoderFigures) -> Table:
        assert self.retrieval is not None
        names = ["search", f"same {self.sweep.k}", "bytes", "compared", "ms", "queries/s"]
        rows = [
            [
                one.setup.label,
                _percent(one.agreement.value),
                f"{one.stored:,.0f}",
                f"{one.compared:,.0f}",
                "" if one.times is None else f"{one.times.busy:.2f}",
                "" if one.times is None else f"{one.times.rate:,.0f}",
            ]
            for one in encoder.retrieval
        ]
        return Table(f"{encoder.name} on {self.retrieval.name}: bytes and time", names, rows)

    def _similarity(self, encoder: EncoderFigures) -> Table:
        assert self.pairs is not None
        rows = [
            [str(one.dims), _percent(one.spearman.value), _bounds(one.spearman)]
            for one in encoder.similarity
        ]
        title = f"{encoder.name} on {self.pairs.name}: {len(self.pairs.scores):,} pairs"
        return Table(title, ["dims", "Spearman", "95 %"], rows)

    def _differences(self) -> Table:
        first, second = (encoder.name for encoder in self.encoders)
        names = ["figure", "search", first, second, "difference", "95 %", "more than chance"]
        rows = [
            [
                FIGURES[one.figure] + ("" if one.figure == "spearman" else f"@{self.sweep.k}"),
                one.setup,
                _percent(one.first),
                _percent(one.second),
                _signed(one.difference.value),
                _bounds(one.difference, _signed),
                "yes" if one.difference.excludes_zero else "no",
            ]
            for one in self.differences
        ]
        return Table(f"{second} against {first}", names, rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(share: float) -> str:
    # Adding 0 turns -0.0 into 0.0.
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def _bounds(interval: Interval, shown: Callable[[float], str] = _percent) -> str:
    return f"{shown(interval.low)}..{shown(interval.high)}"


def _change(interval: Interval) -> str:
    return f"{_signed(interval.value)} ({_bounds(interval, _signed)})"
