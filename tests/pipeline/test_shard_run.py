"""One shard in one process: the law, the order, the bounds, and what happens when a step breaks."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from asymvae.config import InpaintJob
from asymvae.media.image import Image, decode_image
from asymvae.pipeline import shard_run
from asymvae.pipeline.device import Device
from asymvae.pipeline.kinds.inpaint import InpaintKind
from asymvae.pipeline.shard_run import ShardOutcome, run_shard
from asymvae.stages.prepare import Prepare, Prepared
from asymvae.storage.samples import Role, Sample
from asymvae.storage.shards import list_shards
from tests.tiny import box_mask, file_bytes, job, picture, sample, tiny_model, write_tar


def run(tar: Path, folder: Path, **settings: Any) -> ShardOutcome:
    return run_job(job(str(tar), "unused", "unused", **settings), folder)


def run_job(settings: InpaintJob, folder: Path) -> ShardOutcome:
    folder.mkdir(exist_ok=True)
    kind = InpaintKind(settings)
    (shard,) = list_shards(settings.input.urls, root=None, format="auto")
    return run_shard(shard, folder, kind, Device(tiny_model, kind), lambda *_: None)


def rows(outcome: ShardOutcome, kind: str) -> list[dict[str, Any]]:
    return [row for part in outcome.parts if part.kind == kind for row in pq.read_table(part.path).to_pylist()]


def test_every_sample_is_a_result_or_an_error_and_rows_keep_the_input_order(tmp_path: Path) -> None:
    samples = [(f"k{n:02d}", sample(n)) for n in range(14)]
    samples[3][1]["png"] = samples[3][1]["png"][:100]
    del samples[5][1]["mask.png"]
    samples[7][1]["mask.png"] = file_bytes(np.zeros((80, 120), np.uint8), "PNG")  # passes through
    samples.append(("k02", sample(2)))
    outcome = run(write_tar(tmp_path / "a.tar", samples), tmp_path / "spool", inpaint={"variants": 2})
    results, metrics, errors = (rows(outcome, kind) for kind in ("results", "metrics", "errors"))
    assert outcome.counts == {"samples": 15, "planned": 30, "results": 24, "errors": 6, "shard_errors": 0}
    places = [(row["index"], row["variant"]) for row in results]
    assert places == sorted(places)
    assert [(row["index"], row["variant"]) for row in metrics] == places
    assert {(row["index"], row["code"]) for row in errors} == {
        (3, "image_truncated"),
        (5, "missing_mask"),
        (14, "duplicate_key"),
    }
    assert not set(places) & {(row["index"], row["variant"]) for row in errors}
    assert [row["passed_through"] for row in results if row["index"] == 7] == [True, True]
    assert outcome.errors_by_code == {"image_truncated": 2, "missing_mask": 2, "duplicate_key": 2}


def test_results_come_out_at_the_original_size_with_known_pixels_untouched(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [(f"k{n}", sample(n)) for n in range(6)])
    outcome = run(tar, tmp_path / "spool")
    for row, measured in zip(rows(outcome, "results"), rows(outcome, "metrics"), strict=True):
        decoded = decode_image(row["image"]["bytes"], max_pixels=10**6)
        assert isinstance(decoded, Image)
        original = picture(row["height"], row["width"], row["index"])
        assert decoded.pixels.shape == original.shape
        changed = (decoded.pixels != original).any(axis=2)
        assert changed.any()
        assert not changed[box_mask(row["height"], row["width"], row["index"]) == 0][0]
        assert measured["max_abs_known"] == 0
        assert 0 < measured["hole_fraction"] < 0.5
        assert measured["mse_known"] > 0


def test_a_cut_tar_keeps_the_samples_before_the_cut(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [(f"k{n}", sample(n)) for n in range(6)])
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    outcome = run(tar, tmp_path / "spool")
    assert not outcome.complete
    assert outcome.counts["shard_errors"] == 1
    assert 0 < outcome.counts["results"] == outcome.counts["samples"] < 6
    (error,) = rows(outcome, "errors")
    assert (error["index"], error["variant"], error["code"]) == (None, None, "tar_truncated")


def test_a_shard_without_a_good_sample_has_errors_alone(tmp_path: Path) -> None:
    outcome = run(write_tar(tmp_path / "a.tar", [("k", {"png": b"no image"})]), tmp_path / "spool")
    assert [part.kind for part in outcome.parts] == ["errors"]
    assert outcome.mean_hole_fraction is None


def test_samples_larger_than_the_whole_budget_go_through(tmp_path: Path) -> None:
    # 16 MiB of budget; a 1200x900 sample counts 26 MB. Several, between small ones of rare shapes.
    sizes = [(64, 64), (1200, 900), (72, 64), (1200, 900), (80, 64), (88, 64), (1200, 900)]
    samples = [(f"k{n}", sample(n, size)) for n, size in enumerate(sizes)]
    tar = write_tar(tmp_path / "a.tar", samples)
    outcome = run(tar, tmp_path / "spool", workers={"buffer_mb": 16}, geometry={"mode": "fit", "max": 64})
    assert outcome.counts["results"] == len(sizes)


def test_the_budget_counts_every_variant_of_a_sample(tmp_path: Path) -> None:
    # Many were once counted as one: their finished rows, which wait for the last, held many times what was allowed.
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    fields: dict[Role, bytes] = {"image": file_bytes(noise, "PNG"), "mask": file_bytes(box_mask(96, 96), "PNG")}
    tar = write_tar(tmp_path / "a.tar", [("k", {"png": fields["image"], "mask.png": fields["mask"]})])
    outcome = run(tar, tmp_path / "spool", inpaint={"variants": 40}, geometry={"mode": "whole"})
    encoded = sum(len(row["image"]["bytes"]) for row in rows(outcome, "results"))
    decoded = 40 * noise.nbytes
    kind = InpaintKind(job(str(tar), "unused", "unused", inpaint={"variants": 40}))
    assert kind.cost(Sample(0, "k", fields)) >= encoded + decoded


def others() -> int:
    """Threads, but for devices' own: those live as long as their worker."""
    return sum(not thread.name.startswith("device") for thread in threading.enumerate())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("step", ["prepare", "device", "finish", "write", "read"])
def test_an_error_of_any_step_is_raised_and_no_thread_stays(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise ConnectionError(f"the {step} step broke")

    target: dict[str, tuple[object, str]] = {
        "prepare": (Prepare, "__call__"),
        "device": (Device, "launch"),
        "finish": (InpaintKind, "finish"),
        "write": (shard_run.Spool, "write"),
        "read": (InpaintKind, "read"),
    }
    monkeypatch.setattr(*target[step], broken)
    tar = write_tar(tmp_path / "a.tar", [(f"k{n}", sample(n)) for n in range(30)])
    before = others()
    with pytest.raises(ConnectionError, match=step):
        run(tar, tmp_path / "spool", workers={"buffer_mb": 16})
    assert others() == before
    assert not list((tmp_path / "spool").iterdir())


@pytest.mark.timeout(60)
def test_a_reader_that_fails_is_never_taken_for_the_shards_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The reader once said "nothing more comes" before its error was known: a writer that was quick gave the rows
    # until then out as the whole shard, to be committed.
    written, read = threading.Event(), InpaintKind.read

    def breaks(*args: Any) -> Iterator[Any]:
        yield from itertools.islice(read(*args), 4)
        written.wait(20)
        raise TimeoutError("the store is away")

    def write(spool: shard_run.Spool, rows: Any) -> None:
        write_row(spool, rows)
        if rows["results"]["index"] == 3:
            written.set()

    def fail_late(self: Any, error: BaseException) -> None:
        time.sleep(0.5)
        fail(self, error)

    write_row, fail = shard_run.Spool.write, shard_run._ShardRun._fail
    monkeypatch.setattr(InpaintKind, "read", breaks)
    monkeypatch.setattr(shard_run.Spool, "write", write)
    monkeypatch.setattr(shard_run._ShardRun, "_fail", fail_late)
    tar = write_tar(tmp_path / "a.tar", [(f"k{n}", sample(n, (64, 64))) for n in range(8)])
    with pytest.raises(TimeoutError, match="away"):
        run(tar, tmp_path / "spool")
    assert written.is_set()


@pytest.mark.parametrize("soft", [0, 2])
def test_a_reduced_work_image_holds_nothing_of_the_hole(soft: int, tmp_path: Path) -> None:
    # 123x77 to 48x30: work pixels on the hole's border cover known and hole pixels alike.
    seen = []
    for name in ("a", "b"):
        pixels, mask = picture(123, 77, 1), box_mask(123, 77, 1)
        pixels[mask > 0] = np.random.default_rng(ord(name)).integers(0, 256, (int((mask > 0).sum()), 3))
        fields = {"png": file_bytes(pixels, "PNG"), "mask.png": file_bytes(mask, "PNG")}
        outcome = run(
            write_tar(tmp_path / f"{name}.tar", [("k", fields)]),
            tmp_path / name,
            mask={"dilate": soft, "feather": soft, "grid": 1},
            geometry={"mode": "fit", "max": 48},
        )
        seen.append([part.path.read_bytes() for part in outcome.parts])
    assert seen[0] == seen[1]


def test_a_written_sample_is_let_go_without_waiting_for_the_cycle_collector(tmp_path: Path) -> None:
    # Tickets and their items know each other; 20,000 samples once grew the worker by 25 kB each between collections.
    tar = write_tar(tmp_path / "a.tar", [(f"k{n}", sample(n)) for n in range(12)])
    gc.collect()
    gc.disable()
    try:
        run(tar, tmp_path / "spool")
        kept = [thing for thing in gc.get_objects() if type(thing) is Prepared]
        assert kept == []
    finally:
        gc.enable()
