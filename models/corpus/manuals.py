"""Which pairs do manuals give? Headings and the running text below them."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

from corpus.cleaning import SENTENCE_END, clean
from corpus.packages import files
from corpus.pairs import Pair

HEADINGS = {"h1", "h2", "h3", "h4", "h5"}
PROSE = {"p", "li", "dd"}
BREAKS = {*PROSE, "div", "br"}
NO_END_TAG = {
    *("br", "hr", "img", "input", "link", "meta", "col", "area", "base", "wbr", "source"),
}
NOT_PROSE = {
    *("script", "style", "nav", "pre", "table", "footer", "aside", "form", "svg", "button"),
    *("math", "select", "head"),
}
NOT_PROSE_CLASS = re.compile(
    r"sphinxsidebar|related|toctree|navheader|navfooter|highlight|field-list|sidebar|breadcrumb|"
    r"toc\b|footer|bd-side|prev-next|sourceline|seealso|nav-header|quickview|citation|math|"
    r"headerlink|versionmodified"
)
# Numbers before a heading, and the sign of a link after it.
HEADING_NUMBER = re.compile(
    r"^(?:(?:Chapter|Section|Appendix)\s+)?[A-Z]?\d*(?:\.\d+)*\.?\s+(?=\S)|[¶#§\uf0c1]\s*$|"
    r"^\d+(?:\.\d+)+\s*"
)
OTHER_PAGE = re.compile(
    r"/_modules/|genindex|/search\.|py-modindex|whatsnew|changelog|release|/news/|copyright",
    re.IGNORECASE,
)
DULL_HEADING = re.compile(
    r"(?:synopsis|source code|see also|authors?|computation times|examples using|references|"
    r"bugs|copyright|licen[cs]e)\b",
    re.IGNORECASE,
)
GENERAL_HEADING = re.compile(
    r"(?:description|notes?|options|syntax|usage|examples?|parameters|overview|introduction|"
    r"summary|details|references|see also|arguments|compatibility|authors?|methods|attributes|"
    r"general|background|outputs?|diagnostics|limitations|returns?|activat\w+.*)$",
    re.IGNORECASE,
)
POD_CODE = re.compile(r"[IBCFSL]<+\s*(?:[^<>|]*\|)?([^<>]*?)\s*>+")
POD_INDEX = re.compile(r"[XZ]<[^<>]*>")
POD_SECTION = re.compile(r"^=head\d\s+(.+?)\n\n(.*?)(?=^=head|\Z)", re.MULTILINE | re.DOTALL)


def html_sections(name: str) -> Callable[[Sequence[Path]], Iterator[Pair]]:
    """Return a reader of the sections of a Debian package's HTML pages."""

    def read(archives: Sequence[Path]) -> Iterator[Pair]:
        for path, content in files(archives[0], "usr/share/doc/*/html/*.html*"):
            if OTHER_PAGE.search(path):
                continue
            page = gzip.decompress(content) if path.endswith(".gz") else content
            sections = [
                section
                for section in sections_of(page.decode("utf-8", "replace"))
                if not DULL_HEADING.match(section[0])
            ]
            for heading, body in sections:
                yield section_pair(sections[0][0], heading, body, name)

    return read


def section_pair(title: str, heading: str, body: str, manual: str) -> Pair:
    """Return the pair of one section of a page with that title.

    An identifier as heading gives way to the text's first sentence; a heading that says little
    by itself is put after the title.
    """
    group = f"{manual}: {title}"
    one_word = len(heading.split()) == 1
    if re.match(r"\S+\(", heading) or (one_word and re.search(r"[._:(]", heading)):
        first, *rest = SENTENCE_END.split(body, maxsplit=1)
        return Pair(first, " ".join(rest), group)
    if heading != title and (one_word or GENERAL_HEADING.match(heading)):
        return Pair(f"{title}: {heading}", body, group)
    return Pair(heading, body, group)


def sections_of(page: str) -> list[tuple[str, str]]:
    """Return heading and running text of each section of an HTML page."""
    parser = _SectionParser()
    parser.feed(page)
    parser.end_section()
    return parser.sections


class _SectionParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sections: list[tuple[str, str]] = []
        # Each open element, and whether it hides what is inside it.
        self._open: list[tuple[str, bool]] = []
        self._heading: list[str] = []
        self._body: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in HEADINGS and not self._hidden():
            self.end_section()
        if tag in BREAKS:
            self._body.append("\n")
        if tag not in NO_END_TAG:
            names = " ".join(value or "" for key, value in attrs if key in ("class", "id", "role"))
            whole_page = tag in ("body", "html")
            hides = tag in NOT_PROSE or (not whole_page and bool(NOT_PROSE_CLASS.search(names)))
            self._open.append((tag, hides))

    def handle_endtag(self, tag: str) -> None:
        """Close the element and what was left open inside it."""
        for place in reversed(range(len(self._open))):
            if self._open[place][0] == tag:
                del self._open[place:]
                return

    def handle_data(self, data: str) -> None:
        tags = {tag for tag, _ in self._open}
        if self._hidden():
            return
        if tags & HEADINGS:
            self._heading.append(data)
        elif tags & PROSE:
            self._body.append(data)

    def _hidden(self) -> bool:
        return any(hides for _, hides in self._open)

    def end_section(self) -> None:
        heading = clean("".join(self._heading))
        for _ in range(2):
            heading = HEADING_NUMBER.sub("", heading)
        if heading:
            self.sections.append((heading, clean("".join(self._body))))
        self._heading, self._body = [], []


def mallard_pages(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield the titles and texts of the pages and sections of GNOME's help."""
    for _, content in files(archives[0], "usr/share/help/C/*.page"):
        page = fromstring(content)
        space = page.tag.removesuffix("page")
        title = _text(page.find(f"{space}title"))
        opening = [
            _text(paragraph)
            for child in page
            if child.tag not in (f"{space}section", f"{space}info")
            for paragraph in child.iter(f"{space}p")
        ]
        yield Pair(title, " ".join(opening), f"GNOME: {title}")
        for section in page.iter(f"{space}section"):
            text = " ".join(map(_text, section.iter(f"{space}p")))
            yield Pair(_text(section.find(f"{space}title")), text, f"GNOME: {title}")


def _text(element: Element | None) -> str:
    return "" if element is None else "".join(element.itertext())


def pod_sections(archives: Sequence[Path]) -> Iterator[Pair]:
    """Yield headings, or questions, and texts of Perl's documentation."""
    for path, content in files(archives[0], "*.pod"):
        page = Path(path).stem
        for heading, body in POD_SECTION.findall(content.decode("utf-8", "replace")):
            # Code is indented; a paragraph with = is a command.
            paragraphs = (part for part in body.split("\n\n") if part and part[0] not in "= \t\n")
            heading = _without_codes(heading)
            if heading.isupper():
                heading = f"{page}: {heading.lower()}"
            yield Pair(heading, _without_codes(" ".join(paragraphs)), f"Perl: {page}")


def _without_codes(pod: str) -> str:
    # Characters that would read as the end of a code, left to the cleaning of text.
    pod = re.sub(r"E<(\w+)>", r"&\1;", pod)
    pod = POD_INDEX.sub("", pod)
    for _ in range(2):
        pod = POD_CODE.sub(r"\1", pod)
    return pod
