"""``python -m jobs.inpaint`` from and to places that are not the local disk; and the secrets that lead there."""

from __future__ import annotations

import base64
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from asymvae.storage.audit import audit
from asymvae.storage.filesystem import list_files, read_bytes
from asymvae.storage.shards import list_shards
from tests.jobs.conftest import Inpaint
from tests.object_store import ACCESS_KEY, SECRET_KEY
from tests.tiny import parts_of, sample, write_tar

PASSWORD, TOKEN = "hush-password", "hush-token"


def samples(count: int) -> list[tuple[str, dict[str, bytes]]]:
    made = [(f"k{number}", sample(number)) for number in range(count)]
    made[1][1].pop("mask.png")
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards a and b."""
    write_tar(tmp_path / "in" / "a.tar", samples(3))
    write_tar(tmp_path / "in" / "b.tar", samples(2))
    return tmp_path / "in"


def test_from_s3_to_s3_gives_the_bytes_of_a_local_run(
    s3_url: str, folder: Path, tmp_path: Path, inpaint: Inpaint
) -> None:
    local = inpaint(f"--input.urls={folder}/*.tar", f"--output.url={tmp_path}/out", "--max_error_fraction=0.5")
    assert local.code == 0, local.err
    fsspec.filesystem("s3").put(str(folder), f"{s3_url}/in", recursive=True)
    flags = (f"--input.urls={s3_url}/in/{{a,b}}.tar", f"--output.url={s3_url}/out", "--max_error_fraction=0.5")
    before = inpaint(*flags, "--dry-run")
    assert (before.code, "2 to do" in before.out) == (0, True)
    assert list_files(f"{s3_url}/out", recursive=True) == {}

    ran = inpaint(*flags)
    assert ran.code == 0, ran.err
    names = list_files(f"{s3_url}/out", recursive=True)
    parts = {name: read_bytes(f"{s3_url}/out/{name}") for name in names if name.endswith(".parquet")}
    assert parts == parts_of(tmp_path / "out")
    shards = list_shards(f"{s3_url}/in/*.tar", root=None, format="auto")
    report = audit(f"{s3_url}/out", deep=True, shards=shards)
    assert report.ok, report
    assert (report.samples, report.results, report.errors) == (5, 3, 2)
    records = b"".join(read_bytes(f"{s3_url}/out/{name}") for name in names if name.endswith(".json"))
    for secret in (ACCESS_KEY, SECRET_KEY):
        assert secret.encode() not in records
        assert secret not in ran.out + ran.err

    again = inpaint(*flags)
    assert (again.code, "0 samples in " in again.out) == (0, True)
    refused = inpaint(*flags, "--mask.feather=9")
    assert (refused.code, "mask.feather: was 4, is 9" in refused.err) == (2, True)


def test_a_checkpoint_in_s3(s3_url: str, folder: Path, tmp_path: Path, checkpoint: Path, inpaint: Inpaint) -> None:
    fsspec.filesystem("s3").put(str(checkpoint), f"{s3_url}/model", recursive=True)
    flags = (f"--input.urls={folder}/b.tar", f"--output.url={tmp_path}/out", "--max_error_fraction=0.5")
    assert inpaint(*flags, f"--model.path={s3_url}/model").code == 0
    assert inpaint(*flags).code == 0  # the same weights: the same job


class Guarded(http.server.SimpleHTTPRequestHandler):
    """Files of a folder for who knows the password; ``denied``: to nobody; ``unreadable``: to be looked at alone."""

    def do_GET(self) -> None:
        if "unreadable" in self.path:
            self.send_error(403)
        elif self._allowed():
            super().do_GET()

    def do_HEAD(self) -> None:
        if self._allowed():
            super().do_HEAD()

    def _allowed(self) -> bool:
        known = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        allowed = self.headers.get("Authorization") == f"Basic {known}" and f"token={TOKEN}" in self.path
        if not allowed or "denied" in self.path:
            self.send_error(403)
            return False
        return True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    """http://127.0.0.1:port, less the scheme."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Guarded, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_no_record_and_no_word_holds_a_secret(
    web: str, folder: Path, tmp_path: Path, inpaint: Inpaint, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (folder / "denied.tar").write_bytes(b"")
    url = f"http://me:{PASSWORD}@{web}/{{name}}.tar?token={TOKEN}"
    flags = (f"--output.url={out}", "--max_error_fraction=1")
    calls = [
        inpaint(f"--input.urls={url.format(name='a')}", *flags, "--dry-run"),
        inpaint(f"--input.urls={url.format(name='{a,b}')}", *flags),
        inpaint(f"--input.urls={url.format(name='a')}", *flags, "--mask.feather=9"),
        inpaint(f"--input.urls={url.format(name='denied')}", *flags),
        inpaint(f"--input.urls={url.format(name='none')}", *flags),
        inpaint(f"--input.urls={url.format(name='*')}", *flags),
        inpaint(f"--input.urls={url.format(name='a')}", "--output.url=" + url.format(name="out")),
        inpaint(
            f"--input.urls={folder}/a.tar", f"--output.url={tmp_path}/new", f"--model.path={url.format(name='model')}"
        ),
    ]
    assert [ran.code for ran in calls] == [0, 0, 2, 2, 2, 2, 2, 2]
    assert "model.path" in calls[-1].err
    monkeypatch.setattr(
        "asymvae.pipeline.kinds.inpaint.read_shard", lambda shard, _: (_ for _ in ()).throw(OSError(f"GET {shard.url}"))
    )
    lost = inpaint(f"--input.urls={url.format(name='a')}", f"--output.url={tmp_path}/lost")
    assert (lost.code, "failed: shard a: OSError: GET http://" in lost.err) == (1, True)

    said = "".join(ran.out + ran.err for ran in [*calls, lost])
    records = list(tmp_path.rglob("out/**/*.json")) + list(tmp_path.rglob("lost/**/*.json"))
    assert {path.parent.name for path in records} >= {"out", "_commits", "_failed"}
    tables = "".join(str(pq.read_table(path).to_pylist()) for path in out.rglob("*.parquet"))
    for secret in (PASSWORD, TOKEN, "token="):
        assert secret not in said
        assert secret not in tables
        assert not [path for path in records if secret in path.read_text()]
