"""Buckets: what an image is resized and cropped to, and that what comes out is what lies there."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from asymvae.config_latents import CropSettings
from asymvae.media.buckets import SDXL, bucket_sizes, choose_bucket, cover, cut, times_reducible, window
from asymvae.media.image import Image
from asymvae.stages.prepare_latents import bucket_tiers
from tests.tiny import picture

sides = st.integers(1, 5000)


def test_buckets_have_at_most_the_area_and_the_ratio_that_were_asked_for() -> None:
    sizes = bucket_sizes(512, 64, 2.0)
    assert (512, 512) in sizes
    assert {(width, height) for height, width in sizes} == set(sizes)
    assert all(h * w <= 512**2 and max(h, w) <= 2 * min(h, w) and h % 64 == w % 64 == 0 for h, w in sizes)


def test_the_table_of_sdxl_has_forty_sizes_of_a_megapixel_at_most() -> None:
    assert len(set(SDXL)) == 40
    assert all(h % 64 == w % 64 == 0 and 0.85 * 1024**2 < h * w <= 1024**2 for h, w in SDXL)


def test_the_nearest_aspect_ratio_is_taken_and_of_equal_ones_the_largest() -> None:
    tiers = [[(512, 512), (256, 256), (384, 640), (640, 384)]]
    assert choose_bucket(3000, 3000, tiers) == (512, 512)
    assert choose_bucket(3000, 5000, tiers) == (384, 640)
    assert choose_bucket(9000, 1000, tiers) == (640, 384)
    assert choose_bucket(300, 310, tiers) == (256, 256)


def test_the_least_base_is_tried_though_it_is_no_whole_number_of_steps_below() -> None:
    tiers = bucket_tiers(CropSettings(base=80, step=32, least=64))
    assert tiers == [[(64, 96), (96, 64)], [(64, 64)]]
    assert bucket_tiers(CropSettings(base=80, step=32)) == tiers[:1]


def test_an_image_that_covers_no_bucket_falls_back_to_a_later_tier_or_to_none() -> None:
    tiers = [bucket_sizes(base, 64, 2.0) for base in (512, 448, 384)]
    assert choose_bucket(460, 450, tiers) == (448, 448)
    assert choose_bucket(300, 300, tiers) is None
    assert choose_bucket(300, 300, tiers, enlarge=True) == (512, 512)


@given(sides, sides, st.sampled_from([(64, 64), (128, 192), (320, 64)]))
def test_a_resized_image_just_covers_its_bucket_in_its_own_aspect_ratio(
    height: int, width: int, bucket: tuple[int, int]
) -> None:
    resized = cover(height, width, bucket)
    assert resized[0] >= bucket[0]
    assert resized[1] >= bucket[1]
    assert resized[0] == bucket[0] or resized[1] == bucket[1]
    scale = max(bucket[0] / height, bucket[1] / width)
    assert abs(resized[0] - height * scale) <= 0.5 + 1e-9
    assert abs(resized[1] - width * scale) <= 0.5 + 1e-9


@given(st.integers(0, 2**63 - 1), st.integers(0, 40), st.integers(0, 40))
def test_a_drawn_window_lies_inside(number: int, below: int, beside: int) -> None:
    top, left, bottom, right = window((64 + below, 96 + beside), (64, 96), number)
    assert 0 <= top <= below
    assert 0 <= left <= beside
    assert (bottom - top, right - left) == (64, 96)


def test_every_window_is_drawn() -> None:
    drawn = {window((66, 98), (64, 96), number)[:2] for number in range(9)}
    assert drawn == {(top, left) for top in range(3) for left in range(3)}
    assert window((66, 98), (64, 96), None) == (1, 1, 65, 97)


def test_a_cut_is_the_crop_of_the_resized_image() -> None:
    pixels = picture(150, 230)
    image = Image(pixels, None, False)
    resized = (100, 153)
    whole = np.asarray(PillowImage.fromarray(pixels).resize((153, 100), PillowImage.Resampling.BICUBIC))
    box = (20, 31, 84, 127)
    made = cut(image, resized, box, hflip=False)
    assert np.abs(made.astype(int) - whole[20:84, 31:127]).max() <= 1
    np.testing.assert_array_equal(cut(image, resized, box, hflip=True), made[:, ::-1])


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    pixels = picture(100, 120)
    np.testing.assert_array_equal(
        cut(Image(pixels, None, False), (100, 120), (4, 8, 68, 104), hflip=False), pixels[4:68, 8:104]
    )


@pytest.mark.parametrize(
    ("size", "times"), [((1000, 1000), 1), ((1024, 1500), 2), ((2100, 2100), 4), ((9000, 4096), 8)]
)
def test_a_jpeg_is_reduced_only_where_enough_is_left(size: tuple[int, int], times: int) -> None:
    assert times_reducible(size, (256, 256), 2.0) == times
