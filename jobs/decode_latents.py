"""python -m jobs.decode_latents: latents back to images, with the originals' known pixels where there are any."""

from __future__ import annotations

import sys

from asymvae.config_latents import DecodeJob
from jobs.shard_job import ShardCommand

_DESCRIPTION = """\
Decode latents (an output of jobs.precompute_latents, or any Parquet column of them) and write the images as results
and metrics below output.url.

With originals.urls the images and masks that the latents were made of are joined by key, brought to the same pixels by
the stored resize, crop and flip, and shown to the conditional decoder: how latents that were edited come home. A bad
row becomes a row of errors/ and the rest goes on. A shard counts once its commit is written, so the same command again
goes on where an interrupted one ended.
"""
_COMMAND = ShardCommand(
    DecodeJob, "decode_latents", _DESCRIPTION, config="decode-latents.yaml", example="--output.image_format=webp"
)
read, main = _COMMAND.read, _COMMAND.run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
