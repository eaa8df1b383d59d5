"""Indexes in plain memory, to call the kernel and its twin on: tables of addresses by hand."""

from dataclasses import dataclass, field

import numpy as np

from vecstore import layout, plain
from vecstore.ann import codes, rotation
from vecstore.ann.model import COARSE, Matrix, Model
from vecstore.frames import Frame

METRICS = {"cosine": plain.COSINE, "dot": plain.DOT, "l2": plain.L2}
DTYPES = {layout.FLOAT32: "<f4", layout.FLOAT16: "<f2", layout.INT8: "i1"}
NO_ROW = 2**32 - 1


def value(count: int, payload: bytes) -> np.ndarray:
    """A bulk value of so many rows; the payload is aligned as in the file."""
    room = np.zeros(layout.HEADER.size + len(payload) + 128, np.uint8)
    at = -(room.ctypes.data + layout.HEADER.size) % 64
    whole = room[at : at + layout.HEADER.size + len(payload)]
    whole[plain.ROWS_AT : plain.ROWS_AT + 4] = np.array([count], "<u4").view(np.uint8)
    whole[layout.HEADER.size :] = np.frombuffer(payload, np.uint8)
    return whole


@dataclass
class Memory:
    """The arguments of a search that do not depend on the query, and what keeps them alive.

    Attributes:
        model: What rows are coded with.
        vectors: float32 (n, dim), as stored.
        listed: The list of each row, or -1 in the tail.
        precision: Of the stored vectors.
    """

    model: Model
    vectors: np.ndarray
    listed: np.ndarray
    precision: int = layout.FLOAT32
    kept: list = field(default_factory=list)

    def __post_init__(self) -> None:
        count, model = len(self.vectors), self.model
        self.size = -(-count // 64)
        self.lists = np.zeros(model.lists, np.uint64)
        self.blocks = np.zeros(self.size, np.uint64)
        self.codes = np.zeros(self.size, np.uint64)
        self.mask = self.words(np.arange(count))
        self.tail_mask = self.words(np.flatnonzero(self.listed < 0))
        self.tail = np.unique(np.flatnonzero(self.listed < 0) >> 6).astype(np.int64)
        for number in range(model.lists):
            self.lists[number] = self.put_list(number, np.flatnonzero(self.listed == number))
        for block in range(self.size):
            rows = np.arange(block * 64, min(block * 64 + 64, count))
            self.blocks[block] = self.put_block(rows)
        for block in self.tail.tolist():
            rows = np.arange(block * 64, min(block * 64 + 64, count))
            self.codes[block] = self.put(len(rows), b"".join(self.coded(rows, None)))

    def words(self, rows) -> np.ndarray:
        """A mask of rows."""
        bits = np.zeros(self.size * 64, bool)
        bits[rows] = True
        return np.packbits(bits, bitorder="little").view("<u8").copy()

    def put(self, count: int, payload: bytes) -> int:
        """Keep a value and return its address."""
        self.kept.append(value(count, payload))
        return self.kept[-1].ctypes.data

    def coded(self, rows, lists) -> tuple[bytes, bytes]:
        """The tiles of some rows, and their fine codes."""
        if not len(rows):
            return b"", b""
        vectors, shape = self.vectors[rows], self.model.shape
        found = self.model.encode(vectors, lists, rows.astype(np.uint32))
        return codes.pack_tiles(found, shape).tobytes(), codes.pack_fine(found, shape).tobytes()

    def put_list(self, number: int, rows, names=None) -> int:
        """Keep a list; `names` are the rows that it says it has."""
        where = np.full(len(rows), number)
        named = np.full(-(-len(rows) // 32) * 32, NO_ROW, "<u4")
        named[: len(rows)] = rows if names is None else names
        tiles, fine = self.coded(rows, where)
        return self.put(len(rows), tiles + named.tobytes() + fine)

    def excerpt(self, number: int, mask) -> np.ndarray:
        """What an excerpt of a list has to be: a header, tiles, names, and places in the list."""
        rows, shape = np.flatnonzero(self.listed == number), self.model.shape
        coded = self.coded(rows, np.full(len(rows), number))
        tiles, fine = (np.frombuffer(part, np.uint8) for part in coded)
        kept = np.flatnonzero(mask[rows >> 6] >> (rows & 63).astype(np.uint64) & np.uint64(1))
        whole = codes.unpack(
            tiles.reshape(-1, shape.tile_bytes), fine.reshape(-1, shape.fine_bytes), rows, shape
        )
        columns = np.full((2, -(-len(kept) // 32) * 32), 0, "<u4")
        columns[:, : len(kept)] = rows[kept], kept
        packed = codes.pack_tiles(whole.take(kept), shape).tobytes()
        return value(len(kept), packed + columns.tobytes())

    def put_excerpts(self, mask) -> np.ndarray:
        """Keep excerpts of every other list; return their table."""
        table = np.zeros(self.model.lists, np.uint64)
        for number in range(0, self.model.lists, 2):
            self.kept.append(self.excerpt(number, mask))
            table[number] = self.kept[-1].ctypes.data
        return table

    def put_block(self, rows, held=None) -> int:
        """Keep a block; `held` is the number of rows that it says it has."""
        orders = np.zeros(64, "<u8")
        orders[: len(rows)] = self.orders(rows)
        payload = orders.tobytes() + bytes(layout.NORMS_BYTES)
        vectors = np.zeros((64, self.vectors.shape[1]), DTYPES[self.precision])
        if self.precision == layout.INT8:
            scales = np.zeros(64, "<f4")
            numbers, scales[: len(rows)] = quantized(self.vectors[rows])
            vectors[: len(rows)] = numbers
            payload += scales.tobytes()
        else:
            vectors[: len(rows)] = self.vectors[rows]
        return self.put(len(rows) if held is None else held, payload + vectors.tobytes())

    def orders(self, rows) -> np.ndarray:
        """The orders of rows: neither ascending nor dense."""
        rows = np.asarray(rows, np.uint64)
        return rows * np.uint64(2654435761) % np.uint64(2**32)

    def stored(self) -> np.ndarray:
        """The vectors that the blocks hold, float32."""
        if self.precision == layout.FLOAT16:
            return self.vectors.astype(np.float16).astype(np.float32)
        if self.precision == layout.INT8:
            numbers, scales = quantized(self.vectors)
            return numbers.astype(np.float32) * scales[:, None]
        return self.vectors


def quantized(vectors):
    """int8 numbers and float32 scales of vectors."""
    largest = np.abs(vectors).max(axis=1) / np.float32(127)
    scales = np.where(largest > 0, largest, np.float32(1)).astype(np.float32)
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales


def build(
    vectors, metric, *, lists, bits, coded=None, tail=0, precision=layout.FLOAT32, seed=0,
    distances=None,
) -> Memory:  # fmt: skip
    """Put vectors into lists, all but the last `tail`.

    Directions are only roughly orthogonal and centroids are rows: answers do not depend on it, and
    to do better would take most of the time.
    """
    count, dim = vectors.shape
    rng = np.random.default_rng(seed)
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    coarse, coded = min(COARSE, dim), coded or dim
    directions = rough(rng, coarse if coded == dim else max(coarse, coded), dim)
    chosen = vectors[rng.choice(count, lists, replace=False)]
    centres = np.concatenate([chosen, mean[None]]) - mean
    model = Model(
        metric=metric,
        bits=bits,
        coarse=coarse,
        coded=coded,
        directions=directions,
        signs=rotation.signs(dim, seed),
        centroids=Matrix.of(centres @ directions.floats()[:coarse].T),
        mean=mean,
        closed=np.zeros(lists, bool),
        distances=metric == "l2" if distances is None else distances,
    )
    listed = model.assign(vectors) if lists else np.full(count, -1)
    listed[count - tail :] = -1
    return Memory(model, vectors, listed, precision)


def rough(rng, rows, dim) -> Matrix:
    """Some random directions."""
    return Matrix.of((rng.normal(size=(rows, dim)) / np.sqrt(dim)).astype(np.float32))


@dataclass
class Answer:
    """What a search said."""

    orders: np.ndarray
    scores: np.ndarray
    counts: np.ndarray
    stats: np.ndarray
    missing: np.ndarray
    done: int


def ask(
    search, memory: Memory, queries, k, *, gap=1.0, reach=100.0, slack=2.0, fine=1.5, least=1,
    room=4096, mask=None, note=16, first=0, **tables,
) -> Answer:  # fmt: skip
    """Search; a budget this large reaches every list."""
    model, count = memory.model, len(queries)
    integers = np.zeros(plain.INTEGERS, np.int64)
    integers[plain.DIM], integers[plain.GROUPS] = model.dim, model.groups
    integers[plain.DIRECTIONS] = model.directions.rows
    integers[plain.COARSE], integers[plain.CODED] = model.coarse, model.coded
    integers[plain.OFFSETS], integers[plain.LISTS] = model.distances, model.lists
    integers[plain.K], integers[plain.ROOM] = k, room
    integers[plain.METRIC], integers[plain.PRECISION] = METRICS[model.metric], memory.precision
    integers[plain.LEAST] = least
    floats = np.zeros(4, np.float32)
    floats[plain.FINE] = fine
    floats[plain.GAP], floats[plain.REACH], floats[plain.SLACK] = gap, reach, slack
    mask = memory.mask if mask is None else mask
    answer = Answer(
        np.zeros((count, k), np.uint64),
        np.full((count, k), np.nan),
        np.zeros(count, np.int64),
        np.zeros((count, plain.STAGES), np.int64),
        np.zeros(2 + note, np.int64),
        0,
    )
    arrays = (
        np.ascontiguousarray(queries, np.float32), integers, floats, model.mean,
        model.directions.values, model.directions.scales, model.signs, model.centroids.values,
        model.centroids.scales, model.bias, model.patterns, tables.get("lists", memory.lists),
        tables.get("blocks", memory.blocks), tables.get("codes", memory.codes), memory.tail, mask,
        mask & memory.tail_mask, tables.get("weights", np.zeros(0, np.float32)),
        tables.get("excerpts", np.zeros(0, np.uint64)), answer.orders, answer.scores, answer.counts,
        answer.stats, answer.missing,
    )  # fmt: skip
    if search is plain.search:
        answer.done = search(*arrays, first)
    else:
        frame = Frame(arrays)
        answer.done = search(frame.address, first)
    return answer
