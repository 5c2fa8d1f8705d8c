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
from asymvae.model.posterior import DiagonalGaussian


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
    prompt: str | None = None  # the sample's own
    template: str | None = None  # from its json: takes the place of the setting inpaint.diffusion.prompt
    negative_prompt: str | None = None  # from its json: takes the place of the setting of that name
    owner: Any = None
    batch_key: Hashable = ()

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the work image."""
        height, width = self.image.shape[:2]
        return height, width

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
    rows       (N,) int64: of each row its sample's row in :meth:`distinct`, or None where there is nothing to share
    posteriors need -> unscaled posterior of N rows: what encode made of what the inpainter asked for
    latents    need -> (N, C, H/f, W/f), scaled: its mean
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
    rows: Tensor | None = None
    firsts: Tensor | None = None  # (M,) int64: the way back from ``rows``
    posteriors: dict[str, DiagonalGaussian] = field(default_factory=dict)
    latents: dict[str, Tensor] = field(default_factory=dict)
    z: Tensor | None = None
    decoded: Tensor | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)
    failed: list[tuple[Fault, Tensor]] = field(default_factory=list)

    @property
    def masked_image(self) -> Tensor:
        """(N, 3, H, W): the image with its hole at 0, mid-grey, as the condition encoder sees it."""
        return self.image * (1 - self.mask)

    def generators(self) -> list[torch.Generator]:
        """One CPU generator a row, from its item's own seed: what it draws hangs on no other row. The rows that
        repeat the last item draw what it draws."""
        seeds = [item.seed for item in self.items]
        seeds += seeds[-1:] * (self.mask.shape[0] - len(seeds))
        return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def distinct(self) -> Batch:
        """The samples of this batch, each once: M rows of what variants share. Itself where ``rows`` is None.

        M is 1, 2, 4 ... or N, so that shapes are few; its tail, too, repeats the last sample.
        """
        if self.firsts is None:
            return self
        firsts = self.firsts
        samples: dict[int, Item] = {}
        for item in self.items:
            samples.setdefault(item.index, item)

        def pick(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, firsts)

        return Batch(
            items=list(samples.values()),
            pixels=pick(self.pixels),
            image=pick(self.image),
            mask=pick(self.mask),
            valid=pick(self.valid),
            given=None if self.given is None else pick(self.given),
        )


def padded_size(count: int, most: int) -> int:
    """The smallest of 1, 2, 4 ... ``most`` that holds ``count``: few shapes, so that compiled code is reused."""
    size = 1
    while size < count:
        size *= 2
    return min(size, most)


def shared_rows(items: list[Item], size: int) -> tuple[list[int], list[int]] | None:
    """(``rows``, ``firsts``) of a batch of ``size`` rows, see :class:`Batch`. None where sharing saves no row."""
    firsts: list[int] = []
    of_sample: dict[int, int] = {}
    rows = []
    for row, item in enumerate(items):
        if item.index not in of_sample:
            of_sample[item.index] = len(firsts)
            firsts.append(row)
        rows.append(of_sample[item.index])
    count = padded_size(len(firsts), size)
    if count == size:
        return None
    return rows + rows[-1:] * (size - len(rows)), firsts + firsts[-1:] * (count - len(firsts))


def normalised(pixels: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(127.5).sub_(1)


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array there; the copy to a GPU runs beside what the host does next."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def collate(items: list[Item], size: int, device: torch.device, dtype: torch.dtype) -> Batch:
    """Stack ``items`` into a batch of ``size`` >= len(items), repeating the last one, and carry it to ``device``.

    The bytes cross as uint8 (a quarter of float32); normalising is the device's work.
    """
    padded = items + [items[-1]] * (size - len(items))
    height, width = items[0].mask.shape

    def carry(array: NDArray[Any]) -> Tensor:
        return to_device(array, device)

    valid = np.zeros((size, 1, height, width), np.uint8)
    for row, item in enumerate(padded):
        valid[row, :, : item.valid[0], : item.valid[1]] = 1
    shared = shared_rows(items, size)
    givens = [item.given for item in padded if item.given is not None]
    pixels = carry(np.stack([item.image for item in padded]))
    return Batch(
        items=items,
        pixels=pixels,
        image=normalised(pixels).to(dtype),
        mask=carry(np.stack([item.mask for item in padded])[:, None].astype(np.uint8)).to(dtype),
        valid=carry(valid).to(dtype),
        given=normalised(carry(np.stack(givens))).to(dtype) if len(givens) == size else None,
        rows=carry(np.array(shared[0])) if shared else None,
        firsts=carry(np.array(shared[1])) if shared else None,
    )
