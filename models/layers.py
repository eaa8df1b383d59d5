"""Layers of BERT as modules that can be trained, and back again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as torch_functions
from numpy.typing import NDArray
from torch import nn

from vecstore.encoders.transformer import Shape

_LINEAR = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")


class Layer(nn.Module):
    """One layer of BERT (Devlin, Chang, Lee and Toutanova, 2018)."""

    def __init__(
        self, tensors: Mapping[str, NDArray[np.float32]], shape: Shape, number: int
    ) -> None:
        super().__init__()
        self.heads = shape.heads
        self.parts = nn.ModuleDict()
        for part in _LINEAR:
            weight = tensors[_name(number, part, "weight")]
            self.parts[_key(part)] = nn.Linear(weight.shape[1], weight.shape[0])
        for part in _NORMS:
            self.parts[_key(part)] = nn.LayerNorm(shape.dim, eps=shape.epsilon)
        with torch.no_grad():
            for name, parameter in self._named(number):
                parameter.copy_(torch.from_numpy(np.array(tensors[name])))

    def forward(self, value: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Return (batch, sequence, dim) of the same; `present` is (batch, sequence), 1 or 0."""
        batch, length, dim = value.shape

        def heads(part: str) -> torch.Tensor:
            projected: torch.Tensor = self._part(part, value)
            return projected.view(batch, length, self.heads, -1).transpose(1, 2)

        bias = torch.where(present[:, None, None, :] > 0, 0.0, -1e9)
        query, key, held = (heads(part).float() for part in _LINEAR[:3])
        # In 16 bits it would be slower.
        with torch.autocast("cpu", enabled=False):
            mixed = torch_functions.scaled_dot_product_attention(query, key, held, attn_mask=bias)
        context = mixed.transpose(1, 2).reshape(batch, length, dim)
        value = self._part(_NORMS[0], value + self._part(_LINEAR[3], context))
        inner = torch_functions.gelu(self._part(_LINEAR[4], value))
        result: torch.Tensor = self._part(_NORMS[1], value + self._part(_LINEAR[5], inner))
        return result

    def tensors(self, number: int) -> dict[str, NDArray[np.float32]]:
        """Return the weights under the names of a layer."""
        return {name: value.detach().numpy().copy() for name, value in self._named(number)}

    def _part(self, part: str, value: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.parts[_key(part)](value)
        return result

    def _named(self, number: int) -> Iterator[tuple[str, nn.Parameter]]:
        for part in (*_LINEAR, *_NORMS):
            for kind in ("weight", "bias"):
                yield _name(number, part, kind), getattr(self.parts[_key(part)], kind)


def _name(number: int, part: str, kind: str) -> str:
    return f"encoder.layer.{number}.{part}.{kind}"


def _key(part: str) -> str:
    # A module's name may have no dots.
    return part.replace(".", "_")
