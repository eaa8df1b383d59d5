"""Which pairs do dictionaries give? Those of the dictd server, and WordNet."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits

from corpus.packages import files, only_file
from corpus.pairs import Pair

DIGITS = {
    digit: value for value, digit in enumerate(ascii_uppercase + ascii_lowercase + digits + "+/")
}

FOLDOC_NOTES = re.compile(
    r"\((?:19|20)\d\d-\d\d-\d\d\)\s*$|\{?\(?https?:\S+|\[[^\]]*\?\]|\[\{?Jargon File\}?\]"
)
FOLDOC_TOPIC = re.compile(r"\s*<([^>]+)>")

GCIDE_LETTER = re.compile(r"\[(ae|oe)\]|\[[^\w\s]?([a-zA-Z])[^\w\s]?\]")
GCIDE_FIELD = re.compile(r"\(([A-Z][a-z]+)\.\)")
GCIDE_MARKS = re.compile(
    r"\([A-Z][\w. &]*\.\)|^\s*\d+\.\s+(?:\([A-Z][\w. ]*\))?|\{|\}|--\s*[A-Z][\w. ]+$", re.MULTILINE
)

JARGON_GRAMMAR = re.compile(r"^\s*(?:/[^\n]*/,?)?\s*(?:(?:n|v|vt|vi|adj|adv|interj|excl)\.,?\s*)*")

WORDNET_EXAMPLE = re.compile(r'"([^"]*)"?')
WORDNET_MARKER = re.compile(r"\((?:a|p|ip)\)$")


def foldoc(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield terms of computing and their explanations, grouped by topic."""
    for _, text in dictd_entries(archives[0]):
        head, _, body = text.partition("\n")
        # Further heads of the same entry stand at the margin.
        body = re.sub(r"^[^\n ][^\n]*\n", "", body)
        topic = FOLDOC_TOPIC.match(body)
        body = body[topic.end() :] if topic else body
        paragraphs = (FOLDOC_NOTES.sub("", part) for part in body.split("\n\n"))
        plain = "\n".join(part for part in paragraphs if not part.strip().startswith(("[", "(")))
        if len(head.split()) <= 8:
            yield Pair(head, re.sub("[{}]", "", plain), f"FOLDOC: {topic[1] if topic else ''}")


def gcide(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield words and their first senses, grouped by field."""
    for head, text in dictd_entries(archives[0]):
        text = GCIDE_LETTER.sub(lambda match: match[1] or match[2], text)
        # Etymologies and inflections, which may start in the head's line and hold one another.
        for _ in range(2):
            text = re.sub(r"\[[^\[\]]*\]", "", text)
        first = re.split(r"\n\s*\n", text.partition("\n")[2].strip())[0]
        field = GCIDE_FIELD.search(first)
        plain = GCIDE_MARKS.sub("", first)
        if "[" not in plain and "\\" not in plain:
            yield Pair(head, plain, f"GCIDE: {field[1] if field else ''}")


def jargon(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield hackers' terms and their explanations."""
    for head, text in dictd_entries(archives[0]):
        body = re.sub("[{}]", "", text.partition("\n")[2])
        yield Pair(head, JARGON_GRAMMAR.sub("", body), "Jargon File")


def dictd_entries(archive: Path) -> Iterator[tuple[str, str]]:
    """Yield head and text of each entry; the text starts with the head's own line.

    The index has one line a head: the head, then start and size of the text in base 64.
    """
    texts = gzip.decompress(only_file(archive, "*.dict.dz"))
    done = set()
    for line in only_file(archive, "usr/share/dictd/*.index").decode().splitlines():
        head, start, size = line.split("\t")[:3]
        # Heads with 00 tell about the dictionary; a second head repeats the text of the first.
        if not head.startswith("00") and start not in done:
            done.add(start)
            at = _number(start)
            yield head, texts[at : at + _number(size)].decode("utf-8", "replace")


def _number(text: str) -> int:
    value = 0
    for digit in text:
        value = value * len(DIGITS) + DIGITS[digit]
    return value


def wordnet_glosses(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield up to three words of a meaning and its gloss."""
    for words, gloss, _, group in meanings(archives[0]):
        yield Pair(", ".join(words[:3]), gloss, group)


def wordnet_examples(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield sentences with a word and the gloss of what it means there."""
    for _, gloss, examples, group in meanings(archives[0]):
        for example in examples:
            if len(example.split()) > 3:
                yield Pair(example, gloss, group)


def meanings(archive: Path) -> Iterator[tuple[list[str], str, list[str], str]]:
    """Yield words, gloss, examples and lexicographer's file of each meaning of WordNet."""
    for name, content in files(archive, "usr/share/wordnet/data.*"):
        for line in content.decode().splitlines():
            # The licence at the start of each file is indented.
            if not line.startswith(" "):
                entry, _, text = line.partition(" | ")
                _, lexicographer, _, count, *parts = entry.split(" ")
                words = parts[: 2 * int(count, 16) : 2]
                yield (
                    [WORDNET_MARKER.sub("", word).replace("_", " ") for word in words],
                    WORDNET_EXAMPLE.split(text)[0].strip("; ,:"),
                    WORDNET_EXAMPLE.findall(text),
                    f"WordNet {name.rpartition('.')[2]} {lexicographer}",
                )
