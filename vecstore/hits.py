"""What comes back? Records, hits, how they were found, how good they are. All own their memory."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, overload

import numpy as np
from numpy.typing import NDArray

from vecstore.errors import MissingExtraError, UsageError
from vecstore.spec import Id

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from rich.table import Table

# Columns of a printed table, and letters of a value that are looked at for it.
WIDTH = 110
MAX_SHOWN = 400

Complete = Literal["exact", "approximate", "exhausted"]
Method = Literal["scan", "rows", "index", "buckets", "none"]
# Attributes of hits by their names, a list for each: hits cost more to make than to find.
Columns = dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a record's text that has a vector of its own.

    Attributes:
        index: Which of the record's passages it is, from 0 on.
        start: Where it begins in the text, in characters.
        end: Where it ends.
        text: The piece; None in a record without its text.
    """

    index: int
    start: int
    end: int
    text: str | None = None

    @classmethod
    def of(cls, text: str | None, index: int, start: int, end: int) -> Self:
        """The passage of a text."""
        return cls(index, start, end, None if text is None else text[start:end])

    def to_dict(self) -> dict[str, Any]:
        """Return index, start and end, and the text where present, as a dict."""
        return _present(self, ("index", "start", "end", "text"))


class Facet(NamedTuple):
    """A value of a field, and how many records have it."""

    value: Any
    records: int


class Deleted(int):
    """How many records were deleted.

    Attributes:
        given_back: Bytes by which the file became shorter, where that was asked for.
    """

    given_back: int

    def __new__(cls, records: int, given_back: int = 0) -> Self:
        """A number of records."""
        made = super().__new__(cls, records)
        made.given_back = given_back
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One stored record.

    `text`, `metadata` and `vector` are None where they were not asked for or not stored;
    `vector` is float32 of shape (dim,), as the user gave it, or uint8 of shape (dim / 8,) where
    the collection holds binary vectors. `passages` are those of a text that was cut, else (); then
    `vector` holds theirs, float32 of shape (passages, dim). `expires_at` is in UTC.
    """

    id: Id
    text: str | None = None
    metadata: dict[str, Any] | None = None
    vector: NDArray[np.float32] | NDArray[np.uint8] | None = field(default=None, compare=False)
    passages: tuple[Passage, ...] = field(default=(), repr=False, compare=False)
    expires_at: datetime | None = None
    order: int = field(default=-1, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return id, and text, metadata, vector and expires_at where present, as a dict."""
        return _present(self, ("id", "text", "metadata", "vector", "expires_at"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One answer of a search.

    `score` is larger for better answers, whatever the metric: the cosine similarity, the inner
    product, minus the Euclidean distance, or minus the number of differing bits. `distance` is
    smaller for better answers: 1 - cosine, minus the inner product, the Euclidean distance, or the
    number of differing bits.

    `passage` is the best one of a record that has passages, else None; score, distance and `vector`
    are its own. `expires_at` comes with the metadata.
    """

    id: Id
    score: float
    distance: float
    text: str | None = None
    metadata: dict[str, Any] | None = None
    vector: NDArray[np.float32] | NDArray[np.uint8] | None = field(default=None, compare=False)
    passage: Passage | None = None
    expires_at: datetime | None = None
    order: int = field(default=-1, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return id, score, distance, and what else is present, as a dict."""
        names = ("id", "score", "distance", "text", "metadata", "vector", "passage", "expires_at")
        found = _present(self, names)
        if self.passage is not None:
            found["passage"] = self.passage.to_dict()
        return found

    @property
    def shown_text(self) -> str | None:
        """What a table shows of the text: the passage, if it has one."""
        passage = self.passage
        return self.text if self.text is None or passage is None else passage.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a search was carried out.

    Attributes:
        method: "scan" (every row of the collection), "rows" (the matching rows only), "index" (rows
            whose codes are near), "buckets" (rows whose bits nearly agree in a band) or "none".
        rows: Living rows of the collection.
        allowed: Rows that the filter lets through; equals `rows` without a filter.
        expected_recall: The recall that the plan was chosen for; 1.0 for an exact method.
        reason: Why this method, in a sentence.
        lists: Lists of the index that were scanned, or buckets that were looked into.
        scanned: Rows whose codes, or bytes, were scanned, or that stood in these buckets.
        narrowed: Rows whose fine codes were looked at after that, or that bytes did not rule out at
            once.
        compared: Rows whose vectors were compared in the end.
    """

    method: Method
    rows: int
    allowed: int
    expected_recall: float
    reason: str
    lists: int = 0
    scanned: int = 0
    narrowed: int = 0
    compared: int = 0


class Hits(Sequence[Hit]):
    """The answers of one search, best first; a sequence that prints as a table.

    Attributes:
        complete: "exact" (these are the k best), "approximate", or "exhausted" (fewer than k:
            no further record qualifies).
    """

    __slots__ = ("_columns", "_counts", "_made", "_plan", "complete")

    def __init__(self, hits: Sequence[Hit], *, plan: Plan, complete: Complete) -> None:
        self._made: tuple[Hit, ...] | None = tuple(hits)
        self._columns = {
            item.name: [getattr(hit, item.name) for hit in self._made] for item in fields(Hit)
        }
        self._plan = plan
        self._counts: Sequence[int] | None = None
        self.complete = complete

    @classmethod
    def of(
        cls,
        columns: Columns,
        *,
        plan: Plan,
        complete: Complete,
        counts: Sequence[int] | None = None,
    ) -> Self:
        """Hits that are made when the first of them is asked for.

        Args:
            columns: Attributes of hits, "id" and "score" among them; lists of one length.
            plan: How the search was carried out.
            complete: As the attribute.
            counts: What the plan lacks: lists, rows scanned, rows narrowed and rows compared, and
                whatever else.
        """
        hits = cls.__new__(cls)
        hits._made, hits._columns = None, columns
        hits._plan, hits._counts = plan, counts
        hits.complete = complete
        return hits

    @property
    def plan(self) -> Plan:
        """How the search was carried out."""
        if self._counts is None:
            return self._plan
        lists, scanned, narrowed, compared, *_ = self._counts
        return replace(
            self._plan, lists=lists, scanned=scanned, narrowed=narrowed, compared=compared
        )

    @property
    def _hits(self) -> tuple[Hit, ...]:
        if self._made is None:
            names, values = self._columns.keys(), self._columns.values()
            rows = zip(*values, strict=True)
            self._made = tuple(Hit(**dict(zip(names, row, strict=True))) for row in rows)
        return self._made

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...

    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        return self._hits[index]

    def __len__(self) -> int:
        return len(self._columns["id"])

    def __iter__(self) -> Iterator[Hit]:
        return iter(self._hits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hits) and self._hits == other._hits

    __hash__ = None  # type: ignore[assignment]  # equal by content, like a list

    @property
    def ids(self) -> list[Id]:
        """The ids, best first."""
        return list(self._columns["id"])

    @property
    def scores(self) -> NDArray[np.float64]:
        """The scores, float64 of shape (len(hits),), best first."""
        return np.array(self._columns["score"], dtype=np.float64)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one dict per hit."""
        return [hit.to_dict() for hit in self._hits]

    def to_arrow(self) -> pa.Table:
        """Return a pyarrow Table with a column per attribute of a hit.

        Raises:
            MissingExtraError: pyarrow is not installed.
            UsageError: A column has no type in Arrow, such as ids of both str and int.
        """
        try:
            import pyarrow
        except ImportError:
            raise MissingExtraError(
                "to_arrow needs pyarrow: pip install 'vecstore[arrow]'"
            ) from None
        try:
            return pyarrow.Table.from_pydict(self._shown())
        except (pyarrow.ArrowException, OverflowError) as error:
            raise UsageError(
                f"these hits have no Arrow types: {error}; use to_dicts, or include fewer columns"
            ) from error

    def to_pandas(self) -> pd.DataFrame:
        """Return a pandas DataFrame with a column per attribute of a hit.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtraError(
                "to_pandas needs pandas: pip install 'vecstore[pandas]'"
            ) from None
        return pandas.DataFrame(self._shown())

    def _shown(self) -> Columns:
        # One set of columns for all rows: a hit without text still has the column.
        names = ["id", "score", "distance"]
        names += [
            name
            for name in ("text", "metadata", "vector", "expires_at")
            if any(value is not None for value in self._columns.get(name, ()))
        ]
        shown = {name: self._columns[name] for name in names}
        passages = self._columns.get("passage", ())
        if any(value is not None for value in passages):
            shown["passage"] = [value and value.to_dict() for value in passages]
        return shown

    def __repr__(self) -> str:
        return f"Hits({self.ids!r}, complete={self.complete!r})"

    def __str__(self) -> str:
        from rich.table import Table
        from rich.text import Text

        rows = [
            [
                one_line(str(value)[:MAX_SHOWN])
                for value in (hit.id, hit.shown_text or "", hit.metadata or "")
            ]
            for hit in self._hits
        ]
        table = Table(box=None, pad_edge=False)
        table.add_column("score", justify="right")
        for name in ("id", "text", "metadata"):
            table.add_column(name)
        widths = _widths(rows)
        for hit, row in zip(self._hits, rows, strict=True):
            cut = (_shorten(value, width) for value, width in zip(row, widths, strict=True))
            table.add_row(f"{hit.score:.4f}", *map(Text, cut))
        return _printed(table)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """How one search was carried out, and what it took; prints as a table.

    Attributes:
        method: "scan" (every row), "rows" (the matching rows only), "index", "buckets" or
            "none".
        reason: Why this method, in a sentence.
        index: The kind of index that the collection is to have.
        codes: Its schedule: [dims, bits] of its short codes and of its fine codes; empty while
            there is none.
        lists: Lists of the index in all; of binary vectors bands.
        lists_scanned: Lists whose codes were scanned, or buckets that were looked into.
        rows: Living rows of the collection.
        allowed: Rows that the filter lets through.
        tail: Living rows that are in no list; every search through the index scans them.
        scanned: Rows whose codes, or bytes, were scanned; in whole tiles of 32, or blocks.
        narrowed: Rows whose fine codes were looked at, or that bytes did not rule out at once.
        compared: Rows whose vectors were compared.
        expected_recall: The recall that the plan was chosen for; 1.0 for an exact method.
        answered_by: "compiled" or "numpy".
        kernels: What is known of the compiled search in this process: "compiled", "compiling" or
            "numpy" (not there, or not asked for yet).
        milliseconds: What each stage took: "encode" (texts), "resolve" (the filter), "plan",
            "buckets" (of binary vectors, and their rows), "coarse" (which lists), "scan", "settle"
            (float64 scores), "hydrate" (records). Stages that did not run, or whose result was
            known from an earlier search of the same version of the file, are left out.
        hits: The answers.
    """

    method: Method
    reason: str
    index: str
    codes: list[list[int]]
    lists: int
    lists_scanned: int
    rows: int
    allowed: int
    tail: int
    scanned: int
    narrowed: int
    compared: int
    expected_recall: float
    answered_by: Literal["compiled", "numpy"]
    kernels: Literal["compiled", "compiling", "numpy"]
    milliseconds: dict[str, float]
    hits: Hits = field(repr=False)

    @property
    def total_milliseconds(self) -> float:
        """What all stages took together."""
        return sum(self.milliseconds.values())

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the hits as plain values."""
        names = (item.name for item in fields(self) if item.name != "hits")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        from rich.table import Table
        from rich.text import Text

        waiting = " (the kernels are being compiled)" if self.kernels == "compiling" else ""
        spent = ", ".join(f"{stage} {took:.3f}" for stage, took in self.milliseconds.items())
        shapes = " and ".join(f"{dims:,} dims of {bits} bits" for dims, bits in self.codes)
        if self.method == "index":
            scanned = f"{self.lists_scanned:,} lists, the codes of {self.scanned:,} rows"
            narrowed = f"the fine codes of {self.narrowed:,} rows"
        elif self.method == "buckets":
            scanned, narrowed = f"{self.lists_scanned:,} buckets, {self.scanned:,} rows", "none"
        else:
            scanned = f"{self.scanned:,} rows with compiled code"
            narrowed = f"{self.narrowed:,} rows that their bytes did not rule out"
        lines = {
            "method": f"{self.method}: {self.reason}",
            "index": f"{self.index}, {self.lists:,} lists, {self.tail:,} rows in none of them",
            "codes": shapes or "none",
            "rows": f"{self.rows:,}, of which the filter allows {self.allowed:,}",
            "scanned": scanned,
            "narrowed": narrowed,
            "compared": f"the vectors of {self.compared:,} rows",
            "recall": f"{self.expected_recall:.3f} expected",
            "answered by": f"{self.answered_by}{waiting}",
            "milliseconds": f"{self.total_milliseconds:.3f} ({spent})",
        }
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, text in lines.items():
            table.add_row(name, Text(text))
        return _printed(table)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The recall of a collection as it was measured; prints as two lines.

    Attributes:
        recall: The mean recall over all queries: the share of the true k nearest that were found.
        low: The lower bound of that mean that holds with a confidence of 95 %.
        target: The recall that was wanted of the searches.
        queries: How many queries were asked.
        remembered: How many of these were not stored records, but queries asked lately.
        remembered_recall: The mean recall over those alone; None if there were none.
        k: How many neighbours of each.
        holds: Whether the mean reaches the target, for records and for queries asked lately alike.
        method: The method of the plan, as in `Explanation`.
        expected_recall: The recall that the plan was chosen for.
    """

    recall: float
    low: float
    target: float
    queries: int
    remembered: int
    remembered_recall: float | None
    k: int
    holds: bool
    method: Method
    expected_recall: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def __str__(self) -> str:
        if not self.queries:
            return "there is no record to ask for: nothing was measured"
        verdict = "holds" if self.holds else "does not hold"
        lately = f"{self.remembered:,} of them asked lately"
        if self.remembered_recall is not None:
            lately += f" ({self.remembered_recall:.4f})"
        return (
            f"recall@{self.k} {self.recall:.4f}, at least {self.low:.4f} with 95 % confidence:"
            f" {self.target} {verdict}\n"
            f"{self.queries:,} queries, {lately}; method {self.method!r}, expected"
            f" {self.expected_recall:.4f}"
        )


def _printed(table: Table) -> str:
    from rich.console import Console

    out = io.StringIO()
    # Wide enough that nothing is left for the table to cut: it would begin with the ids.
    Console(file=out, width=4 * WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().split("\n"))


def _widths(rows: list[list[str]]) -> tuple[int, int, int]:
    """Share a line between ids, texts and metadata; texts get three fifths of what is scarce."""
    ids, texts, metadata = (
        max((len(row[column]) for row in rows), default=0) for column in range(3)
    )
    ids = min(ids, WIDTH // 3)
    room = WIDTH - len("0.1234  ") - ids - len("    ")
    if texts + metadata > room:
        metadata = min(metadata, max(room * 2 // 5, room - texts))
        texts = min(texts, room - metadata)
    return ids, texts, metadata


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "\u2026"


def one_line(value: object) -> str:
    """Make one line that cannot steer a terminal, whatever a record or a file name holds."""
    words = " ".join(str(value).split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in words)


def _present(value: Record | Hit | Passage, names: tuple[str, ...]) -> dict[str, Any]:
    items = ((name, getattr(value, name)) for name in names)
    return {name: item for name, item in items if item is not None}
