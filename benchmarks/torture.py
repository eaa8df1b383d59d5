"""How many kills and power cuts does a file survive?

    python benchmarks/torture.py --kills 2000 --cuts 4000 --seed 1

The long form of tests/system/test_torture.py: writers are killed at moments, between calls to the
operating system and in the middle of writes, in files that begin empty or are of the first format;
then the power is cut, which leaves of what was not synced whatever parts it likes. The first that
loses something acknowledged, leaves half a transaction, or damages the file, ends it with an error
that names the seed. So does an error of the disk, in each call of each kind of write, that does.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from campaign import Campaign, Kill
from power import cut_power
from refusals import WORKS, make_sound, refuse_each
from steps import KINDS, small_parts, warm

STARTS = ("", "format_1", "format_1_stored")
# Kills of one file; then the next begins.
LIFE = 40
# Power cuts of one writer.
CUTS = 60
HOW = ("a moment", "between calls", "within a write")


def kills(chance: random.Random) -> Iterator[Kill]:
    """Kills of all sorts, for ever."""
    while True:
        opening = chance.random() < 0.1
        if chance.random() < 0.4:
            yield Kill(seconds=chance.uniform(0, 0.25))
        else:
            # Some hit the first calls of a step, some whatever comes later.
            most = 8 if opening else chance.choice((6, 60))
            torn = chance.random() < 0.35
            yield Kill(call=chance.randrange(most), torn=torn, opening=opening)


def show(counts: Counter[tuple[str, str]]) -> None:
    """Print how often a writer was killed in the middle of what, and how."""
    print(f"\n{'killed during':<16}" + "".join(f"{how:>16}" for how in (*HOW, "all")))
    phases = sorted({phase for phase, _ in counts})
    for phase in phases:
        each = [counts[phase, how] for how in HOW]
        print(f"{phase:<16}" + "".join(f"{count:>16,}" for count in (*each, sum(each))))
    each = [sum(counts[phase, how] for phase in phases) for how in HOW]
    print(f"{'all':<16}" + "".join(f"{count:>16,}" for count in (*each, counts.total())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=2000, help="at random, 40 to a file")
    parser.add_argument("--cuts", type=int, default=4000, help="of the power, each way to commit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--no-sweep", action="store_true", help="do not kill at every call of each kind of step"
    )
    options = parser.parse_args()
    small_parts()
    warm()
    begun, done, right, of, files, acknowledged = time.perf_counter(), Counter(), 0, 0, 0, 0
    chance = random.Random(options.seed)
    for life in range(1 << 30):
        if done.total() >= options.kills:
            break
        with tempfile.TemporaryDirectory() as folder:
            run = Campaign(Path(folder), 1000 * options.seed + life, STARTS[life % len(STARTS)])
            for kill in kills(chance):
                run.live(kill, durable=chance.random() < 0.3)
                if run.kills.total() >= LIFE:
                    break
            run.finish()
        done, files = done + run.kills, files + 1
        acknowledged += run.acknowledged
        right, of = right + run.recall[0], of + run.recall[1]
        print(f"{run}: {done.total():,} kills, {time.perf_counter() - begun:.0f} s", flush=True)
    show(done)
    print(f"\n{files} files, {acknowledged:,} steps acknowledged, none lost, none half")
    print(f"recall@10 of approximate searches after kills: {right / max(of, 1):.4f} of {of:,}")
    if not options.no_sweep:
        swept: Counter[tuple[str, str]] = Counter()
        for durable in (False, True):
            swept += sweep(options.seed, durable)
        print("\nat every call, and within every write, of one step of each kind")
        show(swept)
    refused = faults()
    told = ", ".join(f"{count:,} of {work}" for work, count in refused.items())
    print(f"\ncalls refused once, for good and by half: {refused.total():,}, {told}", flush=True)
    for durable in (True, False) if options.cuts else ():
        counts = power(options.seed, durable, options.cuts)
        told = ", ".join(f"{count:,} {what}" for what, count in counts.most_common())
        print(f"power cuts, durable={durable}: {counts.total():,}, {told}", flush=True)
    print(f"\n{time.perf_counter() - begun:.0f} s")


def faults() -> Counter[str]:
    """Refuse each call of each kind of write."""
    with tempfile.TemporaryDirectory() as folder:
        sound = make_sound(Path(folder) / "test.vecstore")
        return Counter({work: refuse_each(sound, Path(folder) / work, work) for work in WORKS})


def power(seed: int, durable: bool, count: int) -> Counter[str]:
    """Cut the power of writers of all sorts."""
    counts: Counter[str] = Counter()
    for life in range(-(-count // CUTS)):
        # Every other one from its first steps on.
        early, start = 15 * (life % 2), STARTS[life % len(STARTS)]
        counts += cut_power(
            1000 * seed + life, start, durable=durable, early=early, most=12, count=CUTS
        )
    return counts


def sweep(seed: int, durable: bool) -> Counter[tuple[str, str]]:
    """Kill at each call of a new file, and of a step of each kind in one of the first format."""
    with tempfile.TemporaryDirectory() as folder:
        run = Campaign(Path(folder), seed)
        run.sweep(None, durable=durable)
        counts = run.kills
    with tempfile.TemporaryDirectory() as folder:
        run = Campaign(Path(folder), seed, "format_1")
        # Until each collection has some records, and indexes.
        run.live(most=30)
        for kind in KINDS:
            run.sweep(kind, durable=durable)
        run.finish()
        return counts + run.kills


if __name__ == "__main__":
    main()
