"""What mutated files have found, each as small as it can be made by hand."""

from __future__ import annotations

import struct

import numpy as np
import PIL.Image
import pytest
from PIL import ImageCms

from asymvae.faults import Fault
from asymvae.media.image import Image, decode_image
from tests.media.files import MAX_PIXELS, chunk, photo, save, tiff

SMALL = photo(20, 28)


def decoded(data: bytes) -> Image:
    image = decode_image(data, max_pixels=MAX_PIXELS)
    assert isinstance(image, Image), image
    return image


@pytest.mark.parametrize("at", [16, 20])
def test_a_profile_whose_signature_is_no_text_is_ignored(at: int) -> None:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[at] = 0xFF  # of the colours' space, or of the space that they are connected by
    np.testing.assert_array_equal(decoded(save(SMALL, "PNG", icc_profile=bytes(profile))).pixels, SMALL)


def test_an_animated_png_is_its_picture_whatever_its_first_frame_says_it_covers() -> None:
    # OpenCV left what the frame didn't cover as memory had it: other pixels each time, and somebody else's
    frames = [PIL.Image.fromarray(np.roll(SMALL, shift, axis=1)) for shift in (0, 5)]
    data = save(frames[0], "PNG", save_all=True, append_images=frames[1:])
    place = data.index(b"fcTL")
    control = bytearray(data[place + 4 : place + 30])
    control[4:20] = struct.pack(">IIII", 10, 7, 3, 4)  # width, height, left, top
    changed = data[: place - 4] + chunk(b"fcTL", bytes(control)) + data[place + 34 :]
    for file in (data, changed):
        np.testing.assert_array_equal(decoded(file).pixels, SMALL)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tag", [258, 339])
def test_depth_and_format_of_a_tiff_of_a_wrong_type_are_a_fault(tag: int) -> None:
    data = bytearray(tiff(SMALL.tobytes(), 20, 28, bits=8, channels=3, tags={339: 1, 262: 77}))
    at = data.index(struct.pack("<H", tag), 8)
    data[at + 2 : at + 8] = struct.pack("<HI", 2, 3)  # a text of three letters
    assert decode_image(bytes(data), max_pixels=MAX_PIXELS) == Fault("image_undecodable")
