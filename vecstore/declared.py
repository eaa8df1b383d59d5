"""What was asked for in naming a collection, and is it what the collection is?"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from vecstore import encoders, filters
from vecstore.encoders import Encoder
from vecstore.errors import (
    EncoderError,
    EncoderMismatchError,
    FilterError,
    SpecError,
    VecstoreError,
)
from vecstore.spec import CollectionSpec, Metric, Precision, Tiers, encode_utf8, show

# They can be gone through too, but are no list of numbers.
_NO_LISTS = (str, bytes, bytearray, Mapping, Set)


@dataclass(frozen=True, slots=True)
class Declared:
    """The arguments of `Database.collection` that a spec is made of; None where there is none."""

    dim: int | None
    metric: Metric | None
    encoder: Encoder | None
    mrl: tuple[int, ...] | None
    precision: Precision | None
    tiers: Tiers | None
    index_fields: tuple[str, ...] | None = None
    skip_fields: tuple[str, ...] | None = None


def check(
    dim: int | None,
    metric: Metric | None,
    encoder: Encoder | None,
    mrl: Sequence[int] | None,
    precision: Precision | None,
    tiers: Iterable[Iterable[int]] | None,
    index_fields: Iterable[str] | None = None,
    skip_fields: Iterable[str] | None = None,
) -> Declared:
    """Join arguments, those that are sequences as tuples of int; SpecError where they are none.

    An encoder has to have a name and a fingerprint; EncoderError if it fails to tell them.
    """
    if encoder is not None:
        _check_names(encoder)
    sizes, pairs = _check_mrl(mrl), _check_tiers(tiers)
    some = _check_fields(index_fields, "index_fields")
    others = _check_fields(skip_fields, "skip_fields")
    return Declared(dim, metric, encoder, sizes, precision, pairs, some, others)


def new_spec(name: str, asked: Declared) -> CollectionSpec:
    """The spec of a new collection; SpecError if it is impossible."""
    metric: Metric = "cosine" if asked.metric is None else asked.metric
    dim, encoder = asked.dim, asked.encoder
    if metric == "hamming" and asked.precision is not None:
        raise SpecError(
            f"precision={show(asked.precision)} does not apply to metric 'hamming', which stores"
            " bits; leave it out"
        )
    if metric == "hamming" and dim is None:
        raise SpecError("metric 'hamming' needs dim=, the number of bits: no encoder makes bits")
    if encoder is None and dim is None:
        encoder = encoders.resolve(None)
    sizes = asked.mrl
    if encoder is not None:
        sizes = _check_mrl(_asked(encoder, "mrl")) if sizes is None else sizes
        if dim not in (None, _asked(encoder, "dim")):
            sizes = _check_prefix(_check_dim(dim), encoder, sizes or ())
    return CollectionSpec(
        name=name,
        dim=_check_dim(encoder.dim if encoder is not None and dim is None else dim),
        metric=metric,
        mrl=sizes or (),
        encoder=None if encoder is None else encoder.name,
        fingerprint=None if encoder is None else encoder.fingerprint,
        precision="float32" if asked.precision is None else asked.precision,
        tiers=asked.tiers or (),
        index_fields=asked.index_fields,
        skip_fields=asked.skip_fields or (),
    )


def _check_names(encoder: Encoder) -> None:
    for part in ("name", "fingerprint"):
        value = _asked(encoder, part)
        if not isinstance(value, str) or not value:
            raise SpecError(f"the encoder's {part} is {show(value)}; it must be a str, not empty")
        encode_utf8(value, f"the encoder's {part}")


def _asked(encoder: Encoder, part: str) -> Any:
    """What an encoder says of itself, which may run a user's code."""
    try:
        return getattr(encoder, part)
    except VecstoreError:
        raise
    except Exception as error:
        raise EncoderError(f"the encoder's {part} cannot be told: {error!r}") from error


def _check_prefix(dim: int, encoder: Encoder, mrl: tuple[int, ...]) -> tuple[int, ...]:
    """Return the prefix lengths up to `dim`, which must be one that the encoder was trained for."""
    if dim > encoder.dim or dim not in mrl:
        known = ", ".join(map(str, mrl))
        raise SpecError(
            f"dim={dim}, but encoder {encoder.name!r} makes {encoder.dim} numbers, and "
            + (
                f"its prefixes are {known}"
                if known
                else "declares no prefixes that may stand alone"
            )
            + "; leave dim out, or choose one of mrl="
        )
    if max(mrl) > encoder.dim:
        raise SpecError(
            f"mrl={show(mrl)}, but encoder {encoder.name!r} makes {encoder.dim} numbers"
        )
    return tuple(size for size in mrl if size <= dim)


def _check_dim(dim: object) -> int:
    try:
        number = operator.index(dim)  # type: ignore[arg-type]  # refusing others is the point
    except TypeError:
        number = None
    if number is None or isinstance(dim, bool):
        raise SpecError(f"dim={show(dim)} is not a whole number")
    return number


def _check_mrl(mrl: Sequence[int] | None) -> tuple[int, ...] | None:
    if mrl is None:
        return None
    try:
        listed = list(mrl)
        if not isinstance(mrl, _NO_LISTS) and not any(isinstance(size, bool) for size in listed):
            return tuple(operator.index(size) for size in listed)
    except TypeError:
        pass
    raise SpecError(f"mrl={show(mrl)} is not a sequence of whole numbers")


def _check_tiers(tiers: Iterable[Iterable[int]] | None) -> Tiers | None:
    if tiers is None:
        return None
    try:
        listed = [tuple(pair) for pair in tiers]
        bools = any(isinstance(number, bool) for pair in listed for number in pair)
        if not bools and not isinstance(tiers, _NO_LISTS):
            pairs = [tuple(operator.index(number) for number in pair) for pair in listed]
            return tuple((dims, bits) for dims, bits in pairs)
    except (TypeError, ValueError):
        pass
    raise SpecError(f"tiers={show(tiers)} is not a sequence of pairs (dims, bits), as ((192, 2),)")


def _check_fields(fields: Iterable[str] | None, name: str) -> tuple[str, ...] | None:
    """The names of fields, each once, ascending; SpecError where there is one that is none."""
    if fields is None:
        return None
    if isinstance(fields, (str, bytes, Mapping)) or not isinstance(fields, Iterable):
        raise SpecError(f"{name}={show(fields)} is not a list of the names of fields")
    try:
        paths = tuple(sorted({filters.F(field).path for field in fields}))
    except FilterError as error:
        raise SpecError(f"{name}={show(fields)}: {error}") from None
    if any(path.startswith("$") for path in paths):
        raise SpecError(f"{name}={show(fields)}: $id and $text are no fields of metadata")
    return paths


def compare(spec: CollectionSpec, asked: Declared) -> None:
    """Raise SpecError where what was asked for is not what the collection has."""
    mrl, encoder, tiers = asked.mrl, asked.encoder, asked.tiers
    if mrl is not None and spec.encoder is not None:
        # Of a longer encoder's prefixes those within the collection's own count.
        mrl = tuple(size for size in mrl if size <= spec.dim)
    if tiers:
        # As a spec has it, without the fine codes.
        tiers = replace(spec, tiers=tiers).tiers
    values = {
        "dim": asked.dim,
        "metric": asked.metric,
        "mrl": mrl,
        "precision": asked.precision,
        "tiers": tiers,
        "index_fields": asked.index_fields,
        "skip_fields": asked.skip_fields,
    }
    for name, value in values.items():
        stored = getattr(spec, name)
        if value is not None and value != stored:
            raise SpecError(
                f"collection {spec.name!r} has {name}={stored!r}, not {show(value)}; leave the"
                " argument out, or use another name"
            )
    if encoder is None:
        return
    if spec.encoder is None:
        raise SpecError(
            f"collection {spec.name!r} holds bare vectors (dim={spec.dim}); it was made without an"
            f" encoder, not with {encoder.name!r}"
        )
    if encoder.fingerprint != spec.fingerprint:
        raise EncoderMismatchError(
            f"collection {spec.name!r} was made with encoder {spec.encoder!r}"
            f" ({spec.fingerprint}), not with {encoder.name!r} ({encoder.fingerprint}), and their"
            " vectors cannot be compared; use the former, or another collection"
        )
