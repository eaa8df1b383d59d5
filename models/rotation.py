"""Which rotation of vectors makes their prefixes rank texts as the whole vectors do?

An orthogonal matrix changes no similarity of whole vectors. The one that a model is given is fitted
by the loss that all else is trained with, source by source: texts of one source are the ones that
are hard to tell apart. That finds more than `fit_rotation`, which knows of no sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from nested import Nested
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.parametrizations import orthogonal
from training import Settings, Source, Taught, train

from vecstore.encoders import fit_rotation

Floats = NDArray[np.float32]
# Vectors from which the matrix is found with which fitting begins.
FIRST = 40_000
RATE = 2e-3
STEPS, ANCHORS = 1000, 128
T = TypeVar("T", bound=Taught)


class Rotation(nn.Module):
    """A matrix that stays orthogonal while it is trained, (dim, dim)."""

    def __init__(self, matrix: Floats) -> None:
        super().__init__()
        self.linear = nn.Linear(len(matrix), len(matrix), bias=False)
        orthogonal(self.linear, orthogonal_map="cayley")
        self.linear.weight = torch.from_numpy(matrix.T.copy())

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return vectors @ matrix, (n, dim)."""
        turned: torch.Tensor = self.linear(vectors)
        return turned

    def matrix(self) -> Floats:
        """The matrix, float32."""
        found: Floats = self.linear.weight.detach().numpy().T.copy()
        return found


def rotation_of(
    sources: Sequence[Source[T]], prefixes: Mapping[int, float], *, seed: int = 0
) -> Floats:
    """Return the rotation that serves the teacher's own vectors best, float32 (dim, dim).

    Args:
        sources: Texts.
        prefixes: How much each length of prefix counts; whole vectors need none.
        seed: Fixes the batches.
    """
    found = np.concatenate([source.documents.teacher for source in sources])
    rows = np.random.default_rng(seed).permutation(len(found))[:FIRST]
    first = fit_rotation(found[rows], sorted(prefixes)).documents
    dim = found.shape[1]
    rotation = Rotation(np.eye(dim, dtype=np.float32) if first is None else first.matrix)

    def model(texts: T, rows: NDArray[Any]) -> torch.Tensor:
        turned: torch.Tensor = rotation(torch.from_numpy(texts.teacher[rows]))
        return turned

    settings = Settings(
        steps=STEPS,
        anchors=ANCHORS,
        remembered=0,
        loss=Nested(prefixes=prefixes, labels=0.0, own=0.0),
        seed=seed,
    )
    optimizer = torch.optim.Adam(rotation.parameters(), RATE)
    train(model, [optimizer], sources, settings, lambda step, loss: None)
    return rotation.matrix()
