"""URLs to shards: patterns, versions, and names that no two files share."""

from __future__ import annotations

import os
import re
from pathlib import Path

import fsspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import asymvae.storage.shards as shards
from asymvae.storage.filesystem import FileInfo
from asymvae.storage.shards import InputError, Shard, input_root, list_shards, shard_name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a-0.tar", "a-1.tar", "a-10.tar", "b.tar.gz", "c.parquet", "sub/a-0.tar", "sub/deep/d.tgz", "README"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def names(found: list[Shard]) -> list[str]:
    return [shard.name for shard in found]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["a-0.tar"], ["a-0"]),
        (["a-{0..1}.tar"], ["a-0", "a-1"]),
        (["a-{1,10}.tar"], ["a-1", "a-10"]),
        (["a-*.tar"], ["a-0", "a-1", "a-10"]),
        (["a-?.tar"], ["a-0", "a-1"]),
        (["a-[1-9].tar"], ["a-1"]),
        (["*.{tar,tar.gz,parquet}"], ["a-0", "a-1", "a-10", "b", "c"]),
        (["**/*.tar"], ["a-0", "a-1", "a-10", "sub~2Fa-0"]),
        (["**/*.t*"], ["a-0", "a-1", "a-10", "b", "sub~2Fa-0", "sub~2Fdeep~2Fd"]),
        (["*/a-0.tar"], ["sub~2Fa-0"]),
        (["{.,sub}/a-0.tar"], ["a-0", "sub~2Fa-0"]),
        (["c.parquet", "a-0.tar"], ["a-0", "c"]),
        (["a-0.tar", "a-*.tar", "a-{0..1}.tar"], ["a-0", "a-1", "a-10"]),
    ],
)
def test_braces_wildcards_and_lists(folder: Path, patterns: list[str], expected: list[str]) -> None:
    found = list_shards([f"{folder}/{pattern}" for pattern in patterns], root=str(folder), format="auto")
    assert names(found) == expected
    for shard in found:
        path = Path(shard.url)
        stat = path.stat()
        assert (shard.size, shard.version) == (stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}")
        assert shard.format == ("parquet" if path.suffix == ".parquet" else "webdataset")


def test_one_file_has_one_url_however_it_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    urls = ["a-0.tar", f"file://{folder}/a-0.tar", f"{folder}/a-0.tar", f"{folder}/./sub/../a-0.tar"]
    assert [shard.url for shard in list_shards(urls, root=None, format="auto")] == [f"{folder}/a-0.tar"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].tar").write_bytes(b"x")
    assert names(list_shards(f"{tmp_path}/a[1].tar", root=None, format="auto")) == ["a~5B1~5D"]


def test_a_given_format_needs_no_extension(folder: Path) -> None:
    (shard,) = list_shards(f"{folder}/README", root=None, format="parquet")
    assert (shard.name, shard.format) == ("README", "parquet")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("missing.tar", "missing.tar does not exist"),
        ("z-{0..99}.tar", "z-0.tar does not exist"),
        ("a-{0..99}.tar", "a-2.tar does not exist"),
        ("z*.tar", r"z\*.tar matches no file"),
        ("nowhere/*.tar", "matches no file"),
        ("*", "README has none of the extensions"),
        ("sub", "sub has none of the extensions"),
        ("sub/", r"is a folder: name its files, as in .*sub/\*.tar"),
        ("a-{0..1.tar", "not balanced"),
        ("**.tar", "whole folders only"),
    ],
)
def test_what_cannot_be_meant_is_an_error_with_its_remedy(folder: Path, url: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        list_shards(f"{folder}/{url}", root=None, format="auto")


def test_errors_show_no_credentials() -> None:
    with pytest.raises(InputError) as caught:
        list_shards("https://user:secret@host.invalid/*.tar?token=secret", root=None, format="auto")
    assert "secret" not in str(caught.value)
    assert "host.invalid" in str(caught.value)


def test_two_files_of_one_name_are_an_error_that_names_both(tmp_path: Path) -> None:
    for name in ("x.tar", "x.tar.gz", "x.parquet"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"x\.(tar|parquet).* and .*x\.tar.* both be called 'x'"):
        list_shards(f"{tmp_path}/x.*", root=None, format="auto")


@pytest.mark.parametrize(
    ("urls", "root"),
    [
        (["/data/set/{0..9}.tar"], "/data/set"),
        (["/data/set/train-*.tar"], "/data/set"),
        (["/data/{a,b}/*.tar"], "/data"),
        (["/data/a/0.tar"], "/data/a"),
        (["/data/a/0.tar", "/data/ab/0.tar"], "/data"),
        (["/data/0.tar", "/other/0.tar"], "/"),
        (["s3://bucket/set/{00000..00999}.tar"], "s3://bucket/set"),
        (["s3://bucket/*.tar"], "s3://bucket"),
        (["s3://one/0.tar", "s3://other/0.tar"], "s3://"),
        (["https://me:pw@host/a/0.tar?sig=1", "https://host/b/1.tar"], "https://host"),
    ],
)
def test_the_root_is_the_folder_before_the_first_wildcard(urls: list[str], root: str) -> None:
    assert input_root(urls) == root


def test_stores_without_a_common_folder_are_refused() -> None:
    with pytest.raises(InputError, match="no folder in common"):
        input_root(["s3://bucket/0.tar", "/data/0.tar"])
    with pytest.raises(InputError, match=r"set input\.urls"):
        input_root([])


def test_more_inputs_rename_nothing(folder: Path) -> None:
    first = list_shards(f"{folder}/sub/*.tar", root=None, format="auto")
    root = input_root([f"{folder}/sub/*.tar"])
    assert names(list_shards(f"{folder}/sub/**/*.t*", root=root, format="auto")) == [*names(first), "deep~2Fd"]
    with pytest.raises(InputError, match=r"a-0\.tar is not below input\.root"):
        list_shards(f"{folder}/a-0.tar", root=root, format="auto")


def test_a_store_is_listed_once_for_many_files_and_asked_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    for i in range(200):
        memory.pipe_file(f"/listed/x-{i:03}.tar", b"x" * i)
    calls = []

    def counted(name: str) -> None:
        function = getattr(shards, name)
        monkeypatch.setattr(shards, name, lambda *a, **k: (calls.append(name), function(*a, **k))[1])

    counted("iter_files")
    counted("info")
    found = list_shards("memory://listed/x-{000..199}.tar", root=None, format="auto")
    assert [shard.size for shard in found] == list(range(200))
    assert found[7].url == "memory://listed/x-007.tar"
    assert calls == ["iter_files"]
    calls.clear()
    assert list_shards("memory://listed/x-{000..009}.tar", root=None, format="auto") == found[:10]
    assert calls == ["info"] * 10
    calls.clear()
    assert list_shards("memory://listed/*.tar", root=None, format="auto") == found
    assert calls == ["iter_files"]


def test_the_version_is_the_stores_etag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "info", lambda url: FileInfo(7, "etag-of-7"))
    (shard,) = list_shards("s3://bucket/x.tar", root=None, format="auto")
    assert shard == Shard("s3://bucket/x.tar", "x", "webdataset", 7, "etag-of-7")


def test_a_web_address_is_named_by_its_path_and_asked_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(shards, "info", lambda url: asked.append(url) or FileInfo(7, "e"))
    url = "https://me:pw@host/set/x.tar?sig=[a*b]"
    (shard,) = list_shards(url, root=None, format="auto")
    assert (shard.name, shard.url, asked) == ("x", url, [url])


# --- names --------------------------------------------------------------------------------------------------

PARTS = st.text(
    st.one_of(st.sampled_from("ab._-~% é\n\\{2F5h"), st.characters(exclude_characters="/\0")), min_size=1, max_size=12
)
PATHS = st.lists(PARTS, min_size=1, max_size=20).map("/".join)


@given(one=PATHS, other=PATHS, data=st.data())
def test_names_are_safe_and_no_two_paths_share_one(one: str, other: str, data: st.DataObject) -> None:
    assume(one != other)
    known = (".tar", ".tgz", ".gz", ".parquet", ".parq", ".pq")
    assume(not one.lower().endswith(known) and not other.lower().endswith(known))
    folded = [shard_name(f"s3://bucket/{path}", "s3://bucket") for path in (one, other)]
    assert folded[0] != folded[1]
    for name in folded:
        assert re.fullmatch(r"[A-Za-z0-9~-][A-Za-z0-9._~-]*", name)
        assert len(name) <= 150
    extension = data.draw(st.sampled_from([".tar", ".TAR", ".tar.gz", ".parquet"]))
    assert shard_name(f"s3://bucket/{one}{extension}", "s3://bucket") == folded[0]


def test_long_names_that_differ_at_their_end_alone_stay_apart() -> None:
    long = "x" * 400
    one, other = (shard_name(f"/data/{long}{end}.tar", "/data") for end in "ab")
    assert one != other
    assert len(one) == len(other) == 150


def test_a_file_called_by_an_extension_alone_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".tar").write_bytes(b"x")
    (shard,) = list_shards(os.fspath(tmp_path / "sub" / ".tar"), root=str(tmp_path), format="webdataset")
    assert shard.name == "sub~2F.tar"
