"""The sample data that comes with the project: what its page says is what its shards hold."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asymvae.config import InputSettings
from asymvae.faults import Fault
from asymvae.media.image import Image, decode_image
from asymvae.media.mask import decode_mask
from asymvae.storage.samples import FieldNames, Sample, read_shard
from asymvae.storage.shards import list_shards

FOLDER = Path(__file__).parent.parent / "configs" / "samples"
BAD = {"fig-truncated": "image_truncated", "dandelion-unmasked": "missing_mask"}


@pytest.fixture(scope="module")
def samples() -> dict[str, Sample]:
    names = InputSettings(urls=())
    fields = FieldNames(names.image, names.mask, names.prompt, names.given, ("json",))
    found: dict[str, Sample] = {}
    for shard in list_shards(str(FOLDER / "{00000..00002}.tar"), root=None, format="auto"):
        for sample in read_shard(shard, fields):
            assert isinstance(sample, Sample), sample
            assert sample.key not in found
            found[sample.key] = sample
    return found


def test_the_shards_are_small() -> None:
    shards = sorted(FOLDER.glob("*.tar"))
    assert [path.name for path in shards] == ["00000.tar", "00001.tar", "00002.tar"]
    assert sum(path.stat().st_size for path in shards) <= 1_500_000


def test_no_second_copy_of_the_photographs() -> None:
    known = {".tar", ".py", ".md"}
    assert {path.suffix for path in FOLDER.iterdir() if path.is_file()} <= known


def test_exactly_two_samples_are_bad(samples: dict[str, Sample]) -> None:
    faults = {}
    for key, sample in samples.items():
        image = decode_image(sample.fields["image"], max_pixels=10**6)
        if isinstance(image, Fault):
            faults[key] = image.code
        elif "mask" not in sample.fields:
            faults[key] = "missing_mask"
    assert faults == BAD
    assert 16 <= len(samples) - len(BAD) <= 18


def test_every_good_sample_decodes_and_is_small(samples: dict[str, Sample]) -> None:
    sizes = set()
    for _, _, image, mask in _good(samples):
        height, width, _ = image.pixels.shape
        assert mask.shape == (height, width)
        assert max(height, width) <= 768
        assert set(np.unique(mask)) <= {0, 1}
        sizes.add((height, width))
    assert len(sizes) >= 12
    assert any(height > width for height, width in sizes)
    assert any(height % 2 and width % 2 for height, width in sizes)


def test_masks_are_of_the_kind_they_are_called(samples: dict[str, Sample]) -> None:
    kinds = set()
    for key, about, _, mask in _good(samples):
        kind, hole = about["mask_kind"], mask.mean()
        assert key.endswith("-" + kind)
        kinds.add(kind)
        if kind in ("none", "all"):
            assert hole == (kind == "all")
        else:
            assert 0.005 < hole < 0.35, key
        if kind == "border":
            assert mask[-1].all()
            assert mask[:, -1].all()
    assert kinds == {"box", "scribble", "text", "object", "border", "none", "all"}


def test_attribution_names_every_sample_with_its_author_licence_and_size(samples: dict[str, Sample]) -> None:
    page = (FOLDER / "ATTRIBUTION.md").read_text()
    listed: dict[str, tuple[str, str, str, str]] = {}
    for line in page.splitlines():
        if line.startswith("| ") and "`" in line:
            title, author, licence, _source, keys = [cell.strip() for cell in line.strip("|").split("|")]
            for key, size in re.findall(r"`([^`]+)` \((\d+x\d+)\)", keys):
                listed[key] = (title, author, licence, size)
    assert listed.keys() == samples.keys()
    for key, sample in samples.items():
        about = json.loads(sample.fields["json"])
        title, author, licence, size = listed[key]
        assert (about["photo"], about["author"]) == (title, author)
        assert licence.startswith(f"[{about['licence']}](https://creativecommons.org/")
        assert sample.fields["prompt"]
        image = decode_image(sample.fields["image"], max_pixels=10**6)
        if isinstance(image, Image):
            assert size == f"{image.pixels.shape[1]}x{image.pixels.shape[0]}"


def test_only_free_licences_without_share_alike(samples: dict[str, Sample]) -> None:
    assert {json.loads(sample.fields["json"])["licence"] for sample in samples.values()} == {"CC-BY-4.0", "CC0-1.0"}


def test_the_page_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(FOLDER / "make_samples.py"))
    assert script["attribution"]() == (FOLDER / "ATTRIBUTION.md").read_text()


def _good(samples: dict[str, Sample]) -> Iterator[tuple[str, dict[str, Any], Image, Any]]:
    for key, sample in samples.items():
        if key in BAD:
            continue
        image = decode_image(sample.fields["image"], max_pixels=10**6)
        mask = decode_mask(sample.fields["mask"], max_pixels=10**6, polarity="white_is_hole")
        assert isinstance(image, Image), key
        assert not isinstance(mask, Fault), key
        yield key, json.loads(sample.fields["json"]), image, mask
