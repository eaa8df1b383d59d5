"""How is a model of fastText read? Its words and its n-grams, from the `.bin` that it writes.

The file, little-endian, version 12 (and 11, since 2016): the mark 793712314 and the version, int32;
twelve int32 (dim, ws, epoch, minCount, neg, wordNgrams, loss, model, bucket, minn, maxn,
lrUpdateRate) and t, float64. The dictionary: entries, words and labels, int32, tokens and pruned
buckets (-1 where none were pruned), int64; then each entry's bytes up to a zero, its count, int64,
and 0 for a word or 1 for a label. Whether the matrix is quantized, one byte; its rows and columns,
int64, and its rows, float32: one of each word, and then one of each bucket. What follows, the
output matrix, is not read.

The vector of a word is the mean of its own row and of those of its n-grams. The rows of the buckets
stand behind those of the words, so the matrix is read through a map of the file.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vecstore.errors import EncoderError
from vecstore.spec import MAX_ID_BYTES, show
from vecstore.words import subwords
from vecstore.words.files import (
    BATCH,
    CHUNK,
    FASTTEXT_MAGIC,
    GZIP,
    MAX_WORD,
    Batch,
    Kind,
    check_dim,
    opened,
)

_HEAD = struct.Struct("<4si12id")
_SIZES = struct.Struct("<iiiqq")
_ENTRY = struct.Struct("<qb")
_MATRIX = struct.Struct("<?qq")
_VERSIONS = (11, 12)
_SUPERVISED = 3
_END_OF_SENTENCE = b"</s>"
# Words whose n-grams are gathered together: some 40 rows each.
_GATHERED = 128


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What the head of the file and of its dictionary say."""

    dim: int
    minn: int
    maxn: int
    buckets: int
    entries: int
    words: int


class FastTextFile:
    """The form "fasttext".

    Attributes:
        minn: Characters of the shortest n-grams.
        maxn: Characters of the longest; 0 where words have no n-grams.
        buckets: How many buckets n-grams are hashed into; 0 where there are none.
        used: bool (buckets,): those of the n-grams of the words read so far.
    """

    kind: Kind = "fasttext"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        with opened(path) as stream:
            sizes = self._sizes(stream)
            for _ in self._entries(stream, sizes.entries):
                pass
            rows = self._matrix_rows(stream, sizes)
            self._offset = stream.tell()
        self.dim, self.words, self._entries_said = sizes.dim, sizes.words, sizes.entries
        self.minn, self.maxn = sizes.minn, sizes.maxn
        self.buckets = sizes.buckets if sizes.maxn else 0
        self._matrix = self._map(rows)
        self.used = np.zeros(self.buckets, np.bool_)

    def _damaged(self, what: str) -> EncoderError:
        return EncoderError(f"{self._path} is no model of fastText that can be read: {what}")

    def _unpack(self, stream: IO[bytes], form: struct.Struct) -> tuple[Any, ...]:
        data = stream.read(form.size)
        if len(data) < form.size:
            raise self._damaged("it is cut off")
        return form.unpack(data)

    def _sizes(self, stream: IO[bytes]) -> _Sizes:
        magic, version, *arguments, _ = self._unpack(stream, _HEAD)
        if magic != FASTTEXT_MAGIC:
            raise self._damaged(
                f"it begins with {show(magic)}, not with fastText's mark, which it writes since"
                " 2016; let its own print-word-vectors write an older file as text"
            )
        if version not in _VERSIONS:
            raise self._damaged(f"it has version {version}, and 11 and 12 are known")
        dim, model, buckets, minn, maxn = (arguments[i] for i in (0, 7, 8, 9, 10))
        if version == 11 and model == _SUPERVISED:
            # Classifiers of that time were trained without n-grams, whatever they say.
            maxn = 0
        entries, words, labels, _, pruned = self._unpack(stream, _SIZES)
        if entries < 0 or min(words, labels) < 0 or words + labels != entries:
            raise self._damaged(f"{entries} entries, {words} words and {labels} labels")
        if min(buckets, minn, maxn) < 0 or (maxn and not buckets) or maxn > MAX_ID_BYTES:
            raise self._damaged(f"n-grams of {minn} to {maxn} characters in {buckets} buckets")
        if pruned >= 0:
            raise self._damaged(
                "it is quantized (.ftz), and keeps only a part of the n-grams; convert the .bin"
                " that it was made of"
            )
        return _Sizes(check_dim(dim, self._path), minn, maxn, buckets, entries, words)

    def _entries(self, stream: io.BufferedReader, count: int) -> Iterator[tuple[bytes, int, bool]]:
        """Yield the dictionary: the bytes of an entry, its count, whether it is a word."""
        tail = _ENTRY.size
        held, at, done = b"", 0, 0
        while done < count:
            end = held.find(b"\0", at)
            if end >= 0 and end + 1 + tail <= len(held):
                number, kind = _ENTRY.unpack_from(held, end + 1)
                yield held[at:end], number, kind == 0
                at, done = end + 1 + tail, done + 1
                continue
            # Never beyond the dictionary: an entry takes ten bytes at least.
            least = max((count - done) * (1 + tail) - (len(held) - at), 1)
            if end < 0:
                # The rest of the word, or what is at hand of it: byte by byte takes for ever.
                ahead = stream.peek()
                least = max(least, ahead.find(b"\0") + 1 or len(ahead))
            fresh = stream.read(min(least, CHUNK))
            if not fresh or len(held) - at > MAX_WORD:
                raise self._damaged(f"its dictionary ends after {done:,} of {count:,} entries")
            held, at = held[at:] + fresh, 0
        if at != len(held):
            raise self._damaged("its dictionary overlaps what follows")

    def _matrix_rows(self, stream: IO[bytes], sizes: _Sizes) -> int:
        quantized, rows, columns = self._unpack(stream, _MATRIX)
        if quantized:
            raise self._damaged("it is quantized (.ftz); convert the .bin that it was made of")
        if columns != sizes.dim or rows < sizes.words:
            raise self._damaged(
                f"its matrix is {rows:,} x {columns:,}, for {sizes.words:,} words of {sizes.dim}"
                " numbers"
            )
        if sizes.maxn and rows != sizes.words + sizes.buckets:
            raise self._damaged(
                f"its matrix has {rows:,} rows, for {sizes.words:,} words and"
                f" {sizes.buckets:,} buckets"
            )
        # Classifiers may have buckets of runs of words, too.
        return rows if sizes.maxn else sizes.words

    def _map(self, rows: int) -> NDArray[np.float32]:
        """The matrix, (rows, dim), as it lies in the file, or in a temporary one, decompressed."""
        size = rows * self.dim * 4
        with Path(self._path).open("rb") as plain:
            held: IO[bytes] = plain
            at = self._offset
            if plain.read(2) == GZIP:
                held, at = self._unpacked(size), 0
            with closing(held):
                if os.fstat(held.fileno()).st_size < at + size:
                    raise self._damaged(f"it is cut off: its matrix takes {size:,} bytes")
                if not rows:
                    return np.empty((0, self.dim), np.float32)
                return np.asarray(np.memmap(held, "<f4", "r", at, (rows, self.dim)))

    def _unpacked(self, size: int) -> IO[bytes]:
        """A temporary file of the matrix of a compressed file; shorter if that is cut off."""
        held = tempfile.TemporaryFile()  # noqa: SIM115  # whoever maps it closes it
        with opened(self._path) as stream:
            left = self._offset
            while left and (piece := stream.read(min(left, CHUNK))):
                left -= len(piece)
            left = size
            while left and (piece := stream.read(min(left, CHUNK))):
                held.write(piece)
                left -= len(piece)
        held.flush()
        return held

    def batches(self, limit: int | None) -> Iterator[Batch]:
        """Yield words; as `WordFile`."""
        words, counts, first = list[bytes](), list[int](), 0
        left = self.words if limit is None else min(limit, self.words)
        with opened(self._path) as stream:
            stream.read(_HEAD.size + _SIZES.size)
            for word, count, is_word in self._entries(stream, self._entries_said):
                if first + len(words) == left:
                    break
                if not is_word:
                    raise self._damaged("there is a label among its words")
                words.append(word[: MAX_ID_BYTES + 1])
                counts.append(max(count, 0))
                if len(words) == BATCH:
                    yield Batch(words, self._vectors(words, first), counts)
                    first += len(words)
                    words, counts = [], []
        if words:
            yield Batch(words, self._vectors(words, first), counts)

    def _vectors(self, words: list[bytes], first: int) -> NDArray[np.float32]:
        """The vectors, (n, dim), of words whose own rows begin with the first."""
        rows = np.array(self._matrix[first : first + len(words)], np.float32)
        if not self.maxn:
            return rows
        for at in range(0, len(words), _GATHERED):
            found = [self._buckets(word) for word in words[at : at + _GATHERED]]
            used = np.array([bucket for one in found for bucket in one], np.intp)
            self.used[used] = True
            part, sizes = rows[at : at + len(found)], np.array([len(one) for one in found])
            some = sizes > 0
            if some.any():
                starts = (np.cumsum(sizes) - sizes)[some]
                part[some] += np.add.reduceat(self._matrix[used + self.words], starts, axis=0)
            part /= (sizes + 1).astype(np.float32)[:, None]
        return rows

    def _buckets(self, word: bytes) -> list[int]:
        if word == _END_OF_SENTENCE or len(word) > MAX_ID_BYTES:
            # Too long to be kept, and with n-grams beyond number.
            return []
        try:
            text = word.decode()
        except UnicodeDecodeError:
            # Nobody can ask for it, so it is not kept.
            return []
        return subwords.buckets(text, self.minn, self.maxn, self.buckets)

    def ngrams(self, only_used: bool) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """Yield buckets (n,) and their vectors (n, dim), of all buckets or of those in use."""
        wanted = np.flatnonzero(self.used) if only_used else np.arange(self.buckets)
        for at in range(0, len(wanted), BATCH):
            part = wanted[at : at + BATCH]
            yield part, np.array(self._matrix[part + self.words], np.float32)
