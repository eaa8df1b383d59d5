"""What real text does a machine hold? Sentences, each once, of several origins.

Every text was written by people for people: nothing is generated, varied or repeated. Two texts
count as one if they differ only in case, digits, punctuation and spaces.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

SHORTEST, LONGEST = 24, 400
FEWEST_WORDS = 4
# Of the characters of a sentence; tables, code and addresses have fewer letters.
LEAST_LETTERS = 0.72
BIGGEST_FILE = 4 << 20
PROSE = {"", ".txt", ".md", ".rst", ".html", ".copyright", ".changes", ".news", ".readme"}

_PARAGRAPH = re.compile(r"\n\s*\n|\n\s*(?:[-*•o#]|\d+[.)])\s+|^\s*@\w+", re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?;:])\s+(?=[A-Z\"'(`])")
_SPACES = re.compile(r"\s+")
_KEY = re.compile(r"[^a-z]+")
_TAG = re.compile(r"<[^<>]{1,300}>")
_ROFF = re.compile(r"^[.'].*$|\\f[BIRP]|\\[&|^]|\\s[-+]?\d", re.MULTILINE)


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text that look like prose."""
    for paragraph in _PARAGRAPH.split(text):
        for part in _SENTENCE.split(_SPACES.sub(" ", paragraph).strip()):
            if _is_prose(part):
                yield part


def _is_prose(text: str) -> bool:
    if not SHORTEST <= len(text) <= LONGEST or text.count(" ") < FEWEST_WORDS - 1:
        return False
    return sum(map(str.isalpha, text)) + text.count(" ") >= LEAST_LETTERS * len(text) + 1


def key(text: str) -> str:
    """What two texts must not share."""
    return _KEY.sub("", text.lower())


def gather(data: Path, more: Iterable[Path], count: int) -> dict[str, list[str]]:
    """Up to `count` different texts by origin; origins that come first keep what they share.

    Args:
        data: The folder with the data sets that are given.
        more: Folders with manual pages, documentation or anything else that holds prose.
        count: Stop after this many.
    """
    origins: dict[str, Callable[[], Iterator[str]]] = {
        "wordnet": partial(_wordnet, data),
        "scifact": partial(_scifact, data),
        "debian descriptions": partial(_debian, data),
        "package lists": _package_lists,
        "python docstrings": _docstrings,
        **{f"folder {path.name}": partial(_folder, path) for path in more},
    }
    found: dict[str, list[str]] = {}
    seen: set[str] = set()
    for origin, texts in origins.items():
        kept = found[origin] = []
        for text in texts():
            if len(seen) >= count:
                break
            if (short := key(text)) not in seen:
                seen.add(short)
                kept.append(text)
    return found


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a gzipped file with one JSON object a line."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def _wordnet(data: Path) -> Iterator[str]:
    for row in rows(data / "wordnet" / "synsets.jsonl.gz"):
        yield from filter(None, [row["gloss"], *row["examples"]])


def _scifact(data: Path) -> Iterator[str]:
    for row in rows(data / "scifact" / "docs.jsonl.gz"):
        yield row["title"]
        yield from sentences(row["text"])


def _debian(data: Path) -> Iterator[str]:
    for row in rows(data / "debian_packages" / "docs.jsonl.gz"):
        yield row["title"]
        yield from sentences(row["text"])


def _package_lists() -> Iterator[str]:
    """Names with one-line descriptions, then sentences of long descriptions where there are any."""
    if not shutil.which("apt-cache"):
        return
    done = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=False)
    for stanza in done.stdout.split("\n\n"):
        name = re.search(r"^Package: (.*)$", stanza, re.MULTILINE)
        about = re.search(r"^Description(?:-en)?: (.*(?:\n .*)*)", stanza, re.MULTILINE)
        if name and about:
            first, _, rest = about[1].partition("\n")
            yield f"{name[1]}: {first}"
            yield from sentences(rest.replace("\n .", "\n"))


def _docstrings() -> Iterator[str]:
    paths = sysconfig.get_paths()
    for folder in dict.fromkeys([paths["stdlib"], paths["purelib"], paths["platlib"]]):
        for path in sorted(Path(folder).rglob("*.py")):
            yield from _strings_of(path)


def _strings_of(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(_read(path))
    except (SyntaxError, ValueError, RecursionError):
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield from sentences(text)


def _folder(folder: Path) -> Iterator[str]:
    """Sentences of the files of a folder that are prose, a manual page or Python."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        if path.suffix == ".py":
            yield from _strings_of(path)
            continue
        suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
        last = suffixes[-1].lower() if suffixes else ""
        manual = re.fullmatch(r"\.[1-9]\w*", last) is not None
        if manual or last in PROSE:
            text = _read(path)
            yield from sentences(_ROFF.sub(" ", text) if manual else _TAG.sub(" ", text))


def _read(path: Path) -> str:
    """The text of a file, gzipped or not; nothing of one that is too big, binary or broken."""
    try:
        if path.stat().st_size > BIGGEST_FILE:
            return ""
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, gzip.BadGzipFile):
        return ""
    return "" if b"\0" in raw else raw.decode("utf-8", "ignore")
