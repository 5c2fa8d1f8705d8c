"""The numbers of an evaluation against scikit-image's and against the model called by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio
from torch.nn import functional as F

from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.storage.shards import list_shards
from asymvae.training.evaluation import evaluate
from asymvae.training.evaluation_config import EvaluateJob
from asymvae.training.linear import BlockTransform
from asymvae.training.scores import Evaluation, Preservation, Reconstruction, tables
from tests.tiny import box_mask, file_bytes, picture, tiny_model, write_tar

Array = NDArray[np.uint8]


@pytest.fixture(scope="module")
def model() -> AsymmetricAutoencoderKL:
    return tiny_model()


def fields(image: Array, mask: Array | None = None, kind: str | None = None) -> dict[str, bytes]:
    made = {"png": file_bytes(image, "PNG")}
    if mask is not None:
        made["mask.png"] = file_bytes(mask, "PNG")
    if kind is not None:
        made["json"] = json.dumps({"mask_kind": kind}).encode()
    return made


def run(
    folder: Path,
    samples: dict[str, dict[str, bytes]],
    model: AsymmetricAutoencoderKL,
    transform: BlockTransform | None = None,
    *,
    sizes: str = "64",
    pictures: bool = False,
) -> Evaluation:
    urls = str(write_tar(folder / "a.tar", samples.items()))
    job = EvaluateJob(input={"urls": urls}, sizes=sizes, mask={"dilate": 0, "feather": 0})
    return evaluate(job, model, list_shards(urls, root=None, format="auto"), transform, pictures=pictures)


def normal(image: Array) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1


def psnr_by_hand(image: Array, decoded: torch.Tensor) -> float:
    """On the image's own 8-bit range, of floats that are clamped to it, padding cut off."""
    height, width = image.shape[:2]
    levels = (decoded[0].clamp(-1, 1).permute(1, 2, 0)[:height, :width].double().numpy() + 1) * 127.5
    return float(peak_signal_noise_ratio(image.astype(np.float64), levels, data_range=255))


@torch.inference_mode()
def test_reconstruction_is_what_scikit_image_says(model: AsymmetricAutoencoderKL, tmp_path: Path) -> None:
    """With padding (57x41 becomes 64x48), for the model, the bilinear reduction and the block transform."""
    image = picture(57, 41)
    padded = normal(np.pad(image, ((0, 7), (0, 7), (0, 0)), mode="edge"))
    transform = BlockTransform.fit([np.stack([picture(64, 64, seed) for seed in range(4)])])
    (score,) = run(tmp_path, {"a": fields(image)}, model, transform).reconstructions
    small = F.interpolate(padded, scale_factor=1 / 8, mode="bilinear", antialias=True)
    expected = {
        "model": psnr_by_hand(image, model.decode(model.encode(padded).latent_dist.mode()).sample),
        "bilinear": psnr_by_hand(image, F.interpolate(small, scale_factor=8, mode="bilinear")),
        "linear": psnr_by_hand(image, transform.decode(transform.encode(padded))),
    }
    assert score.psnr == pytest.approx(expected, abs=1e-3)


@torch.inference_mode()
def test_preservation_is_that_of_the_model_called_by_hand(model: AsymmetricAutoencoderKL, tmp_path: Path) -> None:
    image, hole = picture(64, 48), np.zeros((64, 48), np.uint8)
    hole[16:40, 8:32] = 255  # whole cells
    z = model.encode(normal(image)).latent_dist.mode()  # of the whole image, the hole's pixels too
    preservations = run(tmp_path, {"a": fields(image, hole, "box")}, model).preservations
    assert [score.kind for score in preservations] == ["none", "box"]
    for score, mask in zip(preservations, (np.zeros_like(hole), hole), strict=True):
        known = mask == 0
        for found, condition in (
            (score.without, {}),
            (score.given, {"image": normal(image), "mask": torch.from_numpy(mask > 0)[None, None].float()}),
        ):
            decoded = model.decode(z, **condition).sample.clamp(-1, 1)
            error = (decoded - normal(image))[0].permute(1, 2, 0).numpy()[known]
            assert found == pytest.approx(float(np.mean(error.astype(np.float64) ** 2)), rel=1e-4)
        assert score.ratio == score.without / score.given


def test_masks_by_kind_and_those_that_have_none(model: AsymmetricAutoencoderKL, tmp_path: Path) -> None:
    """Every image is measured with an empty mask; its own mask counts where it leaves both hole and known pixels."""
    image = picture(64, 64)
    all_hole, no_hole = np.full((64, 64), 255, np.uint8), np.zeros((64, 64), np.uint8)
    samples = {
        "text": fields(image, box_mask(64, 64), "text"),
        "silent": fields(image, box_mask(64, 64)),
        "all": fields(image, all_hole, "all"),
        "none": fields(image, no_hole, "none"),
        "odd": fields(image, box_mask(64, 64)) | {"json": b"[\xff"},
    }
    evaluation = run(tmp_path, samples, model)
    kinds = [(score.key.removeprefix("a/"), score.kind) for score in evaluation.preservations]
    assert [key for key, kind in kinds if kind == "none"] == list(samples)
    assert [pair for pair in kinds if pair[1] != "none"] == [("text", "text"), ("silent", "all"), ("odd", "all")]
    assert evaluation.unknown == [(64, "a/all")]
    assert not evaluation.bad
    assert "a/all" in tables(evaluation)


def test_bad_samples_are_named_once_and_the_images_among_them_count(
    model: AsymmetricAutoencoderKL, tmp_path: Path
) -> None:
    cut = fields(picture(64, 64), box_mask(64, 64))
    samples = {
        "good": fields(picture(64, 64), box_mask(64, 64)),
        "cut": cut | {"png": cut["png"][:200]},
        "bare": {"txt": b"no image"},
        "unmasked": fields(picture(64, 64)),
    }
    evaluation = run(tmp_path, samples, model, sizes="32,64")
    assert list(evaluation.bad) == [
        ("a/cut", "image_truncated"), ("a/bare", "missing_image"), ("a/unmasked", "missing_mask"),
    ]  # fmt: skip
    assert evaluation.samples == 4
    assert [score.key for score in evaluation.reconstructions if score.size == 64] == ["a/good", "a/unmasked"]
    assert "3 of 4: a/cut (image_truncated)" in tables(evaluation)


def test_a_model_that_gives_no_numbers_is_no_score(tmp_path: Path) -> None:
    broken = tiny_model()
    with torch.no_grad():
        broken.decoder.conv_out.bias.fill_(torch.nan)
    evaluation = run(tmp_path, {"a": fields(picture(64, 64), box_mask(64, 64))}, broken)
    assert list(evaluation.bad) == [("a/a", "non_finite")]
    assert not evaluation.reconstructions
    assert not evaluation.preservations


def test_larger_images_are_reduced_and_none_is_enlarged(model: AsymmetricAutoencoderKL, tmp_path: Path) -> None:
    samples = {"large": fields(picture(96, 200), box_mask(96, 200)), "small": fields(picture(40, 24), box_mask(40, 24))}
    evaluation = run(tmp_path, samples, model, sizes="128,64", pictures=True)
    # pictures are of the smallest size
    assert [shown.original.shape for shown in evaluation.shown] == [(31, 64, 3), (40, 24, 3)]
    assert all(shown.given.shape == shown.error.shape == shown.original.shape for shown in evaluation.shown)
    small = [score for score in evaluation.reconstructions if score.key == "a/small"]
    assert [score.size for score in small] == [64, 128]
    assert small[0].psnr == small[1].psnr


def test_tables_are_markdown_of_means_and_smallest_ratios() -> None:
    evaluation = Evaluation(8, samples=2)
    for key, psnr, given in (("s/a", 30.0, 0.01), ("s/b|c", 20.0, 0.03)):
        evaluation.reconstructions.append(Reconstruction(256, key, {"model": psnr, "bilinear": 22, "linear": 24.5}))
        evaluation.preservations.append(Preservation(256, key, "text", 0.2, given))
        evaluation.preservations.append(Preservation(256, key, "none", 0.1, 0.0))
    rows = [
        [cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")]
        for line in tables(evaluation).splitlines()
        if line.startswith("|")
    ]
    assert rows[2] == ["256", "2", "25.00", "22.00", "+3.00", "24.50", "+0.50"]
    assert rows[5] == ["256", "none", "2", "1.00e-01", "0.00e+00", "inf", "inf", "s/a"]
    # the ratio of means; the smallest is that of one sample
    assert rows[6] == ["256", "text", "2", "2.00e-01", "2.00e-02", "10.0", "6.7", "s/b/c"]
    lines = [line for line in tables(evaluation).splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines[:3]}) == len({len(line) for line in lines[3:]}) == 1  # aligned


def test_settings_of_the_environment_that_are_not_meant_change_nothing(
    model: AsymmetricAutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = {"a": fields(picture(96, 64), box_mask(96, 64))}
    before = run(tmp_path, samples, model)
    monkeypatch.setenv("ASYMVAE_GEOMETRY__MODE", "crop_to_hole")
    monkeypatch.setenv("ASYMVAE_GEOMETRY__MARGIN", "0")
    assert run(tmp_path, samples, model).preservations == before.preservations
