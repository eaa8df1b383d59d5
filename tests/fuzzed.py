"""What reads bytes of others, as functions of bytes: nothing but our own errors may come of it.

`benchmarks/fuzz.py` looks for inputs that other errors come of; `test_fuzzed.py` keeps them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

import vecstore
from vecstore import (
    CollectionSpec,
    Database,
    VecstoreError,
    catalog,
    field_layout,
    filters,
    formats,
    index_layout,
    layout,
    record_layout,
)
from vecstore.ann import codes, index
from vecstore.ann import model as models
from vecstore.encoders import safetensors
from vecstore.encoders.adapters import Adapter, adapter
from vecstore.field_layout import Listed, Manifest
from vecstore.fields import segments
from vecstore.index_layout import CodeShape
from vecstore.layout import Header, State
from vecstore.words import fasttext, files

Target = Callable[[bytes], None]


class Taken:
    """Small choices, off the front of some bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, below: int) -> int:
        """A number below another one."""
        if self.at >= len(self.data):
            return 0
        self.at += 1
        return self.data[self.at - 1] % below

    def chosen(self, some: Any) -> Any:
        """One of some things."""
        return some[self.number(len(some))]

    def halves(self) -> tuple[bytes, bytes]:
        """What is left, cut in two."""
        cut = 256 * self.number(16) + self.number(256)
        return self.rest()[:cut], self.rest()[cut:]

    def rest(self) -> bytes:
        """All that is left."""
        return self.data[self.at :]


def _sealed(kind: int, header: bytes, payload: bytes) -> bytes:
    """A bulk value of a kind with a right checksum, numbers of whose header are given."""
    told = struct.unpack("<BHHHH", header.ljust(9, b"\0")[:9])
    said = Header(kind, told[0] % 8, *told[1:4], len(payload), 0, 1)
    value = bytearray(layout.pack_bulk(said, payload, 256))
    return bytes(value)


# Values of the file


def small_values(data: bytes) -> None:
    """Counters, plans, specs and manifests."""
    taken = Taken(data)
    how, rest = taken.number(8), taken.rest()
    value = layout.pack_checked(rest)
    if how == 0:
        State.unpack(value).pack()
    elif how == 1:
        # Not what was read of the same bytes before.
        catalog.parse.__wrapped__(1, value)
    elif how == 2:
        Manifest.unpack(value, "").pack()
    elif how == 3:
        layout.parse_id_key(b"\0\0\0\1" + rest)
    elif how == 4:
        layout.unpack_digest(rest[:-4], rest[-4:])
    elif how == 5:
        with contextlib.suppress(KeyError, ValueError, TypeError):
            index._check_plan(layout.unpack_meta(value, ""))
    else:
        layout.unpack_meta(value, "")


def bulk_values(data: bytes) -> None:
    """Blocks, lists, codes, bytes, bands, and whatever else has a header; as it is, or sealed."""
    taken = Taken(data)
    how, dim, header = taken.number(8), 2 + taken.number(20), taken.data[2:11]
    taken.at = 11
    kinds = [layout.FULL_BLOCK, layout.LIVE_PART, layout.LIST, layout.CODE_BLOCK]
    kinds += [layout.LIST_PART, layout.BYTE_BLOCK, layout.BAND, layout.SEGMENT_ROWS]
    sealed = taken.number(3) > 0
    value = _sealed(kinds[how], header, taken.rest()) if sealed else taken.rest()
    first = struct.unpack("<H", header[5:7].ljust(2, b"\0"))[0]
    shape = CodeShape(16 * (1 + dim % 3), bool(dim & 1), dim)
    if how == 0:
        precision, metric = (("float16", "cosine"), ("int8", "dot"), ("float32", "l2"))[dim % 3]
        form = layout.form(CollectionSpec(name="x", dim=dim, metric=metric, precision=precision))
        held = layout.check_block(value, 1, first >> 6, form)
        layout.view_block(value, held, form)
    elif how == 1:
        layout.unpack_part(value, 1, first >> 14)
    elif how in (2, 3):
        kind = kinds[how]
        count = index_layout.check_codes(value, 1, kind, first, shape)
        tiles, rows, fine = index_layout.split_codes(value, kind, count, shape)
        codes.unpack(tiles, fine, np.resize(rows, count), shape)
    elif how == 4:
        index_layout.unpack_list_part(value, 1, first >> 14)
    elif how == 5:
        index_layout.check_bytes(value, 1, first >> 6, dim)
        index_layout.unpack_bytes(value, dim)
    elif how == 6:
        count = struct.unpack("<H", header[1:3].ljust(2, b"\0"))[0]
        index_layout.check_band(value, 1, first, 1 + dim % 16, count)
        index_layout.split_band(value, 1 + dim % 16, count)
    else:
        field_layout.read_rows(value, 1, Listed(first, b"", 0, 0))


def records(data: bytes) -> None:
    """Bodies of records and passages, under a right checksum."""
    taken = Taken(data)
    how, key = taken.number(4), layout.record_key(1, 9)
    value = record_layout.pack_record(key, 3, taken.rest())
    record_layout.check_record(key, value)
    if how == 0:
        record_layout.unpack_part(key, value)
    elif how == 1:
        alone = record_layout.unpack_ids([value])
        assert alone[0] == record_layout.unpack_body(value)[0]
    else:
        identity, text, metadata, passages = record_layout.unpack_content(9, value)
        again = record_layout.pack_content(identity, text, metadata, passages)
        record_layout.unpack_content(9, record_layout.pack_record(key, 3, again))


def bundles(data: bytes) -> None:
    """Named arrays, and the models and adapters made of them."""
    taken = Taken(data)
    how, dim = taken.number(4), 2 + taken.number(8)
    head, body = taken.halves()
    if how == 0:
        whole = adapter._HEAD.pack(adapter._MAGIC, len(head)) + head + body
        Adapter.from_bytes(whole + hashlib.sha256(whole).digest())
        return
    payload = layout.CHECKSUM.pack(len(head)) + head + body
    values, arrays = index_layout.unpack_bundle(_sealed(layout.BUNDLE, b"", payload), 1, "")
    metric = ("cosine", "dot", "l2")[how - 1]
    try:
        found = models.from_parts(metric, values, arrays)
        models.check(found, dim)
    except (KeyError, ValueError, TypeError, AttributeError):
        return
    with np.errstate(all="ignore"):
        rows = np.arange(3, dtype=np.uint32)
        found.encode(np.ones((3, dim), np.float32), None, rows)
        assert found.bias.shape == (found.lists + 1,)


def columns(data: bytes) -> None:
    """Segments of columns, and everything that is looked for in them."""
    head, body = Taken(data).halves()
    payload = (layout.CHECKSUM.pack(len(head)) + head).ljust(-(-(4 + len(head)) // 64) * 64, b"\0")
    listed = Listed(0, b"12345678", 0, 5)
    try:
        width = len(msgpack.unpackb(head)[0]["paths"])
    except Exception:
        width = 0
    value = layout.pack_bulk(
        Header(layout.SEGMENT, layout.BITS, 5, width, 0, 0, 0, 1), payload + body, 256
    )
    directory = field_layout.read_segment(value, 1, listed)
    own = np.full(field_layout.RANGE_WORDS, 2**64 - 1, np.uint64)
    segment = segments.Segment(listed, directory, bytes(value), own)
    words = np.zeros(field_layout.RANGE_WORDS, np.uint64)
    for path in segment.paths:
        view = segment.column(path)
        assert view is not None
        view.add_existing(words)
        for kind in ("string", "bytes"):
            terms = view.terms(kind)
            if terms is not None:
                terms.containing(b"a")
                view.add_many_terms(kind, np.arange(len(terms), dtype=np.intp), words)
        for kind in ("number", "datetime"):
            values = view.find(f"{kind}.values")
            if values is not None:
                view.add_sorted(kind, 0, len(values), words)
    segments.columns_of(segment, own)


# Filters

_PATHS = [
    "n",
    "word",
    "tags",
    "deep.er",
    "deep",
    "gone",
    "$id",
    "$text",
    "",
    "tags.0",
    ".",
    "deep..",
]
_PLAIN: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2.5, 1e300, float("inf"), float("nan"), 2**63, -(2**70),
    "", "word 1", "word", "tag 1", b"", b"\1", datetime(2024, 1, 2, tzinfo=UTC),
    datetime(2024, 1, 2), [], {}, [1, 2], ["tag 1"], {"er": 1}, "\ud800",
]  # fmt: skip
_OPERATORS = [*filters.dialect.OPERATORS, *filters.dialect.LOGIC, "$bad", "$"]
_known: list[Database] = []


def _tree(taken: Taken, depth: int) -> Any:
    how = taken.number(10)
    if depth > 12 or how < 3:
        return taken.chosen(_PLAIN)
    if how == 3:
        return [_tree(taken, depth + 1) for _ in range(taken.number(4))]
    names = _OPERATORS if how < 7 else _PATHS
    return {taken.chosen(names): _tree(taken, depth + 1) for _ in range(1 + taken.number(3))}


def _where(taken: Taken) -> Any:
    """Mostly what is a filter, else anything."""
    how = taken.number(8)
    if how == 0:
        return _tree(taken, 0)
    if how < 3:
        logic = taken.chosen(filters.dialect.LOGIC)
        terms = [_where(taken) for _ in range(1 + taken.number(3))] if taken.at < 200 else []
        return {logic: terms[0] if logic == "$not" and terms else terms}
    operators = filters.dialect.OPERATORS
    test = {taken.chosen(operators): taken.chosen(_PLAIN) for _ in range(1 + taken.number(2))}
    if taken.number(4) == 0:
        test = {
            taken.chosen(["$in", "$nin"]): [taken.chosen(_PLAIN) for _ in range(taken.number(5))]
        }
    return {taken.chosen(_PATHS): test if taken.number(4) else taken.chosen(_PLAIN)}


def _database() -> Database:
    if not _known:
        db = vecstore.open(":memory:")
        points = db.collection("points", dim=2)
        odd = [value for value in _PLAIN if value != "\ud800" and value == value]
        metadata = [
            {
                "n": n % 5,
                "word": f"word {n % 4}",
                "tags": [f"tag {n % 3}", n],
                "deep": {"er": n / 2},
            }
            if n % 3
            else {"n": odd[n % len(odd)], "word": odd[n * 7 % len(odd)]}
            for n in range(240)
        ]
        good = [{**one} for one in metadata]
        for number, one in enumerate(good):
            try:
                texts = f"text {number}" if number % 2 else None
                points.add(texts, vectors=[[1, number]], ids=[number], metadata=[one])
            except VecstoreError:
                points.add(vectors=[[1, number]], ids=[number])
        _known.append(db)
    return _known[0]


def where(data: bytes) -> None:
    """Filters: what resolves to rows is what matches record by record."""
    found = filters.parse(_where(Taken(data)))
    if found is None:
        return
    again = filters.parse(found.to_dict())
    assert again is not None
    assert again.key() == found.key()
    points = _database().collection("points")
    records = list(points.scan(include=("text", "metadata")))
    matching = [record.id for record in records if found.matches(record)]
    assert [record.id for record in points.scan(found)] == matching
    assert points.count(found) == len(matching)


# Files of records and words


@contextmanager
def _file(data: bytes) -> Iterator[Path]:
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def imports(data: bytes) -> None:
    """Files of records."""
    taken = Taken(data)
    kind, fields = (
        taken.chosen(sorted(set(formats.SUFFIXES.values()))),
        formats.Fields("text", "id", formats.cell_types(["n=int"])),
    )
    for item in formats.read(io.BytesIO(taken.rest()), "data", kind, fields):
        record = item.record
        json.loads(json.dumps(formats.to_json(record.get("metadata")), default=str))


def json_values(data: bytes) -> None:
    """JSON as the shell takes it: filters and metadata."""
    try:
        plain = formats.from_json(formats.parse_json(data.decode()))
    except (ValueError, RecursionError):
        return
    filters.parse(plain)


def words(data: bytes) -> None:
    """Files of word vectors."""
    with _file(data) as path:
        kind = files.detect(path)
        made = {"text": files.TextFile, "word2vec": files.BinaryFile}.get(
            kind, fasttext.FastTextFile
        )(path)
        for batch in made.batches(100):
            assert batch.vectors.shape == (len(batch.words), made.dim)


def tensors(data: bytes) -> None:
    """Files of tensors."""
    with _file(
        len(data[1:]).to_bytes(8, "little") + data[1:] if data[:1] == b"h" else data
    ) as path:
        safetensors.read_tensors(path)


def _foreseen(target: Target) -> Target:
    def run(data: bytes) -> None:
        try:
            target(data)
        except VecstoreError:
            return

    run.__doc__ = target.__doc__
    return run


TARGETS: dict[str, Target] = {
    target.__name__: _foreseen(target)
    for target in (
        *(small_values, bulk_values, records, bundles, columns),
        *(where, imports, json_values, words, tensors),
    )
}


# Where to begin


def _seeds() -> dict[str, list[bytes]]:
    spec = {**CollectionSpec(name="notes", dim=8).to_dict(), "uid": b"12345678"}
    listed = [[0, b"12345678", 0, 5]]
    plan = {
        "kind": "ivf", "edition": b"12345678", "trained": 9, "arrived": 0,
        "budgets": {"levels": [0.9], "gap": 0.1, "fine": 1.0, "sizes": {"1": [[0.1, 1.0, 2.0]]}},
    }  # fmt: skip
    small = [b"\0" + State(5, 6, 7, 1, 0, 5).pack()[4:], b"\1" + msgpack.packb(spec)]
    small += [
        b"\2" + msgpack.packb({"pending": 1, "segments": listed}),
        b"\5" + msgpack.packb(plan),
    ]
    small += [b"\3i" + bytes(8), b"\4" + bytes(32)]
    at = datetime(2024, 1, 2, tzinfo=UTC) + timedelta(days=1)
    bodies = [record_layout.pack_body(7, "text", {"a": [1, at, None], "b": {"c": "d"}})]
    bodies += [msgpack.packb(("id", "A text.", None, (5, 0, False), (10,), (0, 3, 3, 7)))]
    made = models.untrained(np.eye(4, dtype=np.float32), "cosine", seed=1)
    values, arrays = models.to_parts(made)
    payload = index_layout.pack_arrays({**values, "edition": b"x"}, arrays, aligned=False)
    size = int.from_bytes(payload[:4], "little")
    bundle = bytes([1, 2, *divmod(size, 256)]) + payload[4:]
    affine = Adapter(dim=2).to_bytes()[:-32]
    told = {"edition": b"12345678", "paths": ["a", "b"]}
    parts = {
        "0.number.values": np.arange(3.0), "0.number.places": np.arange(3, dtype=np.uint16),
        "1.string.texts": np.frombuffer(b"abc", np.uint8),
        "1.string.ends": np.array([1, 3], np.uint32),
        "1.string.starts": np.array([0, 1, 2], np.uint32),
        "1.string.places": np.array([1, 2], np.uint16), "1.exists": np.array([1, 2], np.uint16),
    }  # fmt: skip
    segment = index_layout.pack_arrays(told, parts, aligned=True)
    length = int.from_bytes(segment[:4], "little")
    start = -(-(4 + length) // 64) * 64
    column = bytes(divmod(length, 256)) + segment[4 : 4 + length] + segment[start:]
    fast = struct.pack(
        "<4si12id", files.FASTTEXT_MAGIC, 12, 2, 5, 5, 1, 5, 1, 1, 1, 3, 2, 3, 1, 0.1
    )
    fast += struct.pack("<iiiqq", 1, 1, 0, 9, -1) + b"ab\0" + struct.pack("<qb", 5, 0)
    fast += struct.pack("<?qq", False, 4, 2) + bytes(32)
    tensor = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return {
        "small_values": small,
        "bulk_values": [
            bytes([how, 6]) + struct.pack("<BHHHH", dtype, rows, width, 0, 0) + b"\1" + bytes(size)
            for how, dtype, rows, width, size in (
                (0, 1, 2, 8, 1024 + 64),
                (1, 0, 0, 0, 2048),
                (2, 2, 3, 48, 48 * 16 + 256 + 3 * 36),
                (3, 2, 3, 48, 48 * 16 + 128 + 3 * 36),
                (4, 0, 0, 0, 65536),
                (5, 4, 2, 8, 64 * 28),
                (6, 5, 3, 9, 4 * 516),
                (7, 0, 0, 0, 8192),
            )
        ],
        "records": [bytes([2]) + body for body in bodies] + [b"\0" + msgpack.packb((1, 1, 0, 5))],
        "bundles": [bundle, bytes([0, 0, *divmod(len(affine) - 12, 256)]) + affine[12:]],
        "columns": [column],
        "where": [bytes(range(n, n + 30)) for n in range(0, 200, 20)],
        "imports": [
            b'\0{"text": "a", "id": 1, "metadata": {"b": [1, null]}}\n',
            b"\1text,id,metadata\na,1,{}\n",
            b"\2text\tid\na\t1\n",
            b"\3one\n\ntwo\n",
        ],
        "json_values": [b'{"a": {"$gte": 1}}', b'{"$or": [{"a": {"$datetime": "2024-01-02"}}]}'],
        "words": [b"a 1 2\nb 3 4\n", b"2 2\na 1 2\nb 3 4\n", b"1 2\nab " + bytes(8), fast],
        "tensors": [len(tensor).to_bytes(8, "little") + tensor + bytes(4)],
    }


SEEDS = _seeds()
