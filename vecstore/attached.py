"""Which adapter does a collection keep, and with which encoder does it make the vectors?

It stands in the file beside the spec, whose fingerprint is that of encoder and adapter together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vecstore import catalog, encoders, index_layout, layout
from vecstore.catalog import Entry
from vecstore.encoders import Encoder
from vecstore.encoders.adapters import AdaptedEncoder, Adapter, adapted_fingerprint, adapted_name
from vecstore.errors import CorruptionError, EncoderError, UsageError
from vecstore.report import Report
from vecstore.spec import CollectionSpec, show
from vecstore.store import Reader, Transaction


@dataclass(frozen=True, slots=True)
class Attached:
    """What a collection keeps of its encoder.

    Attributes:
        base: The fingerprint of the encoder without the adapter.
        name: Its name.
        adapter: What its vectors go through.
        former: The same before queries were adapted; None if they were not.
    """

    base: str
    name: str
    adapter: Adapter
    former: Adapter | None = None


def read(reader: Reader, number: int) -> Attached | None:
    """The adapter that a collection keeps, or None; CorruptionError if it is damaged."""
    value = reader.get("meta", layout.adapter_key(number))
    return None if value is None else parse(value, number)


def parse(value: bytes | memoryview, number: int) -> Attached:
    """Read the value of an adapter; CorruptionError if it is damaged, or another collection's."""
    where = f"meta: adapter of collection {number}"
    values, arrays = index_layout.unpack_bundle(value, number, where)
    try:
        base, name = values["base"], values["name"]
        if not isinstance(base, str) or not isinstance(name, str):
            raise TypeError(f"base {base!r}, name {name!r}")
        adapter = Adapter.from_bytes(arrays["adapter"].tobytes())
        former = arrays.get("former")
        if former is None:
            return Attached(base, name, adapter)
        return Attached(base, name, adapter, Adapter.from_bytes(former.tobytes()))
    except (KeyError, TypeError, AttributeError, EncoderError) as error:
        raise CorruptionError(f"{where}: cannot be read: {error!r}") from error


def complete(
    reader: Reader, entry: Entry, encoder: Encoder, known: Encoder | None = None
) -> Encoder:
    """Return the encoder with the adapter that the collection keeps for it.

    One that is adapted already, or another than the collection's, comes back as it is.

    Args:
        reader: Where to read.
        entry: The collection.
        encoder: What a user gave.
        known: What was returned before, whose adapter need not be read again.
    """
    wanted = entry.spec.fingerprint
    if isinstance(encoder, AdaptedEncoder) or encoder.fingerprint == wanted:
        return encoder
    if isinstance(known, AdaptedEncoder) and known.adapter.dim == encoder.dim:
        again = AdaptedEncoder(encoder, known.adapter)
        if again.fingerprint == wanted:
            return again
    kept = read(reader, entry.number)
    if kept is None or kept.base != encoder.fingerprint or kept.adapter.dim != encoder.dim:
        return encoder
    return AdaptedEncoder(encoder, kept.adapter)


def bundled(reader: Reader, entry: Entry) -> Encoder:
    """Return the bundled encoder that a collection was made with, without its adapter.

    It is told by its name: whether it is the collection's own is for its fingerprint to tell.
    """
    kept = read(reader, entry.number)
    return encoders.remembered(entry.spec.encoder if kept is None else kept.name)


def renewed(reader: Reader, entry: Entry, encoder: Encoder) -> Encoder:
    """Return the encoder with the adapter that the collection keeps now, whatever it had before."""
    bare = encoder.base if isinstance(encoder, AdaptedEncoder) else encoder
    return complete(reader, entry, bare)


def check_queries(spec: CollectionSpec, adapter: Adapter | None, dim: int) -> None:
    """Raise UsageError unless an adapter leaves what the collection stores as it is.

    Args:
        spec: The collection's.
        adapter: What is to be attached, or None.
        dim: Numbers of what its encoder makes now.
    """
    if dim != spec.dim:
        raise UsageError(
            f"collection {spec.name!r} keeps {spec.dim} of the {dim} numbers that its encoder"
            " makes; an adapter of its queries has to make the same numbers"
        )
    if adapter is None:
        return
    if not isinstance(adapter, Adapter):
        raise UsageError(f"adapter={show(adapter)} must be an Adapter or None")
    if adapter.documents is not None:
        raise UsageError(
            f"adapter {adapter.name!r} maps documents too, and the vectors stored in {spec.name!r}"
            " would not fit it: make a new collection with AdaptedEncoder(encoder, adapter)"
        )
    if adapter.dim != dim:
        raise UsageError(
            f"adapter {adapter.name!r} takes vectors of {adapter.dim} numbers, {spec.name!r} has"
            f" dim={dim}"
        )


def keep(txn: Transaction, entry: Entry, encoder: Encoder | None) -> None:
    """Store the adapter of a new collection's encoder, if it has one."""
    if isinstance(encoder, AdaptedEncoder) and not encoder.adapter.is_identity:
        base = encoder.base
        write(txn, entry.number, Attached(base.fingerprint, base.name, encoder.adapter))


def change(txn: Transaction, entry: Entry, adapter: Adapter | None) -> None:
    """Put an adapter of queries behind what a collection has, or with None take such ones away.

    What both make together is multiplied out and stored, not made anew from its parts: another
    machine might round it otherwise, and its fingerprint would be another.
    """
    base, name = entry.spec.fingerprint, entry.spec.encoder
    if base is None or name is None:
        raise CorruptionError(f"collection {entry.spec.name!r} has no encoder to adapt")
    kept = read(txn, entry.number) or Attached(base, name, Adapter(dim=entry.spec.dim))
    first = kept.former or kept.adapter
    if adapter is None:
        kept = replace(kept, adapter=first, former=None)
    else:
        kept = replace(kept, adapter=kept.adapter @ adapter, former=first)
    catalog.change_encoder(
        txn,
        entry,
        adapted_name(kept.name, kept.adapter),
        adapted_fingerprint(kept.base, kept.adapter),
    )
    if kept.adapter.is_identity:
        txn.delete("meta", layout.adapter_key(entry.number))
    else:
        write(txn, entry.number, kept)


def write(txn: Transaction, number: int, kept: Attached) -> None:
    """Store what a collection keeps of its encoder."""
    values: dict[str, Any] = {"base": kept.base, "name": kept.name}
    arrays = {"adapter": np.frombuffer(kept.adapter.to_bytes(), np.uint8)}
    if kept.former is not None:
        arrays["former"] = np.frombuffer(kept.former.to_bytes(), np.uint8)
    value = index_layout.pack_bundle(number, values, arrays, txn.page)
    txn.put("meta", layout.adapter_key(number), value)


def verify(reader: Reader, report: Report, entry: Entry) -> None:
    """An adapter is that of the fingerprint, and makes numbers enough (17)."""
    kept, spec = read(reader, entry.number), entry.spec
    if kept is None:
        return
    where = f"adapter of collection {spec.name!r}"
    if spec.fingerprint != adapted_fingerprint(kept.base, kept.adapter):
        report.add(where, f"the spec's fingerprint {spec.fingerprint} is another's (17)")
    if kept.adapter.is_identity or kept.adapter.dim_out < spec.dim:
        report.add(where, f"{kept.adapter!r} does not make dim={spec.dim} numbers (17)")
    documents = [
        affine and affine.to_bytes()
        for affine in (kept.adapter.documents, (kept.former or kept.adapter).documents)
    ]
    if documents[0] != documents[1]:
        report.add(where, "documents were mapped otherwise before queries were adapted (17)")
