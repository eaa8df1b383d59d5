"""What are the words of a text? And under which spellings may a vocabulary have one?

A token is a run of letters, digits, marks and underscores; hyphens, apostrophes and full stops
inside it belong to it. Nothing is known of languages that are written without spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# Marks are no \w: those of Latin, Cyrillic, Hebrew, Arabic, the scripts of India, Thai.
_LETTER = (
    r"[\w\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    r"\u0900-\u0903\u093a-\u094f\u0951-\u0963\u0981-\u0dff\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]"
)
_TOKEN = re.compile(rf"{_LETTER}+(?:[-'.]{_LETTER}+)*")
# Texts that are dealt with together, and their letters: some 40,000 words.
TEXTS, LETTERS = 1024, 1 << 18
_JOINS = re.compile(r"[-'._]+")


def tokens(text: str) -> list[str]:
    """The tokens of a text, in their order; a typographic apostrophe becomes a plain one."""
    return _TOKEN.findall(text.replace("\u2019", "'"))


def groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Cut texts into lists of a bounded number of words, but for texts that have more alone."""
    group, letters = list[str](), 0
    for text in texts:
        group.append(text)
        letters += len(text)
        if len(group) == TEXTS or letters >= LETTERS:
            yield group
            group, letters = [], 0
    if group:
        yield group


def spellings(token: str) -> list[str]:
    """How a vocabulary may spell a token: as it is, or in lower case."""
    lower = token.lower()
    return [token] if lower == token else [token, lower]


def parts(token: str) -> list[str]:
    """What a token is joined of; itself where it has no joins."""
    return [part for part in _JOINS.split(token) if part]
