"""Which texts can be encoded? The checks that every encoder here makes before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from vecstore.encoders.protocol import Kind
from vecstore.errors import UsageError
from vecstore.spec import encode_utf8


def check_texts(texts: Sequence[str]) -> list[str]:
    """Return the texts as a list.

    Raises:
        UsageError: A single text instead of a list, or one that is no str, is empty or only
            whitespace, or has a lone surrogate; the message names its index.
    """
    if isinstance(texts, str | bytes):
        raise UsageError(
            f"encode takes a list of texts, got one {type(texts).__name__}: use [text]"
        )
    try:
        checked = list(texts)
    except TypeError:
        raise UsageError(f"encode takes a list of texts, got {type(texts).__name__}") from None
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            raise UsageError(f"text {index} is a {type(text).__name__}, expected a str")
        if not text or text.isspace():
            raise UsageError(
                f"text {index} is empty or only whitespace; it has no meaning to encode"
            )
        if not text.isascii():
            encode_utf8(text, f"text {index}")
    return checked


def check_kind(kind: str) -> None:
    """Raise UsageError unless `kind` is "document" or "query"."""
    if kind not in get_args(Kind):
        raise UsageError(f'kind={kind!r} is unknown; use "document" or "query"')
