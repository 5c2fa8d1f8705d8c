"""python -m jobs.precompute_latents: encode every image of the shards once, for a training run downstream."""

from __future__ import annotations

import sys

from asymvae.config_latents import PrecomputeJob
from jobs.shard_job import ShardCommand

_DESCRIPTION = """\
Encode the images of input.urls and write the posteriors (mean and log variance, unscaled) below output.url, as Parquet
files in a folder a bucket: OUT/latents/bucket=HxW/<shard>.parquet. asymvae.LatentDataset reads them for training.

Shards are WebDataset tars or Parquet files on local disk, s3://, gs:// ... Each image is resized to cover the bucket of
its aspect ratio and cropped to it; a bad sample becomes a row of errors/ and the rest goes on. A shard counts once its
commit is written, so the same command again goes on where an interrupted one ended.
"""
_COMMAND = ShardCommand(
    PrecomputeJob, "precompute_latents", _DESCRIPTION, config="precompute-latents.yaml", example="--crop.hflip=both"
)
read, main = _COMMAND.read, _COMMAND.run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
