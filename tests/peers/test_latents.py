"""Stored latents beside diffusers' posterior, of the same weights and the same pixels."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from tests.tiny import file_bytes, picture, write_tar
from tests.tiny_latents import latents_of, precompute, run

# Half a unit in the last place of float16 (11 bits), and float32's own difference between the two networks.
ROUNDING = {"float16": 2**-11, "float32": 0.0}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_they_are_diffusers_latent_dist_to_the_rounding_of_their_dtype(
    dtype: str, checkpoint: Path, tmp_path: Path
) -> None:
    pictures = {f"k{number}": picture(64, 128 if number % 2 else 64, number) for number in range(6)}
    tar = write_tar(tmp_path / "a.tar", [(key, {"png": file_bytes(each, "PNG")}) for key, each in pictures.items()])
    table = {"crop": {"table": "64x64,64x128"}}
    run(precompute(str(tar), tmp_path / "out", checkpoint, output={"dtype": dtype}, **table))
    theirs = diffusers.AsymmetricAutoencoderKL.from_pretrained(str(checkpoint)).eval()
    rows = latents_of(tmp_path / "out")
    assert len(rows) == 6
    for row in rows:
        x = torch.from_numpy(pictures[row["key"]]).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            posterior = theirs.encode(x).latent_dist
        for name in ("mean", "logvar"):
            wanted = getattr(posterior, name)[0].numpy()
            stored = np.array(row[name], np.float32).reshape(row["shape"])
            np.testing.assert_allclose(stored, wanted, rtol=ROUNDING[dtype] + 1e-6, atol=2e-5)
