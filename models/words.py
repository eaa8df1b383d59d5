"""Which words get a token of their own? Those that a tokenizer cuts into pieces most often.

A sum over the tokens of a text knows nothing of which pieces belong together: "carcinoma" as a sum
of "car", "##cino" and "##ma" is partly a car.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from base import Base
from tokenizers import Tokenizer

# How a piece is marked that does not begin a word, and how a token is that stands for nothing yet.
INNER, UNUSED = "##", "[unused"


def cut_words(texts: Iterable[Sequence[int]], base: Base, count: int) -> list[str]:
    """Return the words that are most often cut into pieces in some texts, the most frequent first.

    Args:
        texts: Numbers of tokens, special ones in front and behind included.
        base: Whose tokens.
        count: How many words are returned at most.
    """
    tokens = _tokens(base)
    times: Counter[str] = Counter()
    for text in texts:
        word, pieces = "", 0
        for token in [*(tokens[number] for number in text[1:-1]), ""]:
            if token.startswith(INNER) and pieces:
                word, pieces = word + token.removeprefix(INNER), pieces + 1
                continue
            if pieces > 1:
                times[word] += 1
            word, pieces = token, 1
    order = sorted(times.items(), key=lambda item: (-item[1], item[0]))
    return [word for word, _ in order[:count]]


def with_words(base: Base, words: Sequence[str]) -> Base:
    """Return the base with a token for each word: unused ones first, then more behind the last."""
    content = json.loads(base.tokenizer_json())
    numbers = content["model"]["vocab"]
    unused = sorted(number for token, number in numbers.items() if token.startswith(UNUSED))
    free = [*unused, *range(len(numbers), len(numbers) + len(words))]
    named = dict(zip(free, words, strict=False))
    kept = {token: number for token, number in numbers.items() if number not in named}
    content["model"]["vocab"] = kept | {word: number for number, word in named.items()}
    return replace(base, tokenizer=Tokenizer.from_str(json.dumps(content)))


def alone(base: Base, wider: Base) -> list[list[int]]:
    """Return each token of the wider one as a text by itself, in the numbers of the base."""
    before, after = base.encode("", 2)
    known, texts = _tokens(base), []
    for number, token in enumerate(_tokens(wider)):
        same = number < len(known) and known[number] == token
        texts.append([before, number, after] if same else base.encode(token, len(token) + 2))
    return texts


def _tokens(base: Base) -> list[str]:
    """The tokens, by number."""
    numbers = base.tokenizer.get_vocab()
    return sorted(numbers, key=numbers.__getitem__)
