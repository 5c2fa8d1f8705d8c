"""Pasting back, and the measures that are taken on the pasted picture."""

from __future__ import annotations

import numpy as np

from asymvae.config import InpaintJob, InpaintSettings
from asymvae.faults import Fault
from asymvae.inpaint.base import load_inpainter
from asymvae.stages.composite import composite, max_abs_known, seam
from asymvae.stages.prepare import Planned, Prepare, Prepared
from tests.tiny import box_mask, file_bytes, job, picture


def prepared(settings: InpaintJob, height: int = 200, width: int = 160) -> Prepared:
    fields = {
        "image": file_bytes(picture(height, width), "PNG"),
        "mask": file_bytes(box_mask(height, width), "PNG"),
    }
    planned = Prepare(settings, load_inpainter(InpaintSettings()), 8)(0, "k", fields)
    assert isinstance(planned, Planned)
    return planned.prepared


def decoded(of: Prepared, value: int) -> np.ndarray:
    assert of.placement is not None
    return np.full((*of.placement.padded, 3), value, np.uint8)


def test_paste_keeps_every_known_byte() -> None:
    for geometry in ({"margin": 16}, {"mode": "whole"}, {"mode": "fit", "max": 64}):
        of = prepared(job("u", "o", "m", geometry=geometry))
        out = composite(of, decoded(of, 7), "paste")
        assert np.array_equal(out[of.blend == 0], of.original.pixels[of.blend == 0])
        assert max_abs_known(of, out) == 0
        assert (out[of.blend == 1] == 7).all()


def test_none_shows_what_the_decoder_made_of_its_whole_box() -> None:
    of = prepared(job("u", "o", "m", composite="none", geometry={"mode": "whole"}))
    out = composite(of, decoded(of, 7), "none")
    assert (out == 7).all()
    assert max_abs_known(of, out) == int(np.abs(of.original.pixels[of.blend == 0].astype(int) - 7).max())


def test_a_flat_patch_in_a_picture_has_a_seam_and_the_picture_itself_has_none() -> None:
    of = prepared(job("u", "o", "m", mask={"dilate": 0, "feather": 0}))
    patched, untouched = seam(of, composite(of, decoded(of, 255), "paste")), seam(of, of.original.pixels)
    assert patched is not None
    assert untouched is not None
    assert abs(untouched) < 2
    assert patched > 20


def test_passing_through_has_no_placement_no_seam_and_no_change() -> None:
    fields = {"image": file_bytes(picture(40, 50), "PNG"), "mask": file_bytes(np.zeros((40, 50), np.uint8), "PNG")}
    planned = Prepare(job("u", "o", "m"), load_inpainter(InpaintSettings()), 8)(0, "k", fields)
    assert not isinstance(planned, Fault)
    assert planned.items == ()
    out = composite(planned.prepared, None, "paste")
    assert out is planned.prepared.original.pixels
    assert max_abs_known(planned.prepared, out) == 0
    assert seam(planned.prepared, out) is None
