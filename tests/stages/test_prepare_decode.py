"""What of an original latents show: pixels, mask and blend are those of the whole resized image, seen by the window."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asymvae.config_latents import DecodeJob
from asymvae.faults import Fault
from asymvae.media.mask import blend_mask, reduce_maximum
from asymvae.stages.prepare_decode import DecodePlanned, PrepareDecode
from asymvae.storage.latents import Placed
from tests.fuzz.examples import examples
from tests.fuzz.originals import boxes, holes
from tests.tiny import file_bytes, picture

SIZE = (40, 56)


def prepared(placed: Placed, hole: np.ndarray, times: int = 1, **mask: int) -> DecodePlanned | Fault:
    job = DecodeJob(
        input={"urls": "z/*.parquet"},  # type: ignore[arg-type]
        output={"url": "out"},  # type: ignore[arg-type]
        originals={"urls": "of/*.tar"},  # type: ignore[arg-type]
        mask=mask,  # type: ignore[arg-type]
    )
    fields = {
        "image": file_bytes(picture(*SIZE), "PNG"),
        "mask": file_bytes(np.where(hole, 255, 0).astype(np.uint8), "PNG"),
    }
    top, left, bottom, right = placed.crop
    values = np.zeros((4, (bottom - top) * times, (right - left) * times), np.float32)
    return PrepareDecode(job, 1, 4)(0, "k", 0, values, placed, None, fields)


@examples(30)
@given(
    st.data(), st.tuples(st.integers(1, 90), st.integers(1, 90)), st.integers(1, 2), st.integers(0, 9), st.booleans()
)
def test_the_window_shows_what_the_whole_would(
    data: st.DataObject, resized: tuple[int, int], times: int, reach: int, hflip: bool
) -> None:
    hole, crop = data.draw(holes(SIZE)), data.draw(boxes(resized))
    planned = prepared(Placed(SIZE, resized, crop, hflip), hole, times, dilate=reach, feather=reach // 2, grid=1)
    assert isinstance(planned, DecodePlanned)
    shown = planned.items[0].shown
    assert shown is not None
    mask = reduce_maximum(hole.astype(np.float32), resized[0] * times, resized[1] * times)
    whole = blend_mask(mask, dilate=reach, feather=reach // 2)
    top, left, bottom, right = (side * times for side in crop)
    wanted = whole[top:bottom, left:right]
    np.testing.assert_array_equal(shown.blend, wanted[:, ::-1] if hflip else wanted)
    np.testing.assert_array_equal(shown.mask, shown.blend > 0 if reach else shown.blend >= 0.5)
    assert shown.pixels.shape == (*wanted.shape, 3)


def test_a_row_that_says_its_image_was_enlarged_without_end_costs_no_more_than_its_window() -> None:
    hole = np.ones(SIZE, bool)
    tracemalloc.start()
    try:
        planned = prepared(Placed(SIZE, (2**31 - 1, 2**31 - 1), (2**30, 5, 2**30 + 16, 29), False), hole)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert isinstance(planned, DecodePlanned)
    shown = planned.items[0].shown
    assert shown is not None
    assert shown.pixels.shape == (16, 24, 3)
    assert shown.mask.all()
