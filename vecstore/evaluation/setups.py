"""What is compared? Ways to store vectors and to search them, and which of them a sweep takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import ArrayLike

from vecstore.ann.index import KINDS, Kind
from vecstore.errors import UsageError
from vecstore.evaluation.intervals import SAMPLES, Floats, Interval, bootstrap_interval
from vecstore.spec import CODE_BITS, MIN_DIM, PRECISIONS, CollectionSpec, Precision

NUMBER_BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to store vectors and to search them.

    Attributes:
        dims: Numbers of each vector that are stored.
        precision: In what form.
        first: Compare this many leading numbers, keep the best, and order these by whole vectors;
            None to compare whole vectors at once.
        shortlist: How many are kept so.
        index: The kind of index that answers; None for exact search without one.
        codes: Dims and bits of the short codes of that index; None where it chooses.
    """

    dims: int
    precision: Precision = "float32"
    first: int | None = None
    shortlist: int = 0
    index: Kind | None = None
    codes: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """A short name for tables and pictures."""
        parts = [str(self.dims)]
        if self.first is not None:
            parts = [f"{self.first} → {self.dims} ({self.shortlist})"]
        if self.precision != "float32":
            parts.append(self.precision)
        if self.index is not None:
            parts.append(self.index)
        if self.codes is not None:
            parts.append("{} x {}".format(*self.codes))
        return " ".join(parts)

    @property
    def exact(self) -> bool:
        """Whether whole vectors are compared, all of them."""
        return self.first is None and self.index is None

    def check(self) -> None:
        """Raise SpecError or UsageError where no collection can be so."""
        CollectionSpec(
            name="eval",
            dim=self.dims,
            precision=self.precision,
            tiers=() if self.codes is None else (self.codes,),
        )
        if self.first is not None and not 0 < self.first < self.dims:
            raise UsageError(f"a tier of {self.first} dims is no part of {self.dims}")


@dataclass(frozen=True, slots=True)
class Sweep:
    """Which setups are measured, and how.

    Attributes:
        dims: Lengths of prefixes that are stored instead of whole vectors; by default those that
            the encoder was trained for, and the whole. Any length may be tried.
        precisions: In what forms, each for each of `dims`: "float32", "float16", "int8".
        tiers: Lengths of prefixes that find a shortlist, which whole vectors then order.
        shortlist: How long that is.
        codes: Dims and bits of short codes of an index of whole vectors, as (128, 1).
        indexes: Kinds of index; with codes and no kind "ivf", with a kind and no codes what it
            chooses. "flat" has no codes.
        k: How many hits are looked at.
        samples: How often queries and pairs are drawn for the intervals.
        seed: Of what is drawn.
    """

    dims: tuple[int, ...] = ()
    precisions: tuple[Precision, ...] = ("float32",)
    tiers: tuple[int, ...] = ()
    shortlist: int = 100
    codes: tuple[tuple[int, int], ...] = ()
    indexes: tuple[Kind, ...] = ()
    k: int = 10
    samples: int = SAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"k": 1, "shortlist": self.k, "samples": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise UsageError(f"{name}={value!r} must be an int of {low} or more")
        for name in ("dims", "precisions", "tiers", "codes", "indexes"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list):
                raise UsageError(f"{name}={value!r} must be a tuple, such as ({value!r},)")
        known = {"precisions": PRECISIONS, "indexes": [kind for kind in KINDS if kind != "auto"]}
        for name, names in known.items():
            for value in getattr(self, name):
                if value not in names:
                    raise UsageError(f"{name} holds {value!r}; use some of {', '.join(names)}")
        for name in ("dims", "tiers"):
            for size in getattr(self, name):
                if not isinstance(size, int) or size < MIN_DIM:
                    raise UsageError(f"{name} holds {size!r}; a prefix has {MIN_DIM} or more")
        for pair in self.codes:
            if not isinstance(pair, tuple | list) or len(pair) != 2 or type(pair[0]) is not int:
                raise UsageError(f"codes holds {pair!r}, not dims and bits, such as (128, 1)")
            if pair[1] not in CODE_BITS:
                raise UsageError(f"codes of {pair[0]} x {pair[1]}: bits are {CODE_BITS}")

    def interval(
        self, values: ArrayLike, statistic: Callable[[Floats], float] | None = None
    ) -> Interval:
        """A figure with its bootstrap interval, as this sweep draws it."""
        return bootstrap_interval(values, statistic, samples=self.samples, seed=self.seed)

    def setups(self, dim: int, mrl: tuple[int, ...]) -> list[Setup]:
        """Return the setups of an encoder that makes `dim` numbers and declares prefixes.

        What is longer than its vectors is left out.
        """
        sizes = self.dims or tuple(sorted({*mrl, dim}, reverse=True))
        found = [
            Setup(size, precision) for precision in self.precisions for size in sizes if size <= dim
        ]
        found += [
            Setup(dim, first=size, shortlist=self.shortlist) for size in self.tiers if size < dim
        ]
        kinds = self.indexes or (("ivf",) if self.codes else ())
        for kind in kinds:
            codes = () if kind == "flat" else tuple(pair for pair in self.codes if pair[0] <= dim)
            found += [Setup(dim, index=kind, codes=pair) for pair in codes or (None,)]
        # Repeated arguments are no reason to measure twice.
        unique = list(dict.fromkeys(found))
        for setup in unique:
            setup.check()
        return unique

    def check_lengths(self, longest: int) -> None:
        """Raise UsageError where something is longer than the longest vectors."""
        for size in (*self.dims, *self.tiers, *(dims for dims, _ in self.codes)):
            if size > longest:
                raise UsageError(f"{size} dims were asked for, the encoder makes {longest}")
