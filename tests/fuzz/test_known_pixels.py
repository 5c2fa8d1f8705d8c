"""From bytes to bytes around a network that makes noise: known pixels stay, and nothing of the hole gets in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from asymvae.batch import collate
from asymvae.config import InpaintJob
from asymvae.inpaint.base import load_inpainter
from asymvae.media.image import Image, decode_image, encode_image
from asymvae.stages.composite import composite, max_abs_known
from asymvae.stages.prepare import Planned, Prepare
from tests.fuzz.examples import examples
from tests.fuzz.originals import Setting, Size, holes, noise, settings_of_a_job, sizes
from tests.tiny import file_bytes


def a_job(setting: Setting, method: str = "none", **more: Any) -> InpaintJob:
    values: dict[str, Any] = {
        "input": {"urls": "in/*.tar"},
        "output": {"url": "out"},
        "inpaint": {"method": method},
        "mask": {"dilate": setting.dilate, "feather": setting.feather, "grid": setting.grid},
        "geometry": {"mode": setting.mode, "margin": setting.margin, "max": setting.max_side},
    }
    return InpaintJob(**(values | more))


def planned(job: InpaintJob, factor: int, pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> Planned:
    fields = {"image": file_bytes(pixels, "PNG"), "mask": file_bytes(mask, "PNG")}
    made = Prepare(job, load_inpainter(job.inpaint), factor)(0, "a", fields)
    assert isinstance(made, Planned), made
    return made


@examples(60)
@given(st.data(), sizes(400), settings_of_a_job)
def test_known_pixels_are_the_originals_in_the_result_and_in_a_lossless_file(
    data: st.DataObject, size: Size, setting: Setting
) -> None:
    pixels, hole = noise(size), data.draw(holes(size))
    mask = np.where(hole, 255, 0).astype(np.uint8)
    if data.draw(st.booleans()):
        mask[~hole] = data.draw(st.integers(0, 127))  # soft everywhere
    made = planned(a_job(setting), setting.factor, pixels, mask)
    prepared, decoded = made.prepared, None
    for item in made.items:
        assert item.image.shape == (*item.mask.shape, 3)
        assert all(side % setting.factor == 0 for side in item.mask.shape)
        assert bool(hole.any()) <= bool(item.mask.any()), "the network is shown the hole"
        decoded = noise(item.mask.shape, 1)
    out = composite(prepared, decoded, "paste")
    assert out.shape == pixels.shape
    known = prepared.blend == 0
    assert not known[hole].any()
    np.testing.assert_array_equal(out[known], pixels[known])
    assert max_abs_known(prepared, out) in (0, None)
    assert bool(hole.any()) <= bool(made.items), "a hole of whatever size is filled"
    if decoded is not None and prepared.placement is not None and not prepared.placement.reduced:
        top, left, bottom, right = prepared.placement.box
        inside = hole[top:bottom, left:right]
        shown = decoded[: bottom - top, : right - left]
        np.testing.assert_array_equal(out[top:bottom, left:right][inside], shown[inside])
    for image_format in ("png", "webp"):
        encoded = encode_image(out, None, image_format=image_format)
        assert isinstance(encoded, bytes)
        back = decode_image(encoded, max_pixels=10**7)
        assert isinstance(back, Image)
        np.testing.assert_array_equal(back.pixels, out)


@pytest.mark.usefixtures("one_thread")
@examples(30)
@given(st.data(), sizes(120, thin=400), settings_of_a_job, st.sampled_from(["none", "harmonic"]))
def test_the_holes_pixels_change_no_known_pixel_and_nothing_that_the_network_is_given(
    data: st.DataObject, size: Size, setting: Setting, method: str
) -> None:
    hole = data.draw(holes(size, least=1))
    mask = np.where(hole, 255, 0).astype(np.uint8)
    first, second = noise(size), noise(size)
    second[hole] = noise(size, 2)[hole]
    job = a_job(setting, method)
    seen = []
    for pixels in (first, second):
        made = planned(job, setting.factor, pixels, mask)
        batch = collate(list(made.items), 1, torch.device("cpu"), torch.float32)
        inputs = [batch.mask, batch.valid, batch.masked_image]
        inpainter = load_inpainter(job.inpaint)
        if "prefilled" in inpainter.needs:
            inputs.append(inpainter.prefill(batch))
        assert "image" not in inpainter.needs
        out = composite(made.prepared, noise(made.items[0].mask.shape, 1), "paste")
        seen.append(([item.seed for item in made.items], inputs, out))
    assert seen[0][0] == seen[1][0]
    assert all(torch.equal(one, other) for one, other in zip(seen[0][1], seen[1][1], strict=True))
    np.testing.assert_array_equal(seen[0][2], seen[1][2])


@examples(30)
@given(st.data(), sizes(200), settings_of_a_job)
def test_a_mask_and_its_negative_under_the_other_polarity_are_the_same_job(
    data: st.DataObject, size: Size, setting: Setting
) -> None:
    mask = np.where(data.draw(holes(size)), 255, data.draw(st.integers(0, 127))).astype(np.uint8)
    pixels = noise(size)
    white = planned(a_job(setting), setting.factor, pixels, mask)
    turned = a_job(setting, input={"urls": "in/*.tar", "mask_polarity": "black_is_hole"})
    black = planned(turned, setting.factor, pixels, 255 - mask)
    np.testing.assert_array_equal(white.prepared.blend, black.prepared.blend)
    assert white.prepared.placement == black.prepared.placement
    for one, other in zip(white.items, black.items, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_array_equal(one.image, other.image)
