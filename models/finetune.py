"""How do the last layers of an encoder learn to say the most in its first numbers?

The layers before are run once, in the arithmetic in which they will be used, and what they return
is kept: only the last ones are trained, together with the rotation behind the pooling. So a model
can be trained in an hour on a processor. Nothing may be lost at full length: the teacher is the
model as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from layers import Layer
from nested import Nested
from numpy.typing import NDArray
from torch import nn

from vecstore.encoders.batching import batches
from vecstore.encoders.transformer import Graph, Range, Shape, build

Floats = NDArray[np.float32]
Tensors = Mapping[str, Floats]
# Tokens that run at once in training.
TRAINING_BUDGET = 1024
# How many near documents of each are drawn from, as hard negatives.
NEAR = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to train.

    Attributes:
        layers: How many of the last layers are trained.
        steps: Batches.
        anchors: Pairs drawn for a batch; each brings a near one of its source.
        rate: The largest learning rate; the rotation's is ten times that.
        loss: What is to become small.
        seed: Fixes the batches.
    """

    layers: int
    steps: int
    anchors: int
    rate: float
    loss: Nested
    seed: int = 0


class Frozen:
    """What the layers that are not trained return, and the teacher's vectors."""

    def __init__(
        self, tensors: Tensors, shape: Shape, ranges: Mapping[str, Range], trained: int
    ) -> None:
        def finish(graph: Graph, values: list[str]) -> None:
            for value, name in ((values[-1 - trained], "kept"), (values[-1], "last")):
                graph.node("Identity", value, output=name)
                graph.output(name, "batch", "sequence", shape.dim)

        model = build(tensors, shape, quantized=True, ranges=ranges, finish=finish)
        self._session = onnxruntime.InferenceSession(model.SerializeToString())
        self._dim = shape.dim

    def run(self, texts: Sequence[Sequence[int]], file: Path) -> Texts:
        """Run texts, each a list of numbers of tokens, and keep the results in a file."""
        sizes = np.array([len(text) for text in texts])
        starts = np.cumsum(sizes) - sizes
        shape = (int(sizes.sum()), self._dim)
        kept = np.lib.format.open_memmap(file, "w+", np.float16, shape)
        teacher = np.zeros((len(texts), self._dim), np.float32)
        # Of one length, so that no mask is needed.
        alike = (np.flatnonzero(sizes == size) for size in np.unique(sizes))
        parts = (rows[part] for rows in alike for part in batches(sizes[rows]))
        for rows in parts:
            ids = np.array([texts[row] for row in rows], np.int64)
            feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            values, last = self._session.run(["kept", "last"], feed)
            teacher[rows] = last.mean(axis=1)
            for row, value in zip(rows, values, strict=True):
                kept[starts[row] : starts[row] + sizes[row]] = value
        kept.flush()
        teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
        return Texts(np.load(file, mmap_mode="r"), starts, sizes, teacher)


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts as they enter the trained layers.

    Attributes:
        values: Of all texts, one behind the other, float16 (tokens, dim).
        starts: Where each text begins, (n,).
        sizes: Tokens of each, (n,).
        teacher: Their vectors by the teacher, float32 (n, dim), unit length.
    """

    values: NDArray[np.float16]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    teacher: Floats

    def __len__(self) -> int:
        return len(self.teacher)

    def only(self, rows: NDArray[Any]) -> Texts:
        """Some of them."""
        return Texts(self.values, self.starts[rows], self.sizes[rows], self.teacher[rows])

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


@dataclass(frozen=True, slots=True)
class Source:
    """Pairs of one kind.

    Attributes:
        share: How often batches are of it, beside others.
        queries: The shorter texts.
        documents: What belongs to each.
    """

    share: float
    queries: Texts
    documents: Texts


class Student(nn.Module):
    """The trained layers, mean pooling and the rotation."""

    def __init__(self, tensors: Tensors, shape: Shape, trained: int, rotation: Floats) -> None:
        super().__init__()
        first = shape.layers - trained
        self.layers = nn.ModuleList(
            Layer(tensors, shape, number) for number in range(first, shape.layers)
        )
        self.rotation = nn.Parameter(torch.from_numpy(rotation.copy()))

    def forward(self, texts: Texts, rows: NDArray[Any]) -> torch.Tensor:
        """Return the vectors of some texts, (n, dim), of any length."""
        parts, order = [], []
        for places in batches(texts.sizes[rows], budget=TRAINING_BUDGET):
            value, present = texts.padded(rows[places])
            for layer in self.layers:
                value = layer(value, present)
            total = (value * present[..., None]).sum(1)
            parts.append(total / present.sum(1, keepdim=True))
            order.append(places)
        back = np.argsort(np.concatenate(order))
        result: torch.Tensor = torch.cat(parts)[torch.from_numpy(back)] @ self.rotation
        return result


def finetune(
    tensors: Tensors,
    shape: Shape,
    rotation: Floats,
    sources: Sequence[Source],
    settings: Settings,
    tell: Callable[[int, float, Student], None],
) -> tuple[dict[str, Floats], Floats]:
    """Train the last layers and the rotation, and return their weights.

    Args:
        tensors: The model's weights.
        shape: Its sizes.
        rotation: Where to begin, float32 (dim, dim).
        sources: Pairs.
        settings: How to train.
        tell: Called after each step with its number, its loss and the model.
    """
    torch.manual_seed(settings.seed)
    chance = np.random.default_rng(settings.seed)
    student = Student(tensors, shape, settings.layers, rotation)
    rates = [settings.rate, 10 * settings.rate]
    optimizer = torch.optim.AdamW(
        [
            {"params": list(student.layers.parameters()), "lr": rates[0]},
            {"params": [student.rotation], "lr": rates[1]},
        ],
        weight_decay=0.01,
    )
    near = [neighbours(source.documents.teacher) for source in sources]
    shares = np.array([source.share for source in sources])
    for step in range(settings.steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * pace(step, settings.steps)
        which = chance.choice(len(sources), p=shares / shares.sum())
        rows = draw(near[which], settings.anchors, chance)
        texts = sources[which].queries, sources[which].documents
        vectors = torch.cat([student(side, rows) for side in texts])
        teacher = np.concatenate([side.teacher[rows] for side in texts])
        loss = settings.loss(vectors, torch.from_numpy(teacher))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.layers.parameters(), 1.0)
        optimizer.step()
        tell(step, loss.item(), student)
    trained: dict[str, Floats] = {}
    for layer in student.layers:
        assert isinstance(layer, Layer)
        trained |= layer.tensors()
    return trained, student.rotation.detach().numpy().copy()


def draw(near: NDArray[np.int64], count: int, chance: np.random.Generator) -> NDArray[np.int64]:
    """Return distinct rows: some at random, and of each a near one."""
    anchors = chance.integers(0, len(near), count)
    others = near[anchors, chance.integers(0, near.shape[1], count)]
    return np.unique(np.concatenate([anchors, others]))


def neighbours(vectors: Floats) -> NDArray[np.int64]:
    """Return the nearest others of each of some unit vectors, (n, up to NEAR)."""
    count = min(NEAR, len(vectors) - 1)
    found = []
    for start in range(0, len(vectors), 1000):
        scores = vectors[start : start + 1000] @ vectors.T
        rows = np.arange(len(scores))
        scores[rows, rows + start] = -np.inf
        found.append(np.argpartition(-scores, count - 1, axis=1)[:, :count])
    return np.concatenate(found)


def pace(step: int, steps: int) -> float:
    """What share of the largest learning rate a step has: a short rise, then half a cosine."""
    risen = min(1.0, (step + 1) / 30)
    return risen * max(0.02, 0.5 * (1 + math.cos(math.pi * step / steps)))
