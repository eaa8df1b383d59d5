"""What is declared? The specification of a collection, and what ids and metrics may be."""

from __future__ import annotations

import numbers
import operator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vecstore.errors import SpecError, UsageError

Metric = Literal["cosine", "dot", "l2", "hamming"]
Precision = Literal["float32", "float16", "int8", "bits"]
Tiers = tuple[tuple[int, int], ...]
Id = str | int
Include = Literal["text", "metadata", "vector"]

METRICS: tuple[Metric, ...] = get_args(Metric)
# What may be chosen; binary vectors are stored as bits and nothing else.
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")
MIN_DIM, MAX_DIM = 2, 8192
# Bits of a code a dimension; fine codes have the most, of every dimension.
CODE_BITS, FINE_BITS = (1, 2, 4), 4
MAX_NAME_BYTES = 255
# LMDB's key limit of 511 bytes, less the collection's number and the id's type tag.
MAX_ID_BYTES = 506
# Of a passage.
MAX_TOKENS = 2**20
MIN_INT_ID, MAX_INT_ID = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionSpec:
    """The declaration of one collection, stored in the file and compared on every reopening.

    Attributes:
        name: The collection's name, at most 255 bytes of UTF-8.
        dim: Numbers per vector, 2 to 8,192; under hamming bits, a multiple of 8.
        metric: "cosine", "dot" (inner product), "l2" (Euclidean), or "hamming" (binary vectors).
        mrl: Prefix lengths that the vectors' encoder was trained for (Matryoshka), ascending.
        encoder: Name of the text encoder, or None for a collection of bare vectors.
        fingerprint: Digest of the encoder's model and settings, or None.
        precision: In what form vectors are stored: "float32", "float16" or "int8"; under hamming
            always "bits".
        tiers: The schedule of the index, from the shortest on: (dims, bits) of its short codes. Its
            fine codes are (dim, 4) always, and left out here. Empty where it is chosen in training.
        index_fields: Fields that filters find quickly, with all below them; None for all fields.
        skip_fields: Fields that they do not, with all below them.
    """

    name: str
    dim: int
    metric: Metric = "cosine"
    mrl: tuple[int, ...] = ()
    encoder: str | None = None
    fingerprint: str | None = None
    precision: Precision = "float32"
    tiers: Tiers = ()
    index_fields: tuple[str, ...] | None = None
    skip_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)
        if type(self.dim) is not int or not MIN_DIM <= self.dim <= MAX_DIM:
            raise SpecError(f"dim={show(self.dim)} is outside {MIN_DIM}..{MAX_DIM}")
        if self.metric not in METRICS:
            raise SpecError(f"metric={self.metric!r} is unknown; use one of {', '.join(METRICS)}")
        if self.metric == "hamming":
            self._check_binary()
        elif self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise SpecError(f"precision={self.precision!r} is unknown; use one of {known}")
        sizes = self.mrl
        whole = all(type(size) is int and 0 < size <= self.dim for size in sizes)
        if not whole or list(sizes) != sorted(set(sizes)):
            raise SpecError(
                f"mrl={show(sizes)} must be ascending prefix lengths between 1 and dim={self.dim}"
            )
        if self.tiers:
            self._check_tiers()
        if self.index_fields is not None and self.skip_fields:
            raise SpecError(
                f"index_fields={show(self.index_fields)} names all fields to index, so that"
                f" skip_fields={show(self.skip_fields)} has nothing left to say: give one of them"
            )

        texts = (self.encoder, self.fingerprint, *(self.index_fields or ()), *self.skip_fields)
        if not all(isinstance(text, str | None) for text in texts):
            raise SpecError(f"names of encoders and fields are texts: {show(texts)}")

    def indexes(self, path: str) -> bool:
        """Whether a field is one that filters find quickly."""
        if self.index_fields is None:
            return not self.skip_fields or not _is_below(path, self.skip_fields)
        return _is_below(path, self.index_fields)

    def _check_tiers(self) -> None:
        stated = f"tiers={show(self.tiers)}"
        if self.metric == "hamming":
            raise SpecError(f"{stated} does not apply to metric 'hamming', which has no codes")
        fine = (self.dim, FINE_BITS)
        pairs = all(list(map(type, pair)) == [int, int] for pair in self.tiers)
        if not pairs or len(self.tiers) > 2 or self.tiers[1:] not in ((), (fine,)):
            raise SpecError(
                f"{stated} is no schedule of an index: one pair (dims, bits) of its short codes,"
                f" and at most the {fine} of its fine codes behind it"
            )
        dims, bits = self.tiers[0]
        if not 0 < dims <= self.dim or bits not in CODE_BITS:
            raise SpecError(
                f"{stated}: short codes have 1 to dim={self.dim} dims of"
                f" {', '.join(map(str, CODE_BITS))} bits"
            )
        # Two ways to say the same are one declaration.
        object.__setattr__(self, "tiers", self.tiers[:1])

    def _check_binary(self) -> None:
        if self.dim % 8:
            raise SpecError(
                f"dim={self.dim} counts bits under hamming, and must be a multiple of 8"
            )
        if self.precision not in ("bits", "float32"):
            raise SpecError(
                f"precision={show(self.precision)} does not apply to metric 'hamming', which stores"
                " bits; leave it out"
            )
        if self.encoder is not None:
            raise SpecError(
                f"metric 'hamming' compares binary vectors, and encoder {self.encoder!r} makes"
                " numbers"
            )
        # The default of the others.
        object.__setattr__(self, "precision", "bits")

    def check_dims(self, dims: int) -> int | None:
        """Return the length of a prefix to compare, or None for the whole vector.

        Raises:
            UsageError: It is longer than a vector, or no whole bytes under hamming.
        """
        if dims > self.dim:
            raise UsageError(f"dims={show(dims)} is over the collection's dim={self.dim}")
        if self.metric == "hamming" and dims % 8:
            raise UsageError(f"dims={dims} counts bits under hamming, and must be a multiple of 8")
        return None if dims == self.dim else dims

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain values, the form in which it is stored."""
        stated: dict[str, Any] = {}
        if self.tiers:
            stated["tiers"] = [list(pair) for pair in self.tiers]
        if self.index_fields is not None:
            stated["index_fields"] = list(self.index_fields)
        if self.skip_fields:
            stated["skip_fields"] = list(self.skip_fields)
        return {
            "name": self.name,
            "dim": self.dim,
            "metric": self.metric,
            "mrl": list(self.mrl),
            "encoder": self.encoder,
            "fingerprint": self.fingerprint,
            "precision": self.precision,
            **stated,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CollectionSpec:
        """Rebuild a spec from `to_dict`'s values."""
        return cls(
            name=values["name"],
            dim=values["dim"],
            metric=values["metric"],
            mrl=tuple(values["mrl"]),
            encoder=values["encoder"],
            fingerprint=values["fingerprint"],
            # Collections made before there was a choice have none.
            precision=values.get("precision", "float32"),
            tiers=tuple((dims, bits) for dims, bits in values.get("tiers", ())),
            index_fields=tuple(values["index_fields"]) if "index_fields" in values else None,
            skip_fields=tuple(values.get("skip_fields", ())),
        )


def _is_below(path: str, fields: tuple[str, ...]) -> bool:
    """Whether a path is one of some fields, or leads on from one."""
    return any(path == field or path.startswith(f"{field}.") for field in fields)


@dataclass(frozen=True, slots=True)
class Chunking:
    """How long texts are cut into passages, each of which gets a vector of its own.

    Attributes:
        tokens: The most tokens of a passage; None for as many as the encoder reads, for 256 where
            it does not say how many these are, and with `late` for a quarter of either.
        overlap: The most tokens that a passage repeats of the one before it, in whole sentences;
            at most half of `tokens`.
        late: Whether the encoder reads all of the text before passages get their vectors (late
            chunking), for which it has to offer vectors of tokens.
    """

    tokens: int | None = None
    overlap: int = 0
    late: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (("tokens", self.tokens, 1), ("overlap", self.overlap, 0)):
            whole = type(value) is int and least <= value <= MAX_TOKENS
            if not whole and not (name == "tokens" and value is None):
                raise UsageError(
                    f"{name}={show(value)} must be a whole number of at least {least}, and at most"
                    f" {MAX_TOKENS:,}"
                )
        if type(self.late) is not bool:
            raise UsageError(f"late={show(self.late)} must be True or False")
        if self.tokens is not None and 2 * self.overlap > self.tokens:
            raise UsageError(
                f"overlap={self.overlap} is more than half of the {self.tokens} tokens of a passage"
            )


def check_name(name: object) -> str:
    """Return a collection's name, or raise SpecError when it cannot be one."""
    if not isinstance(name, str):
        raise SpecError(f"a collection's name is a str, got {type(name).__name__} {name!r}")
    if not name:
        raise SpecError("a collection's name must not be empty")
    size = len(encode_utf8(name, "a collection's name"))
    if size > MAX_NAME_BYTES:
        raise SpecError(
            f"a collection's name has at most {MAX_NAME_BYTES} bytes of UTF-8, {name[:40]!r}... has"
            f" {size}"
        )
    return name


def check_id(value: object) -> Id:
    """Return an id as the str or int that will be stored.

    Integers of other types (numpy's) become int.

    Raises:
        UsageError: Not a str or an integer, too long, or outside 64 bits.
    """
    if isinstance(value, str):
        size = len(value) if value.isascii() else len(encode_utf8(value, "an id"))
        if size > MAX_ID_BYTES:
            raise UsageError(
                f"an id has at most {MAX_ID_BYTES} bytes of UTF-8, {value[:40]!r}... has {size};"
                " use a digest of it as the id"
            )
        # str() would call the __str__ of an Enum.
        return str.__str__(value)
    if isinstance(value, bool):
        raise UsageError(f"an id is a str or an int, got the bool {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # refusing others is the point
    except TypeError:
        raise UsageError(
            f"an id is a str or an int, got {type(value).__name__} {show(value)}"
        ) from None
    if not MIN_INT_ID <= number <= MAX_INT_ID:
        raise UsageError(f"an int id fits 64 bits with a sign, {show(number)} does not; use a str")
    return number


def is_id(value: object) -> bool:
    """Whether a value is one id rather than several."""
    return isinstance(value, str | numbers.Integral)


def show(value: object, limit: int = 60) -> str:
    """The repr of a value for a message, cut short."""
    try:
        text = repr(value)
    except Exception:
        # Integers of over 4,300 digits, and nesting beyond the recursion limit, have none.
        return f"<{type(value).__name__} too large to show>"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def encode_utf8(text: str, what: str) -> bytes:
    """Encode text, turning lone surrogates into a UsageError that says what held them."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what} cannot be stored as UTF-8: {text[:40]!r} has a lone surrogate at position"
            f" {error.start}"
        ) from None
