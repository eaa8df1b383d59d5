"""How does a layer of an encoder learn to stand for all that come behind it? An early exit.

The layers before it are run once, in the arithmetic in which they will be used, and what they
return is kept: only this layer is trained, together with the matrix behind the pooling, in half an
hour on a processor. The teacher is the model with all its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from base import Base
from layers import Layer
from numpy.typing import NDArray
from teacher import Read
from torch import nn
from training import Settings, Source, Tell, train

from vecstore.encoders.batching import batches

Floats = NDArray[np.float32]
# Tokens that run at once in training.
BUDGET = 1024
# Matrices multiply in 16 bits, four times as fast, where the processor can.
_BRIEF = torch.cpu._is_avx512_bf16_supported()


@dataclass(frozen=True, slots=True)
class Sequences:
    """Texts as they enter the trained layers.

    Attributes:
        values: The vectors of the tokens of all texts, one behind the other, float16 (tokens, dim).
        starts: Where each text begins, (n,).
        sizes: Tokens of each, (n,).
        teacher: Their vectors by the teacher, float32 (n, dim), unit length.
    """

    values: NDArray[np.float16]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    teacher: Floats

    @classmethod
    def of(cls, read: Read) -> Sequences:
        """What a teacher read, behind the layer that it kept."""
        return cls(read.values, read.starts, read.sizes, read.vectors)

    def __len__(self) -> int:
        return len(self.teacher)

    def only(self, rows: NDArray[Any]) -> Sequences:
        """Some of them."""
        return Sequences(self.values, self.starts[rows], self.sizes[rows], self.teacher[rows])

    def padded(self, rows: NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Some texts, (batch, sequence, dim), and where there are tokens, (batch, sequence)."""
        sizes = self.sizes[rows]
        values = np.zeros((len(rows), sizes.max(), self.values.shape[1]), np.float32)
        present = np.zeros(values.shape[:2], np.float32)
        for place, row in enumerate(rows):
            start = self.starts[row]
            values[place, : sizes[place]] = self.values[start : start + sizes[place]]
            present[place, : sizes[place]] = 1
        return torch.from_numpy(values), torch.from_numpy(present)


class Student(nn.Module):
    """The trained layer, mean pooling and a matrix.

    Args:
        base: The model whose layer this is at first.
        number: Which of them.
        matrix: As it is at first, (dim, dim).
    """

    def __init__(self, base: Base, number: int, matrix: Floats) -> None:
        super().__init__()
        self.layer = Layer(base.tensors, base.shape, number)
        # Not held orthogonal: what fewer layers cannot know is made small, lest it be noise.
        self.matrix = nn.Parameter(torch.from_numpy(matrix.copy()))

    def forward(self, texts: Sequences, rows: NDArray[Any]) -> torch.Tensor:
        """Return the vectors of some texts, (n, dim), of any length."""
        parts, order = [], []
        for places in batches(texts.sizes[rows], budget=BUDGET):
            value, present = texts.padded(rows[places])
            with torch.autocast("cpu", torch.bfloat16, enabled=_BRIEF):
                value = self.layer(value, present)
            total = (value.float() * present[..., None]).sum(1)
            parts.append(total / present.sum(1, keepdim=True))
            order.append(places)
        back = np.argsort(np.concatenate(order))
        result: torch.Tensor = torch.cat(parts)[torch.from_numpy(back)] @ self.matrix
        return result


def finetune(
    student: Student,
    sources: Sequence[Source[Sequences]],
    settings: Settings,
    tell: Tell,
    *,
    rate: float,
) -> None:
    """Train a student's layer at a learning rate, and its matrix at twice that."""
    layer = list(student.layer.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": layer, "lr": rate},
            {"params": [student.matrix], "lr": 2 * rate, "weight_decay": 0.0},
        ],
        weight_decay=0.01,
    )
    train(student, [optimizer], sources, settings, tell, clipped=layer)
