"""How is a file of word vectors read? One pass, in pieces; nothing is believed before it is seen.

Three forms, gzipped or not:

* "text": a line per word, the word and then its numbers, between spaces. word2vec's and fastText's
  (`.txt`, `.vec`) begin with a line of how many words there are, and of how many numbers; GloVe's
  does not. A word may hold spaces: the numbers are the last of a line.
* "word2vec": that first line, and then for each word its bytes, a space, and float32,
  little-endian; some writers end a word with a newline, which is taken off the next word.
* "fasttext": see `fasttext.py`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from vecstore.errors import EncoderError, ModelNotFoundError, UsageError
from vecstore.spec import MAX_DIM, MAX_ID_BYTES, MIN_DIM, show

Kind = Literal["text", "word2vec", "fasttext"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Words, or n-grams, that are read together.
BATCH = 2048
# A line of MAX_DIM numbers of 20 digits takes 170 KB.
MAX_LINE = MAX_WORD = 1 << 20
HEAD = 1 << 16
CHUNK = 1 << 20
# A word that holds spaces makes its line look longer, and a damaged line may be shorter, so several
# lines say how many numbers.
_LOOKED_AT = 32
GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
# Numbers that are read together: as Python's they take 32 bytes each.
BATCH_NUMBERS = 1 << 21
FASTTEXT_MAGIC = (793712314).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class Batch:
    """Words of a file, as they are there: any bytes, any numbers.

    Attributes:
        words: n words.
        vectors: float32 (n, dim).
        counts: How often each was in what the vectors were trained on, where the file says so.
    """

    words: list[bytes]
    vectors: NDArray[np.float32]
    counts: list[int] | None = None


class WordFile(Protocol):
    """A file of word vectors whose beginning was read and found right."""

    @property
    def kind(self) -> Kind:
        """Its form."""

    @property
    def dim(self) -> int:
        """Numbers per vector."""

    @property
    def words(self) -> int | None:
        """How many words there are, as far as the file itself says."""

    def batches(self, limit: int | None) -> Iterator[Batch]:
        """Yield all words, or the first so many, in the file's order.

        Raises:
            EncoderError: The file is damaged.
        """


def detect(path: str | os.PathLike[str], kind: Kind | None = None) -> Kind:
    """Return the form of a file; told by its contents where `kind` is None.

    Raises:
        UsageError: There is no such form.
        ModelNotFoundError: There is no such file.
        EncoderError: It has none of the forms.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(f"kind={show(kind)} is unknown; use one of {', '.join(KINDS)}")
    with opened(path) as stream:
        head = stream.read(HEAD).removeprefix(BOM)
    if not head:
        raise EncoderError(f"{path} is empty")
    if kind is not None:
        return kind
    if head.startswith(FASTTEXT_MAGIC):
        return "fasttext"
    first, _, rest = head.partition(b"\n")
    if _header(first) is None:
        if _is_text(first):
            return "text"
        raise EncoderError(
            f"{path} is no file of word vectors: it begins with {show(head[:24])}, neither a word"
            " and its numbers, nor how many words and numbers there are, nor fastText's mark"
            " (fastText writes one since 2016; let its own print-word-vectors write an older file)"
        )
    second = rest.lstrip().partition(b"\n")[0]
    return "text" if _is_text(second) or not second else "word2vec"


def _header(line: bytes) -> tuple[int, int] | None:
    """Numbers of words and of dimensions, if that is what a line says; signs are seen through."""
    parts = line.split()
    try:
        words, dim = (int(part) for part in parts)
    except ValueError:
        return None
    return words, dim


def _is_text(line: bytes) -> bool:
    """Whether a line, or the beginning of one, looks like a word and its numbers."""
    parts = line.strip(b" \r").split(b" ")[1:]
    with contextlib.suppress(ValueError):
        # What was read may end inside the last number, and the word may hold spaces.
        return bool(list(map(float, parts[len(parts) // 2 : 64] or parts[-2:-1] or parts)))
    return False


def _numbers_behind(line: bytes) -> int:
    """How many numbers a line ends with; the first part is the word, whatever it is."""
    parts = line.split(b" ")[1:]
    count = 0
    with contextlib.suppress(ValueError):
        for part in reversed(parts):
            float(part)
            count += 1
    return count


def _commonest(counts: list[int]) -> int:
    """The commonest of some numbers, the least of those that are equally common; 0 of none."""
    return max(sorted(set(counts)), key=counts.count, default=0)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[io.BufferedReader]:
    """Open a file for reading, through gzip where it is compressed.

    Raises:
        ModelNotFoundError: There is no such file.
        EncoderError: It cannot be read, or decompressed, now or inside the with statement.
    """
    try:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(Path(path).open("rb"))
            compressed = stream.read(2) == GZIP
            stream.seek(0)
            if compressed:
                unpacked = stack.enter_context(gzip.GzipFile(fileobj=stream))
                stream = io.BufferedReader(unpacked, CHUNK)
            yield stream
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no file {path}") from None
    except (EOFError, zlib.error, OSError) as error:
        raise EncoderError(f"{path} cannot be read: {error}") from error


def check_dim(dim: int, path: object) -> int:
    """Return the length of the vectors of a file; EncoderError if no collection can hold them."""
    if not MIN_DIM <= dim <= MAX_DIM:
        raise EncoderError(f"{path} has vectors of {dim} numbers, outside {MIN_DIM}..{MAX_DIM}")
    return dim


class TextFile:
    """The form "text", with or without a first line of counts."""

    kind: Kind = "text"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        with opened(path) as stream:
            lines = list(self._lines(stream, _LOOKED_AT))
        said = _header(lines[0]) if lines else None
        self._headed = said is not None
        numbers = [_numbers_behind(line) for line in lines[self._headed :] if line]
        self.words: int | None = None
        dim = _commonest([_numbers_behind(line) for line in lines if line])
        if said is not None:
            self.words, dim = said
            if self.words < 0:
                raise EncoderError(f"{path} says in its first line that it has {self.words} words")
        self.dim = check_dim(dim, path)
        if numbers and min(numbers) > dim:
            # Else a part of the numbers would be taken for a part of the word.
            raise EncoderError(
                f"{path} says in its first line that vectors have {dim} numbers, and they have"
                f" {min(numbers)}"
            )

    def _lines(self, stream: IO[bytes], most: int | None = None) -> Iterator[bytes]:
        """Yield lines without their ends, and without spaces there; the first without a BOM."""
        number = 0
        while most is None or number < most:
            line = stream.readline(MAX_LINE)
            if not line:
                return
            number += 1
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                raise EncoderError(f"{self._path}, line {number}: over {MAX_LINE:,} bytes long")
            if number == 1:
                line = line.removeprefix(BOM)
            yield line.rstrip(b" \r\n")

    def batches(self, limit: int | None) -> Iterator[Batch]:
        """Yield words; as `WordFile`."""
        seen, held, numbers = 0, list[tuple[int, bytes, bytes]](), self._headed
        with opened(self._path) as stream:
            for number, line in enumerate(self._lines(stream), 1):
                if not line or numbers:
                    # The first line of counts, and empty ones.
                    numbers = False
                    continue
                if seen == limit:
                    break
                word, tail = self._cut(number, line)
                # Words that are too long are counted and not kept.
                held.append((number, word[: MAX_ID_BYTES + 1], tail))
                seen += 1
                if len(held) * self.dim >= BATCH_NUMBERS or len(held) == BATCH:
                    yield self._batch(held)
                    held = []
        if held:
            yield self._batch(held)
        check_count(self._path, seen, self.words, limit)

    def _cut(self, number: int, line: bytes) -> tuple[bytes, bytes]:
        """The word of a line, and the text of its numbers."""
        word, _, tail = line.partition(b" ")
        if tail.count(b" ") != self.dim - 1:
            word, *parts = line.rsplit(b" ", self.dim)
            if len(parts) != self.dim:
                hint = ""
                if b"\t" in line or b"  " in line:
                    hint = "; between a word and its numbers stand single spaces, no tabs"
                raise EncoderError(
                    f"{self._path}, line {number}: {len(parts)} numbers behind"
                    f" {show(word)}, expected {self.dim}{hint}"
                )
            tail = b" ".join(parts)
        return word, tail

    def _batch(self, held: list[tuple[int, bytes, bytes]]) -> Batch:
        text = b" ".join([tail for _, _, tail in held])
        try:
            if b"_" in text:
                # Python lets underscores stand in a number.
                raise ValueError
            numbers = np.array(list(map(float, text.split(b" "))))
        except ValueError:
            raise self._culprit(held) from None
        with np.errstate(over="ignore"):
            vectors = numbers.astype(np.float32).reshape(len(held), self.dim)
        return Batch([word for _, word, _ in held], vectors)

    def _culprit(self, held: list[tuple[int, bytes, bytes]]) -> EncoderError:
        for number, word, tail in held:
            for part in tail.split(b" "):
                try:
                    float(part.replace(b"_", b"?"))
                except ValueError:
                    return EncoderError(
                        f"{self._path}, line {number}: {show(part)} behind {show(word)} is no"
                        " number"
                    )
        raise AssertionError("a number that is none alone was none among others")


class BinaryFile:
    """The form "word2vec"."""

    kind: Kind = "word2vec"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        with opened(path) as stream:
            line = stream.readline(HEAD)
        found = _header(line)
        if found is None or found[0] < 0:
            raise EncoderError(
                f"{path} does not begin with how many words and numbers there are: {show(line)}"
            )
        self._begin = len(line)
        self.words, self.dim = found[0], check_dim(found[1], path)

    def batches(self, limit: int | None) -> Iterator[Batch]:
        """Yield words; as `WordFile`."""
        wanted = self.words if limit is None else min(limit, self.words)
        seen, size = 0, 4 * self.dim
        words, numbers = list[bytes](), list[bytes]()
        with opened(self._path) as stream:
            stream.read(self._begin)
            for word, vector in self._records(stream, size):
                if seen == wanted:
                    # More than the file says.
                    seen += limit is None
                    break
                words.append(word[: MAX_ID_BYTES + 1])
                numbers.append(vector)
                seen += 1
                if len(words) == BATCH:
                    yield self._batch(words, numbers)
                    words, numbers = [], []
        if words:
            yield self._batch(words, numbers)
        check_count(self._path, seen, wanted, None)

    def _batch(self, words: list[bytes], numbers: list[bytes]) -> Batch:
        vectors = np.frombuffer(b"".join(numbers), "<f4").reshape(len(words), self.dim)
        return Batch(words, vectors.astype(np.float32, copy=False))

    def _records(self, stream: IO[bytes], size: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield words and the bytes of their vectors, until the file ends."""
        held, at, more = b"", 0, True
        while True:
            end = held.find(b" ", at)
            if end >= 0 and end + 1 + size <= len(held):
                yield held[at:end].lstrip(b"\r\n"), held[end + 1 : end + 1 + size]
                at = end + 1 + size
                continue
            if not more or (end < 0 and len(held) - at > MAX_WORD):
                return
            fresh = stream.read(CHUNK)
            more, held, at = bool(fresh), held[at:] + fresh, 0


def check_count(
    path: str | os.PathLike[str], seen: int, said: int | None, limit: int | None
) -> None:
    """Raise EncoderError where a file, read to its end, holds another number of words than it says.

    A file that ends early was cut off, and then nothing says what else is missing.
    """
    if said is None or seen in (said, limit):
        return
    first = min(seen, said)
    raise EncoderError(
        f"{path} says that it has {said:,} words, and {seen:,} were read"
        f"{'; it is cut off' if seen < said else ''}"
        f"{f'; limit={first} takes the first ones' if first else ''}"
    )
