"""Which pairs does a dump of Wikipedia give?"""

from __future__ import annotations

import bz2
import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpus.cleaning import clean, sentences
from corpus.packages import only_file
from corpus.pairs import Pair

DUMP = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-*-shortened.bz2"
PAGE = re.compile(r"<title>(.*?)</title>.*?<text[^>]*>(.*?)</text>", re.DOTALL)
NOT_PROSE = re.compile(
    r"<!--.*?-->|<ref[^>/]*/>|<ref[^>]*>.*?</ref>|"
    r"<(math|gallery|timeline|table|source|code|pre)[^>]*>.*?</\1>",
    re.DOTALL,
)
# The innermost template or table: what encloses it is one after its removal.
INNERMOST = re.compile(r"\{\{[^{}]*\}\}|\{\|(?:(?!\{\|).)*?\|\}", re.DOTALL)
FILE = re.compile(
    r"\[\[(?:File|Image|Category|[a-z-]{2,8}):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]", re.IGNORECASE
)
LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
URL = re.compile(r"\[\S+:\S+ ?([^\]]*)\]")
LEFTOVER = re.compile(r"'{2,}|__[A-Z]+__|\(\s*[;,]?\s*\)")
HEADING = re.compile(r"^(=+)\s*(.*?)\s*\1\s*$", re.MULTILINE)
PARAGRAPH_END = re.compile(r"\n\s*\n|\n(?=[*#:;])")
LISTS = {
    *("references", "see also", "external links", "notes", "further reading"),
    *("bibliography", "footnotes", "sources"),
}


def sections(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield heading and section, and the first sentence and the rest of each paragraph."""
    dump = bz2.decompress(only_file(archives[0], DUMP)).decode()
    for title, text in articles(dump):
        before, *parts = HEADING.split(text)
        for heading, body in [("", before), *zip(parts[1::3], parts[2::3], strict=True)]:
            running = [part for part in PARAGRAPH_END.split(body) if _is_prose(part)]
            if heading.lower() in LISTS or not running:
                continue
            yield Pair(f"{title}: {heading}" if heading else title, " ".join(running), title)
            for paragraph in running:
                first, *rest = sentences(clean(paragraph))
                if len(rest) > 1 and len(first.split()) > 5:
                    yield Pair(first, " ".join(rest), title)


def articles(dump: str) -> Iterator[tuple[str, str]]:
    """Yield title and plain text of each article that is no redirect and no disambiguation."""
    for page in re.findall(r"<page>.*?</page>", dump, re.DOTALL):
        found = PAGE.search(page)
        if found is None:
            continue
        title, text = map(html.unescape, found.groups())
        if "disambiguation" not in title and not text.lstrip().lower().startswith("#redirect"):
            yield title, plain(text)


def plain(wikitext: str) -> str:
    """Return the running text without templates, tables, references, pictures and link marks."""
    text = NOT_PROSE.sub("", wikitext)
    changes = 1
    while changes:
        text, changes = INNERMOST.subn("", text)
    return LEFTOVER.sub("", URL.sub(r"\1", LINK.sub(r"\1", FILE.sub("", text))))


def _is_prose(paragraph: str) -> bool:
    return len(paragraph.split()) > 15 and paragraph.strip()[0] not in "*#:;|!{<"
