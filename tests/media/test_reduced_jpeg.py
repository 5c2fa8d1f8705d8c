"""JPEGs that are decoded at a fraction of their size: placed exactly, and near what full decoding gives."""

from __future__ import annotations

import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from asymvae.faults import Fault
from asymvae.media.buckets import cut
from asymvae.media.image import Image, decode_image, probe_shown
from tests.tiny import file_bytes, picture

SAMPLES = Path(__file__).parents[2] / "configs" / "samples"
LEAST_PSNR = 42.0  # dB, of a window of half the reduced size, against full decoding; the README says so


def photographs() -> dict[str, bytes]:
    found = {}
    for path in sorted(SAMPLES.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if member.name.endswith(".jpg") and "truncated" not in member.name and content is not None:
                    found[member.name] = content.read()
    return found


def decoded(data: bytes, times: int = 1) -> Image:
    image = decode_image(data, max_pixels=10**8, times=times)
    assert isinstance(image, Image)
    return image


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(np.mean((a.astype(float) - b) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


@pytest.mark.parametrize("times", [2, 4, 8])
def test_every_sample_photograph_is_near_its_full_decoding(times: int) -> None:
    found = {}
    for name, data in photographs().items():
        full, reduced = decoded(data), decoded(data, times)
        assert (full.reduced, reduced.reduced) == (1, times)
        assert reduced.size == full.size
        new = tuple(side // (2 * times) for side in full.size)
        box = (0, 0, *new)
        found[name] = psnr(cut(full, new, box, hflip=False), cut(reduced, new, box, hflip=False))
    assert len(found) == 19
    assert min(found.values()) >= LEAST_PSNR, found


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(240, 320), (243, 325)])
def test_a_turned_photograph_is_placed_as_the_whole_one(orientation: int, size: tuple[int, int]) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    smooth = np.asarray(PillowImage.fromarray(picture(8, 8)).resize(size[::-1], PillowImage.Resampling.BICUBIC))
    data = file_bytes(smooth, "JPEG", exif=exif, quality=98, subsampling=0)
    full, reduced = decoded(data), decoded(data, 4)
    assert probe_shown(data) == (full.size, True)
    assert reduced.size == full.size
    new = full.size[0] // 8, full.size[1] // 8
    for box in [(0, 0, *new), (new[0] // 2, new[1] // 2, *new)]:
        assert psnr(cut(full, new, box, hflip=False), cut(reduced, new, box, hflip=False)) > 40


def test_other_formats_come_whole() -> None:
    data = file_bytes(picture(160, 200), "PNG")
    assert decoded(data, 4).reduced == 1
    assert probe_shown(data) == ((160, 200), False)


def test_a_cut_jpeg_is_a_fault_at_any_scale() -> None:
    data = next(iter(photographs().values()))
    fault = decode_image(data[: len(data) // 2], max_pixels=10**8, times=4)
    assert isinstance(fault, Fault)
    assert fault.code == "image_truncated"


def test_the_limit_of_pixels_is_of_the_file_not_of_what_is_decoded() -> None:
    fault = decode_image(next(iter(photographs().values())), max_pixels=1000, times=8)
    assert isinstance(fault, Fault)
    assert fault.code == "image_too_large"
