"""The script that fetches the training photographs: held-out pictures are found, shards are reproducible."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from asymvae.faults import Fault
from asymvae.media.image import decode_image, encode_image
from asymvae.storage.samples import FieldNames, Sample, read_shard
from asymvae.storage.shards import list_shards

FOLDER = Path(__file__).parent.parent / "configs" / "photos"
FETCH = runpy.run_path(str(FOLDER / "fetch_photos.py"))
COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2002-2014, The Team
License: GPL-2+

Files: nature/*.jpg
Copyright: 2008, Ann <ann@example.org>
           2009, Bo
License: CC-BY-4.0

Files:
 nature/deep.jpg
 nature/wide.jpg
Copyright:
 Cy
 Di
 Ed
 Fay
License: CC0-1.0
"""


@pytest.fixture(scope="module")
def held_out() -> dict[str, Any]:
    samples: dict[str, Any] = FETCH["read_samples"](FETCH["SAMPLES"])
    return samples


def photo(name: str, pixels: Any, package: str = "mate-backgrounds") -> Any:
    return FETCH["Photo"](package, "1.0-1", f"nature/{name}.jpg", "scene", "Zoë", "CC0-1.0", pixels)


def noise(seed: int, height: int = 60, width: int = 90) -> Any:
    grid = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def test_every_photograph_of_the_samples_is_held_out(held_out: dict[str, Any]) -> None:
    assert len(held_out) == 19  # of 20, one is cut
    assert "fig-object" in held_out
    assert "fig-truncated" not in held_out


def recompressed(pixels: Any) -> Any:
    data = encode_image(pixels, image_format="jpeg", quality=30)
    assert not isinstance(data, Fault)
    image = decode_image(data, max_pixels=10**7)
    assert not isinstance(image, Fault)
    return image.pixels


CHANGES: dict[str, Callable[[Any], Any]] = {
    "none": lambda pixels: pixels,
    "enlarged": lambda pixels: cv2.resize(pixels, None, fx=3, fy=3),
    "mirrored": lambda pixels: np.ascontiguousarray(pixels[:, ::-1]),
    "wider": lambda pixels: pixels[len(pixels) // 8 : -(len(pixels) // 8)],
    "narrower": lambda pixels: np.ascontiguousarray(pixels[:, 12:-12]),
    "darker": lambda pixels: (pixels * 0.6).astype(np.uint8),
    "compressed": recompressed,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_held_out_picture_is_found_however_it_comes(held_out: dict[str, Any], change: str) -> None:
    for key, pixels in held_out.items():
        found = FETCH["find_same"](CHANGES[change](pixels), held_out)
        assert found is not None, key
        assert found.split("-")[0] == key.split("-")[0]


def test_the_samples_photographs_are_not_taken_for_one_another(held_out: dict[str, Any]) -> None:
    for key, pixels in held_out.items():
        others = {name: p for name, p in held_out.items() if name.split("-")[0] != key.split("-")[0]}
        assert FETCH["find_same"](pixels, others) is None, key


def test_held_out_pictures_and_second_copies_are_left_out_and_named(
    held_out: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    new = noise(1)
    photos = [photo("cat", held_out["cat-box"]), photo("new", new), photo("again", new[:, ::-1]), photo("b", noise(2))]
    kept = FETCH["keep_new"](photos, held_out)
    assert [p.key for p in kept] == ["mate-new", "mate-b"]
    said = capsys.readouterr().out
    assert "nature/cat.jpg shows the held-out sample cat-" in said
    assert "nature/again.jpg shows the same as mate-new" in said


def test_no_samples_to_hold_out_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="held out"):
        FETCH["read_samples"](tmp_path)


def test_shards_have_the_same_bytes_each_time_and_read_back(tmp_path: Path) -> None:
    photos = [photo(f"p{n}", noise(n)) for n in range(40)]
    (tmp_path / "photos-009.tar").write_bytes(b"of an earlier run")
    first = {path.name: path.read_bytes() for path in FETCH["write_shards"](photos, tmp_path)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos-000.tar", "photos-001.tar", "photos-002.tar"]
    again = {path.name: path.read_bytes() for path in FETCH["write_shards"](photos[::-1], tmp_path)}
    assert first == again
    fields = FieldNames(("jpg",), (), (), (), ("json",))
    keys = []
    for shard in list_shards(str(tmp_path / "photos-{000..002}.tar"), root=None, format="auto"):
        samples = list(read_shard(shard, fields))
        assert 13 <= len(samples) <= 14
        for sample in samples:
            assert isinstance(sample, Sample), sample
            assert not isinstance(decode_image(sample.fields["image"], max_pixels=10**6), Fault)
            about = json.loads(sample.fields["json"])
            assert about["author"] == "Zoë"
            assert about.keys() == {"package", "version", "file", "kind", "author", "licence"}
            keys.append(sample.key)
    assert sorted(keys) == sorted(p.key for p in photos)


def test_a_photograph_is_reduced_on_its_shorter_side_and_never_enlarged() -> None:
    assert FETCH["reduce"](noise(1, 60, 90), 20).shape == (20, 30, 3)
    assert FETCH["reduce"](noise(1, 90, 60), 20).shape == (30, 20, 3)
    assert FETCH["reduce"](noise(1), 60).shape == (60, 90, 3)
    assert FETCH["reduce"](noise(1), 600).shape == (60, 90, 3)


@pytest.mark.parametrize(
    ("file", "author", "licence"),
    [
        ("other.png", "The Team", "GPL-2+"),
        ("nature/Aqua.jpg", "Ann, Bo", "CC-BY-4.0"),
        ("nature/deep.jpg", "UFO:AI contributors, listed under CC0-1.0", "CC0-1.0"),
    ],
)
def test_the_copyright_files_last_match_counts(file: str, author: str, licence: str) -> None:
    assert FETCH["read_copyright"](COPYRIGHT, file) == (author, licence)


def test_a_file_without_a_licence_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"no licence for x\.jpg"):
        FETCH["read_copyright"]("Format: 1.0\n\nFiles: y.jpg\nLicense: MIT\n", "x.jpg")


def test_without_apt_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"apt-get not found.*Debian 12"):
        FETCH["download"]("mate-backgrounds", tmp_path / "packages")


def test_the_page_names_the_listed_photographs_but_the_held_out_ones(held_out: dict[str, Any]) -> None:
    rows = [line.split(" | ") for line in (FOLDER / "SOURCES.md").read_text("utf-8").splitlines() if "| `" in line]
    listed = sum(len(package.files) for package in FETCH["PACKAGES"])
    assert len(rows) == len({row[0] for row in rows}) == listed - 9  # the samples' photographs from Debian
    assert all(author.strip() and licence.strip() for _, _, _, author, licence, *_ in rows)
    assert not [row for row in rows if "Aitzol" in row[3] or "@" in row[3]]
