"""How does a table of token vectors learn to stand for a transformer?

A text's vector is a weighted sum of the vectors of its tokens: nothing has to be run. The table
begins with what the teacher says of each token alone, common ones made small (Arora, Liang and Ma,
A simple but tough-to-beat baseline for sentence embeddings, 2017), and learns from texts which
tokens count, and for what. How much a token counts where it stands in its text is learned too:
what a text is about is mostly said in the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as torch_functions
from numpy.typing import NDArray
from torch import nn
from training import Settings, Source, Tell, train

Floats = NDArray[np.float32]
# Tokens of a larger share of all text than that are made small.
COMMON = 1e-3
# The learning rate of the weights of places.
PLACES_RATE = 1e-2


@dataclass(frozen=True, slots=True)
class Bags:
    """Texts as lists of tokens.

    Attributes:
        ids: The numbers of the tokens of all texts, one behind the other, without special ones.
        starts: Where each text begins, (n,).
        sizes: Tokens of each, (n,).
        teacher: Their vectors by the teacher, float32 (n, dim), unit length.
    """

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    teacher: Floats

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], teacher: Floats) -> Bags:
        """Texts with a special token before and behind each."""
        inner = [np.array(text[1:-1], np.int64) for text in texts]
        sizes = np.array([len(text) for text in inner])
        return cls(np.concatenate(inner), np.cumsum(sizes) - sizes, sizes, teacher)

    def __len__(self) -> int:
        return len(self.teacher)


class Table(nn.Module):
    """A vector for each token, (tokens, dim), and a weight for each place, (length,)."""

    def __init__(self, table: Floats, length: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.from_numpy(table))
        shares = _between_knots(length)
        self._shares = torch.from_numpy(shares)
        # Logarithms, so that no weight can be negative.
        self.knots = nn.Parameter(torch.zeros(shares.shape[1]))

    def weights(self) -> torch.Tensor:
        """How much each place counts, (length,)."""
        return (self._shares @ self.knots).exp()

    def forward(self, texts: Bags, rows: NDArray[Any]) -> torch.Tensor:
        """Return the vectors of some texts, (n, dim)."""
        sizes = texts.sizes[rows]
        starts = np.cumsum(sizes) - sizes
        places = np.arange(sizes.sum()) - np.repeat(starts, sizes)
        ids = texts.ids[places + np.repeat(texts.starts[rows], sizes)]
        # A sum and not a mean: only the direction counts.
        found: torch.Tensor = torch_functions.embedding_bag(
            torch.from_numpy(ids),
            self.table,
            torch.from_numpy(starts),
            mode="sum",
            per_sample_weights=self.weights()[torch.from_numpy(places)],
        )
        return found


def _between_knots(length: int) -> Floats:
    """Which knots each place lies between, and how near to each, (length, knots).

    Knots are at 0, 1, 3, 7, 15 and so on: what is seldom seen, far from the beginning, is learned
    together.
    """
    places = np.log2(1 + np.arange(length))
    knots = np.arange(np.ceil(places[-1]) + 1)
    shares: Floats = np.maximum(0, 1 - np.abs(places[:, None] - knots)).astype(np.float32)
    return shares


def first_table(alone: Floats, sources: Sequence[Source[Bags]]) -> Floats:
    """Return where training begins, float32 (tokens, dim).

    Args:
        alone: The teacher's vector of each token alone, (tokens, dim).
        sources: Texts that tell how common each token is.
    """
    sides = [side for source in sources for side in source.sides]
    counts = np.zeros(len(alone))
    for side in sides:
        counts += np.bincount(side.ids, minlength=len(alone))
    share = (counts / counts.sum()).astype(np.float32)
    weights = COMMON / (COMMON + share)
    table: Floats = weights[:, None] * (alone - share @ alone)
    # Of the length for which learning rates are stated.
    table /= np.linalg.norm(table, axis=1).mean()
    return table


def fit_table(
    table: Floats,
    length: int,
    sources: Sequence[Source[Bags]],
    settings: Settings,
    tell: Tell,
    *,
    rate: float,
) -> tuple[Floats, Floats]:
    """Train a table for texts of so many tokens; return it and the weights of their places."""
    model = Table(table, length)
    # One for sparse gradients would leave rare tokens behind: they move by their momentum too.
    optimizer = torch.optim.Adam(
        [
            {"params": [model.table], "lr": rate},
            {"params": [model.knots], "lr": PLACES_RATE},
        ],
        fused=True,
    )
    train(model, [optimizer], sources, settings, tell)
    weights: Floats = model.weights().detach().numpy().copy()
    return model.table.detach().numpy().copy(), weights
