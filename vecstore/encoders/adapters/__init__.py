"""How are vectors of any encoder made fitter? Rotation, whitening, and maps learned from pairs.

numpy is all that is needed. `Adapter` is what they make, `AdaptedEncoder` what applies it.
"""

from vecstore.encoders.adapters.adapter import Adapter, Affine
from vecstore.encoders.adapters.encoder import (
    AdaptedEncoder,
    adapted_fingerprint,
    adapted_name,
)
from vecstore.encoders.adapters.pairs import adapt_encoder, fit_adapter
from vecstore.encoders.adapters.rotation import fit_rotation
from vecstore.encoders.adapters.whitening import whiten

__all__ = [
    "AdaptedEncoder",
    "Adapter",
    "Affine",
    "adapt_encoder",
    "adapted_fingerprint",
    "adapted_name",
    "fit_adapter",
    "fit_rotation",
    "whiten",
]
