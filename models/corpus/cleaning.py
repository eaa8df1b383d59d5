"""How does marked-up text become plain text on one line?"""

from __future__ import annotations

import html
import re

TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b\ufeff]")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(])")


def clean(text: str) -> str:
    """Return the text without tags, entities, control characters and runs of blanks."""
    return " ".join(INVISIBLE.sub(" ", TAG.sub(" ", html.unescape(text))).split())


def sentences(text: str) -> list[str]:
    """Return the sentences of a plain text, as far as full stops and capitals show them."""
    return SENTENCE_END.split(text)


def shorten(text: str, words: int) -> str:
    """Return the leading sentences that fit into so many words, or a cut first sentence."""
    if len(text.split()) <= words:
        return text
    kept: list[str] = []
    count = 0
    for sentence in sentences(text):
        count += len(sentence.split())
        if count > words:
            break
        kept.append(sentence)
    return " ".join(kept) or " ".join(text.split()[:words])


def latin_share(text: str) -> float:
    """Return which share of the letters is Latin; 0 for a text without letters."""
    letters = [character for character in text if character.isalpha()]
    # The last letter of the block Latin Extended-B is U+024F.
    return sum(letter < "\u0250" for letter in letters) / max(len(letters), 1)
