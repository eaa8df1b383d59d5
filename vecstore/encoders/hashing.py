"""How can tests have text without a model? Vectors made from hashes of words and trigrams.

Texts that share words, or parts of words, get similar vectors. The sums are sums of integers, so
the vectors are the same bytes in every process and on every platform.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vecstore.encoders.protocol import Kind
from vecstore.encoders.texts import check_kind, check_texts
from vecstore.errors import UsageError
from vecstore.spec import MAX_DIM, MIN_DIM

# A shared word must outweigh the trigrams that unrelated words share by chance.
_WORD_WEIGHT = 4
_WORD = re.compile(r"\w+")


class HashEncoder:
    """An encoder without a model, for tests: deterministic, fast, and blind to meaning.

    Args:
        dim: Numbers per vector, 2 to 8,192.
        seed: Another seed gives other, equally good vectors.

    Raises:
        UsageError: `dim` is out of range, or one of the two is no int.

    Example:
        >>> vectors = HashEncoder().encode(["red apples", "green apples", "a late train"])
        >>> bool(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])
        True
    """

    def __init__(self, dim: int = 64, seed: int = 0) -> None:
        for name, value in (("dim", dim), ("seed", seed)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageError(f"{name}={value!r} must be an int")
        if not MIN_DIM <= dim <= MAX_DIM:
            raise UsageError(f"dim={dim} is outside {MIN_DIM}..{MAX_DIM}")
        self._dim = dim
        self._seed = seed

    @property
    def name(self) -> str:
        """The name "hash"."""
        return "hash"

    @property
    def dim(self) -> int:
        """Numbers per vector."""
        return self._dim

    @property
    def mrl(self) -> tuple[int, ...]:
        """No prefix lengths."""
        return ()

    @property
    def fingerprint(self) -> str:
        """A digest of dim and seed."""
        return hashlib.sha256(f"hash-1:{self._dim}:{self._seed}".encode()).hexdigest()[:32]

    def encode(self, texts: Sequence[str], kind: Kind = "document") -> NDArray[np.float32]:
        """Return unit vectors, float32 of shape (len(texts), dim); `kind` changes nothing.

        Raises:
            UsageError: A text is no str, is empty, or has a lone surrogate.
        """
        checked = check_texts(texts)
        check_kind(kind)
        vectors = np.zeros((len(checked), self._dim), dtype=np.float32)
        for index, text in enumerate(checked):
            total = self._total(text.lower())
            vectors[index] = total / np.sqrt(np.sum(total * total))
        return vectors

    def _total(self, text: str) -> NDArray[np.int64]:
        words = _WORD.findall(text) or [text.strip()]
        total = np.sum([_word_signs(word, self._dim, self._seed) for word in words], axis=0)
        # Opposite signs may cancel out, and a vector of zeros has no direction.
        return total if total.any() else _signs(text, self._dim, self._seed)

    def __repr__(self) -> str:
        return f"HashEncoder(dim={self._dim}, seed={self._seed})"


@lru_cache(maxsize=4096)
def _word_signs(word: str, dim: int, seed: int) -> NDArray[np.int64]:
    total = _WORD_WEIGHT * _signs(word, dim, seed)
    for trigram in _trigrams(word):
        total += _signs(trigram, dim, seed)
    total.flags.writeable = False
    return total


def _trigrams(word: str) -> Iterator[str]:
    # NUL marks both ends and keeps a trigram apart from the word that has the same letters.
    padded = f"\0{word}\0"
    return (padded[start : start + 3] for start in range(len(padded) - 2))


def _signs(feature: str, dim: int, seed: int) -> NDArray[np.int64]:
    digest = hashlib.shake_256(f"{seed}:{feature}".encode()).digest((dim + 7) // 8)
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8), count=dim)
    return 2 * bits.astype(np.int64) - 1
