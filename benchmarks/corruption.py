"""What comes of damaged files, and of files that somebody made to do harm?

    python benchmarks/corruption.py --seed 1 --count 200

Small files of each kind are spoiled, by chance and by intent, and each is opened and used in a
process of its own (`tests/ordeal.py` says how, `tests/attacks.py` with what). With `verify=True`
there must be an error, or the answers of the intact file: or of its last commit but one, which is
what a file is whose newest header was lost. Without, answers may be wrong, but no process may die,
hang, take memory without bound, or raise what is no VecstoreError; but for damage to the pages of
LMDB, which LMDB trusts. What is salvaged or repaired has to be sound, or there is an error. Exits
with 1 if there was anything else.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import attacks
import victims
from attacks import Case
from ordeal import Ordeal, Outcome, is_error, scratch

MOST_MEMORY = 256 << 20
CHANCES, VALUES, LIES = tuple(attacks.CHANCES), "values", "lies"
WAYS = (*CHANCES, VALUES, LIES)
OPENED = VERIFIED, TRUSTED, MENDED = "verify", "trust", "mend"


def cases(way: str, path: Path, seed: str, count: int) -> Iterator[Case]:
    """The cases of a way to spoil a file."""
    rng = random.Random(seed)
    if way == LIES:
        return attacks.lies(path, rng, count)
    if way == VALUES:
        return attacks.value_flips(path, rng, count)
    return attacks.CHANCES[way](path.read_bytes(), rng, count)


def faults(found: Outcome, intact: list[Outcome]) -> list[str]:
    """What must not have happened; answers are compared with those of some other files, if any."""
    faults = [found.died, *found.raw, *found.contradictions]
    if intact:
        wrong = [found.wrong(one) for one in intact]
        faults += [] if [] in wrong else [f"wrong: {', '.join(wrong[0])}"]
    if found.peak > MOST_MEMORY:
        faults.append(f"{found.peak >> 20} MiB")
    return list(filter(None, faults))


class Campaign:
    """All cases of a file, in one way of opening it."""

    def __init__(self, ordeal: Ordeal, path: Path, folder: Path) -> None:
        self.ordeal, self.path, self.folder = ordeal, path, folder
        self.intact = path.read_bytes()
        self.healthy = [self.outcome(Case("intact"))]
        assert not self.healthy[0].refused
        assert not faults(self.healthy[0], [])
        self.healthy += [self.outcome(attacks.without_last_commit(self.intact))]

    def outcome(self, case: Case) -> Outcome:
        """What comes of one case."""
        case.write(self.intact, self.folder / "case.vecstore")
        found = self.ordeal(self.folder / "case.vecstore")
        for left in [*self.folder.glob("case.backup*"), *self.folder.glob("mended*")]:
            left.unlink()
        return found

    def run(self, way: str, seed: str, count: int) -> Counter[str]:
        """Count what comes of all cases of a way; what is bad is printed."""
        counts, begun = Counter[str](), time.monotonic()
        # Lies may make another file that is sound.
        compared = self.ordeal.verify and way != LIES
        healthy = [one for one in self.healthy if compared and one.sound and not one.refused]
        for case in cases(way, self.path, seed, count):
            found = self.outcome(case)
            bad = faults(found, healthy)
            counts += Counter(files=1, refused=bool(found.refused), bad=bool(bad))
            counts["error"] += not found.refused and self._has_error(found)
            counts["slowest"] = max(counts["slowest"], int(1000 * found.seconds))
            counts["peak"] = max(counts["peak"], found.peak >> 20)
            for fault in bad:
                print(f"!! {self.path.stem}, {way}, {case.name}: {fault}", flush=True)
        counts["seconds"] = int(time.monotonic() - begun)
        return counts

    def _has_error(self, found: Outcome) -> bool:
        """Whether reading raised what it does not with the intact file."""
        known = self.healthy[0].answers
        return any(
            is_error(answer) and answer != known.get(name) for name, answer in found.answers.items()
        )


def ordeal(opened: str, engine: str, way: str) -> Ordeal:
    """How files are put to the test."""
    if opened == MENDED:
        return Ordeal(engine, mending=True, writing=way not in CHANCES)
    return Ordeal(engine, verify=opened == VERIFIED, writing=opened == TRUSTED)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="of files, for each line")
    parser.add_argument("--victims", nargs="*", default=list(victims.VICTIMS))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--engines", nargs="*", default=["numpy", "compiled"])
    parser.add_argument("--open", nargs="*", default=list(OPENED), choices=OPENED, dest="opened")
    told = parser.parse_args()
    columns = ("files", "refused", "error", "bad", "slowest", "peak", "seconds")
    print(
        "| opened | by | file | spoiled | files | refused | error | bad | slowest, ms | MiB | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    total = Counter[str]()
    with scratch() as name:
        folder = Path(name)
        made = {one: victims.make(one, folder / f"{one}.vecstore") for one in told.victims}
        for opened, engine in product(told.opened, told.engines):
            if (opened, engine) == (MENDED, "compiled"):
                continue
            for victim, path in made.items():
                for way in told.ways:
                    # Of LMDB's own pages nothing but verifying is promised.
                    if opened == TRUSTED and way in CHANCES:
                        continue
                    with ordeal(opened, engine, way) as trial:
                        campaign = Campaign(trial, path, folder)
                        seed = f"{told.seed} {opened} {engine} {victim} {way}"
                        found = campaign.run(way, seed, told.count)
                    total += Counter(files=found["files"], bad=found["bad"])
                    cells = [str(found[column]) for column in columns]
                    line = " | ".join([opened, engine, victim, way, *cells])
                    print(f"| {line} |", flush=True)
    print(f"{total['files']} files, {total['bad']} bad")
    return 1 if total["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
