"""What does the demo search? The docstrings of Python's standard library, and questions to them.

Sources are read with `ast` from the folder of the running Python; nothing in it is imported or
executed. A file that cannot be read or parsed is left out, whatever is wrong with it.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import sysconfig
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecstore.errors import EncoderMismatchError, UsageError
from vecstore.spec import MAX_ID_BYTES, Id

if TYPE_CHECKING:
    from vecstore.collection import Collection
    from vecstore.database import Database
    from vecstore.hits import Hits

COLLECTION = "stdlib"
MAX_RECORDS = 5000
# The encoder's time grows with the text, and a docstring says what matters at its start: in the
# first paragraph, or the next if that is only a few words.
MAX_TEXT, ENOUGH_TEXT = 140, 40
MAX_DOCSTRING = 4000
MAX_SOURCE_BYTES = 4 << 20
SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "dist-packages",
        "distutils",  # like lib2to3 absent from Python 3.12 on
        "encodings",  # a hundred generated tables with one docstring
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "site-packages",
        "test",
        "tests",
        "turtledemo",
    }
)
KINDS = ("module", "class", "function", "method")

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A search that the demo runs, with its filter."""

    text: str
    where: dict[str, Any]


QUESTIONS = (
    Question(text="run a command and capture its output", where={"kind": "function"}),
    Question(
        text="a queue in which the smallest item comes first",
        where={"kind": {"$in": ["class", "module"]}},
    ),
    Question(text="pick a random item from a list", where={"lines": {"$gte": 3, "$lte": 10}}),
    Question(
        text="compress a file",
        where={"module": {"$in": ["bz2", "gzip", "lzma"]}, "kind": "function"},
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a question found, and the time from its text to the hits."""

    question: Question
    hits: Hits
    milliseconds: float

    @property
    def rows(self) -> list[tuple[str, Id, int, str]]:
        """Score, name, lines of source and docstring of each hit."""
        return [
            (
                f"{hit.score:.3f}",
                hit.id,
                (hit.metadata or {})["lines"],
                (hit.text or "").removeprefix(f"{hit.id}: "),
            )
            for hit in self.hits
        ]


@dataclass(frozen=True, slots=True)
class _Found:
    """A record with what decides whether it is chosen: `position` counts within its parent."""

    record: dict[str, Any]
    position: int = field(default=0)

    @property
    def rank(self) -> tuple[int, int]:
        return KINDS.index(self.record["metadata"]["kind"]), self.position


def stdlib_records(
    folder: str | os.PathLike[str] | None = None, *, limit: int = MAX_RECORDS
) -> Iterator[dict[str, Any]]:
    """Yield a record for each public documented name of the standard library.

    A record's id is the qualified name, its text the name and the start of the docstring, its
    metadata `module`, `kind` ("module", "class", "function", "method"), `name` and `lines` (of
    source). Where there are more than `limit`, modules come before classes, classes before
    functions, and methods last, the first method of every class before the second of any.

    Args:
        folder: A folder of sources; None for the standard library of the running Python.
        limit: The most records to yield.

    Raises:
        UsageError: The folder holds no documented Python source.
    """
    root = Path(sysconfig.get_path("stdlib") if folder is None else folder)
    found: dict[str, _Found] = {}
    for path, module in _modules(root):
        tree = _parse(path)
        if tree is not None:
            for item in _definitions(tree, module):
                found.setdefault(item.record["id"], item)
    if not found:
        raise UsageError(
            f"no documented Python sources in {root}: this Python comes without its library's"
            " sources"
        )
    # sorted() is stable: names of equal rank stay in the order of modules and of lines.
    chosen = sorted(found.values(), key=lambda item: item.rank)[: max(limit, 0)]
    kept = {item.record["id"] for item in chosen}
    yield from (item.record for name, item in found.items() if name in kept)


def collection(db: Database) -> Collection:
    """Return the demo's collection, with its model loaded, so that questions are timed without.

    Raises:
        UsageError: The collection was made with another model.
    """
    docs = db.collection(COLLECTION)
    try:
        docs.search(QUESTIONS[0].text, k=1)
    except EncoderMismatchError as error:
        raise UsageError(
            f"{db.path} was made with another model; remove it, or name another file"
        ) from error
    return docs


def changed(docs: Collection, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records that the collection does not hold in this very form."""
    stored = {record.id: (record.text, record.metadata) for record in docs.scan()}
    return [item for item in records if stored.get(item["id"]) != (item["text"], item["metadata"])]


def answers(docs: Collection, k: int = 3) -> Iterator[Answer]:
    """Ask the questions one after the other."""
    for question in QUESTIONS:
        start = time.perf_counter()
        hits = docs.search(question.text, k, where=question.where)
        spent = time.perf_counter() - start
        yield Answer(question=question, hits=hits, milliseconds=spent * 1000)


def farewell(path: str) -> str:
    """Say how to ask more of the file at `path`."""
    return f"""\
Ask your own, here or from Python:

  vecstore search {shlex.quote(path)} "wrap a long line of text" --where '{{"kind": "function"}}'

  import vecstore
  docs = vecstore.open({path!r}).collection({COLLECTION!r})
  print(docs.search("wrap a long line of text", where={{"kind": "function"}}))"""


def _modules(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the path and the dotted name of each public module, in the order of names."""
    for parent, folders, files in os.walk(root):
        folders[:] = sorted(
            name for name in folders if name.isidentifier() and _is_public_folder(name)
        )
        parts = Path(parent).relative_to(root).parts
        for file in sorted(files):
            stem = file.removesuffix(".py")
            if stem == file or not stem.isidentifier():
                continue
            if stem == "__init__" and parts:
                yield Path(parent, file), ".".join(parts)
            elif not stem.startswith("_"):
                yield Path(parent, file), ".".join((*parts, stem))


def _is_public_folder(name: str) -> bool:
    return name not in SKIPPED_FOLDERS and not name.startswith("_")


def _parse(path: Path) -> ast.Module | None:
    try:
        # A pipe or a device may have a name that ends in .py.
        if not path.is_file() or path.stat().st_size > MAX_SOURCE_BYTES:
            return None
        source = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _definitions(tree: ast.Module, module: str) -> Iterator[_Found]:
    last = max((node.end_lineno or 0 for node in tree.body), default=0)
    if text := _text(module, tree):
        yield _found(module, text, module, "module", module.rpartition(".")[2], last)
    yield from _members(tree, module, module)


def _members(parent: ast.Module | _Definition, prefix: str, module: str) -> Iterator[_Found]:
    methods = 0
    for node in _reachable(parent.body):
        if node.name.startswith("_"):
            continue
        qualified = f"{prefix}.{node.name}"
        if len(qualified.encode()) > MAX_ID_BYTES:
            continue
        is_class = isinstance(node, ast.ClassDef)
        if text := _text(qualified, node):
            first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            lines = (node.end_lineno or node.lineno) - first + 1
            is_method = not is_class and isinstance(parent, ast.ClassDef)
            kind = "class" if is_class else "method" if is_method else "function"
            yield _found(
                qualified, text, module, kind, node.name, lines, methods if is_method else 0
            )
            methods += is_method
        if is_class:
            yield from _members(node, qualified, module)


def _found(
    qualified: str, text: str, module: str, kind: str, name: str, lines: int, position: int = 0
) -> _Found:
    metadata = {"module": module, "kind": kind, "name": name, "lines": lines}
    return _Found({"id": qualified, "text": text, "metadata": metadata}, position)


def _reachable(body: list[ast.stmt]) -> Iterator[_Definition]:
    """Yield the definitions of a body, also those under `if`, `try` and `with`."""
    # A stack of our own: a chain of a thousand `elif` nests a thousand deep.
    stack: list[ast.AST] = list(reversed(body))
    while stack:
        node = stack.pop()
        if isinstance(node, _Definition):
            yield node
        elif isinstance(node, ast.If | ast.Try | ast.TryStar | ast.With | ast.ExceptHandler):
            stack.extend(reversed(list(ast.iter_child_nodes(node))))


def _text(qualified: str, node: ast.Module | _Definition) -> str:
    """The name and the docstring's first paragraphs; "" if there is no docstring."""
    docstring = ast.get_docstring(node, clean=False) or ""
    start = ""
    for paragraph in re.split(r"\n\s*\n", docstring[:MAX_DOCSTRING]):
        start = " ".join([start, *paragraph.split()]).strip()
        if len(start) >= ENOUGH_TEXT:
            break
    if not start:
        return ""
    # A docstring may spell a lone surrogate, which no file can hold as UTF-8.
    text = f"{qualified}: {start}".encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT].rpartition(" ")[0] + " ..."
