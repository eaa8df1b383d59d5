"""How is a model trained so that prefixes of its vectors rank texts? The loop that all share.

A batch is of one source. Of pairs some are drawn at random, and of each a near one, which are hard
to tell apart; of single texts, some at random or some that are alike in one respect. All are
compared with each other, and with the documents of the batches before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from nested import Documents, Nested
from numpy.typing import NDArray
from torch import nn

Floats = NDArray[np.float32]
# How many near documents of each are drawn from, as hard negatives.
NEAR = 16
# From how many times as many texts those are taken that are alike.
ALIKE_AMONG = 16


class Taught(Protocol):
    """Texts, in whatever form a model reads them."""

    @property
    def teacher(self) -> Floats:
        """Their vectors by the teacher, float32 (n, dim), unit length."""
        ...


T = TypeVar("T", bound=Taught)
Other = TypeVar("Other", bound=Taught)
Tell = Callable[[int, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to train.

    Attributes:
        steps: Batches.
        anchors: Pairs drawn for a batch; each brings a near one of its source. Of single texts,
            four times as many are drawn.
        remembered: Documents of earlier batches that are compared with those of a batch.
        loss: What is to become small.
        seed: Fixes the batches.
    """

    steps: int
    anchors: int
    remembered: int
    loss: Nested
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Source(Generic[T]):
    """Texts of one kind.

    Attributes:
        share: How often batches are of it, beside others.
        documents: The texts.
        queries: For each a shorter one by which it is to be found; None for single texts.
    """

    share: float
    documents: T
    queries: T | None = None

    @property
    def sides(self) -> list[T]:
        """The queries, if there are any, and the documents."""
        return [self.documents] if self.queries is None else [self.queries, self.documents]

    def turned(self, rotation: Floats) -> Source[T]:
        """The source by a teacher whose vectors are turned, (dim, dim)."""

        def turn(side: Any) -> Any:
            return replace(side, teacher=side.teacher @ rotation)

        return self.changed(turn)

    def changed(self, change: Callable[[T], Other]) -> Source[Other]:
        """The source with each side changed."""
        queries = None if self.queries is None else change(self.queries)
        return Source(self.share, change(self.documents), queries)


class Memory:
    """The documents of a source that were in its latest batches.

    A model that changes slowly would still give them nearly the same vectors (Wang, Zhang, Huang
    and Scott, Cross-batch memory for embedding learning, 2020).
    """

    def __init__(self, size: int, dim: int) -> None:
        self._size = size
        self._rows = np.zeros(0, np.int64)
        self._vectors = torch.zeros((0, dim))

    def beside(self, rows: NDArray[np.int64], teacher: Floats) -> Documents:
        """Return those that are not among some rows."""
        others = ~np.isin(self._rows, rows)
        known = torch.from_numpy(teacher[self._rows[others]])
        return Documents(self._vectors[torch.from_numpy(others)], known)

    def add(self, rows: NDArray[np.int64], vectors: torch.Tensor) -> None:
        """Remember documents, in place of what was known of them before."""
        others = ~np.isin(self._rows, rows)
        kept = self._vectors[torch.from_numpy(others)]
        all_rows = np.concatenate([self._rows[others], rows])
        first = max(0, len(all_rows) - self._size)
        self._rows = all_rows[first:]
        # The loss looks at no more than that.
        self._vectors = torch.cat([kept, vectors.detach()[:, : kept.shape[1]]])[first:]


def train(
    model: Callable[[T, NDArray[np.int64]], torch.Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    sources: Sequence[Source[T]],
    settings: Settings,
    tell: Tell,
    *,
    clipped: Sequence[nn.Parameter] = (),
) -> None:
    """Train a model.

    Args:
        model: Returns the vectors of some rows of texts, (n, dim).
        optimizers: With the largest learning rates.
        sources: Pairs.
        settings: How to train.
        tell: Called after each step with its number and its loss.
        clipped: Weights whose gradients together have a length of at most 1.
    """
    chance = np.random.default_rng(settings.seed)
    dim = max(settings.loss.sizes)
    draws = [_draw(source) for source in sources]
    memories = [Memory(settings.remembered, dim) for _ in sources]
    shares = np.array([source.share for source in sources])
    groups: list[dict[str, Any]] = [g for one in optimizers for g in one.param_groups]
    rates = [group["lr"] for group in groups]
    for step in range(settings.steps):
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * pace(step, settings.steps)
        which = chance.choice(len(sources), p=shares / shares.sum())
        source, memory = sources[which], memories[which]
        rows = draws[which](settings.anchors, chance)
        vectors = torch.cat([model(side, rows) for side in source.sides])
        teacher = np.concatenate([side.teacher[rows] for side in source.sides])
        more = memory.beside(rows, source.documents.teacher)
        labelled = source.queries is not None
        loss = settings.loss(vectors, torch.from_numpy(teacher), more, labelled=labelled)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        if clipped:
            nn.utils.clip_grad_norm_(clipped, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        memory.add(rows, vectors[-len(rows) :])
        tell(step, loss.item())


Rows = NDArray[np.int64]
Draw = Callable[[int, np.random.Generator], Rows]


def _draw(source: Source[Any]) -> Draw:
    """What draws distinct rows for a batch."""
    teacher = source.documents.teacher
    if source.queries is None:
        return lambda anchors, chance: some_alike(teacher, 4 * anchors, chance)
    near = neighbours(teacher)
    return lambda anchors, chance: with_near(near, anchors, chance)


def with_near(near: NDArray[np.int64], count: int, chance: np.random.Generator) -> Rows:
    """Return some rows at random, and of each a near one."""
    anchors = chance.integers(0, len(near), count)
    others = near[anchors, chance.integers(0, near.shape[1], count)]
    return np.unique(np.concatenate([anchors, others]))


def some_alike(vectors: Floats, count: int, chance: np.random.Generator) -> Rows:
    """Return some rows at random, or those that lie beside each other in a random direction."""
    if chance.random() < 0.5 or count >= len(vectors):
        return chance.permutation(len(vectors))[:count]
    few = chance.permutation(len(vectors))[: ALIKE_AMONG * count]
    direction = chance.standard_normal(vectors.shape[1], np.float32)
    order = few[np.argsort(vectors[few] @ direction)]
    start = int(chance.integers(0, max(1, len(order) - count)))
    return order[start : start + count]


def neighbours(vectors: Floats) -> NDArray[np.int64]:
    """Return the nearest others of each of some unit vectors, (n, up to NEAR)."""
    count = min(NEAR, len(vectors) - 1)
    found = []
    for start in range(0, len(vectors), 1000):
        scores = vectors[start : start + 1000] @ vectors.T
        rows = np.arange(len(scores))
        scores[rows, rows + start] = -np.inf
        # A copy, lest all of the order be kept.
        found.append(np.argpartition(-scores, count - 1, axis=1)[:, :count].copy())
    return np.concatenate(found)


def pace(step: int, steps: int) -> float:
    """What share of the largest learning rate a step has: a short rise, then half a cosine."""
    risen = min(1.0, (step + 1) / 30)
    return risen * max(0.02, 0.5 * (1 + math.cos(math.pi * step / steps)))
