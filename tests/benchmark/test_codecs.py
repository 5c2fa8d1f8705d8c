"""The codecs' benchmark, and what it and the pipeline's are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from asymvae.benchmark import codecs
from asymvae.benchmark.config import BenchmarkInput
from asymvae.benchmark.samples import draw_hole, draw_picture, encode_all, pictures, write_shards
from asymvae.media.image import Image, decode_image
from asymvae.storage.samples import FieldNames, Sample, read_shard
from asymvae.storage.shards import list_shards


def test_every_format_and_size_both_ways() -> None:
    timings = list(codecs.measure(BenchmarkInput(), formats=("png", "jpeg"), sizes=(16, 32), images=2, rounds=3))
    assert len(timings) == 2 * 2 * 2 * 3
    png = [timing for timing in timings if (timing.format, timing.size) == ("png", 32)]
    files = encode_all(pictures(BenchmarkInput(), size=32, count=2), "png")
    assert {timing.bytes for timing in png} == {round(sum(map(len, files)) / 2)}
    assert all(timing.ms == 1000 * timing.seconds > 0 for timing in timings)
    lines = codecs.table(timings).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["png", "jpeg", "png", "jpeg"]
    assert set(codecs.panels(timings)) == {"decode", "encode"}


def test_drawn_pictures_compress_about_as_photographs_do() -> None:
    (file,) = encode_all([draw_picture(256, 0)], "jpeg", 90)
    assert 1.0 < len(file) * 8 / 256**2 < 6.0  # bits a pixel
    assert 0.2 < (draw_hole(256, 0) > 0).mean() < 0.3
    assert not np.array_equal(draw_picture(64, 0), draw_picture(64, 1))


def test_shards_and_pictures_of_them(tmp_path: Path) -> None:
    urls = write_shards(tmp_path, shards=2, samples=3, size=48)
    shards = list_shards(urls, root=None, format="auto")
    rows = [row for shard in shards for row in read_shard(shard, FieldNames(("jpg",), ("mask.png",), (), (), ()))]
    assert len(rows) == 6
    assert len({row.key for row in rows}) == 6
    assert all(isinstance(row, Sample) and set(row.fields) == {"image", "mask"} for row in rows)

    found = pictures(BenchmarkInput(urls=(urls,)), size=32, count=4)
    assert [picture.shape for picture in found] == 4 * [(32, 32, 3)]
    assert isinstance(rows[0], Sample)
    image = decode_image(rows[0].fields["image"], max_pixels=10**6)
    assert isinstance(image, Image)
    assert abs(found[0].mean() - image.pixels.mean()) < 2
    with pytest.raises(ValueError, match=r"input\.image"):
        pictures(BenchmarkInput(urls=(urls,), image=("bmp",)), size=32, count=1)
