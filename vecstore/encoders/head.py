"""How does what a graph returns become one vector for each text? Layers, pooling, modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore.encoders.dense import read_dense
from vecstore.encoders.folder import OWN_NAME, ModelFolder
from vecstore.encoders.graph import Outline
from vecstore.encoders.pooling import Floats, pool
from vecstore.errors import EncoderError

_OUTPUTS = ("sentence_embedding", "last_hidden_state", "token_embeddings")
_HIDDEN = re.compile(r"hidden_states[._](\d+)")


def choose_outputs(folder: ModelFolder, outline: Outline) -> list[str]:
    """Return the names of the graph's outputs that vectors are made of; of several, the average.

    Raises:
        EncoderError: `vecstore.json` names an output that the graph does not have.
    """
    if folder.output is not None or folder.hidden:
        named = [folder.output] if folder.output is not None else list(folder.hidden)
        numbered = sorted(
            (int(found[1]), name)
            for name in outline.outputs
            if (found := _HIDDEN.fullmatch(name)) is not None
        )
        return [_output(folder, outline, dict(numbered), output) for output in named]
    # A pooled output of another name may be BERT's pooler, which is no sentence vector, so token
    # vectors come first.
    tokens = [name for name, value in outline.outputs.items() if len(value.shape or ()) == 3]
    known = [name for name in _OUTPUTS if name in outline.outputs]
    return (known + tokens + list(outline.outputs))[:1]


def _output(
    folder: ModelFolder, outline: Outline, numbered: dict[int, str], output: str | int | None
) -> str:
    if isinstance(output, int):
        number = output if output >= 0 else len(numbered) + output
        if number in numbered:
            return numbered[number]
        output = f"hidden_states.{output}"
    if output not in outline.outputs:
        raise EncoderError(
            f"{folder.path / OWN_NAME} names the output {output!r:.60}, and {folder.model} has"
            f" {', '.join(outline.outputs)}"
        )
    return str(output)


def declared_dim(folder: ModelFolder, outline: Outline) -> int | None:
    """Return how many numbers a vector has, None where only running the model tells.

    Raises:
        EncoderError: `vecstore.json` names an output that the graph does not have, or the
            configuration of a Dense module is damaged.
    """
    shape = outline.outputs[choose_outputs(folder, outline)[0]].shape or ()
    if len(shape) == 2:
        return shape[1]
    if len(shape) != 3:
        return None
    dense = [step for step in folder.steps if step != "normalize"]
    if dense:
        return read_dense(dense[-1]).outputs
    return None if shape[2] is None else shape[2] * len(folder.pooling)


class Head:
    """What follows the graph.

    A graph that returns one vector for each text holds the pooling and all modules but the last
    scaling to unit length; one that returns token vectors holds none of them.

    Args:
        folder: The model folder.
        tokens: Whether the graph may return token vectors, so that modules are loaded.

    Raises:
        EncoderError: A Dense module is damaged.
    """

    def __init__(self, folder: ModelFolder, *, tokens: bool) -> None:
        self._folder = folder
        self._weights = np.array(folder.weights or [1.0] * len(folder.hidden), dtype=np.float32)
        self._steps: list[Callable[[Floats], Floats]] = []
        if tokens:
            for step in folder.steps:
                self._steps.append(
                    self._normalized if step == "normalize" else read_dense(step).load()
                )
        self._normalize = folder.steps[-1:] == ("normalize",)

    def __call__(
        self, outputs: Sequence[NDArray[Any]], mask: NDArray[np.int64], skipped: int
    ) -> Floats:
        """Return float32 (batch, dim).

        Args:
            outputs: What the graph returned.
            mask: Which tokens belong to a text, (batch, sequence).
            skipped: Leading tokens that the pooling leaves out.

        Raises:
            EncoderError: The outputs are no vectors of these texts or tokens.
        """
        for output in outputs:
            self._check(output, mask)
        vectors = self._joined(outputs)
        if vectors.ndim == 2:
            return self._normalized(vectors) if self._normalize else vectors
        return self.finish(self._pool(vectors, mask, skipped))

    def finish(self, vectors: Floats) -> Floats:
        """Do to pooled vectors, float32 (n, dim), what follows the pooling outside the graph."""
        if not self._steps:
            return self._normalized(vectors) if self._normalize else vectors
        for step in self._steps:
            vectors = step(vectors)
        return vectors

    def _check(self, output: NDArray[Any], mask: NDArray[np.int64]) -> None:
        model = self._folder.model
        if output.dtype.kind != "f" or output.ndim not in (2, 3) or len(output) != len(mask):
            raise EncoderError(
                f"{model} returned {output.dtype} of shape {output.shape} for {len(mask)} texts,"
                " expected one vector for each text or each token"
            )
        if output.ndim == 3 and output.shape[1] != mask.shape[1]:
            raise EncoderError(
                f"{model} returned {output.shape[1]} vectors for {mask.shape[1]} tokens"
            )

    def _joined(self, outputs: Sequence[NDArray[Any]]) -> Floats:
        if len({output.shape for output in outputs}) > 1:
            raise EncoderError(
                f"{self._folder.path / OWN_NAME}: the outputs of hidden="
                f"{list(self._folder.hidden)!r:.60} differ in shape"
            )
        first: Floats = outputs[0].astype(np.float32, copy=False)
        if len(outputs) == 1:
            return first
        joined = np.zeros_like(first)
        for output, weight in zip(outputs, self._weights, strict=True):
            joined += weight * output.astype(np.float32, copy=False)
        average: Floats = joined / self._weights.sum()
        return average

    def _pool(self, tokens: Floats, mask: NDArray[np.int64], skipped: int) -> Floats:
        folder = self._folder
        if folder.missing or not folder.pooling:
            what = ", ".join(folder.missing) or "no pooling"
            raise EncoderError(
                f"{folder.path / 'modules.json'} declares {what}, and the graph returns token"
                " vectors; export the whole model, so that the graph returns sentence vectors"
            )
        kept = mask.astype(np.float32)
        kept[:, :skipped] = 0
        # A text cut down to its prompt has nothing else to pool.
        alone = kept.sum(axis=1) == 0
        kept[alone] = mask[alone]
        return pool(tokens, kept, folder.pooling)

    def _normalized(self, vectors: Floats) -> Floats:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not lengths.all():
            raise EncoderError(f"{self._folder.model} returned a vector of zeros")
        normalized: Floats = vectors / lengths
        return normalized
