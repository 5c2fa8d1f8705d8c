"""The composite: what was decoded into the hole, everything else from the original."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from asymvae.media.geometry import Placement
from asymvae.media.mask import hole_box


def paste(
    original: NDArray[np.uint8],
    decoded: NDArray[np.uint8],
    blend: NDArray[np.float32],
    placement: Placement,
) -> NDArray[np.uint8]:
    """``blend * decoded + (1 - blend) * original``, rounded half up; a new (H, W, 3) array.

    ``original`` and ``blend``: (H, W, 3) and (H, W) in [0, 1]. ``decoded``: of the placement's box. Where ``blend``
    is 0, and everywhere outside the box, the original's bytes are kept exactly; where it is 1, the decoded ones.
    """
    top, left, bottom, right = placement.box
    if decoded.shape[:2] != placement.box_size:
        raise ValueError(f"decoded is {decoded.shape[:2]}, the box {placement.box_size}: use image_from_work first")
    result = original.copy()
    inside = blend[top:bottom, left:right]
    changed = hole_box(inside > 0)
    if changed is None:
        return result
    rows, columns = slice(changed[0], changed[2]), slice(changed[1], changed[3])
    target = result[top:bottom, left:right][rows, columns]
    old = target.astype(np.float32)
    mixed = decoded[rows, columns] - old
    # old + 0 * (new - old) and old + 1 * (new - old) are exact in float32: rounding keeps both ends.
    mixed *= inside[rows, columns, None]
    mixed += old
    mixed += np.float32(0.5)
    target[...] = mixed.astype(np.uint8)  # truncates, and nothing is negative
    return result
