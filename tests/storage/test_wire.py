"""Faults on the wire: between a client and a real S3 server, injected and counted by a proxy.

Constants are shortened here; ``python -m tests.soak.wire`` has the long forms, with the real ones.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

from asymvae.storage import filesystem, retry
from tests.object_store import ObjectStore
from tests.wire.jobs import parts, run_here, write_input, wrong
from tests.wire.proxy import Away, FaultProxy, Faults
from tests.wire.requests import SORTS, try_all

SHARDS, SAMPLES = 2, 6
BUSY_S = 20.0  # that this machine may lose to others; without time-outs it would be minutes


@pytest.fixture
def road(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The way to the S3 server from here on; named in fsspec's configuration, as a user would."""
    with FaultProxy(object_store.endpoint) as proxy:
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": proxy.url})
        yield proxy


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3's client repeats within 20 ms, not 3 s."""
    import botocore.retries.standard as standard

    monkeypatch.setattr(standard.ExponentialBackoff, "delay_amount", lambda self, context: 0.02)


@contextmanager
def brief(silence: float = 0.4) -> Iterator[None]:
    """The times of retry.py, much shorter; ``silence`` longer where the store answers too, on a busy machine."""
    times = {"GIVE_UP_AFTER": 0.6, "LONGEST_WAIT": 0.2, "CONNECT": silence, "SILENCE": silence, "REQUEST": 2 * silence}
    with pytest.MonkeyPatch.context() as patch:
        for name, seconds in times.items():
            patch.setattr(retry, f"{name}_SECONDS", seconds)
        yield


@pytest.mark.parametrize("how", list(SORTS))
def test_no_request_hangs_for_longer_than_the_stated_time(
    how: Away, road: FaultProxy, s3_url: str, tmp_path: Path
) -> None:
    big = tmp_path / "big"
    big.write_bytes(os.urandom(3 * filesystem.UPLOAD_CHUNK_BYTES))
    filesystem.put_if_absent(f"{s3_url}/there", b"there")
    with brief(), road.away(how):
        tried = try_all(s3_url, big, SORTS[how])
        most = retry.longest_hold() + BUSY_S
        end = time.monotonic() + BUSY_S
        while not road.counts[how] and time.monotonic() < end:  # the proxy's threads may be late
            time.sleep(0.05)
    assert road.counts[how] >= 1
    for name, (seconds, said) in tried.items():
        assert said.partition(": ")[2], f"{name}: it didn't fail, or without words"
        assert seconds < most, name
    # What was cut off goes well once the store is back.
    assert filesystem.put_if_absent(f"{s3_url}/big", big)
    assert filesystem.read_bytes(f"{s3_url}/there") == b"there"


def test_the_longest_hold_is_under_five_minutes() -> None:
    assert retry.longest_hold() == 260.0
    assert retry.CONNECT_SECONDS <= retry.SILENCE_SECONDS <= retry.REQUEST_SECONDS


def test_a_body_that_stalls_is_taken_up_where_it_stopped(
    road: FaultProxy, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(filesystem, "READ_AHEAD_BYTES", 2**18)
    content = os.urandom(3 * 2**20)
    filesystem.put_if_absent(f"{s3_url}/file", content)
    with filesystem.open_stream(f"{s3_url}/file") as stream:
        read = stream.read(300_000)
        road.go_at(lambda method, target: method == "GET", "answer's body")
        back = threading.Timer(1.0, road.back)
        back.start()
        read += stream.read()
        back.join()
    assert read == content
    assert road.counts["answer's body"] >= 1


@pytest.mark.parametrize("kind", ["latency", "rate limit"])
def test_a_slow_store_is_no_store_that_is_away(kind: str, road: FaultProxy, s3_url: str) -> None:
    content = os.urandom(300_000)
    filesystem.put_if_absent(f"{s3_url}/file", content)
    road.faults = Faults(latency_s=0.2) if kind == "latency" else Faults(bytes_per_s=500_000)
    assert filesystem.read_bytes(f"{s3_url}/file") == content
    assert road.counts[kind] >= 1


def test_what_the_user_configured_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"endpoint_url": "http://127.0.0.1:1", "config_kwargs": {"read_timeout": 7, "user_agent_extra": "x"}}
    monkeypatch.setitem(fsspec.config.conf, "s3", theirs)
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": {"trust_env": True}})
    monkeypatch.setitem(fsspec.config.conf, "gs", {"requests_timeout": 5, "token": "anon"})
    s3 = filesystem.resolve("s3://bucket/key")[0]
    assert s3.endpoint_url == "http://127.0.0.1:1"
    assert (s3.config_kwargs["read_timeout"], s3.config_kwargs["user_agent_extra"]) == (7, "x")
    assert s3.config_kwargs["connect_timeout"] == retry.CONNECT_SECONDS
    assert theirs["config_kwargs"] == {"read_timeout": 7, "user_agent_extra": "x"}
    web = filesystem.resolve("http://host/x.tar")[0]
    assert web.client_kwargs["trust_env"]
    assert web.client_kwargs["timeout"].sock_read == retry.SILENCE_SECONDS
    assert filesystem.resolve("gs://bucket/key")[0].requests_timeout == 5
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    assert filesystem.resolve("gs://bucket/key")[0].requests_timeout.sock_read == retry.SILENCE_SECONDS
    assert logging.getLogger("gcsfs").handlers, "it would print tracebacks"
    chained = filesystem.resolve("simplecache::s3://bucket/key")[0].fs
    assert (chained.config_kwargs["read_timeout"], chained.retries) == (7, 1)


# --- whole jobs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> tuple[Path, dict[str, bytes]]:
    """A folder of shards, and the parts of a run without faults."""
    folder = tmp_path_factory.mktemp("wire")
    write_input(folder / "in", SHARDS, SAMPLES)
    ran = run_here(checkpoint, f"--input.urls={folder}/in/*.tar", f"--output.url={folder}/out")
    assert ran.code == 0, ran.err
    return folder / "in", parts(str(folder / "out"))


def upload(folder: Path, url: str) -> str:
    for path in sorted(folder.iterdir()):
        assert filesystem.put_if_absent(f"{url}/{path.name}", path)
    return f"{url}/*.tar"


def test_a_job_over_a_bad_road_gives_the_bytes_of_a_good_one(
    road: FaultProxy, checkpoint: Path, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "LONGEST_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(filesystem, "UPLOAD_CHUNK_BYTES", 5 * 2**20)  # S3 takes no smaller pieces
    monkeypatch.setattr(filesystem, "READ_AHEAD_BYTES", 2**20)
    write_input(tmp_path / "in", 1, 3, side=1100)
    good = run_here(checkpoint, f"--input.urls={tmp_path}/in/*.tar", f"--output.url={tmp_path}/out")
    assert good.code == 0, good.err
    urls = upload(tmp_path / "in", f"{s3_url}/in")
    road.faults = Faults(slow_down=0.1, reset_answer=0.2, reset_upload=0.2)
    ran = run_here(checkpoint, f"--input.urls={urls}", f"--output.url={s3_url}/out")
    road.faults = Faults()
    assert ran.code == 0, ran.err
    for kind in ("slow_down", "reset_answer", "reset_upload"):
        assert road.counts[kind] >= 1, road.counts
    assert wrong(f"{s3_url}/out", urls, parts(str(tmp_path / "out"))) == []
    assert "-" in filesystem.info(f"{s3_url}/out/results/000.parquet").etag, "the part went up in one piece"


def of_input(method: str, target: str) -> bool:
    return method == "GET" and target.split("?")[0].endswith(".tar")


def of_results(method: str, target: str) -> bool:
    return method in ("PUT", "POST") and "/results/" in target


def test_a_store_that_is_away_for_a_while_is_waited_for(
    road: FaultProxy, local: tuple[Path, dict[str, bytes]], checkpoint: Path, s3_url: str
) -> None:
    folder, expected = local
    urls = upload(folder, f"{s3_url}/in")
    road.go_at(of_results, "refused")
    gone: list[float] = []

    def look() -> None:
        while road.up:
            time.sleep(0.05)
        gone.append(time.monotonic())
        time.sleep(2)
        road.back()

    watcher = threading.Thread(target=look)
    watcher.start()
    ran = run_here(checkpoint, f"--input.urls={urls}", f"--output.url={s3_url}/out")
    watcher.join()
    assert ran.code == 0, ran.err
    assert time.monotonic() - gone[0] >= 2
    assert wrong(f"{s3_url}/out", urls, expected) == []


@pytest.mark.parametrize(("what", "how"), [("input", "head"), ("output", "refused")])
def test_a_store_that_stays_away_ends_the_job_and_the_same_command_completes_it(
    what: str,
    how: Away,
    road: FaultProxy,
    local: tuple[Path, dict[str, bytes]],
    checkpoint: Path,
    s3_url: str,
    tmp_path: Path,
) -> None:
    folder, expected = local
    urls, out = f"{folder}/*.tar", f"{s3_url}/out"
    if what == "input":
        urls, out = upload(folder, f"{s3_url}/in"), str(tmp_path / "out")
    flags = (f"--input.urls={urls}", f"--output.url={out}", "--ray.attempts=0")
    road.go_at(of_input if what == "input" else of_results, how)
    with brief(silence=2):
        ran = run_here(checkpoint, *flags)
    assert ran.code == 1, ran.err
    assert "Traceback" not in ran.err
    said = "\n".join(line for line in ran.err.splitlines() if line.startswith("failed: "))
    assert "shard 000: " in said
    assert road.url.removeprefix("http://") in said
    assert ("shard 001: " in said) == (what == "input"), "where OUT is away no other shard is tried"
    road.back()
    again = run_here(checkpoint, *flags)
    assert again.code == 0, again.err
    assert wrong(out, urls, expected) == []


@pytest.mark.parametrize("what", ["input", "output"])
def test_a_store_that_refuses_from_the_start_is_one_line(
    what: str, road: FaultProxy, local: tuple[Path, dict[str, bytes]], checkpoint: Path, s3_url: str
) -> None:
    urls, out = f"{local[0]}/*.tar", f"{s3_url}/out"
    if what == "input":
        urls, out = f"{s3_url}/in/*.tar", f"{local[0].parent}/never"
    with brief(), road.away("refused"):
        ran = run_here(checkpoint, f"--input.urls={urls}", f"--output.url={out}")
        assert ran.seconds < retry.longest_hold() + BUSY_S
    assert ran.code == 2
    said = [line for line in ran.err.splitlines() if not line.startswith("storage: ")]
    assert len(said) == 1, ran.err
    assert f"{what}.url" in said[0]
    assert road.url in said[0]
