"""Geometry, for every size and setting: the way there and exactly back, and no hole lost on it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asymvae.media.buckets import bucket_sizes, choose_bucket, cover, cut, times_reducible, window
from asymvae.media.geometry import Placement, image_from_work, image_to_work, mask_to_work, place
from asymvae.media.image import Image
from asymvae.media.mask import hole_box, reduce_maximum
from tests.fuzz.examples import examples
from tests.fuzz.originals import Setting, Size, boxes, holes, noise, settings_of_a_job, sizes


def placed(size: Size, box: tuple[int, int, int, int] | None, setting: Setting) -> Placement:
    names = {"mode": setting.mode, "margin": setting.margin, "max_side": setting.max_side, "factor": setting.factor}
    return place(*size, box, **names)


@examples(80)
@given(st.data(), sizes(5000), settings_of_a_job)
def test_a_placement_lies_in_the_original_and_holds_the_hole(data: st.DataObject, size: Size, setting: Setting) -> None:
    hole = data.draw(st.one_of(st.none(), boxes(size)))
    placement = placed(size, hole, setting)
    top, left, bottom, right = placement.box
    assert 0 <= top < bottom <= size[0]
    assert 0 <= left < right <= size[1]
    if hole is not None:
        assert top <= hole[0]
        assert left <= hole[1]
        assert bottom >= hole[2]
        assert right >= hole[3]
        if setting.mode == "crop_to_hole":  # what is known around it is seen, as far as there is any
            assert top <= max(0, hole[0] - setting.margin)
            assert right >= min(size[1], hole[3] + setting.margin)
    for side, (box, resized, padded) in enumerate(
        zip(placement.box_size, placement.resized, placement.padded, strict=True)
    ):
        assert 1 <= resized <= box, (side, "nothing is enlarged")
        assert resized <= padded
        assert padded % setting.factor == 0
        assert padded - resized < max(64, setting.factor) or setting.mode == "buckets"
        if setting.mode in ("crop_to_hole", "fit"):
            assert resized <= setting.max_side


@examples(60)
@given(st.data(), sizes(), settings_of_a_job)
def test_the_way_back_has_the_size_of_the_box_and_what_was_not_reduced_is_itself(
    data: st.DataObject, size: Size, setting: Setting
) -> None:
    pixels = noise(size)
    placement = placed(size, data.draw(st.one_of(st.none(), boxes(size))), setting)
    work = image_to_work(pixels, placement)
    assert work.shape == (*placement.padded, 3)
    back = image_from_work(work, placement)
    assert back.shape == (*placement.box_size, 3)
    if not placement.reduced:
        top, left, bottom, right = placement.box
        np.testing.assert_array_equal(back, pixels[top:bottom, left:right])
    flat = np.full((*size, 3), 77, np.uint8)
    assert (image_from_work(image_to_work(flat, placement), placement) == 77).all(), "one colour stays that colour"


@examples(60)
@given(st.data(), sizes(), settings_of_a_job)
def test_a_hole_of_one_pixel_is_never_lost_and_lies_where_it_was(
    data: st.DataObject, size: Size, setting: Setting
) -> None:
    hole = np.zeros(size, bool)
    at = data.draw(st.tuples(st.integers(0, size[0] - 1), st.integers(0, size[1] - 1)))
    hole[at] = True
    placement = placed(size, hole_box(hole), setting)
    work = mask_to_work(hole, placement)
    assert work.shape == placement.padded
    rows, columns = (
        (at[side] - placement.box[side]) * placement.resized[side] // placement.box_size[side] for side in (0, 1)
    )
    assert work[rows, columns], "the work pixel that covers it is hole"


@examples(40)
@given(st.data(), sizes(), settings_of_a_job)
def test_a_work_pixel_outside_of_the_work_mask_shows_no_pixel_of_the_hole(
    data: st.DataObject, size: Size, setting: Setting
) -> None:
    hole = data.draw(holes(size, least=1))
    placement = placed(size, hole_box(hole), setting)
    first, second = noise(size), noise(size)
    second[hole] = noise(size, 1)[hole]
    known = ~mask_to_work(hole, placement)
    one, other = image_to_work(first, placement), image_to_work(second, placement)
    np.testing.assert_array_equal(one[known], other[known])


@examples(60)
@given(st.data(), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_the_maximum_is_of_every_pixel_that_a_footprint_touches(data: st.DataObject, old: Size, new: Size) -> None:
    mask = np.random.default_rng(data.draw(st.integers(0, 9))).random(old).astype(np.float32)
    reduced = reduce_maximum(mask, *new)

    def touched(index: int, side: int) -> slice:
        if new[side] > old[side]:  # enlarged: the nearest
            nearest = (2 * index + 1) * old[side] // (2 * new[side])
            return slice(nearest, nearest + 1)
        return slice(index * old[side] // new[side], -(-(index + 1) * old[side] // new[side]))

    wanted = [[mask[touched(row, 0), touched(column, 1)].max() for column in range(new[1])] for row in range(new[0])]
    np.testing.assert_array_equal(reduced, np.array(wanted))


@examples(60)
@given(sizes(), st.sampled_from([96, 256, 512]), st.sampled_from([32, 64]), st.data())
def test_a_bucket_is_covered_and_cut_at_its_size(size: Size, base: int, step: int, data: st.DataObject) -> None:
    enlarge = data.draw(st.booleans())
    tiers = [bucket_sizes(base, step, 2.0), bucket_sizes(step, step, 2.0)]
    bucket = choose_bucket(*size, tiers, enlarge=enlarge)
    if bucket is None:
        assert not enlarge
        assert min(size) < step, "every image that covers the smallest has one"
        return
    resized = cover(*size, bucket)
    assert resized[0] == bucket[0] or resized[1] == bucket[1]
    assert resized[0] >= bucket[0]
    assert resized[1] >= bucket[1]
    if not enlarge:
        assert resized[0] <= size[0]
        assert resized[1] <= size[1]
    if resized[0] * resized[1] > 10**7:
        return
    box = window(resized, bucket, data.draw(st.one_of(st.none(), st.integers(0, 2**128))))
    assert 0 <= box[0] < box[2] <= resized[0]
    assert 0 <= box[1] < box[3] <= resized[1]
    pixels = noise(size)
    shown = cut(Image(pixels, None, False), resized, box, hflip=False)
    assert shown.shape == (*bucket, 3)
    mirrored = cut(Image(pixels, None, False), resized, box, hflip=True)
    np.testing.assert_array_equal(mirrored, shown[:, ::-1])
    assert times_reducible(size, resized, 2.0) in (1, 2, 4, 8)
