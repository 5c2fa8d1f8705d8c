"""``python -m jobs.benchmark``, as it is called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from asymvae.benchmark import contenders, device, measured
from asymvae.benchmark.pipeline import PipelineTiming
from jobs.benchmark import main


@pytest.fixture(autouse=True)
def _small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_SIDE", {"cpu": 64})
    monkeypatch.setattr(device, "_PEAK_SECONDS", 0.01)


def quick(checkpoint: Path) -> list[str]:
    flags = [f"--model.path={checkpoint}", "--device=cpu", "--sizes=32", "--parts=decode"]
    return ["model", *flags, "--dtypes=float32", "--layouts=contiguous", "--pairs=2", "--least_seconds=1e-6"]


def test_the_model_s_table_and_files(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*quick(checkpoint), "--batches=1,2", "--blocks=true", "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.out.splitlines() if line[:1] == "|"]
    assert [row[2:4] for row in rows[2:6]] == [["1", "ours"], ["1", "diffusers"], ["2", "ours"], ["2", "diffusers"]]
    assert rows[6][3] == "block"
    assert [row[3] for row in rows[8:20:2]] == ["middle", "up 0", "up 1", "up 2", "up 3", "the rest"]
    assert f"`python -m jobs.benchmark model --model.path={checkpoint}" in said.out
    assert "TFLOP/s in float32" in said.out
    assert "CPU allocator" in said.out
    assert "more than 100% is no error" in said.out

    names = {file.suffix: file for file in (tmp_path / "out").iterdir()}
    assert set(names) == {".md", ".parquet", ".png"}
    assert names[".md"].read_text() == said.out
    assert names[".png"].read_bytes().startswith(b"\x89PNG")
    table = pq.read_table(names[".parquet"]).to_pylist()
    assert len(table) == 2 * 2 * 2  # batches, contenders, rounds: every timing
    assert {row["maker"] for row in table} == {"ours", "diffusers"}
    for row in table:
        assert row["seconds"] > 0
        assert row["flops"] > 0
        assert row["torch"]
        assert row["processor"]
        assert row["date"].endswith("+00:00")
        assert row["command"].startswith("python -m jobs.benchmark model")


def test_without_diffusers_ours_is_measured_and_the_table_says_so(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert not contenders.diffusers_is_there()
    assert main(quick(checkpoint)) == 0
    said = capsys.readouterr().out
    assert "diffusers is not installed: ours alone" in said
    assert "| diffusers |" not in said


def test_the_model_needs_neither_ray_nor_arrow_nor_codecs(checkpoint: Path, tmp_path: Path) -> None:
    absent = ("ray", "pyarrow", "diffusers", "cv2", "simplejpeg", "matplotlib", "PIL", "scipy", "webdataset")
    code = (
        f"import sys\nfor name in {absent}:\n    sys.modules[name] = None\n"
        "from asymvae.benchmark import device\ndevice._SIDE, device._PEAK_SECONDS = {'cpu': 64}, 0.01\n"
        f"from jobs.benchmark import main\nsys.exit(main({[*quick(checkpoint), '--output', str(tmp_path)]}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert ran.returncode == 2, ran.stderr  # not all of what --output promises
    assert "| decode | 32 " in ran.stdout
    assert "parquet: pyarrow is not installed" in ran.stderr
    assert "png: matplotlib is not installed" in ran.stderr
    assert [file.suffix for file in tmp_path.iterdir()] == [".md"]


def test_codecs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["codecs", "--sizes=16", "--formats=png,webp", "--pairs=2", "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "| png " in said
    assert "| webp " in said
    assert "4 pictures, drawn, one core" in said
    (file,) = tmp_path.glob("codecs-*.parquet")
    assert {row["format"] for row in pq.read_table(file).to_pylist()} == {"png", "webp"}


def test_the_pipeline_s_settings_reach_the_job(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from asymvae.benchmark import pipeline
    from asymvae.config import InpaintJob
    from asymvae.storage.shards import list_shards

    seen: list[InpaintJob] = []

    def measure(job: InpaintJob, *, ray_workers: tuple[int, ...], rounds: int, scratch: Path, **_: object) -> object:
        seen.append(job)
        assert (ray_workers, rounds) == ((1, 2), 1)
        assert len(list_shards(job.input.urls, root=None, format="auto")) == 2
        assert scratch.parent == tmp_path
        return [PipelineTiming("loop", 1, 0.0, 0, 6, 3.0, 4.0, {"device": 2.0})]

    monkeypatch.setattr(pipeline, "measure", measure)
    flags = [f"--model.path={checkpoint}", "--size=32", "--samples=3", "--pairs=1", "--ray_workers=1,2"]
    workers = ["--workers.gpus=0", "--workers.batch_size=4", f"--scratch={tmp_path}"]
    assert main(["pipeline", *flags, *workers]) == 0
    (job,) = seen
    assert (job.workers.gpus, job.workers.batch_size, job.geometry.mode) == (0, 4, "whole")
    assert job.model.path == str(checkpoint)
    said = capsys.readouterr().out
    assert "shards: 2, of 3 drawn pictures of 32 px; a worker's batch: 4" in said
    assert "| loop" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: what"),
        (["network"], "invalid choice"),
        (["model", "--size=256"], "did you mean sizes?"),
        (["model", "--sizes=100"], "multiple of 8"),
        (["model", "--device=cuda"], "torch sees no GPU"),
        (["model", "--model.path=/nowhere/at/all"], "/nowhere/at/all"),
        (["pipeline", "--shards=1", "--ray_workers=2"], "2 workers need as many"),
        (["codecs", "--formats=gif"], "formats"),
        (["codecs", "--input.urls=/nowhere/*.tar"], "matches no file"),
    ],
)
def test_what_is_wrong_is_said_and_exits_with_2(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert not captured.out


def test_what_failed_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> measured.Measured:
        raise measured.RunFailedError("Ray, 1 worker: RuntimeError: it did not start")

    monkeypatch.setattr("jobs.benchmark.measure_pipeline", fail)
    with pytest.raises(SystemExit) as exit_:
        main(["pipeline"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.splitlines() == ["error: Ray, 1 worker: RuntimeError: it did not start"]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ([], ("model", "pipeline", "codecs", "exit codes", "examples")),
        (["model"], ("--sizes", "--against", "--plain", "--compiled", "--output", "diffusers", "examples")),
        (["pipeline"], ("--ray_workers", "--scratch", "--workers.batch_size")),
        (["simulate"], ("--workers", "--nodes", "--empty", "no time")),
        (["codecs"], ("--formats", "--images")),
    ],
)
def test_help_teaches(what: list[str], expected: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*what, "--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    for word in expected:
        assert word in said
