"""How do rows come into lists, and how do lists keep their size? All inside write transactions.

Lists grow by the tail's blocks and shrink by rows that died. One that has grown too large is split
in two by 2-means, one that has become too small is closed and its rows go to the lists nearest to
them: the local rebalancing of SPFresh (Xu et al., SOSP 2023), without its reassignments of
neighbours. A closed list's number is used again.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vecstore import layout, rows
from vecstore.ann import codes, index, kmeans
from vecstore.ann.codes import Codes
from vecstore.ann.index import Index
from vecstore.ann.model import Model
from vecstore.catalog import Entry
from vecstore.errors import CorruptionError
from vecstore.index_layout import NO_LIST
from vecstore.layout import BLOCK_ROWS, CODE_TIER, LIST_PART_ROWS, NO_BLOCK, State
from vecstore.store import Snapshot, Transaction
from vecstore.vectors import Vectors

# Lists are split above so many times the mean size, and closed below such a share of it.
LARGE, SMALL = 3.0, 0.1
LEAST_LARGE = 256
# The most lists that one transaction splits, and closes.
SPLITS, CLOSURES = 64, 32
GATHERED_AT_ONCE = 8192


def lists_for(count: int) -> int:
    """How many lists suit so many rows."""
    return max(1, min(65_536, round(4.8 * math.sqrt(count)), count // 8))


# Building


@dataclass(frozen=True, slots=True)
class Draft:
    """What was computed in a snapshot for lists to be written later.

    Attributes:
        model: The new model.
        budgets: Its calibration.
        blocks: Blocks whose rows it covers, ascending, and the checksums that they had.
        checksums: uint32, as many.
        lists: The list of every living row of these blocks, (n,); the number of lists for none.
        codes: Their codes.
        count: Rows of the collection.
    """

    model: Model
    budgets: dict[str, object]
    blocks: NDArray[np.intp]
    checksums: NDArray[np.uint32]
    lists: NDArray[np.intp]
    codes: Codes
    count: int


def checksums(
    reader: Snapshot | Transaction, number: int, blocks: NDArray[np.intp]
) -> NDArray[np.uint32]:
    """The stored checksums of blocks, uint32 (n,); 0 for one that is not there."""
    found = np.zeros(len(blocks), np.uint32)
    for place, block in enumerate(blocks.tolist()):
        value = reader.get("tiers", layout.block_key(number, block))
        if value is not None:
            found[place] = layout.unpack_header(value, f"block {block}").crc32
    return found


def write(txn: Transaction, entry: Entry, state: State, kind: index.Kind, draft: Draft) -> None:
    """Replace the index of a collection by a draft.

    Blocks that have changed since the draft was made stay in the tail.
    """
    number, model = entry.number, draft.model
    index.clear(txn, number)
    alive = rows.live(txn, number, state)
    same = np.zeros(state.blocks, bool)
    kept = draft.blocks < state.blocks
    now = checksums(txn, number, draft.blocks[kept])
    same[draft.blocks[kept]] = now == draft.checksums[kept]
    same[alive == 0] = False
    if state.open_block != NO_BLOCK:
        same[state.open_block] = False
    living = rows.flags(alive)
    places = draft.codes.rows >> 6
    inside = (places < state.blocks) & (draft.lists < model.lists)
    inside[inside] = same[places[inside]] & living[draft.codes.rows[inside]]
    column = np.full(state.blocks * BLOCK_ROWS, NO_LIST, np.uint32)
    _write_lists(txn, number, draft, np.flatnonzero(inside), column)
    listed = index.blocks_listed(column)
    made = Index(kind, index.edition(), draft.count, 0, dict(draft.budgets), model, listed)
    index.save_lists_of_rows(txn, number, column, index.parts_listed(column))
    index.save_model(txn, number, made)
    index.save_listed(txn, number, listed)
    index.save_plan(txn, number, made)
    _code_tail(txn, entry, state, made, alive)
    state.backlog = 0


def _write_lists(
    txn: Transaction,
    number: int,
    draft: Draft,
    places: NDArray[np.intp],
    column: NDArray[np.uint32],
) -> None:
    lists = draft.lists[places]
    order = places[np.argsort(lists, kind="stable")]
    edges = np.searchsorted(draft.lists[order], np.arange(draft.model.lists + 1))
    for which in range(draft.model.lists):
        part = order[edges[which] : edges[which + 1]]
        index.save_list(txn, number, draft.model, which, draft.codes.take(part))
    column[draft.codes.rows[places]] = lists


def _code_tail(
    txn: Transaction, entry: Entry, state: State, made: Index, alive: rows.Words
) -> None:
    code_blocks(txn, entry, state, made.model, index.tail(made, alive))


def code_blocks(
    txn: Transaction, entry: Entry, state: State, model: Model, blocks: NDArray[np.int64]
) -> None:
    """Write the codes of blocks that are in no list."""
    for block in blocks.tolist():
        held = state.open_rows if block == state.open_block else BLOCK_ROWS
        numbers = np.arange(block * BLOCK_ROWS, block * BLOCK_ROWS + held)
        vectors = gather(txn, entry, state, numbers)
        found = model.encode(vectors, None, numbers.astype(np.uint32))
        index.save_block_codes(txn, entry.number, model, block, found)


def gather(
    reader: Transaction | Snapshot, entry: Entry, state: State, numbers: NDArray[np.intp]
) -> Vectors:
    """The stored vectors of some rows, float32 (n, dim), read in slices.

    Raises:
        CorruptionError: Some are not finite: what is made of them would be of no use.
    """
    vectors = [np.zeros((0, entry.spec.dim), np.float32)]
    for at in range(0, len(numbers), GATHERED_AT_ONCE):
        part = numbers[at : at + GATHERED_AT_ONCE]
        vectors.append(rows.gather(reader, entry.number, state, entry.form, part)[2])
        if not np.isfinite(vectors[-1]).all():
            raise CorruptionError(
                f"tiers: collection {entry.number} has vectors that are not finite"
            )
    return np.concatenate(vectors)


# Reading all of it


def read_codes(
    snapshot: Snapshot, entry: Entry, state: State, found: Index
) -> tuple[Codes, NDArray[np.intp]]:
    """Codes of all living rows, ascending, and the list of each; those of the tail are in none."""
    number, model = entry.number, found.model
    alive = rows.live(snapshot, number, state)
    column = index.read_lists_of_rows(snapshot, number, found)
    living = rows.flags(alive)
    column[~living] = NO_LIST
    parts, lists = [codes.empty(model.groups, model.dim)], [np.zeros(0, np.intp)]
    for which in range(model.lists):
        part = index.read_list(snapshot, number, model, which)
        inside = part.rows < len(column)
        inside[inside] = column[part.rows[inside]] == which
        parts.append(part.take(inside))
        lists.append(np.full(int(inside.sum()), which))
    for block in index.tail(found, alive).tolist():
        part = index.read_block_codes(snapshot, number, model, block)
        inside = living[part.rows]
        parts.append(part.take(inside))
        lists.append(np.full(int(inside.sum()), model.lists))
    joined, placed = codes.join(parts), np.concatenate(lists)
    order = np.argsort(joined.rows, kind="stable")
    if not np.array_equal(joined.rows[order], np.flatnonzero(living)):
        raise CorruptionError(f"lists: the codes of collection {number} are not those of its rows")
    return joined.take(order), placed[order]


# Keeping up


class _Upkeep:
    """One step of bringing lists up to date, in memory until `write`."""

    def __init__(self, txn: Transaction, entry: Entry, state: State, found: Index) -> None:
        self.txn, self.entry, self.state, self.index = txn, entry, state, found
        self.model = found.model
        self.number = entry.number
        self.alive = rows.live(txn, self.number, state)
        self.living = rows.flags(self.alive)
        self.column = index.read_lists_of_rows(txn, self.number, found)
        self.changed: dict[int, Codes] = {}
        self.parts: set[int] = set()
        self.centres = self.model.centres.copy()
        self.closed = self.model.closed.copy()
        self.moved: list[int] = []
        self.arrived = 0

    def sizes(self) -> NDArray[np.intp]:
        """Living rows of each list."""
        found = self.column[self.living & (self.column != NO_LIST)]
        return np.bincount(found, minlength=len(self.closed))

    def codes(self, which: int) -> Codes:
        """The codes of a list, of its living rows alone."""
        found = self.changed.get(which)
        if found is None:
            found = index.read_list(self.txn, self.number, self.model, which)
            numbers = found.rows
            inside = numbers < len(self.living)
            inside[inside] = self.living[numbers[inside]] & (self.column[numbers[inside]] == which)
            found = found.take(inside)
        return found

    def put(self, numbers: NDArray[np.intp], lists: int | NDArray[np.intp]) -> None:
        """Note the lists of rows."""
        self.column[numbers] = lists
        self.parts.update(np.unique(numbers // LIST_PART_ROWS).tolist())

    def drop_dead(self) -> None:
        """Take rows that died out of their lists."""
        dead = np.flatnonzero((self.column != NO_LIST) & ~self.living)
        for which in np.unique(self.column[dead]).tolist():
            self.changed[which] = self.codes(which)
        self.put(dead, NO_LIST)

    def close_small(self) -> NDArray[np.intp]:
        """Close lists that have become small; return their rows."""
        sizes = self.sizes()
        open_lists = np.flatnonzero(~self.closed)
        least = SMALL * sizes[open_lists].mean() if len(open_lists) else 0
        small = open_lists[sizes[open_lists] < least]
        small = small[np.argsort(sizes[small], kind="stable")][:CLOSURES]
        small = small[: max(0, len(open_lists) - 1)]
        loose = np.flatnonzero(np.isin(self.column, small))
        for which in small.tolist():
            self.closed[which] = True
            self.changed[which] = codes.empty(self.model.groups, self.model.dim)
        self.put(loose, NO_LIST)
        return loose

    def tail_rows(self) -> NDArray[np.intp]:
        """Living rows of the tail, but for the open block's."""
        blocks = index.tail(self.index, self.alive)
        self.moved = blocks[blocks != self.state.open_block].tolist()
        inside = np.zeros(len(self.alive), bool)
        inside[self.moved] = True
        found = np.flatnonzero(self.living & np.repeat(inside, BLOCK_ROWS))
        self.arrived = len(found)
        return found

    def insert(self, numbers: NDArray[np.intp]) -> None:
        """Put rows into the lists nearest to them."""
        if len(numbers) == 0:
            return
        model = self.current()
        vectors = gather(self.txn, self.entry, self.state, numbers)
        lists = model.assign(vectors)
        found = model.encode(vectors, lists, numbers.astype(np.uint32))
        order = np.argsort(lists, kind="stable")
        ordered, counts = lists[order], np.bincount(lists)
        for which in np.unique(lists).tolist():
            new = found.take(order[np.searchsorted(ordered, which) :][: counts[which]])
            self.changed[which] = codes.join([self.codes(which), new])
        self.put(numbers, lists)

    def split_large(self) -> None:
        """Split lists that have grown too large."""
        sizes = self.sizes()
        mean = sizes[~self.closed].mean() if (~self.closed).any() else 0
        wanted = int(self.living.sum()) / lists_for(int(self.living.sum()))
        limit = max(LARGE * min(mean, wanted), LEAST_LARGE)
        queue = [(-int(sizes[which]), which) for which in np.flatnonzero(sizes > limit).tolist()]
        heapq.heapify(queue)
        for _ in range(SPLITS):
            if not queue:
                break
            for name, size in self.split(heapq.heappop(queue)[1]):
                if size > limit:
                    heapq.heappush(queue, (-size, name))

    def split(self, which: int) -> list[tuple[int, int]]:
        """Split one list in two; return both and their sizes."""
        found = self.codes(which)
        vectors = gather(self.txn, self.entry, self.state, found.rows.astype(np.intp))
        reduced = self.model.centred(vectors) @ self.model.reducing.T
        second = kmeans.split(reduced, seed=which)
        free = np.flatnonzero(self.closed)
        other = int(free[0]) if len(free) else len(self.closed)
        if other == len(self.closed):
            # The mean, for the tail, stays the last.
            self.centres = np.insert(self.centres, other, 0.0, axis=0)
            self.closed = np.append(self.closed, False)
        self.closed[other] = False
        halves = ((which, ~second), (other, second))
        for name, half in halves:
            self.centres[name] = reduced[half].mean(axis=0)
        model = self.current()
        for name, half in halves:
            numbers = found.rows[half]
            lists = np.full(len(numbers), name)
            self.changed[name] = model.encode(vectors[half], lists, numbers)
            self.put(numbers.astype(np.intp), name)
        return [(name, int(half.sum())) for name, half in halves]

    def current(self) -> Model:
        """The model with the lists as they are now."""
        if (
            len(self.closed) != self.model.lists
            or (self.closed != self.model.closed).any()
            or (self.centres != self.model.centres).any()
        ):
            self.model = self.model.with_lists(self.centres, self.closed.copy())
            self.centres = self.model.centres.copy()
        return self.model

    def write(self) -> None:
        """Write what changed."""
        model, number = self.current(), self.number
        for which, found in sorted(self.changed.items()):
            index.save_list(self.txn, number, model, which, found)
        listed = index.blocks_listed(self.column)
        for block in self.moved:
            self.txn.delete("tiers", layout.block_key(number, block, CODE_TIER))
        arrived = self.index.arrived + self.arrived
        made = replace(self.index, model=model, listed=listed, arrived=arrived)
        if model is not self.index.model:
            made = replace(made, edition=index.edition())
            index.save_model(self.txn, number, made)
        index.save_lists_of_rows(self.txn, number, self.column, np.array(sorted(self.parts), int))
        index.save_listed(self.txn, number, listed)
        index.save_plan(self.txn, number, made)


def keep_up(txn: Transaction, entry: Entry, state: State, found: Index) -> None:
    """Put the tail into lists, take dead rows out, split large lists and close small ones."""
    step = _Upkeep(txn, entry, state, found)
    step.drop_dead()
    loose = step.close_small()
    step.insert(np.concatenate([loose, step.tail_rows()]))
    step.split_large()
    step.write()
    state.backlog = 0
