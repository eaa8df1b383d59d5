"""Which pairs do the help pages of R packages give?

They are read from R's own serialization of the parsed pages ("R Internals", section
"Serialization Formats": XDR, versions 2 and 3).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from corpus.packages import files
from corpus.pairs import Pair

NOT_PROSE = {
    *("\\tabular", "\\preformatted", "\\figure", "\\out", "\\if", "\\ifelse", "\\deqn", "\\Sexpr"),
    *("COMMENT", "UNKNOWN", "USERMACRO", "\\newcommand"),
}

SYMBOL, PAIRLIST, ENVIRONMENT, CALL, TEXT = 1, 2, 4, 6, 9
LOGICALS, INTEGERS, REALS, TEXTS, VALUES = 10, 13, 14, 16, 19
REFERENCE, NOTHING = 255, 254
# The global, empty and base environments and the marks of missing values have no content.
BARE = {NOTHING, 253, 252, 251, 250, 242, 241}
# Namespaces, packages and persistent names are lists of texts.
NAMED = {249, 248, 247}
HAS_ATTRIBUTES, HAS_TAG = 1 << 9, 1 << 10


class Value(NamedTuple):
    """A value of R that has attributes."""

    content: Any
    attributes: dict[str, Any]


def pages(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield a page's title with its description and details, and with each section of its own."""
    for archive in archives:
        for path, database in files(archive, "usr/lib/R/site-library/*/help/*.rdb"):
            for page in help_pages(database):
                yield from page_pairs(page, f"R {Path(path).stem}")


def page_pairs(page: list[Any], group: str) -> Iterator[Pair]:
    """Yield the pairs of one parsed help page."""
    parts: dict[str, str] = {}
    for part in page:
        parts.setdefault(macro(part), prose(part))
    title, *body = (parts.get(name, "") for name in ("\\title", "\\description", "\\details"))
    yield Pair(title, " ".join(body), group)
    for part in page:
        if macro(part) == "\\section" and len(part.content) == 2:
            heading, text = map(prose, part.content)
            yield Pair(f"{title.strip()}: {heading}", text, group)


def macro(value: Any) -> str:
    """Return the macro of R's documentation format that a value stands for."""
    tag = value.attributes.get("Rd_tag") if isinstance(value, Value) else None
    return str(tag[0]) if tag else ""


def prose(value: Any) -> str:
    """Return the running text of a part of a page."""
    name = macro(value)
    content = value.content if isinstance(value, Value) else value
    if name in ("\\dots", "\\R"):
        return {"\\dots": "...", "\\R": "R"}[name]
    if content is None or name in NOT_PROSE:
        return ""
    if isinstance(content, str):
        return content
    # A link is target and text; an equation is given for print and for plain text.
    content = {"\\href": content[-1:], "\\eqn": content[:1]}.get(name, content)
    text = "".join(map(prose, content))
    return f" {text}" if name == "\\item" else text


def help_pages(database: bytes) -> Iterator[list[Any]]:
    """Yield the parsed pages of a help database: zlib streams, each after its 4-byte size."""
    while len(database) > 4:
        inflater = zlib.decompressobj()
        try:
            content = inflater.decompress(database[4:])
        except zlib.error:
            return
        database = inflater.unused_data
        try:
            page = _Reader(content).item()
        except (ValueError, IndexError, RecursionError):
            # The database's own tables hold kinds of values that pages do not.
            continue
        if isinstance(page, Value) and isinstance(page.content, list):
            yield page.content


class _Reader:
    """Reads one serialized value: str, list, Value, or None for what has no text."""

    def __init__(self, content: bytes) -> None:
        # Two bytes say that it is XDR; then come version, writer's version and oldest reader's.
        self._content, self._at = content, 2
        self._references: list[Any] = []
        version, _, _ = (self._integer() for _ in range(3))
        if version == 3:
            self._bytes(self._integer())

    def _bytes(self, size: int) -> bytes:
        self._at += size
        return self._content[self._at - size : self._at]

    def _integer(self) -> int:
        return int.from_bytes(self._bytes(4), "big", signed=True)

    def item(self) -> Any:
        """Read the next value."""
        flags = self._integer()
        kind = flags & 255
        if kind in BARE:
            return None
        if kind == REFERENCE:
            return self._references[(flags >> 8 or self._integer()) - 1]
        if kind == TEXT:
            # A missing text has size -1.
            return self._bytes(max(self._integer(), 0)).decode("utf-8", "replace")
        if kind in (PAIRLIST, CALL):
            return [value for _, value in self._pairs(flags)]
        if kind in {SYMBOL, ENVIRONMENT, *NAMED}:
            return self._remembered(kind)
        return self._vector(kind, flags)

    def _remembered(self, kind: int) -> Any:
        place = len(self._references)
        if kind == SYMBOL:
            name = self.item()
            self._references.append(name)
            return name
        self._references.append(None)
        self._integer()
        for _ in range(4 if kind == ENVIRONMENT else self._integer()):
            self.item()
        return self._references[place]

    def _pairs(self, flags: int) -> Iterator[tuple[str, Any]]:
        while flags & 255 != NOTHING:
            if flags & HAS_ATTRIBUTES:
                self.item()
            tag = self.item() if flags & HAS_TAG else ""
            yield str(tag), self.item()
            flags = self._integer()

    def _vector(self, kind: int, flags: int) -> Any:
        size = self._integer()
        content: Any = None
        if kind in (LOGICALS, INTEGERS, REALS):
            self._bytes(size * (8 if kind == REALS else 4))
        elif kind in (TEXTS, VALUES):
            content = [self.item() for _ in range(size)]
        else:
            raise ValueError(f"a value of R of kind {kind}")
        if not flags & HAS_ATTRIBUTES:
            return content
        return Value(content, dict(self._pairs(self._integer())))
