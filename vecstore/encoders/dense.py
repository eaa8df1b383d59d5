"""What does a Dense module do? One linear layer behind the pooling, and its activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vecstore.encoders.config import Config, is_file, read_config
from vecstore.encoders.pooling import Floats
from vecstore.encoders.safetensors import read_tensors
from vecstore.errors import EncoderError, ModelNotFoundError
from vecstore.spec import MAX_DIM

_WEIGHTS_NAME, _PICKLE_NAME = "model.safetensors", "pytorch_model.bin"
_MAX_FEATURES = 8 * MAX_DIM
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(values: Floats) -> Floats:
    widened: Floats = values * (0.5 * (1 + _erf(values / math.sqrt(2)))).astype(np.float32)
    return widened


def _sigmoid(values: Floats) -> Floats:
    # By the hyperbolic tangent, which cannot overflow.
    halved: Floats = 0.5 * (1 + np.tanh(values * np.float32(0.5)))
    return halved


# By the last part of PyTorch's names for them.
_ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "Identity": lambda values: values,
    "Tanh": np.tanh,
    "ReLU": lambda values: np.maximum(values, 0),
    "GELU": _gelu,
    "Sigmoid": _sigmoid,
    "SiLU": lambda values: values * _sigmoid(values),
}


@dataclass(frozen=True, slots=True)
class Dense:
    """A Dense module, as its `config.json` describes it.

    Attributes:
        path: Its folder.
        inputs: Numbers that it takes.
        outputs: Numbers that it makes.
        bias: Whether it adds a bias.
        activation: A key of the known activations.
    """

    path: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str

    @property
    def weights(self) -> Path:
        """The file of its weights.

        Raises:
            ModelNotFoundError: There is none.
            EncoderError: There is only a pickle, which could run any code.
        """
        file = self.path / _WEIGHTS_NAME
        if is_file(file):
            return file
        pickle = self.path / _PICKLE_NAME
        if not is_file(pickle):
            raise ModelNotFoundError(f"{self.path} has no {_WEIGHTS_NAME}, which Dense needs")
        raise EncoderError(
            f"{pickle} is a pickle, which could run any code and is not opened; where you trust it,"
            " convert it: safetensors.torch.save_file(torch.load(that file, weights_only=True),"
            f" {str(file)!r})"
        )

    def load(self) -> Callable[[Floats], Floats]:
        """Return the function of float32 (batch, inputs) to (batch, outputs).

        Raises:
            EncoderError: The weights are missing, damaged, or of another shape or not finite.
        """
        tensors = read_tensors(self.weights)
        weight = self._tensor(tensors, "linear.weight", (self.outputs, self.inputs)).T
        bias = self._tensor(tensors, "linear.bias", (self.outputs,)) if self.bias else None
        activate = _ACTIVATIONS[self.activation]

        def apply(vectors: Floats) -> Floats:
            if vectors.shape[1] != self.inputs:
                raise EncoderError(
                    f"{self.path} takes {self.inputs} numbers, and the pooling makes"
                    f" {vectors.shape[1]}"
                )
            product = vectors @ weight
            return activate(product if bias is None else product + bias)

        return apply

    def _tensor(self, tensors: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> Any:
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != shape or tensor.dtype.kind != "f":
            held = "none" if tensor is None else f"{tensor.dtype} of shape {tensor.shape}"
            raise EncoderError(
                f"{self.weights}: {name} must be floats of shape {shape}, there is {held}"
            )
        with np.errstate(over="ignore"):
            loaded = np.array(tensor, dtype=np.float32)
        if not np.isfinite(loaded).all():
            raise EncoderError(f"{self.weights}: {name} has NaN or infinity")
        return loaded


def read_dense(path: Path) -> Dense:
    """Read the configuration of a Dense module.

    Raises:
        EncoderError: It is missing or damaged, or declares what is not known here.
    """
    config = read_config(path / "config.json")
    sizes = [config.integer(key, 1, _MAX_FEATURES) for key in ("in_features", "out_features")]
    if None in sizes:
        raise EncoderError(f"{config.file} must declare in_features and out_features")
    bias = config.values.get("bias", True)
    if not isinstance(bias, bool):
        raise config.error("bias", "true or false")
    for key in ("module_input_name", "module_output_name"):
        if config.values.get(key) not in (None, "sentence_embedding"):
            raise config.error(key, '"sentence_embedding": Dense stands behind the pooling here')
    return Dense(path, sizes[0] or 0, sizes[1] or 0, bias, _activation(config))


def _activation(config: Config) -> str:
    # Where none is named, sentence-transformers takes this one.
    name = (config.string("activation_function") or "Tanh").rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise config.error("activation_function", f"one of {', '.join(_ACTIVATIONS)}")
    return name
