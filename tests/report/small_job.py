"""A job's output as the pipeline writes it, made by hand: shards of small pictures, parts, commits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asymvae.faults import Fault
from asymvae.storage import schemas
from asymvae.storage.ledger import Ledger, commit_id
from asymvae.storage.parts import Part, PartWriter
from asymvae.storage.shards import Shard, list_shards
from tests.tiny import box_mask, file_bytes, picture, write_tar

FINGERPRINT = "f" * 32
HEIGHT, WIDTH = 40, 60


class SmallJob:
    """``shards`` tars below ``folder`` of ``keys`` each, and an OUT that is still empty."""

    def __init__(self, folder: Path, out: str, keys: Sequence[Sequence[str]]) -> None:
        self.out, self.spool, self.keys = out, folder / "spool", keys
        self.spool.mkdir(parents=True, exist_ok=True)
        self.urls = str(folder / "in" / "*.tar")
        for number, names in enumerate(keys):
            members = [
                (
                    key,
                    {
                        "png": file_bytes(picture(HEIGHT, WIDTH, number), "PNG"),
                        "mask.png": file_bytes(box_mask(HEIGHT, WIDTH, number), "PNG"),
                    },
                )
                for key in names
            ]
            write_tar(folder / "in" / f"{number:05}.tar", members)
        self.shards = list_shards(self.urls, root=None, format="auto")
        self.ledger = Ledger(out)
        self.ledger.open_job(
            {
                "format_version": 1,
                "fingerprint": FINGERPRINT,
                "settings": {
                    "input": {
                        "urls": [self.urls],
                        "format": "auto",
                        "key": None,
                        "image": ["png"],
                        "mask": ["mask.png"],
                        "prompt": ["txt"],
                        "mask_polarity": "white_is_hole",
                        "max_pixels": 10**6,
                    },
                    "mask": {"dilate": 2, "feather": 2, "grid": 8},
                    "inpaint": {"method": "harmonic", "variants": 1},
                },
                "affects_output": {},
                "input": {"root": str(folder / "in")},
                "model": {"path": "some/model", "weights_sha256": "abc123"},
                "batch_size": 4,
                "versions": {"asymvae": "0.1.0"},
                "created": "2026-01-02T03:04:05+00:00",
            }
        )

    def commit(
        self,
        number: int,
        *,
        errors: dict[int, Fault] | None = None,
        metrics: dict[str, float | None] | None = None,
        started: str = "2026-01-02T03:04:05+00:00",
    ) -> None:
        """Commit shard ``number``: a result for each key but those in ``errors``, by index."""
        errors = errors or {}
        shard: Shard = self.shards[number]
        kinds = {"results": schemas.RESULTS, "metrics": schemas.METRICS, "errors": schemas.ERRORS}
        writers = {
            kind: PartWriter(self.spool / f"{number}-{kind}.parquet", schema, row_group_rows=3, row_group_bytes=10**6)
            for kind, schema in kinds.items()
        }
        for index, key in enumerate(self.keys[number]):
            if index in errors:
                writers["errors"].write(_error(errors[index], key, index))
            else:
                writers["results"].write(_result(key, index))
                writers["metrics"].write(_metrics(key, index) | (metrics or {}))
        parts: list[Part] = [part for writer in writers.values() if (part := writer.close())]
        planned = len(self.keys[number])
        codes: dict[str, int] = {}
        for fault in errors.values():
            codes[fault.code] = codes.get(fault.code, 0) + 1
        self.ledger.commit(
            shard,
            commit_id(FINGERPRINT, shard),
            parts,
            {
                "samples": planned,
                "planned": planned,
                "results": planned - len(errors),
                "errors": len(errors),
                "shard_errors": 0,
            },
            {"seconds": 2.0, "started": started, "host": "here"},
            errors_by_code=codes,
        )


def _result(key: str, index: int) -> dict[str, Any]:
    grey = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    return {
        "key": key,
        "variant": 0,
        "index": index,
        "image": {"bytes": file_bytes(grey, "PNG"), "path": f"{key}.png"},
        "width": WIDTH,
        "height": HEIGHT,
        "seed": 1,
        "prompt": None,
        "negative_prompt": None,
        "crop": [0, 0, HEIGHT, WIDTH],
        "work_width": WIDTH,
        "work_height": HEIGHT,
        "passed_through": False,
        "bit_depth_reduced": False,
    }


def _metrics(key: str, index: int) -> dict[str, Any]:
    return {
        "key": key,
        "variant": 0,
        "index": index,
        "hole_fraction": 0.25,
        "mae_known": 0.01 * (index + 1),
        "mse_known": 1e-4 * 10**index,
        "psnr_known": 40.0 - index,
        "ssim_known": 0.9,
        "max_abs_known": 0,
        "seam": 0.5 - index,
        "latent_mean": 0.0,
        "latent_std": 1.0,
    }


def _error(fault: Fault, key: str, index: int) -> dict[str, Any]:
    return {
        "key": key,
        "variant": 0,
        "index": index,
        "stage": fault.stage,
        "code": fault.code,
        "message": fault.message,
    }
