"""How are plain texts tokenized quickly? Word by word, looking each word's tokens up only once.

A tokenizer that splits at blanks and punctuation before all else gives a word the same tokens in
every text. BERT's does, and for texts in ASCII its rules are short: control characters are dropped,
letters are made small, each mark of punctuation is a word. What is beyond these rules is left to
the tokenizer itself.
"""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

_WORDS = re.compile(r"[0-9A-Za-z]+|[!-/:-@\[-`{-~]")
# Blanks are among them too, but BERT's tokenizer drops these, and joins what stands around them.
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
_PLAIN = re.compile(r"[!-~]*")
# Words whose tokens are kept, and the letters of the longest: some megabytes in all.
_REMEMBERED, _LONGEST = 1 << 16, 32
# Tokens that are looked for in each text, at the most: with more, that takes longer than it saves.
_ADDED = 32
# A tokenizer whose tokens differ from those found here has rules that are not known here.
_PROBES = ("a", "Don't Panic, it's 42%!", "naively re-tokenized_words (v1.0)\tof\n[them] ~ zzxqy")


class Wordwise:
    """The tokens of texts in ASCII, the special ones included.

    Args:
        tokenizer: One of BERT's kind.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._lowercase = bool(tokenizer.normalizer.lowercase)
        added = map(re.escape, filter(None, _added(tokenizer)))
        # Whatever their case, because some are looked for when letters have been made small.
        self._beyond = re.compile("|".join([_CONTROL, *added]), re.IGNORECASE)
        self._known = _Known(tokenizer.model)
        special = tokenizer.encode(_PROBES[0])
        flags = special.special_tokens_mask
        first = flags.index(0) if 0 in flags else 0
        self._before, self._after = special.ids[:first], special.ids[first + 1 :]

    def ids(self, text: str) -> list[int] | None:
        """Return the numbers of a text's tokens, None if it is not plain enough to tell."""
        if not text.isascii() or self._beyond.search(text) is not None:
            return None
        words = _WORDS.findall(text.lower() if self._lowercase else text)
        found = chain.from_iterable(map(self._known.__getitem__, words))
        return [*self._before, *found, *self._after]


class _Known(dict[str, tuple[int, ...]]):
    """The tokens of words."""

    def __init__(self, model: tokenizers.models.Model) -> None:
        self._model = model

    def __missing__(self, word: str) -> tuple[int, ...]:
        found = tuple(token.id for token in self._model.tokenize(word))
        if len(word) <= _LONGEST:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[word] = found
        return found


def wordwise(tokenizer: tokenizers.Tokenizer) -> Wordwise | None:
    """Return what tokenizes plain texts as a tokenizer without truncation does, None if nothing."""
    from tokenizers import models, normalizers, pre_tokenizers

    if not (
        isinstance(tokenizer.model, models.WordPiece)
        and isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
        and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and tokenizer.normalizer.clean_text
    ):
        return None
    added = _added(tokenizer)
    # Others may be looked for when the text has been changed: without accents, with other blanks.
    if len(added) > _ADDED or not all(_PLAIN.fullmatch(token) for token in added):
        return None
    made = Wordwise(tokenizer)
    for probe in _PROBES:
        encoding = tokenizer.encode(probe)
        if any(encoding.type_ids) or encoding.ids != made.ids(probe):
            return None
    return made


def _added(tokenizer: tokenizers.Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.get_added_tokens_decoder().values()]
