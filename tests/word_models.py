"""Files of word vectors as their programs write them, and what fastText makes of its matrix."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]


def text(words: Sequence[str | bytes], vectors: Matrix, head: str | None = None) -> bytes:
    """GloVe's form; word2vec's and fastText's with a head."""
    lines = [] if head is None else [head.encode()]
    for word, row in zip(words, vectors, strict=True):
        numbers = " ".join(f"{number:.9g}" for number in row.tolist())
        lines.append((word.encode() if isinstance(word, str) else word) + b" " + numbers.encode())
    return b"\n".join(lines) + b"\n"


def headed(words: Sequence[str | bytes], vectors: Matrix) -> bytes:
    return text(words, vectors, f"{len(words)} {vectors.shape[1]}")


def word2vec(words: Sequence[str | bytes], vectors: Matrix, end: bytes = b"\n") -> bytes:
    found = [f"{len(words)} {vectors.shape[1]}\n".encode()]
    for word, row in zip(words, vectors, strict=True):
        raw = word.encode() if isinstance(word, str) else word
        found.append(raw + b" " + row.astype("<f4").tobytes() + end)
    return b"".join(found)


def fasttext(
    words: Sequence[str | bytes],
    matrix: Matrix,
    *,
    buckets: int = 0,
    minn: int = 3,
    maxn: int = 6,
    labels: Sequence[str] = (),
    model: int = 2,
    **odd: Any,
) -> bytes:
    """A model: its matrix has a row for each word, and one for each bucket behind them.

    `odd` are what a good file has no choice about: magic, version, dim, pruned, quantized, shape,
    entries, n_words, kinds.
    """
    dim = odd.get("dim", matrix.shape[1])
    arguments = [dim, 5, 5, 5, 5, 1, 2, model, buckets, minn, maxn, 100]
    magic, version = odd.get("magic", 793712314), odd.get("version", 12)
    found = [struct.pack("<2i12id", magic, version, *arguments, 1e-4)]
    entries = odd.get("entries", len(words) + len(labels))
    sizes = (entries, odd.get("n_words", len(words)), len(labels), 1000, odd.get("pruned", -1))
    found.append(struct.pack("<iiiqq", *sizes))
    for place, word in enumerate([*words, *labels]):
        raw = word.encode() if isinstance(word, str) else word
        kind = odd.get("kinds", [0] * len(words) + [1] * len(labels))[place]
        found.append(raw + b"\0" + struct.pack("<qb", 1000 - place, kind))
    found.append(struct.pack("<?qq", odd.get("quantized", False), *odd.get("shape", matrix.shape)))
    found.append(matrix.astype("<f4").tobytes())
    # The output matrix, which nobody reads.
    found.append(struct.pack("<?qq", False, 1, matrix.shape[1]) + bytes(4 * matrix.shape[1]))
    return b"".join(found)


def bucket(ngram: str, buckets: int) -> int:
    """FNV-1a in numpy's integers, over bytes with a sign."""
    hashed = np.uint32(2166136261)
    with np.errstate(over="ignore"):
        for byte in np.frombuffer(ngram.encode(), np.int8):
            hashed = (hashed ^ byte.astype(np.int32).astype(np.uint32)) * np.uint32(16777619)
    return int(hashed) % buckets


def ngrams(word: str, minn: int, maxn: int) -> list[str]:
    marked = f"<{word}>"
    return [
        marked[start : start + size]
        for start in range(len(marked))
        for size in range(minn, maxn + 1)
        if start + size <= len(marked) and (size > 1 or start not in (0, len(marked) - 1))
    ]


def subword_vector(
    word: str, matrix: Matrix, words: Sequence[str], buckets: int, minn: int, maxn: int
) -> NDArray[np.float64]:
    """The vector that fastText has for a word, known or not, in float64."""
    rows = [words.index(word)] if word in words else []
    if word != "</s>" and maxn:
        rows += [len(words) + bucket(piece, buckets) for piece in ngrams(word, minn, maxn)]
    return matrix[rows].astype(np.float64).mean(axis=0)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
