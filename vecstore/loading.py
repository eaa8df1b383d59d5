"""How do the records of files come into a collection? In batches; a bad one is found and named."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from vecstore import formats
from vecstore.batches import Group
from vecstore.batches import groups as cut_groups
from vecstore.encoders import Truncated
from vecstore.errors import AlreadyExistsError, EncoderError, UsageError

if TYPE_CHECKING:
    from vecstore.collection import Collection
    from vecstore.spec import Chunking

# A batch ends at whichever comes first; together they bound the memory of `vecstore add`.
BATCH_RECORDS, BATCH_BYTES = 200, 16 << 20


class Loader:
    """Stores records in batches and counts them; a bad record is found and named.

    Whatever precedes a bad record is stored, what follows it is not.
    """

    def __init__(
        self, collection: Collection, *, upsert: bool, chunk: bool | Chunking = False
    ) -> None:
        self.count = 0
        self._collection = collection
        self._upsert = upsert
        self._chunk = chunk
        self._before = _truncated(collection)

    def load(self, items: Iterable[formats.Item], advance: Callable[[int], object]) -> None:
        """Store the records; `advance` is told the size of each batch."""
        source, drawn = _batches(items), deque[list[formats.Item]]()
        broken: UsageError | None = None

        def groups() -> Iterator[Group]:
            nonlocal broken
            try:
                for batch in source:
                    drawn.append(batch)
                    yield from cut_groups((item.record for item in batch), len(batch))
            except UsageError as error:
                broken = error
                raise

        while True:
            try:
                # While one batch is written, the next is read and embedded.
                for count in self._collection._store_groups(groups(), self._upsert, self._chunk):
                    self.count += count
                    advance(sum(item.size for item in drawn.popleft()))
                return
            except EncoderError:
                raise
            except (UsageError, AlreadyExistsError):
                if not drawn:
                    # The file itself is bad.
                    raise
            self._store(drawn[0])
            advance(sum(item.size for item in drawn.popleft()))
            if broken is not None:
                raise broken
            source, drawn = itertools.chain(drawn, source), deque()

    def lost(self) -> str | None:
        """How many texts were longer than their encoder reads, in a sentence; None if none was."""
        before, after = self._before, _truncated(self._collection)
        if before is None or after is None or after.cut == before.cut:
            return None
        cut, texts = after.cut - before.cut, after.texts - before.texts
        limit = getattr(self._collection.encoder, "max_length", "its most")
        what = (
            f"{cut:,} of {texts:,} texts were cut at {limit} tokens, and their ends are not found"
        )
        return f"{what}; --chunk cuts long texts into passages"

    def _store(self, batch: list[formats.Item]) -> None:
        try:
            self._collection.add_records(
                (item.record for item in batch),
                upsert=self._upsert,
                chunk=self._chunk,
                progress=False,
            )
        except EncoderError:
            raise
        except (UsageError, AlreadyExistsError) as error:
            # The batch left no trace. Halving finds the culprit in few attempts.
            if len(batch) == 1:
                raise UsageError(f"{batch[0].place}: {error}") from error
            self._store(batch[: len(batch) // 2])
            self._store(batch[len(batch) // 2 :])
        else:
            self.count += len(batch)


def _truncated(collection: Collection) -> Truncated | None:
    """What the encoder of a collection has cut so far; None where there is none that counts it."""
    try:
        found = getattr(collection.encoder, "truncated", None)
    except EncoderError:
        # Records that come with vectors need none.
        return None
    return found if isinstance(found, Truncated) else None


def _is_bare(item: formats.Item) -> bool:
    """Whether a record comes without a vector, as `add_records` sees it."""
    return item.record.get("vector") is None


def _batches(items: Iterable[formats.Item]) -> Iterator[list[formats.Item]]:
    """Cut into batches that `add_records` stores in one transaction each."""
    batch: list[formats.Item] = []
    seen: set[object] = set()
    size = 0
    try:
        for item in items:
            identity = item.record.get("id")
            full = len(batch) == BATCH_RECORDS or size >= BATCH_BYTES
            mixed = batch and _is_bare(item) is not _is_bare(batch[0])
            if full or mixed or identity in seen:
                yield batch
                batch, seen, size = [], set(), 0
            batch.append(item)
            size += item.size
            if identity is not None:
                seen.add(identity)
    except UsageError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
