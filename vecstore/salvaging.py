"""How do the records of a damaged file come into a new one? Each with the very bits of its vectors.

The new file is filled as any other is, checked, and gets its name when it is whole.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vecstore import (
    attached,
    catalog,
    database,
    encoders,
    formats,
    ingest,
    layout,
    maintenance,
    records,
)
from vecstore.batches import Batch
from vecstore.catalog import Entry
from vecstore.check import Report
from vecstore.database import Database, EncoderLike
from vecstore.digests import Known
from vecstore.encoders import Encoder
from vecstore.errors import (
    AlreadyExistsError,
    CorruptionError,
    SpecError,
    VecstoreError,
)
from vecstore.layout import Packed
from vecstore.spec import MAX_NAME_BYTES, Id, encode_utf8
from vecstore.store import Transaction, path_name, remove, translated
from vecstore.wreck import Found, Kept, Wreck

# Records and vectors written at a time, and characters of their texts.
RECORDS, VECTORS, CHARACTERS = 1024, 4096, 8 << 20
# So many ids are named in a report.
NAMED = 100


@dataclass(slots=True)
class Salvaged:
    """What became of one collection.

    Attributes:
        name: What it is called in the new file; None where its spec is lost, and all with it.
        records: How many are in the new file.
        embedded: Of these, how many got vectors made anew of their texts.
        uncertain: Of these, how many may be old or deleted.
        unreadable: How many can no longer be read, as far as that is known.
        left: How many were read and are not in the new file, by reason.
        uncertain_ids: The ids of uncertain ones, the first hundred.
        left_ids: The ids of those that are left, the first hundred.
    """

    name: str | None
    records: int = 0
    embedded: int = 0
    uncertain: int = 0
    unreadable: int = 0
    left: Counter[str] = field(default_factory=Counter)
    uncertain_ids: list[Id] = field(default_factory=list)
    left_ids: list[Id] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """How many records of it are not in the new file."""
        return self.unreadable + self.left.total()


@dataclass(slots=True)
class Salvage:
    """What was found in a damaged file.

    Attributes:
        source: The file.
        target: The new one.
        pages: Pages of the file.
        passed: Pages that could not be read, with what was below them.
        headers: Header pages that are of use, of two; with one the last commit may be missing.
        scanned: Whether records were looked for on pages that nothing leads to.
        collections: What became of each collection.
        leftovers: A file with the records that were read and are not in the new one, or None.
    """

    source: str
    target: str
    pages: int
    passed: int
    headers: int
    scanned: bool
    collections: list[Salvaged] = field(default_factory=list)
    leftovers: str | None = None

    @property
    def records(self) -> int:
        """How many records are in the new file."""
        return sum(one.records for one in self.collections)

    @property
    def lost(self) -> int:
        """How many are not, as far as that is known."""
        return sum(one.lost for one in self.collections)

    @property
    def whole(self) -> bool:
        """Whether nothing was damaged that had to be read."""
        uncertain = any(one.uncertain for one in self.collections)
        return not (self.lost or self.passed or self.scanned or uncertain) and self.headers == 2

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.pages:,} pages, {self.passed:,} passed over"]
        if self.headers == 1:
            lines.append("one of the two header pages is of no use: the last commit may be missing")
        if self.headers == 0:
            lines.append("neither header page is of use: nothing tells new pages from old ones")
        for one in self.collections:
            counts = [f"{one.records:,} records"]
            counts += [f"{one.embedded:,} of them embedded anew"] * bool(one.embedded)
            counts += [f"{one.uncertain:,} of them may be old or deleted"] * bool(one.uncertain)
            counts += [f"{one.unreadable:,} cannot be read"] * bool(one.unreadable)
            counts += [f"{count:,} left out: {why}" for why, count in one.left.items()]
            name = "a collection whose spec is lost" if one.name is None else repr(one.name)
            lines.append(f"{name}: {', '.join(counts)}")
        if self.leftovers is not None:
            lines.append(f"what was left out is in {self.leftovers}")
        lines.append(f"{self.target}: {self.records:,} records, {self.lost:,} lost")
        return "\n".join(lines)


def salvage(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    encoder: EncoderLike | None = None,
) -> Salvage:
    """Read all records of a damaged file that can be read into a new one.

    The file is only read, and not by LMDB, which trusts its pages. Each record is taken if its
    checksum is right, its vectors if that of their block is; bit for bit, in the former order. A
    record whose vector is damaged is embedded anew if it has a text and the collection's encoder
    is at hand; else it is written to `<target>-leftovers.jsonl`.

    Args:
        source: The damaged file.
        target: The new file, which must not exist.
        encoder: What a collection was made with, where that is no bundled model.

    Returns:
        What was read and what is lost; it prints as a few lines.

    Raises:
        AlreadyExistsError: There is a file at `target`.
        FormatError: The source is no vecstore file, or nothing of it is left.
        LockedError: Somebody has the source open.
        StoreError: A file cannot be read or written.
    """
    broken, new = Path(path_name(source)), Path(path_name(target))
    given = None if encoder is None else encoders.resolve(encoder)
    spare = new.with_name(f"{new.name}-leftovers.jsonl")
    for path in (new, spare):
        if os.path.lexists(path):
            raise AlreadyExistsError(f"{path} exists already; nothing is ever overwritten")
    with Wreck(broken) as wreck:
        report = Salvage(
            str(broken), str(new), wreck.pages, wreck.passed, wreck.headers, wreck.scanned
        )
        work = new.with_name(f"{new.name}-salvage")
        remove(work)
        try:
            with Leftovers(spare) as leftovers, database.open(work, durable=False) as db:
                _Salvaging(wreck, db, given, report, leftovers).run()
                db.backup(new)
                report.leftovers = leftovers.keep()
        finally:
            remove(work)
    return report


class Leftovers:
    """Records that were read and are not in the new file, as lines of JSON; a file if any are."""

    def __init__(self, path: Path) -> None:
        self._path, self._kept = path, False
        self._file: io.TextIOWrapper | None = None

    def add(self, found: Found, name: str | None, why: str) -> None:
        """Write one."""
        metadata, end = records.split(found.metadata)
        line = {"id": found.id, "text": found.text, "metadata": metadata}
        ends = {} if end is None else {formats.EXPIRES: end}
        with translated(f"write {self._path}"):
            if self._file is None:
                self._file = self._path.open("x", encoding="utf-8")
            shown = formats.dumps({**line, **ends, "collection": name, "why": why})
            self._file.write(shown + "\n")

    def keep(self) -> str | None:
        """Let the file stay, and return its path, if there is one."""
        self._kept = True
        return None if self._file is None else str(self._path)

    def __enter__(self) -> Leftovers:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            with translated(f"write {self._path}"):
                self._file.close()
            if not self._kept:
                self._path.unlink(missing_ok=True)


class _Salvaging:
    """Fills a new file from a damaged one."""

    def __init__(
        self,
        wreck: Wreck,
        db: Database,
        encoder: Encoder | None,
        report: Salvage,
        leftovers: Leftovers,
    ) -> None:
        self._wreck, self._db, self._given = wreck, db, encoder
        self._report, self._leftovers = report, leftovers

    def run(self) -> None:
        """Make all collections, and fill them."""
        made = {number: self._make(number) for number in self._numbers()}
        for number, found in itertools.groupby(self._wreck.records(), _number_of):
            if number in made:
                self._fill(*made[number], found)
            else:
                self._leave(found)
        if not self._wreck.known and not self._report.collections:
            raise CorruptionError(f"{self._report.source}: nothing of a vecstore file can be read")
        for number, (entry, salvaged) in made.items():
            self._finish(entry, self._wreck.kept[number], salvaged)

    def _numbers(self) -> list[int]:
        """The collections that there can be, the newest first: it keeps its name."""
        kept = self._wreck.kept
        return sorted((number for number in kept if kept[number].entry), reverse=True)

    def _make(self, number: int) -> tuple[Entry, Salvaged]:
        kept = self._wreck.kept[number]
        assert kept.entry is not None
        spec = kept.entry.spec
        taken = {one.name for one in self._report.collections}
        name = spec.name
        for mark in itertools.count(1):
            if name not in taken:
                break
            name = f"{_shortened(spec.name)} ({mark})"

        def work(txn: Transaction) -> Entry:
            entry = catalog.create(txn, replace(spec, name=name))
            if kept.attached is not None:
                attached.write(txn, entry.number, kept.attached)
                problems = Report()
                attached.verify(txn, problems, entry)
                if problems.problems:
                    # Another collection's, or one that was there before.
                    txn.delete("meta", layout.adapter_key(entry.number))
            return entry

        salvaged = Salvaged(name)
        self._report.collections.insert(0, salvaged)
        return self._db.writing(work), salvaged

    def _leave(self, found: Iterator[Any]) -> None:
        """Write the records of a collection to the leftovers whose spec is lost."""
        salvaged = Salvaged(None)
        self._report.collections.append(salvaged)
        for one in found:
            if isinstance(one, Found):
                self._leave_out(salvaged, one, "the spec of its collection is lost")
            else:
                salvaged.unreadable += 1

    def _leave_out(self, salvaged: Salvaged, found: Found, why: str) -> None:
        salvaged.left[why] += 1
        if len(salvaged.left_ids) < NAMED:
            salvaged.left_ids.append(found.id)
        self._leftovers.add(found, salvaged.name, why)

    def _fill(self, entry: Entry, salvaged: Salvaged, found: Iterator[Any]) -> None:
        encoder = self._encoder(entry)
        for batch in _batches(self._sound(salvaged, found)):
            packed, there = self._wreck.vectors(batch[0].number, entry.spec, batch)
            edges = np.cumsum([0, *(len(one.rows) for one in batch)]).tolist()
            whole = [bool(there[a:b].all()) for a, b in itertools.pairwise(edges)]
            for sound, places in itertools.groupby(range(len(batch)), whole.__getitem__):
                chosen = list(places)
                first, end = chosen[0], chosen[-1] + 1
                part = batch[first:end]
                if sound:
                    own = packed.take(slice(edges[first], edges[end]))
                    self._write(entry, salvaged, part, _batch(part, own))
                else:
                    self._embed(entry, salvaged, part, encoder)

    def _sound(self, salvaged: Salvaged, found: Iterator[Any]) -> Iterator[Found]:
        for one in found:
            if isinstance(one, Found):
                yield one
            else:
                salvaged.unreadable += 1

    def _write(self, entry: Entry, salvaged: Salvaged, part: list[Found], batch: Batch) -> None:
        # Of one id that was used again both records may be there; the later one stays.
        self._db.writing(lambda txn: ingest.upsert(txn, entry, batch))
        for one in part:
            if not one.certain:
                salvaged.uncertain += 1
                if len(salvaged.uncertain_ids) < NAMED:
                    salvaged.uncertain_ids.append(one.id)

    def _encoder(self, entry: Entry) -> Encoder | None:
        """The encoder of a collection, if it is at hand."""
        if entry.spec.encoder is None:
            return None
        with self._db.reading() as reader, contextlib.suppress(VecstoreError):
            if self._given is not None:
                found = attached.complete(reader, entry, self._given)
                if found.fingerprint == entry.spec.fingerprint:
                    return found
            found = self._db.encoder(reader, entry)
            if found.fingerprint == entry.spec.fingerprint:
                return found
        return None

    def _embed(
        self, entry: Entry, salvaged: Salvaged, part: list[Found], encoder: Encoder | None
    ) -> None:
        """Make the vectors of records anew, or leave these out."""
        able = []
        for one in part:
            if one.text is None or encoder is None:
                missing = "text" if one.text is None else "encoder for the text"
                self._leave_out(salvaged, one, f"the vector is lost, and there is no {missing}")
            else:
                able.append(one)
        if not able or encoder is None:
            return
        try:
            ready = ingest.encode(entry.spec, _bare(able), lambda: encoder, _nothing_known)
        except VecstoreError as error:
            for one in able if len(able) > 1 else ():
                self._embed(entry, salvaged, [one], encoder)
            if len(able) == 1:
                why = f"the vector is lost, and cannot be made anew: {error}"
                self._leave_out(salvaged, able[0], why)
            return
        self._write(entry, salvaged, able, ready)
        salvaged.embedded += len(able)

    def _finish(self, entry: Entry, kept: Kept, salvaged: Salvaged) -> None:
        """Make the index that was wanted, and count."""
        kind = kept.kind or "auto"
        with contextlib.suppress(SpecError):
            maintenance.check_kind(kind, entry.spec.metric)
            maintenance.reindex(self._db, entry.number, entry.uid, kind)
        with self._db.reading() as reader:
            salvaged.records = catalog.state(reader, entry.number).records
        # Of records of one id the last one stays.
        salvaged.uncertain = min(salvaged.uncertain, salvaged.records)
        salvaged.embedded = min(salvaged.embedded, salvaged.records)
        # A passage that is damaged is counted here too, unless the counters tell.
        missing = kept.damaged + salvaged.unreadable
        if kept.state is not None:
            missing = max(0, kept.state.records - salvaged.records - salvaged.left.total())
        salvaged.unreadable = missing


def _number_of(found: Any) -> int:
    number: int = found.number if isinstance(found, Found) else found[0]
    return number


def _batches(found: Iterator[Found]) -> Iterator[list[Found]]:
    """Records that are written together, of different ids."""
    batch: list[Found] = []
    ids, vectors, characters = set[Id](), 0, 0
    for one in found:
        size = vectors + len(one.rows), characters + len(one.text or "")
        full = len(batch) == RECORDS or size[0] > VECTORS or size[1] > CHARACTERS
        if batch and (full or one.id in ids):
            yield batch
            batch, ids, vectors, characters = [], set(), 0, 0
        batch.append(one)
        ids.add(one.id)
        vectors, characters = vectors + len(one.rows), characters + len(one.text or "")
    if batch:
        yield batch


def _batch(part: list[Found], packed: Packed) -> Batch:
    """Records with the vectors that they have."""
    held = [one.passages for one in part]
    return Batch(
        [one.id for one in part],
        [one.text for one in part],
        [one.metadata for one in part],
        packed,
        np.repeat(np.arange(len(part)), [len(one.rows) for one in part]),
        [None if one is None else one.chunking for one in held],
        [None if one is None else list(one.spans) for one in held],
    )


def _bare(part: list[Found]) -> Batch:
    """Records without vectors, to be cut as they were."""
    return Batch(
        [one.id for one in part],
        [one.text for one in part],
        [one.metadata for one in part],
        None,
        np.arange(len(part)),
        [None if one.passages is None else one.passages.chunking for one in part],
        [None] * len(part),
    )


def _nothing_known(found: list[bytes], texts: list[str]) -> Known:
    return Known([], Packed(np.zeros(0), np.zeros((0, 0))))


def _shortened(name: str) -> str:
    """A name with room for a mark behind it."""
    data = encode_utf8(name, "a name")[: MAX_NAME_BYTES - 24]
    return data.decode(errors="ignore")
