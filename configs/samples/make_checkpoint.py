"""Writes a small asymmetric VAE with random weights: it runs like a real one, and what it paints means nothing.

For trying the pipeline where no trained checkpoint is at hand. Known pixels survive all the same: the composite
pastes them. The weights are the same on every machine: they depend on the seed alone. ::

    python configs/samples/make_checkpoint.py out/demo-checkpoint      # then --model.path=out/demo-checkpoint
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from asymvae.model.autoencoder import AsymmetricAutoencoderKL

SEED = 20230607


def make_model() -> AsymmetricAutoencoderKL:
    """Latents of 4 channels at an eighth of the size, as the published checkpoints have; 0.9 M parameters."""
    torch.manual_seed(SEED)
    return AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        down_block_out_channels=(16, 32, 32, 32),
        layers_per_down_block=1,
        up_block_types=("UpDecoderBlock2D",) * 4,
        up_block_out_channels=(16, 32, 64, 64),
        layers_per_up_block=1,
        norm_num_groups=8,
    ).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for config.json and the weights")
    out: Path = parser.parse_args().out
    model = make_model()
    model.save_pretrained(out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{out}: {parameters:,} parameters, random")


if __name__ == "__main__":
    main()
