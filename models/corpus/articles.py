"""Which pairs do research articles give? Articles in JATS, the XML of scientific journals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring, tostring

from corpus.cleaning import sentences
from corpus.packages import files
from corpus.pairs import Pair

NOT_PROSE = {
    *("xref", "inline-formula", "disp-formula", "table-wrap", "fig", "table"),
    *("label", "object-id", "tex-math"),
}
# Brackets that held nothing but references.
EMPTY_BRACKETS = re.compile(r"\s*[(\[][\s,;\u2013-]*[)\]]")
NOTICE = re.compile(r"Please see later in the article for the Editors' Summary\.?")
GENERAL_HEADING = re.compile(
    r"(?:introduction|results?|discussion|methods?|materials? and methods|conclusions?|"
    r"background|abstract|supporting information|acknowledg\w*|statistic\w*( analys[ie]s)?|"
    r"author summary|limitations|results (?:and|/) discussion|ethics( statement)?|references)\W*$",
    re.IGNORECASE,
)
FREE = re.compile(
    r"creative\s+commons\s+(?:public\s+domain|cc0|attribution)|public\s+domain|licenses/by/"
)
RESTRICTED = re.compile(r"non-?commercial|by-n[cd]|no-?deriv")


def titles(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield title and abstract, heading and section, figure's or table's title and caption."""
    for article in free_articles(archives):
        title = prose(article.find(".//title-group/article-title"))
        for abstract in article.findall(".//abstract"):
            text = " ".join(prose(paragraph) for paragraph in abstract.iter("p"))
            yield Pair(title, NOTICE.sub("", text), title)
        for section in article.findall(".//body//sec"):
            heading = prose(section.find("title"))
            if len(heading.split()) > 1 and not GENERAL_HEADING.match(heading):
                yield Pair(heading, " ".join(map(prose, section.findall("p"))), title)
        for place in (".//fig/caption", ".//table-wrap/caption"):
            for caption in article.findall(place):
                text = " ".join(map(prose, caption.findall("p")))
                yield Pair(prose(caption.find("title")), text, title)


def paragraphs(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield the first sentence of each paragraph and the rest of the paragraph."""
    for article in free_articles(archives):
        title = prose(article.find(".//title-group/article-title"))
        for place in (".//abstract//p", ".//body//p"):
            for paragraph in article.findall(place):
                first, *rest = sentences(prose(paragraph))
                if len(rest) > 1 and len(first.split()) > 5:
                    yield Pair(first, " ".join(rest), title)


def free_articles(archives: Sequence[Path]) -> Iterator[Element]:
    """Yield the articles whose own statement is CC BY, CC0 or public domain."""
    for archive in archives:
        for _, content in files(archive, "allofplos/starter_corpus/*.xml"):
            article = fromstring(content)
            if is_free(article):
                yield article


def is_free(article: Element) -> bool:
    """Return whether the article's permissions let everyone copy and change it."""
    stated = " ".join(
        " ".join(element.itertext()) + tostring(element, "unicode")
        for element in article.iter("permissions")
    ).lower()
    return bool(FREE.search(stated)) and not RESTRICTED.search(stated)


def prose(element: Element | None) -> str:
    """Return the text of an element without references, formulas and tables."""
    if element is None:
        return ""
    parts = [element.text or ""]
    for child in element:
        if child.tag.split("}")[-1] not in NOT_PROSE:
            parts.append(prose(child))
        parts.append(child.tail or "")
    return EMPTY_BRACKETS.sub("", " ".join("".join(parts).split()))
