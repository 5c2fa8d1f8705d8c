"""Every inpainter: its contract, and that nothing of the hole's old content reaches a result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from asymvae.batch import Batch, Item
from asymvae.config import InpaintSettings
from asymvae.inpaint.base import Inpainter, Need, load_inpainter
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.pipeline.device import Device
from asymvae.pipeline.kinds.base import Done
from asymvae.pipeline.kinds.inpaint import DEVICE_METRICS, InpaintKind
from tests.tiny import job, picture, tiny_model
from tests.tiny_diffusion import write_tiny_diffusion


class ShiftFill(Inpainter):
    """A user's class, found by its import path: mid-grey's latents plus an option."""

    needs: frozenset[Need] = frozenset({"masked_image"})

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def fill(self, batch: Batch, vae: AsymmetricAutoencoderKL) -> Tensor:
        return batch.latents["masked_image"] + self.shift


def items(hole: np.ndarray, count: int = 3, in_hole: int | None = None) -> list[Item]:
    made = []
    for number in range(count):
        image = picture(*hole.shape, seed=number)
        given = picture(*hole.shape, seed=100 + number)
        if in_hole is not None:
            noise = np.random.default_rng(in_hole).integers(0, 256, image.shape, dtype=np.uint8)
            image = np.where(hole[..., None], noise, image)
        made.append(Item(number, f"k{number}", 0, number, image, hole, hole.shape, given=given))
    return made


def pixels(done: Done) -> NDArray[np.uint8]:
    return done.arrays["pixels"]


def metrics(done: Done) -> dict[str, float | None]:
    return dict(zip(DEVICE_METRICS, done.numbers("metrics"), strict=True))


def run(method: str, options: dict[str, object], work: list[Item]) -> list[Done]:
    settings = job("unused", "unused", "unused", inpaint={"method": method, "options": options})
    pending, _ = Device(tiny_model, InpaintKind(settings)).launch(work)
    return pending.result()


def hole_of(kind: str) -> np.ndarray:
    hole = np.zeros((64, 96), bool)
    if kind == "box":
        hole[16:40, 24:64] = True
    elif kind == "border":
        hole[:, 56:] = True
    elif kind == "all":
        hole[:] = True
    return hole


@pytest.mark.parametrize("kind", ["box", "border", "all"])
@pytest.mark.parametrize("method", ["none", "given", "harmonic", "tests.inpaint.test_inpainters:ShiftFill"])
def test_randomising_the_hole_changes_no_byte(method: str, kind: str) -> None:
    hole = hole_of(kind)
    first = run(method, {}, items(hole, in_hole=1))
    second = run(method, {}, items(hole, in_hole=2))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(pixels(a), pixels(b))
        assert metrics(a) == metrics(b)


@pytest.mark.parametrize(
    ("channels", "strength", "kind", "leaks"),
    [
        (9, 1.0, "box", False),
        (9, 1.0, "border", False),
        (9, 1.0, "all", False),
        (9, 0.6, "box", True),
        (4, 1.0, "box", True),
        (4, 0.6, "box", True),
    ],
)
def test_diffusion_leaks_the_hole_where_the_readme_says_so_and_nowhere_else(
    channels: int, strength: float, kind: str, leaks: bool, tmp_path: Path
) -> None:
    folder = write_tiny_diffusion(tmp_path, in_channels=channels)
    section = {"path": str(folder), "steps": 4, "strength": strength, "prompt": "a cat", "guidance_scale": 2.0}
    settings = job("unused", "unused", "unused", inpaint={"method": "diffusion", "diffusion": section})
    first, second = (
        Device(tiny_model, InpaintKind(settings)).launch(items(hole_of(kind), in_hole=n))[0].result() for n in (1, 2)
    )
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(pixels(a), pixels(b)) is not leaks
        assert (metrics(a) == metrics(b)) is not leaks


def test_given_fills_with_the_given_pixels_and_only_in_the_hole() -> None:
    hole = hole_of("box")
    base = run("given", {}, items(hole))
    changed_inside, changed_outside = items(hole), items(hole)
    for inside, outside in zip(changed_inside, changed_outside, strict=True):
        assert inside.given is not None
        assert outside.given is not None
        inside.given = np.where(hole[..., None], 255 - inside.given, inside.given)
        outside.given = np.where(hole[..., None], outside.given, 255 - outside.given)
    assert not np.array_equal(pixels(run("given", {}, changed_inside)[0]), pixels(base[0]))
    assert np.array_equal(pixels(run("given", {}, changed_outside)[0]), pixels(base[0]))


def test_harmonic_fill_of_all_hole_is_the_latent_of_mid_grey() -> None:
    model = tiny_model()
    done = run("harmonic", {}, items(hole_of("all"), count=1))[0]
    with torch.inference_mode():
        grey = model.encode(torch.zeros(1, 3, 64, 96)).latent_dist.mode() * model.config.scaling_factor
    assert done.fault is None
    assert metrics(done)["latent_mean"] == pytest.approx(float(grey.mean()), rel=1e-4)
    assert metrics(done)["latent_std"] == pytest.approx(float(grey.std()), rel=1e-4)
    assert metrics(done)["mse_known"] is None  # nothing is known


def test_a_fill_that_does_not_converge_is_that_samples_fault_alone() -> None:
    hard, easy = np.ones((64, 64), bool), np.zeros((64, 64), bool)
    hard[0, 0] = False
    easy[30:33, 30:33] = True
    rng = np.random.default_rng(0)
    work = [
        Item(n, f"k{n}", 0, n, rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), hole, (64, 64))
        for n, hole in enumerate((easy, hard))
    ]
    done = run("harmonic", {"tolerance": 1e-6, "max_iterations": 4}, work)
    assert done[0].fault is None
    assert done[1].fault is not None
    assert done[1].fault.code == "fill_not_converged"


def test_a_class_by_import_path_takes_its_options() -> None:
    hole = hole_of("box")
    plain = run("tests.inpaint.test_inpainters:ShiftFill", {}, items(hole))
    shifted = run("tests.inpaint.test_inpainters:ShiftFill", {"shift": 1.0}, items(hole))
    assert metrics(shifted[0])["latent_mean"] == pytest.approx((metrics(plain[0])["latent_mean"] or 0) + 1, abs=1e-4)


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("harmonik", {}, "neither one of"),
        ("no.such.module:Class", {}, "can't be imported"),
        ("asymvae.inpaint.base:Need", {}, "not a subclass"),
        ("harmonic", {"tolerence": 1}, "don't fit"),
        ("harmonic", {"tolerance": 2.0}, "between 0 and 1"),
    ],
)
def test_a_wrong_method_says_what_would_do(method: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_inpainter(InpaintSettings(method=method, options=options))
