"""Inputs that fuzzing began with, and those that it found: see `fuzzed.py`."""

from __future__ import annotations

import random

import fuzzed
import pytest


@pytest.mark.parametrize("name", fuzzed.TARGETS)
def test_what_fuzzing_begins_with_is_read(name: str) -> None:
    for seed in fuzzed.SEEDS[name]:
        fuzzed.TARGETS[name](seed)


@pytest.mark.parametrize("name", fuzzed.TARGETS)
def test_spoiled_bytes_are_refused_with_an_error_of_ours(name: str) -> None:
    rng, target = random.Random(name), fuzzed.TARGETS[name]
    for _ in range(60 if name == "where" else 300):
        data = bytearray(rng.choice(fuzzed.SEEDS[name]))
        for _ in range(rng.choice([1, 1, 2, 8])):
            how, at = rng.randrange(4), rng.randrange(len(data) + 1)
            if how == 0 and at < len(data):
                data[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
            elif how == 1:
                data[at:at] = rng.randbytes(rng.choice([1, 2, 8]))
            elif how == 2:
                del data[at : at + rng.choice([1, 2, 40])]
            elif how == 3 and data:
                other = rng.choice(fuzzed.SEEDS[name])
                data[at:] = other[at:]
        target(bytes(data))
