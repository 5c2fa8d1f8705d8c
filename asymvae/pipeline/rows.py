"""What becomes of a planned row: rows of parts, or of errors."""

from __future__ import annotations

from typing import Any

from asymvae.faults import Fault

EXTENSION = {"png": "png", "jpeg": "jpg", "webp": "webp"}  # of an image's name, by output.image_format

# The rows of one planned (sample, variant), by the folder below OUT that they go to: {"results": ..., "metrics": ...}
# or {"latents/bucket=512x512": ...} or {"errors": ...}.
Rows = dict[str, dict[str, Any]]


def error_row(fault: Fault, *, key: str | None, index: int | None, variant: int | None) -> Rows:
    """``index`` and ``variant`` are None for a fault of the shard itself."""
    return {
        "errors": {
            "key": key,
            "variant": variant,
            "index": index,
            "stage": fault.stage,
            "code": fault.code,
            "message": fault.message,
        }
    }
