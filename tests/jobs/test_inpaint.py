"""``python -m jobs.inpaint`` as it is called: what it refuses, resumes, says and leaves behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from asymvae.storage.audit import audit
from asymvae.storage.ledger import Ledger
from asymvae.storage.samples import BadSample, FieldNames, Sample, read_shard
from asymvae.storage.shards import Shard, list_shards
from tests.jobs.conftest import Inpaint
from tests.tiny import file_bytes, parts_of, picture, rows_of, sample, tiny_model, write_tar


@pytest.fixture
def urls(tmp_path: Path) -> str:
    """Two shards of two good samples."""
    for shard in ("a", "b"):
        write_tar(tmp_path / "in" / f"{shard}.tar", [(f"{shard}{n}", sample(n, (64, 64))) for n in range(2)])
    return f"{tmp_path}/in/*.tar"


def bad(fields: dict[str, bytes]) -> dict[str, bytes]:
    return fields | {"png": fields["png"][:200]}


def audited(out: Path | str, urls: str) -> None:
    """Every part is read; nothing is missing, orphaned or broken."""
    report = audit(str(out), deep=True, shards=list_shards(urls, root=None, format="auto"))
    assert report.ok, report
    assert report.planned == report.results + report.errors


def commits(out: Path) -> dict[str, int]:
    """Records by name with the time that they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "_commits").iterdir()}


# --- a plain run ------------------------------------------------------------------------------------------------


def test_a_job_says_what_it_came_to(urls: str, tmp_path: Path, inpaint: Inpaint) -> None:
    ran = inpaint(f"--input.urls={urls}", f"--output.url={tmp_path}/out")
    assert ran.code == 0, ran.err
    assert "2 shards committed, 4 samples = 4 results + 0 errors, of 4 planned" in ran.out
    assert "4 samples" in ran.err  # progress
    audited(tmp_path / "out", urls)


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    urls: str, tmp_path: Path, inpaint: Inpaint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
    monkeypatch.setattr("asymvae.pipeline.worker.ShardWorker.run", lambda *_: pytest.fail("a shard was run"))
    before = sorted(tmp_path.rglob("*"))
    for executor in ("local", "ray"):
        ran = inpaint(f"--input.urls={urls}", f"--output.url={tmp_path}/out", "--dry-run", f"--executor={executor}")
        assert ran.code == 0, ran.err
        assert "2 to do" in ran.out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_of_retries_takes_no_commit_back(tmp_path: Path, inpaint: Inpaint) -> None:
    write_tar(tmp_path / "in" / "a.tar", [("x", bad(sample(0))), ("y", sample(1))])
    flags = (f"--input.urls={tmp_path}/in/a.tar", f"--output.url={tmp_path}/out", "--max_error_fraction=1")
    assert inpaint(*flags).code == 0
    before = commits(tmp_path / "out")
    ran = inpaint(*flags, "--retry-errors", "--dry-run")
    assert (ran.code, "1 to do" in ran.out) == (0, True)
    assert commits(tmp_path / "out") == before


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--input.urls={in}/none-*.tar"], "none-*.tar matches no file"),
        (["--input.urls={in}/{{a,z}}.tar"], "z.tar does not exist"),
        (["--input.urls={in}"], "none of the extensions"),
        (["--inpaint.method=harmonc"], "harmonc"),
        (["--inpaint.method=tests.tiny:nothing"], "tests.tiny:nothing"),
        (['--inpaint.options={{"tolerence": 1}}'], "tolerence"),
        (["--workers.gpus=1"], "set workers.gpus=0"),
        (["--output.url={in}/a.tar"], "a.tar"),
        (["--output.url=http://127.0.0.1:9/out"], "output.url"),
        (["--output.url=nowhere://x"], "nowhere"),
        (["--model.path={in}/none"], "{in}/none"),
        (["--model.path=" + "x" * 300], "model.path: "),
        (["--model.revision=main"], "revision"),
        (["--retry-errors=image_trunkated"], "did you mean image_truncated?"),
    ],
)
def test_what_can_not_be_meant_is_refused_before_anything_starts(
    flags: list[str], said: str, urls: str, tmp_path: Path, inpaint: Inpaint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asymvae.storage.retry.GIVE_UP_AFTER_SECONDS", 0.1)
    folder = {"in": str(tmp_path / "in")}
    given = [flag.format(**folder) for flag in flags]
    needed = [f"--input.urls={urls}", f"--output.url={tmp_path}/out"]
    ran = inpaint(*[flag for flag in needed if flag.split("=")[0] not in given[0]], *given)
    assert ran.code == 2
    assert said.format(**folder) in ran.err
    assert ran.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("diffusion_pytorch_model.safetensors", None),
        ("diffusion_pytorch_model.safetensors", b""),
        ("diffusion_pytorch_model.safetensors", b"no tensors" * 99),
        ("config.json", None),
        ("config.json", b"{half"),
        ("config.json", b"[]"),
        ("config.json", b'{"_class_name": "AutoencoderKL"}'),
        ("config.json", b'{"in_channels": "three"}'),
    ],
)
def test_a_damaged_checkpoint_is_named(
    file: str, content: bytes | None, urls: str, tmp_path: Path, checkpoint: Path, inpaint: Inpaint
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    ran = inpaint(f"--input.urls={urls}", f"--output.url={tmp_path}/out", f"--model.path={folder}")
    assert ran.code == 2
    assert ran.err.startswith("error: model.path")
    assert str(folder) in ran.err
    assert not (tmp_path / "out").exists()


def test_another_jobs_output_is_refused_with_what_differs(urls: str, tmp_path: Path, inpaint: Inpaint) -> None:
    flags = (f"--input.urls={urls}", f"--output.url={tmp_path}/out")
    assert inpaint(*flags).code == 0
    before = parts_of(tmp_path / "out")
    for executor in ("local", "ray"):
        ran = inpaint(*flags, "--mask.feather=9", "--composite=none", f"--executor={executor}")
        assert ran.code == 2
        assert "mask.feather: was 4, is 9" in ran.err
        assert 'composite: was "paste", is "none"' in ran.err
        assert "mask.dilate" not in ran.err
    assert parts_of(tmp_path / "out") == before


def test_other_weights_are_refused(urls: str, tmp_path: Path, inpaint: Inpaint) -> None:
    flags = (f"--input.urls={urls}", f"--output.url={tmp_path}/out")
    assert inpaint(*flags).code == 0
    tiny_model(seed=1).save_pretrained(str(tmp_path / "other"))
    ran = inpaint(*flags, f"--model.path={tmp_path}/other")
    assert (ran.code, "model.weights_sha256: was " in ran.err) == (2, True)


def test_the_same_weights_elsewhere_are_fine(urls: str, tmp_path: Path, checkpoint: Path, inpaint: Inpaint) -> None:
    flags = (f"--input.urls={urls}", f"--output.url={tmp_path}/out")
    assert inpaint(*flags).code == 0
    shutil.copytree(checkpoint, tmp_path / "moved")
    assert inpaint(*flags, f"--model.path={tmp_path}/moved").code == 0


@pytest.mark.parametrize("content", ["{}", "[]", "{half", '{"fingerprint": "x", "input": null}'])
def test_a_job_record_of_something_else_is_refused(content: str, urls: str, tmp_path: Path, inpaint: Inpaint) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_job.json").write_text(content)
    ran = inpaint(f"--input.urls={urls}", f"--output.url={tmp_path}/out")
    assert (ran.code, "_job.json" in ran.err) == (2, True)
    assert (tmp_path / "out" / "_job.json").read_text() == content


def test_a_store_without_credentials_is_no_traceback(
    urls: str, inpaint: Inpaint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    ran = inpaint(f"--input.urls={urls}", "--output.url=s3://some-bucket/out")
    s3fs.S3FileSystem.clear_instance_cache()
    assert (ran.code, "output.url s3://some-bucket/out: NoCredentialsError" in ran.err) == (2, True)


# --- going on ---------------------------------------------------------------------------------------------------


def test_a_resume_does_just_what_is_left(urls: str, tmp_path: Path, inpaint: Inpaint) -> None:
    out = tmp_path / "out"
    flags = (f"--input.urls={urls}", f"--output.url={out}")
    assert inpaint(*flags).code == 0
    first, parts = commits(out), parts_of(out)
    (lost,) = [name for name in first if name.startswith("b.")]
    (out / "_commits" / lost).unlink()
    write_tar(tmp_path / "in" / "c.tar", [("c0", sample(7))])
    ran = inpaint(*flags)
    assert ran.code == 0
    assert "3 samples in " in ran.out  # b and c alone
    assert "3 shards committed, 5 samples" in ran.out
    assert commits(out)[f"{next(name for name in first if name.startswith('a.'))}"] == next(
        time for name, time in first.items() if name.startswith("a.")
    )
    assert parts.items() <= parts_of(out).items()
    audited(out, urls)
    again = inpaint(*flags)
    assert (again.code, "0 samples in " in again.out) == (0, True)


def test_what_only_rounds_may_change_in_between(urls: str, tmp_path: Path, inpaint: Inpaint) -> None:
    flags = (f"--input.urls={urls}", f"--output.url={tmp_path}/out")
    assert inpaint(f"--input.urls={tmp_path}/in/a.tar", flags[1]).code == 0
    ran = inpaint(*flags, "--workers.cpu_threads=2", "--workers.batch_size=1", "--workers.buffer_mb=64")
    assert (ran.code, "2 samples in " in ran.out) == (0, True)
    audited(tmp_path / "out", urls)
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / "_commits").iterdir())]
    assert [record["run"]["affects_rounding"]["workers.batch_size"] for record in records] == [8, 1]


def test_a_changed_input_replaces_its_commit(urls: str, tmp_path: Path, inpaint: Inpaint) -> None:
    out = tmp_path / "out"
    flags = (f"--input.urls={urls}", f"--output.url={out}")
    assert inpaint(*flags).code == 0
    write_tar(tmp_path / "in" / "b.tar", [(f"n{n}", sample(n, (64, 64))) for n in range(3)])
    ran = inpaint(*flags)
    assert (ran.code, "3 samples in " in ran.out) == (0, True)
    assert len(commits(out)) == 2
    assert [row["key"] for row in rows_of(out, "results")] == ["a0", "a1", "n0", "n1", "n2"]
    audited(out, urls)


# --- bad samples ------------------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path: Path) -> str:
    """Shard a has a cut image, b a sample without mask, c nothing bad."""
    write_tar(tmp_path / "in" / "a.tar", [("a0", sample(0)), ("a1", bad(sample(1)))])
    write_tar(tmp_path / "in" / "b.tar", [("b0", sample(0)), ("b1", {"png": sample(1)["png"]})])
    write_tar(tmp_path / "in" / "c.tar", [("c0", sample(0)), ("c1", sample(1))])
    return f"{tmp_path}/in/*.tar"


@pytest.mark.parametrize(
    ("retry", "again"),
    [
        ("--retry-errors=image_truncated", 2),
        ("--retry-errors=missing_mask,image_truncated", 4),
        ("--retry-errors", 4),
        ("--retry-errors=duplicate_key", 0),
    ],
)
def test_errors_are_tried_again(retry: str, again: int, spoilt: str, tmp_path: Path, inpaint: Inpaint) -> None:
    flags = (f"--input.urls={spoilt}", f"--output.url={tmp_path}/out", "--max_error_fraction=0.5")
    first = inpaint(*flags)
    assert first.code == 0
    assert "errors by code: " in first.out
    assert "image_truncated 1" in first.out
    parts = parts_of(tmp_path / "out")
    ran = inpaint(*flags, retry)
    assert (ran.code, f"{again} samples in " in ran.out) == (0, True)
    assert "6 samples = 4 results + 2 errors" in ran.out
    assert parts_of(tmp_path / "out") == parts
    audited(tmp_path / "out", spoilt)


@pytest.mark.parametrize("flag", [(), ("--retry-errors=image_truncated",)])
def test_a_repaired_shard_is_done_again(flag: tuple[str, ...], spoilt: str, tmp_path: Path, inpaint: Inpaint) -> None:
    out = tmp_path / "out"
    flags = (f"--input.urls={spoilt}", f"--output.url={out}", "--max_error_fraction=0.5")
    assert inpaint(*flags).code == 0
    write_tar(tmp_path / "in" / "a.tar", [("a0", sample(0)), ("a1", sample(1))])
    ran = inpaint(*flags, *flag)
    assert (ran.code, "2 samples in " in ran.out) == (0, True)
    assert [row["code"] for row in rows_of(out, "errors")] == ["missing_mask"]
    assert len(commits(out)) == 3
    audited(out, spoilt)


def test_too_many_errors_stop_the_job_and_a_higher_limit_completes_it(tmp_path: Path, inpaint: Inpaint) -> None:
    pixels = file_bytes(picture(8, 8), "PNG")
    write_tar(tmp_path / "in" / "a.tar", [(f"a{n:03}", {"png": pixels}) for n in range(200)])
    write_tar(tmp_path / "in" / "b.tar", [("b0", sample(0))])
    flags = (f"--input.urls={tmp_path}/in/*.tar", f"--output.url={tmp_path}/out")
    ran = inpaint(*flags)
    assert ran.code == 1
    assert "200 of 200 samples are errors (missing_mask: 200)" in ran.err
    assert "max_error_fraction" in ran.err
    assert "missing: b: no commit" in ran.err  # it was stopped before
    ran = inpaint(*flags, "--max_error_fraction=1")
    assert (ran.code, "1 samples in " in ran.out) == (0, True)
    audited(tmp_path / "out", flags[0].partition("=")[2])


def test_too_many_errors_of_few_samples_are_judged_at_the_end(spoilt: str, tmp_path: Path, inpaint: Inpaint) -> None:
    flags = (f"--input.urls={spoilt}", f"--output.url={tmp_path}/out")
    ran = inpaint(*flags, "--max_error_fraction=0.3")
    assert ran.code == 1
    assert "2 of 6 samples are errors (image_truncated: 1, missing_mask: 1)" in ran.err
    assert inpaint(*flags, "--max_error_fraction=0.3").code == 1  # a resume is judged alike
    assert inpaint(*flags, "--max_error_fraction=0.34").code == 0


def test_a_cut_tar_is_said_and_recorded(tmp_path: Path, inpaint: Inpaint) -> None:
    tar = write_tar(tmp_path / "in" / "a.tar", [(f"a{n}", sample(n, (64, 64))) for n in range(3)])
    content = tar.read_bytes()
    tar.write_bytes(content[: len(content) // 2])
    ran = inpaint(f"--input.urls={tar}", f"--output.url={tmp_path}/out", "--max_error_fraction=1")
    assert ran.code == 0
    assert "1 shards have a fault of their own" in ran.out
    (record,) = [json.loads(path.read_text()) for path in (tmp_path / "out" / "_commits").iterdir()]
    assert record["complete"] is False
    assert record["counts"]["shard_errors"] == 1
    assert [row["code"] for row in rows_of(tmp_path / "out", "errors") if row["index"] is None] == ["tar_truncated"]
    audited(tmp_path / "out", str(tar))


def test_inverted_masks_are_warned_of(tmp_path: Path, inpaint: Inpaint) -> None:
    tar = write_tar(tmp_path / "in" / "a.tar", [("a0", sample(0))])
    flags = (f"--input.urls={tar}", f"--output.url={tmp_path}")
    assert "mask_polarity" not in inpaint(flags[0], f"{flags[1]}/right").err
    ran = inpaint(flags[0], f"{flags[1]}/wrong", "--input.mask_polarity=black_is_hole")
    assert ran.code == 0
    assert "warning: shard a: holes cover 75% of its images" in ran.err
    assert "input.mask_polarity (black_is_hole)" in ran.err


# --- the infrastructure -----------------------------------------------------------------------------------------


def lose(shards: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """While a shard is in the set, its store breaks off after a sample."""

    def broken(shard: Shard, fields: FieldNames) -> Iterator[Sample | BadSample]:
        for row in read_shard(shard, fields):
            yield row
            if shard.name in shards:
                raise ConnectionError("reset by s3://me:hush@store/in?token=hush2")

    monkeypatch.setattr("asymvae.pipeline.kinds.inpaint.read_shard", broken)


def test_a_shard_that_can_not_be_read_is_named_and_done_by_the_next_run(
    urls: str, tmp_path: Path, inpaint: Inpaint, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, lost = tmp_path / "out", {"a"}
    lose(lost, monkeypatch)
    flags = (f"--input.urls={urls}", f"--output.url={out}")
    ran = inpaint(*flags)
    assert ran.code == 1
    assert "failed: shard a: ConnectionError: reset by s3://store/in" in ran.err
    assert "1 of 2 shards" in ran.err
    assert [name.split(".")[0] for name in commits(out)] == ["b"]
    record = Ledger(str(out)).failed()["a"]
    assert record["reason"].startswith("ConnectionError")
    assert "hush" not in ran.out + ran.err + "".join(path.read_text() for path in out.rglob("*.json"))
    lost.clear()
    ran = inpaint(*flags)
    assert (ran.code, "2 samples in " in ran.out) == (0, True)
    assert not list((out / "_failed").iterdir())
    audited(out, urls)


def test_a_failure_of_an_earlier_run_is_said(
    urls: str, tmp_path: Path, inpaint: Inpaint, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose({"a"}, monkeypatch)
    assert inpaint(f"--input.urls={urls}", f"--output.url={tmp_path}/out").code == 1
    ran = inpaint(f"--input.urls={tmp_path}/in/b.tar", f"--output.url={tmp_path}/out")
    assert ran.code == 1
    assert "failed: a: ConnectionError" in ran.err


def test_the_audit_names_a_changed_shard_that_failed(
    urls: str, tmp_path: Path, inpaint: Inpaint, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (f"--input.urls={urls}", f"--output.url={tmp_path}/out")
    assert inpaint(*flags).code == 0
    write_tar(tmp_path / "in" / "a.tar", [("n0", sample(5))])
    lose({"a"}, monkeypatch)
    assert inpaint(*flags).code == 1
    shards = list_shards(urls, root=None, format="auto")
    assert [line[:2] for line in audit(f"{tmp_path}/out", deep=False, shards=shards).failed] == ["a:"]
