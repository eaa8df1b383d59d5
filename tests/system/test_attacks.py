"""Files that somebody made to do harm, or that were damaged: what opening and using them does.

A few of each here; `benchmarks/corruption.py` puts thousands to the test.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attacks
import msgpack
import numpy as np
import pytest
import victims
from attacks import Case, Key
from ordeal import Ordeal, Outcome

import vecstore
from vecstore import CorruptionError, index_layout, layout, record_layout
from vecstore.layout import HEADER, State

MEMORY = 128 << 20
Values = dict[Key, bytes]
Change = Callable[[Values], dict[Key, bytes | None]]

STATE: Key = ("meta", layout.state_key(1))
SPEC: Key = ("meta", layout.spec_key(1))
MODEL: Key = ("index", index_layout.index_key(1, index_layout.MODEL))
PLAN: Key = ("index", index_layout.index_key(1, index_layout.PLAN))
LIVE: Key = ("live", layout.part_key(1, 0))
BLOCK: Key = ("tiers", layout.block_key(1, 0))
RECORD: Key = ("records", layout.record_key(1, 3))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("victims")
    return {name: victims.make(name, folder / f"{name}.vecstore") for name in victims.VICTIMS}


@pytest.fixture(scope="module", params=["numpy", "compiled"])
def trusting(request: pytest.FixtureRequest) -> Iterator[Ordeal]:
    with Ordeal(request.param, verify=False, writing=True) as ordeal:
        yield ordeal


@pytest.fixture(scope="module")
def verifying() -> Iterator[Ordeal]:
    with Ordeal("compiled", verify=True) as ordeal:
        yield ordeal


def outcome(ordeal: Ordeal, intact: Path, case: Case, folder: Path) -> Outcome:
    path = folder / "case.vecstore"
    case.write(intact.read_bytes(), path)
    found = ordeal(path)
    for left in folder.glob("case.backup*"):
        left.unlink()
    return found


# Whatever happens


@pytest.mark.parametrize("victim", victims.VICTIMS)
def test_lies_under_right_checksums_do_no_harm(
    made: dict[str, Path], trusting: Ordeal, victim: str, tmp_path: Path
) -> None:
    rng = random.Random(f"{victim} {trusting.engine}")
    for case in attacks.lies(made[victim], rng, 2):
        found = outcome(trusting, made[victim], case, tmp_path)

        assert found.sound, (case.name, found.died, found.raw)
        assert found.peak < MEMORY, case.name


@pytest.mark.parametrize("victim", victims.VICTIMS)
def test_a_spoiled_file_that_is_verified_is_refused_or_right(
    made: dict[str, Path], verifying: Ordeal, victim: str, tmp_path: Path
) -> None:
    path, rng = made[victim], random.Random(f"{victim} {verifying.engine}")
    intact = path.read_bytes()
    right = [outcome(verifying, path, Case("intact"), tmp_path)]
    assert right[0].sound
    right.append(outcome(verifying, path, attacks.without_last_commit(intact), tmp_path))
    cases = [*attacks.value_flips(path, rng, 1)]
    for spoil in attacks.CHANCES.values():
        cases += rng.sample(list(spoil(intact, rng, 4)), 1)
    for case in cases:
        found = outcome(verifying, path, case, tmp_path)

        assert found.sound, (case.name, found.died, found.raw, found.contradictions)
        assert not all(found.wrong(one) for one in right), case.name


@pytest.mark.parametrize("victim", victims.VICTIMS)
def test_a_lying_file_that_is_verified_is_refused_or_without_contradictions(
    made: dict[str, Path], verifying: Ordeal, victim: str, tmp_path: Path
) -> None:
    rng = random.Random(f"lies of {victim} {verifying.engine}")
    for case in attacks.lies(made[victim], rng, 2):
        found = outcome(verifying, made[victim], case, tmp_path)

        assert found.sound, (case.name, found.died, found.raw, found.contradictions)


# What did harm once


def spec(**changed: Any) -> Change:
    def change(values: Values) -> dict[Key, bytes | None]:
        plain = msgpack.unpackb(values[SPEC][4:])
        return {SPEC: layout.pack_meta({**plain, **changed})}

    return change


def counters(**changed: int) -> Change:
    def change(values: Values) -> dict[Key, bytes | None]:
        told = State.unpack(values[STATE])
        for name, value in changed.items():
            setattr(told, name, value)
        return {STATE: told.pack()}

    return change


def many_blocks(values: Values) -> dict[Key, bytes | None]:
    """As many as can be, and the bitmap of the last ones."""
    blocks = layout.MAX_ROWS // layout.BLOCK_ROWS
    last = layout.part_key(1, (blocks - 1) * 64 // layout.PART_ROWS)
    return {**counters(blocks=blocks)(values), ("live", last): values[LIVE]}


def row(number: int) -> Change:
    def change(values: Values) -> dict[Key, bytes | None]:
        return {RECORD: record_layout.pack_record(RECORD[1], number, values[RECORD][8:])}

    return change


def body(data: bytes) -> Change:
    return lambda values: {RECORD: record_layout.pack_record(RECORD[1], 3, data)}


def beyond_the_open_block(values: Values) -> dict[Key, bytes | None]:
    told, spoiled = State.unpack(values[STATE]), bytearray(values[LIVE])
    spoiled[HEADER.size + told.open_block * 8 + 7] |= 128
    return {LIVE: attacks.sealed(spoiled)}


def not_numbers(values: Values) -> dict[Key, bytes | None]:
    spoiled = bytearray(values[BLOCK])
    start = HEADER.size + layout.COLUMNS_BYTES
    spoiled[start : start + 512] = np.full(128, np.nan, "<f4").tobytes()
    return {BLOCK: attacks.sealed(spoiled)}


def bytes_of_other_rows(values: Values) -> dict[Key, bytes | None]:
    open_block = State.unpack(values[STATE]).open_block
    key = ("tiers", layout.block_key(1, open_block, layout.BYTE_TIER))
    spoiled = bytearray(values[key])
    struct.pack_into("<I", spoiled, 8, 9)
    return {key: attacks.sealed(spoiled)}


def model(change: Callable[[Any, Any], None]) -> Change:
    """A model whose plain values and directory of arrays were changed."""

    def changed(values: Values) -> dict[Key, bytes | None]:
        value = values[MODEL]
        header = layout.unpack_header(value, "")
        payload = value[HEADER.size : HEADER.size + header.length]
        size = int.from_bytes(payload[:4], "little")
        plain, directory = msgpack.unpackb(payload[4 : 4 + size])
        change(plain, directory)
        head = msgpack.packb([plain, directory])
        payload = layout.CHECKSUM.pack(len(head)) + head + payload[4 + size :]
        return {MODEL: bytes(layout.pack_bulk(header, payload, attacks.PAGE))}

    return changed


def shape(*axes: int) -> Change:
    return model(lambda plain, directory: directory[0].__setitem__(2, list(axes)))


def budgets(**changed: Any) -> Change:
    def change(values: Values) -> dict[Key, bytes | None]:
        plain = msgpack.unpackb(values[PLAN][4:])
        plain["budgets"].update(changed)
        return {PLAN: layout.pack_meta(plain)}

    return change


HARM: dict[str, tuple[str, Change]] = {
    "a uid that is a number of bytes": ("flat", spec(uid=2**53)),
    "a fingerprint that is no text": ("flat", spec(fingerprint=b"")),
    "dims that are no whole number": ("flat", spec(dim=8.0)),
    "fields that are no texts": ("flat", spec(skip_fields=[[]])),
    "orders beyond all numbers": ("codes", counters(next_order=2**64 - 1)),
    "blocks beyond all bitmaps": ("lists", counters(blocks=2**26 - 2)),
    "blocks beyond all bitmaps but the last": ("lists", many_blocks),
    "a row that no block holds": ("int8", row(2**32 - 1)),
    "a row beyond the open block": ("int8", row(4 * 64 + 63)),
    "a living row beyond the open block": ("flat", beyond_the_open_block),
    "vectors that are no numbers": ("flat", not_numbers),
    "bytes of other rows than are there": ("dot", bytes_of_other_rows),
    "a flag that is a number": ("lists", model(lambda plain, _: plain.update(distances=1.0))),
    "an array of less than nothing": ("lists", shape(-1)),
    "an array of nothing times everything": ("lists", shape(0, 2**62)),
    "an array of many axes": ("lists", shape(*[1] * 70)),
    "a budget without an end": ("lists", budgets(gap=float("inf"))),
    "a budget that float32 cannot hold": ("lists", budgets(gap=1e300, fine=-1e300)),
    "metadata that is deep": ("flat", body(b"\x93\x03\xc0" + b"\x81\xa1a" * 900 + b"\xc0")),
    "metadata that is deeper": ("flat", body(b"\x93\x03\xc0" + b"\x81\xa1a" * 100_000 + b"\xc0")),
    "a text that says to be long": ("flat", body(b"\x93\x03\xdb\xff\xff\xff\xff\xc0")),
    "an array that says to be long": ("flat", body(b"\xdd\xff\xff\xff\xff")),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_did_harm_once_does_none(
    made: dict[str, Path], trusting: Ordeal, harm: str, tmp_path: Path
) -> None:
    victim, change = HARM[harm]
    values = tuple(change(attacks.values_of(made[victim])).items())

    found = outcome(trusting, made[victim], Case(harm, values=values), tmp_path)

    assert found.sound, (found.died, found.raw)
    assert found.peak < MEMORY


@pytest.mark.parametrize("harm", HARM)
def test_what_did_harm_once_is_refused_where_it_is_verified(
    made: dict[str, Path], harm: str, tmp_path: Path
) -> None:
    victim, change = HARM[harm]
    values = tuple(change(attacks.values_of(made[victim])).items())
    path = tmp_path / "case.vecstore"
    Case(harm, values=values).write(made[victim].read_bytes(), path)

    with pytest.raises(CorruptionError):
        vecstore.open(path, verify=True)
