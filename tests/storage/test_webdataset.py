"""Tars: what is read is what webdataset reads, and no damage passes for an end."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

import asymvae.storage.webdataset as reading
from asymvae.faults import Fault
from asymvae.storage.samples import BadSample, FieldNames, Sample
from asymvae.storage.webdataset import read_tar
from tests.storage.tars import FIELDS, make_tar, read

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)

# Three samples of 2560 bytes: jpg 512 + 1024, txt 512 + 512. The end-of-archive blocks begin at 7680, and tar
# pads to 10240.
MEMBERS = [
    (f"{key}.{extension}", data)
    for key in "abc"
    for extension, data in (("jpg", key.encode() * 700), ("txt", key.encode() * 5))
]
ARCHIVE = make_tar(MEMBERS)


def keys_of(samples: list[Sample]) -> str:
    return "".join(sample.key for sample in samples)


def only_fault(bad: list[BadSample]) -> Fault:
    (row,) = bad
    assert row.index is None
    assert row.key is None
    return row.fault


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        pytest.param(1, "", id="inside the first header"),
        pytest.param(100, "", id="inside the first header's name"),
        pytest.param(512, "", id="after the first header"),
        pytest.param(800, "", id="inside data"),
        pytest.param(1212, "", id="between data and padding"),
        pytest.param(1300, "", id="inside padding"),
        pytest.param(1536, "", id="at a header inside a sample"),
        pytest.param(2048, "", id="after a header inside a sample"),
        pytest.param(2560, "", id="at the next sample's header: more of this one may have followed"),
        pytest.param(2660, "", id="inside the next sample's header"),
        pytest.param(3072, "a", id="after the next sample's header"),
        pytest.param(4096, "a", id="at a header inside the second sample"),
        pytest.param(5800, "ab", id="inside the last sample's data"),
        pytest.param(7680, "ab", id="before the end-of-archive blocks"),
        pytest.param(7780, "ab", id="inside the first end-of-archive block"),
        pytest.param(8192, "abc", id="between the end-of-archive blocks"),
        pytest.param(8300, "abc", id="inside the second end-of-archive block"),
    ],
)
def test_a_cut_keeps_the_samples_proven_complete_and_is_one_row(tmp_path: Path, cut: int, kept: str) -> None:
    samples, bad = read(tmp_path, ARCHIVE[:cut])
    assert keys_of(samples) == kept
    assert only_fault(bad) == Fault("tar_truncated", {"offset": cut})


@pytest.mark.parametrize("length", [8704, 9000, 10240, 20480])
def test_an_archive_may_end_after_its_two_zero_blocks_or_in_any_zero_padding(tmp_path: Path, length: int) -> None:
    samples, bad = read(tmp_path, ARCHIVE.ljust(length, b"\0")[:length])
    assert keys_of(samples) == "abc"
    assert not bad
    assert samples[1] == Sample(1, "b", {"image": b"b" * 700, "prompt": b"b" * 5})


@pytest.mark.parametrize("tar_format", FORMATS)
def test_a_cut_at_any_place_loses_at_most_the_sample_in_progress(tmp_path: Path, tar_format: int) -> None:
    long = "d" * 120 + "/é" if tar_format != tarfile.USTAR_FORMAT else "d"
    whole = make_tar([(f"{long}/{name}", data) for name, data in MEMBERS], tar_format)
    good, none = read(tmp_path, whole)
    assert len(good) == 3
    assert not none
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512 + 1024
    edges = {place + step for place in range(512, end, 512) for step in (-1, 0, 1)}
    starts = [whole.index(key * 700) for key in (b"a", b"b", b"c")]
    for cut in sorted(place for place in edges if place < end):
        samples, bad = read(tmp_path, whole[:cut])
        assert samples == good[: len(samples)]
        assert only_fault(bad) == Fault("tar_truncated", {"offset": cut})
        # every sample but the last begun was proven complete by the header of the next
        assert len(samples) in {max(0, sum(start <= cut for start in starts) - 1), 3 if cut > end - 1024 else 0}


def header_chain(tar_format: int) -> tuple[bytes, int]:
    """Sample "a", then one whose name needs further headers; and where those begin."""
    name = "n" * 300 + "é"
    first = make_tar([("a.jpg", b"x" * 10)], tar_format)[:1024]
    return first + make_tar([(f"{name}.jpg", b"y" * 10)], tar_format), len(first)


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("inside", [0, 100, 512, 600, 1024, 1100, 1535])
def test_a_cut_inside_a_long_name_or_pax_header_is_a_cut(tmp_path: Path, tar_format: int, inside: int) -> None:
    archive, start = header_chain(tar_format)
    samples, bad = read(tmp_path, archive[: start + inside])
    assert not samples
    assert only_fault(bad) == Fault("tar_truncated", {"offset": start + inside})


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read(tmp_path: Path, tar_format: int) -> None:
    samples, bad = read(tmp_path, header_chain(tar_format)[0])
    assert [sample.key for sample in samples] == ["a", "n" * 300 + "é"]
    assert not bad


def test_an_empty_file_is_shard_empty_and_an_empty_archive_is_fine(tmp_path: Path) -> None:
    assert only_fault(read(tmp_path, b"")[1]) == Fault("shard_empty")
    assert read(tmp_path, make_tar([])) == ([], [])


@pytest.mark.parametrize(("header", "kept"), [(0, ""), (1536, ""), (2560, ""), (4096, "a"), (5120, "a"), (6656, "ab")])
def test_a_corrupt_header_ends_the_shard_with_a_row(tmp_path: Path, header: int, kept: str) -> None:
    damaged = bytearray(ARCHIVE)
    damaged[header + 3] ^= 0xFF
    samples, bad = read(tmp_path, bytes(damaged))
    assert keys_of(samples) == kept
    assert only_fault(bad) == Fault("tar_corrupt", {"offset": header})


def test_a_corrupt_pax_record_or_the_header_behind_it_is_corrupt(tmp_path: Path) -> None:
    archive, start = header_chain(tarfile.PAX_FORMAT)
    for place in (start, start + 512, start + 1024 + 5):
        damaged = bytearray(archive)
        damaged[place] ^= 0xFF
        assert only_fault(read(tmp_path, bytes(damaged))[1]) == Fault("tar_corrupt", {"offset": start})


def test_what_is_no_tar_is_corrupt_from_its_first_byte(tmp_path: Path) -> None:
    page = b"<html>404 Not Found</html>" * 100
    assert only_fault(read(tmp_path, page)[1]) == Fault("tar_corrupt", {"offset": 0})
    assert only_fault(read(tmp_path, page[:200])[1]) == Fault("tar_truncated", {"offset": 200})


def test_a_second_archive_behind_the_first_is_told(tmp_path: Path) -> None:
    samples, bad = read(tmp_path, ARCHIVE + make_tar([("d.jpg", b"d")]))
    assert keys_of(samples) == "abc"
    assert only_fault(bad) == Fault("tar_trailing_data", {"offset": len(ARCHIVE)})


def test_a_lone_zero_block_in_the_middle_is_told(tmp_path: Path) -> None:
    samples, bad = read(tmp_path, ARCHIVE[:2560] + bytes(512) + ARCHIVE[2560:])
    assert keys_of(samples) == "a"
    assert only_fault(bad) == Fault("tar_trailing_data", {"offset": 2560 + 512})


# --- hostile headers ----------------------------------------------------------------------------------------


def special(kind: bytes, size: int, name: str = "x.jpg", **values: Any) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    for attribute, value in values.items():
        setattr(member, attribute, value)
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(special(tarfile.XHDTYPE, 10**11), id="a PAX header of 100 GB"),
        pytest.param(special(tarfile.GNUTYPE_LONGNAME, 10**11), id="a long name of 100 GB"),
        pytest.param(special(tarfile.GNUTYPE_LONGNAME, -1024), id="a long name of negative length"),
        pytest.param(special(tarfile.REGTYPE, -4096), id="a file of negative length"),
        pytest.param(special(tarfile.GNUTYPE_LONGNAME, 0) * 5000, id="long names without end"),
        pytest.param(special(tarfile.XHDTYPE, 14) + b"14 size=-4096\n".ljust(512, b"\0"), id="negative PAX size"),
        pytest.param(special(tarfile.XHDTYPE, 2**19) + b"9" * 2**19, id="PAX length of half a million digits"),
        pytest.param(special(tarfile.XHDTYPE, 9) + b"9 size=x\n".ljust(512, b"\0"), id="a PAX size of letters"),
        pytest.param(special(tarfile.XHDTYPE, 10) + b"12 path=a\n".ljust(512, b"\0"), id="a PAX record too long"),
        pytest.param(special(tarfile.XHDTYPE, 10) + b"0 path=ab\n".ljust(512, b"\0"), id="a PAX record of length 0"),
        pytest.param(special(tarfile.GNUTYPE_LONGNAME, 5) + b"x.jpg".ljust(1536, b"\0"), id="a name of nothing"),
    ],
)
def test_hostile_headers_are_corrupt_and_cost_no_memory(tmp_path: Path, head: bytes) -> None:
    tracemalloc.start()
    try:
        samples, bad = read(tmp_path, head + ARCHIVE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not samples
    assert only_fault(bad) == Fault("tar_corrupt", {"offset": 0})
    assert peak < 16 * 2**20


def test_global_pax_headers_do_not_pile_up(tmp_path: Path) -> None:
    heads = []
    for number in range(100):
        record = f"k{number}=".encode() + b"v" * 50_000
        record = f"{len(record) + 7} ".encode() + record + b"\n"
        heads.append(
            special(tarfile.XGLTYPE, len(record))
            + record.ljust(-(-len(record) // 512) * 512, b"\0")
            + make_tar([(f"{number}.jpg", b"x")])[:1024]
        )
    path = tmp_path / "global.tar"
    path.write_bytes(b"".join(heads) + bytes(1024))
    tracemalloc.start()
    try:
        rows = sum(isinstance(row, Sample) for row in read_tar(str(path), FIELDS))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 100
    assert peak < 2**20


@pytest.mark.parametrize(
    "head",
    [
        special(tarfile.REGTYPE, 10**15, "x.bin"),
        special(tarfile.XHDTYPE, 20) + b"20 size=99999999999\n".ljust(512, b"\0"),
        special(tarfile.XGLTYPE, 20) + b"20 size=99999999999\n".ljust(512, b"\0"),
    ],
)
def test_a_size_beyond_the_files_end_is_a_cut(tmp_path: Path, head: bytes) -> None:
    huge = head + ARCHIVE
    assert only_fault(read(tmp_path, huge)[1]) == Fault("tar_truncated", {"offset": len(huge)})


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    odd = b"".join(special(kind, 0, f"{n}.jpg", linkname="/etc/passwd") for n, kind in enumerate(kinds))
    odd += special(b"Z", 3, "z.jpg") + b"abc".ljust(512, b"\0")
    extended = bytearray(special(tarfile.GNUTYPE_SPARSE, 3, "s.jpg"))
    extended[482] = 1  # two more blocks of its map follow
    extended[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(extended))[0]
    odd += bytes(extended) + b"\1" * 512 + bytes(512) + b"abc".ljust(512, b"\0")
    odd += special(tarfile.XHDTYPE, 22) + b"22 GNU.sparse.major=1\n".ljust(512, b"\0")
    odd += special(tarfile.REGTYPE, 3, "p.jpg") + b"abc".ljust(512, b"\0")
    samples, bad = read(tmp_path, odd + ARCHIVE)
    assert keys_of(samples) == "abc"
    assert not bad


# --- gzip ---------------------------------------------------------------------------------------------------


def test_gzip_is_told_by_its_first_bytes_and_a_cut_or_damage_is_gzip_corrupt(tmp_path: Path) -> None:
    noise = b"".join(i.to_bytes(2, "big") for i in range(20_000))  # hardly compresses: many places to cut
    whole = make_tar([(f"{i}.jpg", noise[i * 4000 : i * 4000 + 4000]) for i in range(8)])
    packed = gzip.compress(whole)
    good, bad = read(tmp_path, packed)
    assert (good, bad) == read(tmp_path, whole)
    assert len(good) == 8
    for cut in [*range(2, 40), *range(40, len(packed), 997), *range(len(packed) - 12, len(packed))]:
        samples, bad = read(tmp_path, packed[:cut])
        assert samples == good[: len(samples)]
        assert only_fault(bad).code == "gzip_corrupt"
    assert len(samples) == 8  # only the checksum was cut
    for place in range(3, len(packed), 1499):
        damaged = bytearray(packed)
        damaged[place] ^= 0x55
        samples, bad = read(tmp_path, bytes(damaged))
        assert len(samples) + len(bad) >= 1
        if samples != good:
            assert only_fault(bad).code in {"gzip_corrupt", "tar_corrupt", "tar_truncated", "tar_trailing_data"}
    assert only_fault(read(tmp_path, packed + b"garbage")[1]).code == "gzip_corrupt"
    second = only_fault(read(tmp_path, packed + packed)[1])
    assert second == Fault("tar_trailing_data", {"offset": len(whole)})


def test_a_tar_cut_before_it_was_compressed_is_a_cut_tar(tmp_path: Path) -> None:
    samples, bad = read(tmp_path, gzip.compress(ARCHIVE[:3072]))
    assert keys_of(samples) == "a"
    assert only_fault(bad) == Fault("tar_truncated", {"offset": 3072})


def test_a_gzip_bomb_streams_through(tmp_path: Path) -> None:
    size = 100 * 2**20
    bomb = special(tarfile.REGTYPE, size, "a.bin") + bytes(size) + ARCHIVE
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(bomb, 1))
    del bomb
    tracemalloc.start()
    try:
        rows = list(read_tar(str(path), FIELDS))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(rows) == 3  # a.bin is a field of "a" that no role claims
    assert peak < 4 * 2**20


def test_no_damage_crashes_or_confuses_the_reader(tmp_path: Path) -> None:
    chance = random.Random(0)
    archives = [make_tar([("d" * 150 + f"/é{name}", data) for name, data in MEMBERS], f) for f in FORMATS[1:]]
    for attempt in range(500):
        data = bytearray(archives[attempt % 2])
        block = chance.randrange(len(data) // 512 - 20) * 512
        for _ in range(chance.randint(1, 3)):
            place = chance.choice((0, 124, 130, 156, 345, 482, chance.randrange(512)))
            data[block + place] = chance.randrange(256)
        if attempt % 3:  # a header that lies, with a checksum that agrees
            data[block + 148 : block + 156] = b"%06o\0 " % tarfile.calc_chksums(bytes(data[block : block + 512]))[0]
        samples, bad = read(tmp_path, gzip.compress(data, 1) if attempt % 5 == 0 else bytes(data))
        assert len(samples) + len(bad) >= 1
        for row in [*samples, *bad]:
            assert row.key is None or row.key.encode()


# --- roles and keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        pytest.param(["a.jpg", "a.mask.png"], {"image": 0, "mask": 1}, id="the longest name decides"),
        pytest.param(["a.mask.png", "a.png"], {"mask": 0, "image": 1}, id="in any order"),
        pytest.param(["a.orig.JPG", "a.orig.Mask.PNG"], {"image": 0, "mask": 1}, id="any case, any prefix"),
        pytest.param(["a.unmask.png"], {"image": 0}, id="a name matches whole parts only"),
        pytest.param(["a.png", "a.jpg"], {"image": 1}, id="the preferred name wins"),
        pytest.param(["a.jpg", "a.png"], {"image": 0}, id="the preferred name wins, first or not"),
        pytest.param(["a.1.jpg", "a.2.jpg"], {"image": 0}, id="of one name, the first"),
        pytest.param(["a.json", "a.cls", "a.txt"], {"json": 0, "prompt": 2}, id="unclaimed fields are left out"),
        pytest.param(["a.cls"], {}, id="a sample without any role is a sample"),
        pytest.param(["a.given.png", "a.mask"], {"given": 0, "mask": 1}, id="a bare mask"),
    ],
)
def test_roles(tmp_path: Path, members: list[str], expected: dict[str, int]) -> None:
    samples, bad = read(tmp_path, make_tar([(name, bytes([i])) for i, name in enumerate(members)]))
    assert not bad
    assert [sample.fields for sample in samples] == [{role: bytes([i]) for role, i in expected.items()}]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("/etc/a.jpg", "/etc/a"),
        ("../../a.jpg", "../../a"),
        ("dir.with.dots/a.b.jpg", "dir.with.dots/a"),
        ("a b\nc.jpg", "a b\nc"),
        ("ключ/😀.jpg", "ключ/😀"),
        ("x" * 1000 + ".jpg", "x" * 1000),
        ("__meta__.jpg", "__meta__"),
        ("__meta.jpg__", None),
        ("__meta__/a.jpg", None),
        ("no-extension", None),
        (".hidden.jpg", None),
    ],
)
def test_keys_are_names_up_to_the_first_dot_and_only_names(tmp_path: Path, name: str, key: str | None) -> None:
    samples, bad = read(tmp_path, make_tar([(name, b"x")], tarfile.PAX_FORMAT))
    assert [sample.key for sample in samples] == ([] if key is None else [key])
    assert not bad


def test_a_key_that_is_no_utf8_becomes_one(tmp_path: Path) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        archive.addfile(tarfile.TarInfo(name))
    (sample,), _ = read(tmp_path, out.getvalue())
    assert sample.key == r"caf\xe9"


def test_a_field_that_comes_again_begins_a_new_sample_of_the_key(tmp_path: Path) -> None:
    names = ["a.jpg", "a.txt", "a.jpg", "a.txt", "a.json"]
    samples, _ = read(tmp_path, make_tar([(name, bytes([i])) for i, name in enumerate(names)]))
    assert [(s.index, s.key, len(s.fields)) for s in samples] == [(0, "a", 2), (1, "a", 3)]


def test_a_field_above_the_limit_is_skipped_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_FIELD_BYTES", 600)
    samples, bad = read(tmp_path, ARCHIVE)
    assert not samples
    limits: dict[str, int | str] = {"field": "jpg", "size": 700, "limit": 600}
    assert bad == [BadSample(i, key, Fault("field_too_large", limits)) for i, key in enumerate("abc")]
    # not where a better field makes up for it, or no role wants it
    samples, bad = read(tmp_path, make_tar([("a.png", bytes(700)), ("a.jpg", b"x"), ("a.bin", bytes(700))]))
    assert [sample.fields for sample in samples] == [{"image": b"x"}]
    assert not bad


# --- the stream ---------------------------------------------------------------------------------------------


class Trickle(io.RawIOBase):
    """A network that gives few bytes at a time, and perhaps fails."""

    def __init__(self, data: bytes, fail_at: int | None = None) -> None:
        self._data, self._fail_at, self._place = data, fail_at, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._fail_at is not None and self._place >= self._fail_at:
            raise ConnectionResetError("gone")
        piece = self._data[self._place : self._place + min(len(buffer), 1 + self._place % 7)]
        buffer[: len(piece)] = piece
        self._place += len(piece)
        return len(piece)


@pytest.mark.parametrize("data", [ARCHIVE, gzip.compress(ARCHIVE), ARCHIVE[:5800], b"\x1f"])
def test_short_reads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    samples, bad = read(tmp_path, data)
    monkeypatch.setattr(reading, "open_stream", lambda url: Trickle(data))
    assert list(read_tar("s3://bucket/shard.tar", FIELDS)) == [*samples, *bad]


def test_a_broken_connection_is_raised_not_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "open_stream", lambda url: Trickle(ARCHIVE, fail_at=4000))
    rows = read_tar("s3://bucket/shard.tar", FIELDS)
    with pytest.raises(ConnectionResetError):
        list(rows)


# --- side by side -------------------------------------------------------------------------------------------

EXTENSIONS = ("jpg", "mask.png", "txt", "given.png", "json", "JPG", "cls", "extra.mask.png")
PLAIN = FieldNames(image=("jpg",), mask=("mask.png",), prompt=("txt",), given=("given.png",), json=("json",))
BY_ROLE = {"image": "jpg", "mask": "mask.png", "prompt": "txt", "given": "given.png", "json": "json"}


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Keys with runs of distinct fields, some without any, meta members and directories between them."""
    members: list[tuple[str, bytes]] = []
    stems = st.sampled_from(["a", "b", "d/a", "x.y/b", "../c", "/e", "__m__", "ü", "k" * 120])
    for stem in draw(st.lists(stems, max_size=6)):
        seen = {name for name, _ in members}
        for extension in draw(st.permutations(EXTENSIONS))[: draw(st.integers(0, 5))]:
            if f"{stem}.{extension}".lower() not in {name.lower() for name in seen}:
                members.append((f"{stem}.{extension}", draw(st.binary(max_size=1500))))
                seen.add(members[-1][0])
    return make_tar(members, draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(archive=archives())
def test_good_archives_read_as_webdatasets_own_reader_reads_them(tmp_path: Path, archive: bytes) -> None:
    theirs = list(group_by_keys(tar_file_expander([{"url": "x", "stream": io.BytesIO(archive)}])))
    ours, bad = read(tmp_path, archive, PLAIN)
    assert not bad
    assert [sample.key for sample in ours] == [sample["__key__"] for sample in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for role, name in BY_ROLE.items():
            # a role's own field, or, which webdataset leaves to its user, one that ends in it
            claimed = [other[e] for e in other if e == name or (role == "mask" and e.endswith("." + name))]
            assert (mine.fields.get(role) in claimed) if claimed else role not in mine.fields  # type: ignore[call-overload]
