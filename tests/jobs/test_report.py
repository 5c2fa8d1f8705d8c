"""``python -m jobs.report``, as it is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.report import main
from tests.report.small_job import SmallJob


def test_both_files_are_written_and_named(tmp_path: Path, out_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a local OUT and one in an object store alike."""
    job = SmallJob(tmp_path, out_url, [["a", "b"], ["c"]])
    job.commit(0)
    job.commit(1)
    folder = tmp_path / "somewhere" / "new"
    assert main([out_url, "--out", str(folder), "--rows", "2"]) == 0
    page, sheet = folder / "index.html", folder / "contact_sheet.png"
    said = capsys.readouterr().out
    assert str(page) in said
    assert str(sheet) in said
    assert 'alt="input"' in page.read_text()
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_a_local_job_holds_its_report(tmp_path: Path) -> None:
    job = SmallJob(tmp_path, str(tmp_path / "out"), [["a"]])
    job.commit(0)
    assert main([job.out]) == 0
    assert main([job.out]) == 0  # again, over the first
    assert sorted(path.name for path in (tmp_path / "out" / "report").iterdir()) == ["contact_sheet.png", "index.html"]


@pytest.mark.parametrize("content", [None, b"{}", b"[]", b"not JSON"])
def test_what_is_no_job_is_refused(tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "_job.json").write_bytes(content)
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_rows_must_be_some() -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["out", "--rows", "0"])
    assert exit_.value.code == 2


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    for expected in ("index.html", "contact_sheet.png", "exit codes", "examples", "--rows"):
        assert expected in said
