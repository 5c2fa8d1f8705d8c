"""Shards to crops: the order that a position restores, what is left out, and what a crop is made of."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asymvae.storage.shards import list_shards
from asymvae.training.config import CropSettings, TrainInput
from asymvae.training.crops import Crops, NoImagesError, Pixels, Position
from tests.tiny import file_bytes, picture, write_tar

START = Position()
PER_SHARD = (4, 3, 5, 1)  # windows of two shards make whole and partial groups of 3


def flat(number: int, height: int = 40, width: int = 44) -> dict[str, bytes]:
    """An image that says which one it is, in any crop."""
    return {"png": file_bytes(np.full((height, width, 3), 10 * number, np.uint8), "PNG")}


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, numbers = tmp_path_factory.mktemp("in"), itertools.count()
    for shard, count in enumerate(PER_SHARD):
        write_tar(folder / f"{shard}.tar", [(f"k{k}", flat(next(numbers))) for k in range(count)])
    return folder


def crops_of(urls: Path | str, *, batch_size: int = 3, seed: int = 0, **settings: Any) -> Crops:
    values: dict[str, Any] = {"size": 32, "short_side": (32, 64), "per_image": 2, "shuffle_shards": 2} | settings
    shards = list_shards((str(urls),), root=None, format="auto")
    images = TrainInput(urls=(str(urls),), image=("png", "jpg"))
    return Crops(shards, images, CropSettings(**values), batch_size=batch_size, seed=seed)


def taken(
    crops: Crops, count: int, start: Position = START, *, threads: int = 1
) -> tuple[list[Pixels], list[Position]]:
    batches = crops.batches(start, threads=threads)
    got = list(itertools.islice(batches, count))
    batches.close()
    return [pixels for pixels, _ in got], [position for _, position in got]


def epoch_of(batches: Sequence[Pixels], positions: Sequence[Position], epoch: int = 0) -> list[Pixels]:
    return [pixels for pixels, position in zip(batches, positions, strict=True) if position.epoch == epoch]


def numbers_in(batches: Sequence[Pixels]) -> Counter[int]:
    return Counter(int(crop[0, 0, 0]) // 10 for batch in batches for crop in batch)


@pytest.mark.parametrize("threads", [1, 3])
def test_any_position_goes_on_with_the_same_batches(numbered: Path, threads: int) -> None:
    batches, positions = taken(crops_of(numbered / "*.tar"), 24)
    assert {position.epoch for position in positions} == {0, 1, 2}
    assert {position.window for position in positions} == {0, 1}
    for done in range(0, 24, 1 if threads == 1 else 7):
        again, places = taken(crops_of(numbered / "*.tar"), 3, positions[done], threads=threads)
        expected = (batches + taken(crops_of(numbered / "*.tar"), 4, positions[-1])[0])[done + 1 : done + 4]
        np.testing.assert_array_equal(again, expected)
        assert places[: 23 - done] == positions[done + 1 : done + 4]


def test_every_image_is_used_in_an_epoch_and_each_epoch_differs(numbered: Path) -> None:
    batches, positions = taken(crops_of(numbered / "*.tar"), 24)
    first, second = epoch_of(batches, positions), epoch_of(batches, positions, 1)
    assert numbers_in(first).keys() == set(range(sum(PER_SHARD)))
    assert [*numbers_in(first)] != [*numbers_in(second)]
    assert max(numbers_in(first).values()) <= 3  # two crops of each, and what fills the last batch
    mixed = [len(numbers_in([batch])) for batch in first]
    assert max(mixed) > 1


def test_a_seed_decides_the_order(numbered: Path) -> None:
    one, again, other = (numbers_in(taken(crops_of(numbered / "*.tar", seed=s), 8)[0]) for s in (0, 0, 1))
    assert list(one) == list(again)
    assert list(one) != list(other)


def test_bad_images_are_left_out_and_counted(tmp_path: Path) -> None:
    jpeg = file_bytes(picture(64, 64), "JPEG", quality=90)
    write_tar(
        tmp_path / "a.tar",
        [
            ("good", {"jpg": jpeg}),
            ("cut", {"jpg": jpeg[: len(jpeg) // 2]}),
            ("none", {"txt": b"no image"}),
            ("small", flat(1, height=31)),
            ("text", {"png": b"no PNG"}),
        ],
    )
    whole = write_tar(tmp_path / "b.tar", [("x", {"jpg": jpeg}), ("y", {"jpg": jpeg})])
    whole.write_bytes(whole.read_bytes()[: 512 + 600])  # a shard that ends within its first file
    crops = crops_of(tmp_path / "*.tar", per_image=3)
    batches, _ = taken(crops, 1)
    assert batches[0].shape == (3, 32, 32, 3)
    # how often depends on how many epochs were read ahead
    expected = {"image_truncated", "image_undecodable", "missing_image", "smaller_than_crop", "tar_truncated"}
    assert crops.skipped.keys() == expected


def test_shards_that_give_nothing_say_why(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x", flat(1, height=31)), ("y", flat(2, width=31)), ("z", {"txt": b""})])
    with pytest.raises(NoImagesError, match=r"1 shards.*smaller_than_crop 2, missing_image 1.*input\.image"):
        taken(crops_of(tmp_path / "*.tar"), 1)
    write_tar(tmp_path / "a.tar", [])
    with pytest.raises(NoImagesError, match="the shards are empty"):
        taken(crops_of(tmp_path / "*.tar"), 1)


def test_a_crop_is_a_piece_of_the_image(tmp_path: Path) -> None:
    """Its short side as it is, so nothing is resized: every crop, or its mirror image, is found in the picture."""
    image = picture(40, 60, seed=3)
    write_tar(tmp_path / "a.tar", [("x", {"png": file_bytes(image, "PNG")})])
    (batch,), _ = taken(crops_of(tmp_path / "a.tar", short_side=(1000, 2000), per_image=8, batch_size=8), 1)
    assert batch.dtype == np.uint8
    windows = np.lib.stride_tricks.sliding_window_view(image, (32, 32, 3)).reshape(-1, 32, 32, 3)
    mirrored = 0
    for crop in batch:
        plain, flipped = ((windows == c).all((1, 2, 3)).any() for c in (crop, crop[:, ::-1]))
        assert plain != flipped
        mirrored += flipped
    assert 0 < mirrored < 8


def test_the_short_side_is_reduced_to_the_range(tmp_path: Path) -> None:
    """A ramp over the width: its slope in a crop tells how far the image was reduced."""
    ramp = np.broadcast_to(np.linspace(0, 255, 256)[None, :, None], (128, 256, 3)).astype(np.uint8)
    write_tar(tmp_path / "a.tar", [("x", {"png": file_bytes(np.ascontiguousarray(ramp), "PNG")})])
    batches, _ = taken(crops_of(tmp_path / "a.tar", short_side=(40, 80), per_image=9), 20)
    slopes = np.array([abs(np.diff(crop[16, :, 0].astype(float)).mean()) for batch in batches for crop in batch])
    sides = 128 / slopes
    assert sides.min() > 38
    assert sides.max() < 84
    assert sides.max() / sides.min() > 1.7
