"""A BERT of random weights, small enough for anything to be tried on it."""

from __future__ import annotations

import numpy as np

from vecstore.encoders.transformer import Shape

DIM, INNER, HEADS, LAYERS, WORDS, POSITIONS = 32, 64, 4, 2, 50, 24
# The number that may be larger than all others.
LARGE = 3
SHAPE = Shape(
    family="bert",
    layers=LAYERS,
    heads=HEADS,
    dim=DIM,
    epsilon=1e-12,
    activation="gelu",
    padding=0,
)
PARTS = {
    "attention.self.query": (DIM, DIM),
    "attention.self.key": (DIM, DIM),
    "attention.self.value": (DIM, DIM),
    "attention.output.dense": (DIM, DIM),
    "intermediate.dense": (INNER, DIM),
    "output.dense": (DIM, INNER),
}


def tensors(large: float) -> dict[str, np.ndarray]:
    """Its weights under PyTorch's names; one number of each vector is so much larger."""
    rng = np.random.default_rng(5)
    made = {
        "embeddings.word_embeddings.weight": rng.normal(size=(WORDS, DIM)),
        "embeddings.position_embeddings.weight": rng.normal(size=(POSITIONS, DIM)) / 4,
        "embeddings.token_type_embeddings.weight": rng.normal(size=(2, DIM)) / 4,
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        stem = f"encoder.layer.{layer}"
        for part, shape in PARTS.items():
            # Small ones in attention: with random weights a hair's breadth would turn it round.
            size = 0.1 if "query" in part else 1.0
            made[f"{stem}.{part}.weight"] = size * rng.normal(size=shape) / shape[1] ** 0.5
            made[f"{stem}.{part}.bias"] = rng.normal(size=shape[0]) / 10
        norms += [f"{stem}.attention.output.LayerNorm", f"{stem}.output.LayerNorm"]
    for name in norms:
        made[f"{name}.weight"] = np.where(np.arange(DIM) == LARGE, large, 1.0)
        made[f"{name}.bias"] = rng.normal(size=DIM) / 10
    return {name: value.astype(np.float32) for name, value in made.items()}
