"""What travels between the stages: an item (one planned row, as arrays) and a batch (items of one shape, stacked)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asymvae.faults import Fault


@dataclass(slots=True)
class Item:
    """One planned row: the work image of one sample, for one variant.

    ``image`` and ``given`` are (H, W, 3) uint8 sRGB, ``mask`` is (H, W) bool with True in the hole. H and W are
    multiples of the model's factor; ``valid`` is the (h, w) at the top left that isn't padding. ``owner`` is the
    pipeline's own mark; the stages never look at it.
    """

    index: int
    key: str
    variant: int
    seed: int
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    valid: tuple[int, int]
    given: NDArray[np.uint8] | None = None
    prompt: str | None = None
    owner: Any = None
    batch_key: Hashable = ()

    @property
    def shape_key(self) -> Hashable:
        """Items share a batch only where this is equal."""
        return (self.image.shape[:2], self.batch_key)


@dataclass(slots=True)
class Batch:
    """Items of one shape, on the device. N may exceed ``len(items)``: the tail repeats the last item (see batcher).

    pixels     (N, H, W, 3) uint8: the image as it came, for what must not be rounded to the model's dtype
    image      (N, 3, H, W) in [-1, 1], the model's dtype. Holds the hole's old pixels: a stage whose result must
               not depend on them reads ``masked_image`` instead.
    mask       (N, 1, H, W) of {0, 1}, 1 = hole
    valid      (N, 1, H, W) of {0, 1}, 0 = padding
    given      (N, 3, H, W) or None
    latents    name -> (N, C, H/f, W/f), scaled: what encode made of what the inpainter asked for
    z          (N, C, H/f, W/f), scaled: the filled latents
    decoded    (N, 3, H, W), the decoder's output before it is clamped
    metrics    name -> (N,) float32
    failed     code -> (N,) bool: the items that a stage gives up on, and the fault's values
    """

    items: list[Item]
    pixels: Tensor
    image: Tensor
    mask: Tensor
    valid: Tensor
    given: Tensor | None = None
    latents: dict[str, Tensor] = field(default_factory=dict)
    z: Tensor | None = None
    decoded: Tensor | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)
    failed: list[tuple[Fault, Tensor]] = field(default_factory=list)

    @property
    def masked_image(self) -> Tensor:
        """(N, 3, H, W): the image with its hole at 0, mid-grey, as the condition encoder sees it."""
        return self.image * (1 - self.mask)


def normalised(pixels: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(127.5).sub_(1)


def collate(items: list[Item], size: int, device: torch.device, dtype: torch.dtype) -> Batch:
    """Stack ``items`` into a batch of ``size`` >= len(items), repeating the last one, and carry it to ``device``.

    The bytes cross as uint8 (a quarter of float32); normalising is the device's work.
    """
    padded = items + [items[-1]] * (size - len(items))
    height, width = items[0].mask.shape

    def carry(array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)

    valid = np.zeros((size, 1, height, width), np.uint8)
    for row, item in enumerate(padded):
        valid[row, :, : item.valid[0], : item.valid[1]] = 1
    givens = [item.given for item in padded if item.given is not None]
    pixels = carry(np.stack([item.image for item in padded]))
    return Batch(
        items=items,
        pixels=pixels,
        image=normalised(pixels).to(dtype),
        mask=carry(np.stack([item.mask for item in padded])[:, None].astype(np.uint8)).to(dtype),
        valid=carry(valid).to(dtype),
        given=normalised(carry(np.stack(givens))).to(dtype) if len(givens) == size else None,
    )
