"""The two published configurations (arXiv 2306.04632), as arguments of ``AsymmetricAutoencoderKL``.

Source: diffusers' ``scripts/convert_asymmetric_vqgan_to_diffusers.py``, which made the published checkpoints.
"""

from __future__ import annotations

from typing import Any, Final

_SHARED: Final[dict[str, Any]] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "down_block_out_channels": (128, 256, 512, 512),
    "layers_per_down_block": 2,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 256,
    "scaling_factor": 0.18215,
}

# hub: cross-attention/asymmetric-autoencoder-kl-x-1-5; 194,300,519 parameters in 290 tensors
X_1_5: Final[dict[str, Any]] = _SHARED | {
    "up_block_out_channels": (192, 384, 768, 768),
    "layers_per_up_block": 3,
}

# hub: cross-attention/asymmetric-autoencoder-kl-x-2; 406,130,151 parameters in 354 tensors
X_2: Final[dict[str, Any]] = _SHARED | {
    "up_block_out_channels": (256, 512, 1024, 1024),
    "layers_per_up_block": 5,
}

PUBLISHED: Final[dict[str, dict[str, Any]]] = {"x-1-5": X_1_5, "x-2": X_2}
