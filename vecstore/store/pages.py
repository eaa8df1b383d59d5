"""What can be read of a file whose pages cannot be trusted? LMDB's format, read without LMDB.

LMDB believes its pages and may end the process where they lie. Here every number of a page, offset
and size is checked against the file before it is used; no page is read twice in one walk; what is
damaged is passed over and counted.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from vecstore.errors import FormatError, LockedError
from vecstore.store.faults import translated
from vecstore.store.files import check_path

PAGE_SIZES = (4096, 8192, 16384, 32768)
# LMDB's own limit.
DEEPEST = 32
# As much as so many times the file is read of values that share their pages with others.
READ_AGAIN = 4
# So many pages are looked at to guess their size where both header pages are lost.
SAMPLE = 2000

_HEAD = struct.Struct("<QHHHH")
_BIG_HEAD = struct.Struct("<QHHI")
_BRANCH, _LEAF, _BIG, _META = 0x01, 0x02, 0x04, 0x08
_NODE = struct.Struct("<HHHH")
_FAR, _SUB = 0x01, 0x02
# In a header page: magic and version; page size, two trees, the last page and the transaction.
_MAGIC = struct.Struct("<II")
_MAGIC_AT, _SIZE_AT, _FREE_AT, _MAIN_AT, _LAST_AT = 16, 40, 40, 88, 136
_NUMBERS = struct.Struct("<QQ")
_TREE = struct.Struct("<IHHQQQQQ")
_HEADER_BYTES = 152
_EXPECTED = (0xBEEFC0DE, 1)
_NOWHERE = 2**64 - 1

Order = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class Tree:
    """A database: the page of its root, and how many entries it says that it has."""

    root: int
    entries: int

    @classmethod
    def parse(cls, data: bytes) -> Tree:
        """Read the 48 bytes that describe a database."""
        *_, entries, root = _TREE.unpack(data)
        return cls(root, entries)


@dataclass(frozen=True, slots=True)
class Far:
    """A value that lies on pages of its own: the first of them, and how many bytes it has."""

    page: int
    size: int


Value = bytes | Far


@dataclass(frozen=True, slots=True)
class Header:
    """What a header page says: the number of its commit, the last page, and the two trees."""

    transaction: int
    last: int
    free: Tree
    main: Tree


class Walk:
    """The entries of a tree in the order of their keys, and what was passed over.

    Attributes:
        passed: Pages that could not be read, with all below them.
        found: Entries that were there.
    """

    def __init__(
        self, pages: Pages, tree: Tree, seen: bytearray, order: Order = lambda key: key
    ) -> None:
        self._pages, self._tree, self._seen, self._order = pages, tree, seen, order
        self.passed = self.found = 0

    @property
    def whole(self) -> bool:
        """Whether nothing was missing, once all was read."""
        return self.passed == 0 and self.found == self._tree.entries

    def __iter__(self) -> Iterator[tuple[bytes, Value, bool]]:
        """Yield key, value, and whether that is itself a tree."""
        if self._tree.root == _NOWHERE:
            return
        # Pages with the keys that all of their keys lie between, the first one last.
        left: list[tuple[int, bytes | None, bytes | None, int]] = [(self._tree.root, None, None, 0)]
        while left:
            number, low, high, depth = left.pop()
            nodes = None if depth == DEEPEST else self._pages.nodes(number, self._seen)
            if nodes is None:
                self.passed += 1
                continue
            if nodes.children:
                self._seen[number] = 1
                edges = [low, *(key for key, _ in nodes.children[1:]), high]
                if not self._ascend(edges):
                    self.passed += 1
                    continue
                below = zip(nodes.children, edges, edges[1:], strict=False)
                spans = [(child, one, other, depth + 1) for (_, child), one, other in below]
                left += reversed(spans)
                continue
            if not all(self._is_between(low, key, high) for key, _, _ in nodes.items):
                # Another page than the one that should be here, or the keys above are damaged.
                self.passed += 1
                continue
            self._seen[number] = 1
            for key, value, sub in sorted(nodes.items, key=lambda item: self._order(item[0])):
                taken = self._pages.take(value, self._seen) if isinstance(value, Far) else True
                # Of two that name one page one is wrong: what is read there tells which.
                self.passed += not taken
                if taken is not None:
                    self.found += 1
                    yield key, value, sub

    def _ascend(self, edges: list[bytes | None]) -> bool:
        known = [self._order(edge) for edge in edges if edge is not None]
        return all(one < other for one, other in pairwise(known))

    def _is_between(self, low: bytes | None, key: bytes, high: bytes | None) -> bool:
        place = self._order(key)
        above = low is None or self._order(low) <= place
        return bool(above and (high is None or place < self._order(high)))


@dataclass(frozen=True, slots=True)
class Nodes:
    """What is on a page: of a branch keys and pages below, of a leaf its entries."""

    children: list[tuple[bytes, int]]
    items: list[tuple[bytes, Value, bool]]


def _lock(file: int, path: Path) -> None:
    """Keep others from a file while it is read, where the file system has locks.

    Raises:
        LockedError: Somebody has it open.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockedError(
            f"another process has {path} open; close it there: pages that change while they are"
            " read are of no use"
        ) from None
    except OSError:
        pass


class Pages:
    """The pages of a file that is only read, and that nobody else has open.

    Attributes:
        size: Bytes of a page.
        count: Whole pages in the file.
        headers: The header pages that are of use, the newest commit first.
        trees: The databases by their names, of the newest commit of which something can be read.
        free: A byte for each page, 1 if no tree uses it; None where that cannot be read.
        contradicted: Whether something led to a free page: then neither can be relied upon.
        seen: As many, 1 if it was met on the way to the databases.
    """

    def __init__(self, path: Path) -> None:
        check_path(path, read_only=True)
        with translated(f"open {path}"):
            self._file = os.open(path, os.O_RDONLY)
        try:
            _lock(self._file, path)
            self._bytes = os.fstat(self._file).st_size
            self.size, self.headers = self._read_headers()
            if not self.size:
                raise FormatError(f"{path} is not a vecstore file, or nothing of it is left")
            self.count = self._bytes // self.size
            self.trees: dict[str, Tree] = {}
            self._spare: list[slice] = []
            self._again = READ_AGAIN * self._bytes
            self._last = self.count
            self.free: bytearray | None = None
            self.contradicted = False
            self.seen = bytearray(self.count)
            self._read_trees()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file; calling it again does nothing."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Bytes

    def _read(self, at: int, size: int) -> bytes:
        """Some bytes of the file; fewer where it ends, or the disk does not give them."""
        parts = []
        while size:
            try:
                part = os.pread(self._file, min(size, 1 << 30), at)
            except OSError:
                break
            if not part:
                break
            parts.append(part)
            at, size = at + len(part), size - len(part)
        return b"".join(parts)

    def page(self, number: int) -> bytes | None:
        """The bytes of a page that says that it has this number, or None."""
        if not 0 <= number < self.count:
            return None
        data = self._read(number * self.size, self.size)
        if len(data) < self.size or int.from_bytes(data[:8], "little") != number:
            return None
        return data

    def load(self, value: Value) -> bytes | None:
        """The bytes of a value, or None if they are not there."""
        if not isinstance(value, Far):
            return value
        if not self._pages_of(value):
            return None
        data = self._read(value.page * self.size + _HEAD.size, value.size)
        return data if len(data) == value.size else None

    def widest(self, value: Far) -> Far:
        """All that the pages of a value can hold, where it says itself how long it is."""
        page = self.page(value.page)
        return value if page is None else self.far(value.page, page) or value

    def far(self, number: int, page: bytes) -> Far | None:
        """All that the pages can hold that begin with this one, if a value begins there."""
        _, _, flags, pages = _BIG_HEAD.unpack_from(page)
        if flags != _BIG or not 0 < pages <= self.count - number:
            return None
        return Far(number, pages * self.size - _BIG_HEAD.size)

    def _pages_of(self, value: Far) -> int:
        """How many pages a value has, if they are what they should be; else 0."""
        if not 2 <= value.page < self.count:
            return 0
        data = self._read(value.page * self.size, _BIG_HEAD.size)
        if len(data) < _BIG_HEAD.size:
            return 0
        number, _, flags, pages = _BIG_HEAD.unpack(data)
        needed = -(-(_BIG_HEAD.size + value.size) // self.size)
        fits = needed <= pages <= self.count - value.page
        return pages if number == value.page and flags == _BIG and fits else 0

    def take(self, value: Far, seen: bytearray) -> bool | None:
        """Note the pages of a value; False if some were met before, None if they are none.

        None too once too much was met before: an attacker's values may all be the same large one.
        """
        count = self._pages_of(value)
        if not count:
            return None
        used = -(-(_BIG_HEAD.size + value.size) // self.size)
        part = slice(value.page, value.page + used)
        if 1 in seen[part]:
            self._again -= value.size
            return False if self._again >= 0 else None
        # If they are free the list of these is wrong: what names a value is no old page.
        self._is_free(part)
        seen[part] = b"\1" * used
        if count > used:
            self._spare.append(slice(part.stop, value.page + count))
        return True

    def take_spare(self, seen: bytearray) -> None:
        """Note the pages that values have beyond what they need, once all others were met.

        Not before: where the number of a value's pages is damaged, they are somebody else's.
        """
        for part in self._spare:
            if 1 not in seen[part]:
                seen[part] = b"\1" * (part.stop - part.start)

    # Pages of trees

    def _is_free(self, part: slice) -> bool:
        """Whether a page is free that something leads to; one of both is wrong then."""
        found = self.free is not None and 1 in self.free[part]
        self.contradicted = self.contradicted or found
        return found

    def nodes(self, number: int, seen: bytearray) -> Nodes | None:
        """What is on a page of a tree; None if it is damaged, free, or was met before."""
        if not 2 <= number < self.count or seen[number]:
            return None
        if self._is_free(slice(number, number + 1)):
            return None
        page = self.page(number)
        return None if page is None else self.parse(page)

    def parse(self, page: bytes) -> Nodes | None:
        """Read the nodes of a branch or leaf; those of a leaf that are damaged are left out."""
        _, _, flags, lower, upper = _HEAD.unpack_from(page)
        if flags not in (_BRANCH, _LEAF) or lower % 2 or not 16 <= lower <= upper <= self.size:
            return None
        places = struct.unpack_from(f"<{(lower - 16) // 2}H", page, 16)
        if flags == _LEAF:
            items = [self._item(page, at) for at in places]
            return Nodes([], [item for item in items if item is not None])
        children = [self._child(page, at) for at in places]
        known = [child for child in children if child is not None]
        return Nodes(known, []) if known and len(known) == len(children) else None

    def _node(self, page: bytes, at: int) -> tuple[int, int, int, bytes, int] | None:
        """Three numbers and the key of a node, and where its content begins."""
        if not 16 <= at <= self.size - _NODE.size:
            return None
        low, high, flags, length = _NODE.unpack_from(page, at)
        begin = at + _NODE.size
        if begin + length > self.size:
            return None
        return low, high, flags, page[begin : begin + length], begin + length

    def _child(self, page: bytes, at: int) -> tuple[bytes, int] | None:
        node = self._node(page, at)
        if node is None:
            return None
        low, high, flags, key, _ = node
        return key, low | high << 16 | flags << 32

    def _item(self, page: bytes, at: int) -> tuple[bytes, Value, bool] | None:
        node = self._node(page, at)
        if node is None:
            return None
        low, high, flags, key, begin = node
        size = low | high << 16
        if flags & _FAR:
            if begin + 8 > self.size:
                return None
            return key, Far(int.from_bytes(page[begin : begin + 8], "little"), size), False
        if begin + size > self.size:
            return None
        return key, page[begin : begin + size], bool(flags & _SUB)

    # Header pages

    def _read_headers(self) -> tuple[int, list[Header]]:
        """The size of a page, and the header pages that can be read, the newest first."""
        found: dict[int, list[Header]] = {}
        for size in PAGE_SIZES:
            for number in (0, 1):
                header = self._read_header(number, size)
                if header is not None:
                    found.setdefault(size, []).append(header)
        if not found:
            return self._guess_size(), []
        size = max(found, key=lambda size: len(found[size]))
        return size, sorted(found[size], key=lambda header: -header.transaction)

    def _read_header(self, number: int, size: int) -> Header | None:
        data = self._read(number * size, _HEADER_BYTES)
        if len(data) < _HEADER_BYTES:
            return None
        own, _, flags, _, _ = _HEAD.unpack_from(data)
        (stated,) = struct.unpack_from("<I", data, _SIZE_AT)
        right = own == number and flags == _META and stated == size
        if not right or _MAGIC.unpack_from(data, _MAGIC_AT) != _EXPECTED:
            return None
        last, transaction = _NUMBERS.unpack_from(data, _LAST_AT)
        trees = [Tree.parse(data[at : at + _TREE.size]) for at in (_FREE_AT, _MAIN_AT)]
        return Header(transaction, last, *trees)

    def _guess_size(self) -> int:
        """The size with which most pages say their own number; 0 if none does."""
        best, most = 0, 0
        for size in PAGE_SIZES:
            count = self._bytes // size
            step = max(1, count // SAMPLE)
            hits = sum(
                self._read(number * size, 8) == number.to_bytes(8, "little")
                for number in range(2, count, step)
            )
            if hits * size > most:
                best, most = size, hits * size
        return best

    def _read_trees(self) -> None:
        """Find the databases, by the newest header that leads to them, or knows what is free."""
        while self.headers:
            header = self.headers[0]
            self.free, self.seen, self.contradicted = None, bytearray(self.count), False
            self.free = self._read_free(header)
            for key, value, sub in Walk(self, header.main, self.seen):
                if sub and isinstance(value, bytes) and len(value) == _TREE.size:
                    self.trees[key.decode("utf-8", "replace")] = Tree.parse(value)
            # Without the first, pages that are not free are the databases, if there were any.
            if self.trees or (self.free is not None and header.main.root != _NOWHERE):
                self._last = header.last
                return
            self.headers = self.headers[1:]
        self.free, self.seen, self.contradicted = None, bytearray(self.count), False

    def _read_free(self, header: Header) -> bytearray | None:
        """Which pages no tree uses, if all of that can be read."""
        free = bytearray(self.count)
        marked = np.frombuffer(free, np.uint8)
        walk = Walk(self, header.free, self.seen, lambda key: int.from_bytes(key, "little"))
        for _, value, _ in walk:
            data = self.load(value)
            numbers = np.frombuffer(data or b"", "<u8", len(data or b"") // 8)
            listed = numbers[1:]
            if not len(numbers) or numbers[0] != len(listed) or (listed < 2).any():
                return None
            inside = listed[listed < self.count].astype(np.intp)
            # LMDB's lists descend, and no page is in two.
            if (listed[1:] >= listed[:-1]).any() or (listed > header.last).any():
                return None
            if marked[inside].any():
                return None
            marked[inside] = 1
        return free if walk.whole else None

    # Pages that no tree leads to

    def loose(self, seen: bytearray) -> Iterator[tuple[int, bytes]]:
        """Pages that were not met and are not free, as far as that is known; they get met."""
        known = None if self.contradicted else self.free
        # What lies beyond the last page was never part of a commit, if that is true.
        end = self.count if 1 in seen[self._last + 1 :] else min(self.count, self._last + 1)
        for number in range(2, end):
            if seen[number] or (known is not None and known[number]):
                continue
            page = self.page(number)
            if page is None:
                continue
            seen[number] = 1
            far = self.far(number, page)
            if far is not None and known is not None:
                self._pass_over(far, seen, known)
            yield number, page

    def _pass_over(self, value: Far, seen: bytearray, free: bytearray) -> None:
        """Note the pages behind the first of a value, unless one of them is something else."""
        part = slice(value.page + 1, value.page + self._pages_of(value))
        taken = 1 in seen[part] or 1 in free[part]
        if part.stop > part.start and not taken:
            seen[part] = b"\1" * (part.stop - part.start)
