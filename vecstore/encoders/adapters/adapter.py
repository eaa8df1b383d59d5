"""What is an adapter? An affine map behind an encoder, for documents and for queries."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vecstore.encoders.protocol import Kind
from vecstore.encoders.texts import check_kind
from vecstore.errors import EncoderError, UsageError
from vecstore.lazy import lazy
from vecstore.spec import MAX_DIM, MIN_DIM, encode_utf8, show
from vecstore.vectors import Vectors, as_vectors

Report = Mapping[str, Any]

_MAGIC = b"vsadapt1"
_HEAD = struct.Struct("<8sI")
_DIGEST_BYTES = 32
# Reports are a few hundred bytes; a header beyond this was not written here.
_MAX_HEADER = 1 << 16
_MAX_NAME = 100
_KEYS = {"dim", "name", "mrl", "reports", "documents", "queries"}


@dataclass(frozen=True, eq=False)
class Affine:
    """The map from x to x @ matrix + offset, of vectors as rows.

    Attributes:
        matrix: float32 (dims in, dims out), a copy that cannot be written to.
        offset: float32 (dims out,), or None for zeros; as the matrix.
    """

    matrix: Vectors
    offset: Vectors | None = None

    def __post_init__(self) -> None:
        try:
            shape = np.shape(self.matrix)
        except ValueError:
            raise UsageError("the rows of a matrix differ in length") from None
        if len(shape) != 2 or not all(MIN_DIM <= size <= MAX_DIM for size in shape):
            raise UsageError(f"a matrix of shape {shape} is no map between {MIN_DIM}..{MAX_DIM}")
        object.__setattr__(self, "matrix", _fixed(self.matrix, shape[1], "the matrix"))
        if self.offset is not None:
            row = np.asarray(self.offset)[None]
            object.__setattr__(self, "offset", _fixed(row, shape[1], "the offset")[0])

    def apply(self, vectors: Vectors) -> Vectors:
        """Map vectors, float32 (n, dims in), to float32 (n, dims out)."""
        mapped: Vectors = vectors @ self.matrix
        if self.offset is not None:
            mapped += self.offset
        return mapped

    def then(self, other: Affine) -> Affine:
        """The map that is this one and then another; multiplied out in float64."""
        matrix = self.matrix.astype(np.float64) @ other.matrix
        if self.offset is None and other.offset is None:
            return Affine(matrix.astype(np.float32))
        offset = np.zeros(other.matrix.shape[1])
        if self.offset is not None:
            offset += self.offset.astype(np.float64) @ other.matrix
        if other.offset is not None:
            offset += other.offset
        return Affine(matrix.astype(np.float32), offset.astype(np.float32))

    def to_bytes(self) -> bytes:
        """The numbers, little-endian: the matrix row by row, then the offset if there is one."""
        offset = b"" if self.offset is None else self.offset.astype("<f4").tobytes()
        return self.matrix.astype("<f4").tobytes() + offset


def _fixed(values: ArrayLike, width: int, what: str) -> Vectors:
    # The fingerprint is worked out once.
    numbers = np.array(as_vectors(values, width, what))
    numbers.flags.writeable = False
    return numbers


@dataclass(frozen=True, eq=False, kw_only=True)
class Adapter:
    """What happens to the vectors of an encoder, or of a user, before they are stored or asked.

    Adapters are joined with `@`, in the order in which they are applied:
    `rotation @ other` rotates first.

    Attributes:
        dim: Numbers of the vectors that it takes.
        documents: How vectors of documents are mapped; None to leave them as they are.
        queries: How vectors of queries are mapped; None to leave them as they are.
        mrl: Prefix lengths of what it makes that may stand alone, ascending; () if none.
        name: What it is, such as "rotation"; joined with "+" where adapters were.
        reports: What fitting found, one of each part: plain values.
    """

    dim: int
    documents: Affine | None = None
    queries: Affine | None = None
    mrl: tuple[int, ...] = ()
    name: str = "adapter"
    reports: tuple[Report, ...] = field(default=())

    def __post_init__(self) -> None:
        if type(self.dim) is not int or not MIN_DIM <= self.dim <= MAX_DIM:
            raise UsageError(f"dim={show(self.dim)} must be an int in {MIN_DIM}..{MAX_DIM}")
        for affine in (self.documents, self.queries):
            if affine is None:
                continue
            if not isinstance(affine, Affine):
                raise UsageError(f"a map is {show(affine)}; it must be an Affine or None")
            if affine.matrix.shape[0] != self.dim:
                raise UsageError(f"a map of {affine.matrix.shape[0]} numbers, dim={self.dim}")
        sizes = {_dim_out(self.documents, self.dim), _dim_out(self.queries, self.dim)}
        if len(sizes) > 1:
            raise UsageError(f"documents and queries would have other lengths: {sorted(sizes)}")
        listed = isinstance(self.mrl, tuple | list) and all(type(size) is int for size in self.mrl)
        sizes = set(self.mrl) if listed else {0}
        if not all(0 < size <= self.dim_out for size in sizes) or list(self.mrl) != sorted(sizes):
            raise UsageError(
                f"mrl={show(self.mrl)} must be ascending prefix lengths of {self.dim_out} numbers"
            )
        if not isinstance(self.name, str) or not 0 < len(self.name) <= _MAX_NAME:
            raise UsageError(f"name={show(self.name)} must be a str of 1 to {_MAX_NAME} characters")
        encode_utf8(self.name, "an adapter's name")
        # What cannot be read again would make the collection that keeps it unreadable.
        if not isinstance(self.reports, tuple | list) or not all(
            isinstance(report, Mapping) for report in self.reports
        ):
            raise UsageError(f"reports={show(self.reports)} must be a tuple of maps")
        object.__setattr__(self, "mrl", tuple(self.mrl))
        object.__setattr__(self, "reports", tuple(self.reports))

    @property
    def dim_out(self) -> int:
        """Numbers of the vectors that it makes."""
        return _dim_out(self.documents, self.dim)

    @property
    def is_identity(self) -> bool:
        """Whether it leaves all vectors as they are."""
        return self.documents is None and self.queries is None

    @lazy
    def fingerprint(self) -> str:
        """A digest of everything that changes vectors; not of name, prefixes and reports."""
        digest = hashlib.sha256(f"adapter-1:{self.dim}:{self.dim_out}".encode())
        for affine in (self.documents, self.queries):
            data = b"" if affine is None else affine.to_bytes()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()[:32]

    def apply(self, vectors: ArrayLike, kind: Kind = "document") -> Vectors:
        """Map vectors, numbers of shape (n, dim), to float32 of shape (n, dim_out).

        Raises:
            UsageError: An unknown kind.
            VectorError: Another shape, or values that are not finite.
        """
        check_kind(kind)
        checked = as_vectors(vectors, self.dim)
        affine = self.queries if kind == "query" else self.documents
        return checked if affine is None else affine.apply(checked)

    def __matmul__(self, other: Adapter) -> Adapter:
        """This adapter, and then another one."""
        if not isinstance(other, Adapter):
            return NotImplemented
        if other.dim != self.dim_out:
            raise UsageError(
                f"adapter {other.name!r} takes {other.dim} numbers, {self.name!r} makes"
                f" {self.dim_out}"
            )
        if self.is_identity or other.is_identity:
            kept = other if self.is_identity else self
            return replace(kept, reports=self.reports + other.reports)
        documents = _join(self.documents, other.documents)
        shared = self.documents is self.queries and other.documents is other.queries
        return Adapter(
            dim=self.dim,
            documents=documents,
            queries=documents if shared else _join(self.queries, other.queries),
            # A map of queries alone leaves the stored vectors, and what their prefixes mean.
            mrl=self.mrl if other.documents is None else other.mrl,
            name=f"{self.name}+{other.name}"[:_MAX_NAME],
            reports=self.reports + other.reports,
        )

    def to_bytes(self) -> bytes:
        """Return all of it as bytes, with a digest, for `from_bytes`.

        Raises:
            UsageError: The reports are no plain values, or take over 64 KiB.
        """
        values = {
            "dim": self.dim,
            "name": self.name,
            "mrl": self.mrl,
            "reports": self.reports,
            "documents": _shape(self.documents),
            "queries": "documents" if self._shared else _shape(self.queries),
        }
        try:
            header = json.dumps(values).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"the reports of adapter {self.name!r} are not plain: {error}"
            ) from error
        if len(header) > _MAX_HEADER:
            raise UsageError(f"the reports of adapter {self.name!r} take {len(header)} bytes")
        maps = (self.documents, None if self._shared else self.queries)
        body = b"".join(affine.to_bytes() for affine in maps if affine is not None)
        data = _HEAD.pack(_MAGIC, len(header)) + header + body
        return data + hashlib.sha256(data).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Adapter:
        """Read what `to_bytes` made.

        Raises:
            EncoderError: It is something else, or was cut short or changed.
        """
        try:
            return _parse(memoryview(data))
        except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
            raise EncoderError(f"these bytes are no adapter: {error}") from error

    @property
    def _shared(self) -> bool:
        return self.documents is not None and self.queries is self.documents

    def __repr__(self) -> str:
        return f"<Adapter {self.name!r} {self.dim} -> {self.dim_out} mrl={self.mrl}>"


def _dim_out(affine: Affine | None, dim: int) -> int:
    return dim if affine is None else affine.matrix.shape[1]


def _join(first: Affine | None, second: Affine | None) -> Affine | None:
    if first is None or second is None:
        return first or second
    return first.then(second)


def _shape(affine: Affine | None) -> list[Any] | None:
    return None if affine is None else [affine.matrix.shape[1], affine.offset is not None]


def _parse(data: memoryview) -> Adapter:
    magic, size = _HEAD.unpack_from(data)
    end = _HEAD.size + size
    if magic != _MAGIC:
        raise ValueError(f"they begin with {magic!r}, not {_MAGIC!r}")
    if size > _MAX_HEADER or end + _DIGEST_BYTES > len(data):
        raise ValueError(f"a header of {size} bytes in {len(data)}")
    if hashlib.sha256(data[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise ValueError("the digest is wrong; they were changed, or cut short")
    header = json.loads(bytes(data[_HEAD.size : end]))
    if not isinstance(header, dict) or header.keys() != _KEYS:
        raise ValueError("the header is not that of an adapter")
    body = data[end:-_DIGEST_BYTES]
    documents, body = _take(body, header["dim"], header["documents"])
    shared = header["queries"] == "documents"
    queries, rest = (documents, body) if shared else _take(body, header["dim"], header["queries"])
    if len(rest):
        raise ValueError(f"{len(rest)} bytes are left over")
    if not all(isinstance(report, dict) for report in header["reports"]):
        raise ValueError("a report is no map")
    return Adapter(
        dim=header["dim"],
        documents=documents,
        queries=queries,
        mrl=tuple(header["mrl"]),
        name=header["name"],
        reports=tuple(header["reports"]),
    )


def _take(body: memoryview, dim: Any, shape: Any) -> tuple[Affine | None, memoryview]:
    """Read a map off the front of the body; ValueError where the shape does not fit."""
    if shape is None:
        return None, body
    out, has_offset = shape
    known = type(has_offset) is bool and type(dim) is int and type(out) is int
    if not known or not all(MIN_DIM <= size <= MAX_DIM for size in (dim, out)):
        raise ValueError(f"a map from {show(dim)} to {show(shape)}")
    count, extra = dim * out, out * has_offset
    if len(body) < 4 * (count + extra):
        raise ValueError(f"{len(body)} bytes are too few for a map of {dim} x {out}")
    numbers: NDArray[np.float32] = np.frombuffer(body, "<f4", count + extra).astype(np.float32)
    offset = numbers[count:] if has_offset else None
    return Affine(numbers[:count].reshape(dim, out), offset), body[4 * (count + extra) :]
