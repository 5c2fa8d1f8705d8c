"""The network. Plain torch; imports nothing else of asymvae."""

from .autoencoder import AsymmetricAutoencoderKL, DecoderOutput, EncoderOutput
from .checkpoint import CheckpointError
from .config import AutoencoderConfig
from .posterior import DiagonalGaussian
from .published import PUBLISHED, X_1_5, X_2

__all__ = [
    "PUBLISHED",
    "X_1_5",
    "X_2",
    "AsymmetricAutoencoderKL",
    "AutoencoderConfig",
    "CheckpointError",
    "DecoderOutput",
    "DiagonalGaussian",
    "EncoderOutput",
]
