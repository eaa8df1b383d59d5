"""Which n-grams does a word have, and where are they? As fastText cuts and hashes them.

A word is put between `<` and `>`; its n-grams are all runs of minn to maxn characters of that, but
for a bare `<` or `>`. Each is hashed into a bucket, and n-grams that share a bucket share a vector
(Bojanowski, Grave, Joulin, Mikolov: Enriching Word Vectors with Subword Information, 2017).
"""

from __future__ import annotations

# FNV-1a of 32 bits.
_BASIS, _PRIME, _MASK = 2166136261, 16777619, 0xFFFFFFFF
# fastText takes a byte for a signed char before it widens it, so the upper bits are set too.
_WIDENED = [byte | 0xFFFFFF00 if byte & 0x80 else byte for byte in range(256)]


def buckets(word: str, minn: int, maxn: int, count: int) -> list[int]:
    """The buckets, 0 to count - 1, of a word's n-grams, one for each, in the order of their places.

    Args:
        word: Without `<` and `>`.
        minn: Characters of the shortest n-grams.
        maxn: Characters of the longest.
        count: How many buckets there are.
    """
    letters = [letter.encode() for letter in f"<{word}>"]
    last, found = len(letters) - 1, []
    for first in range(len(letters)):
        hashed = _BASIS
        for n, letter in enumerate(letters[first : first + maxn], 1):
            for byte in letter:
                hashed = (hashed ^ _WIDENED[byte]) * _PRIME & _MASK
            if n >= minn and (n > 1 or 0 < first < last):
                found.append(hashed % count)
    return found
