"""How good is an encoder on labelled data? Embeds everything once and measures every setup."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vecstore import bars, encoders
from vecstore.database import EncoderLike
from vecstore.encoders import Encoder
from vecstore.errors import UsageError
from vecstore.evaluation import retrieval as searching
from vecstore.evaluation import similarity
from vecstore.evaluation.embedding import Vectors, check_folder, embed
from vecstore.evaluation.labelled import Pairs, Retrieval
from vecstore.evaluation.report import Difference, EncoderFigures, Report
from vecstore.evaluation.setups import Setup, Sweep
from vecstore.spec import show


def evaluate(
    encoder: EncoderLike | None = None,
    *,
    retrieval: Retrieval | None = None,
    pairs: Pairs | None = None,
    against: EncoderLike | None = None,
    sweep: Sweep | None = None,
    vectors: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Report:
    """Measure an encoder on labelled data, or two side by side.

    Every text is embedded once, at full length; each setup of the sweep is then measured on a
    collection of its own, in memory.

    Args:
        encoder: What `db.collection` takes; by default the bundled model.
        retrieval: Documents and queries, as `read_retrieval` returns them.
        pairs: Scored pairs, as `read_pairs` returns them.
        against: A second encoder, compared with the first on the same data.
        sweep: Which dims, precisions, tiers and codes; by default the encoder's own prefixes.
        vectors: A folder that keeps vectors for the next run on the same texts.
        progress: Show progress bars on stderr; by default if that is a terminal.

    Raises:
        UsageError: There is nothing to measure on, or a setup does not fit the encoders or data.
        EncoderError: An encoder cannot be loaded, or failed.
        StoreError: The folder of vectors cannot be written to.
    """
    for data, kind in ((retrieval, Retrieval), (pairs, Pairs)):
        if not isinstance(data, kind | None):
            raise UsageError(f"{show(data)} is no {kind.__name__}")
    if retrieval is None and pairs is None:
        raise UsageError("there is nothing to measure on: give retrieval=, pairs=, or both")
    chosen = sweep or Sweep()
    found = [encoders.resolve(encoder)]
    if against is not None:
        found.append(encoders.resolve(against))
    chosen.check_lengths(max(one.dim for one in found))
    if retrieval is not None and chosen.k > len(retrieval.ids):
        raise UsageError(f"k={chosen.k}, but {retrieval.name} has {len(retrieval.ids):,} documents")
    setups = [chosen.setups(one.dim, one.mrl) for one in found]
    folder = None if vectors is None else Path(vectors)
    if folder is not None:
        # Before the texts are embedded, which may take long.
        check_folder(folder)
    figures = [
        _Run(one, retrieval, pairs, chosen, folder, progress).figures(listed)
        for one, listed in zip(found, setups, strict=True)
    ]
    differences = list(_differences(figures, chosen, pairs)) if against is not None else []
    return Report(figures, differences, chosen, retrieval, pairs)


class _Run:
    """One encoder on the data."""

    def __init__(
        self,
        encoder: Encoder,
        retrieval: Retrieval | None,
        pairs: Pairs | None,
        sweep: Sweep,
        folder: Path | None,
        progress: bool | None,
    ) -> None:
        self._encoder = encoder
        self._retrieval = retrieval
        self._pairs = pairs
        self._sweep = sweep
        self._folder = folder
        self._progress = progress

    def figures(self, setups: list[Setup]) -> EncoderFigures:
        encoder, data, pairs = self._encoder, self._retrieval, self._pairs
        measured: list[searching.Measured] = []
        correlations: list[similarity.Correlation] = []
        if pairs is not None:
            count = 2 * len(pairs.scores)
            with bars.counting(self._progress, count, "embedding pairs", "texts") as advance:
                both = embed(
                    encoder,
                    [*pairs.first, *pairs.second],
                    "document",
                    named=pairs.named,
                    folder=self._folder,
                    advance=advance,
                )
            halves = both[: count // 2], both[count // 2 :]
            sizes = list(dict.fromkeys(setup.dims for setup in setups if setup.exact))
            correlations = similarity.correlate(pairs, *halves, sizes, self._sweep)
        if data is not None:
            documents, queries = self._embedded(data)
            with bars.counting(self._progress, len(setups), "measuring", "setups") as advance:
                measured = searching.measure(data, documents, queries, setups, self._sweep, advance)
        return EncoderFigures(
            name=encoder.name,
            fingerprint=encoder.fingerprint,
            dim=encoder.dim,
            mrl=tuple(encoder.mrl),
            retrieval=measured,
            similarity=correlations,
        )

    def _embedded(self, data: Retrieval) -> tuple[Vectors, Vectors]:
        total = len(data.documents) + len(data.queries)
        with bars.counting(self._progress, total, "embedding", "texts") as advance:
            queries = embed(
                self._encoder,
                data.queries,
                "query",
                named=data.named_query,
                folder=self._folder,
                advance=advance,
            )
            documents = embed(
                self._encoder,
                data.documents,
                "document",
                named=data.named,
                folder=self._folder,
                advance=advance,
            )
        return documents, queries


# Two encoders


def _differences(
    figures: list[EncoderFigures], sweep: Sweep, pairs: Pairs | None
) -> Iterator[Difference]:
    """Every figure that both have, of the same setup, and of whole vectors of each."""
    first, second = figures
    setups = {one.setup: one for one in first.retrieval}
    others = {one.setup: one for one in second.retrieval}
    matches = [(setup, setup) for setup in setups if setup in others]
    whole = Setup(first.dim), Setup(second.dim)
    if first.dim != second.dim and whole[0] in setups and whole[1] in others:
        matches.insert(0, whole)
    for setup, other in matches:
        label = setup.label if setup == other else f"{setup.label} and {other.label}"
        one, two = setups[setup], others[other]
        for figure in ("ndcg", "mrr", "recall"):
            difference = sweep.interval(two.each[figure] - one.each[figure])
            values = one.each[figure].mean(), two.each[figure].mean()
            yield Difference(figure, label, float(values[0]), float(values[1]), difference)
    if pairs is not None:
        yield from _correlated(first, second, sweep, pairs)


def _correlated(
    first: EncoderFigures, second: EncoderFigures, sweep: Sweep, pairs: Pairs
) -> Iterator[Difference]:
    ones = {one.dims: one for one in first.similarity}
    others = {one.dims: one for one in second.similarity}
    matches = [(size, size) for size in ones if size in others]
    if first.dim != second.dim and first.dim in ones and second.dim in others:
        matches.insert(0, (first.dim, second.dim))
    for size, other in matches:
        one, two = ones[size], others[other]
        label = str(size) if size == other else f"{size} and {other}"
        difference = similarity.difference(pairs, one, two, sweep)
        yield Difference("spearman", label, one.spearman.value, two.spearman.value, difference)
