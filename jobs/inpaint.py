"""python -m jobs.inpaint: fill the holes of every image of the shards, on Ray actors or in this process."""

from __future__ import annotations

import sys

from asymvae.config import InpaintJob
from jobs.shard_job import ShardCommand

_DESCRIPTION = """\
Inpaint the shards of input.urls with the asymmetric VAE and write results, metrics and errors below output.url.

Shards are WebDataset tars or Parquet files on local disk, s3://, gs:// ... Each holds images and masks; a bad sample
becomes a row of errors/ and the rest goes on. A shard counts once its commit is written, so the same command again
goes on where an interrupted one ended.
"""
_COMMAND = ShardCommand(InpaintJob, "inpaint", _DESCRIPTION, config="inpaint.yaml", example="--mask.feather=8")
read, main = _COMMAND.read, _COMMAND.run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
