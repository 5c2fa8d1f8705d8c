"""Archives: cut, damaged, odd, hostile. Each is a shard of its own."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Iterator
from tarfile import calc_chksums  # type: ignore[attr-defined]  # typeshed leaves it out
from typing import Any

from tests.corpus.case import Case, Expects, ShardCase, hole, photo, png, shard
from tests.storage.tars import make_tar

_IMAGE, _MASK = png(photo()), png(hole(None))
_BLOCK = 512


def members(keys: str = "abc") -> list[tuple[str, bytes]]:
    return [(f"{key}.{field}", data) for key in keys for field, data in (("png", _IMAGE), ("mask.png", _MASK))]


def _in_folder() -> list[tuple[str, bytes]]:
    return [(f"d/{name}", data) for name, data in members("a")]


def _header(kind: bytes, size: int = 0, name: str = "x.png", **values: Any) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    for attribute, value in values.items():
        setattr(member, attribute, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)


def _pax(kind: bytes, records: bytes) -> bytes:
    return _header(kind, len(records)) + _padded(records)


def _record(keyword: str, value: bytes) -> bytes:
    body = b" " + keyword.encode() + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def _body(archive: bytes) -> bytes:
    """An archive without its end."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        last = opened.getmembers()[-1]
    return archive[: last.offset_data + -(-last.size // _BLOCK) * _BLOCK]


def cases() -> Iterator[Case]:
    whole = make_tar(members())
    yield from _cut(whole)
    yield from _damaged(whole)
    yield from _packed(whole)
    yield from _kinds(whole)
    yield from _names()
    yield from _hostile(whole)


def _case(name: str, data: bytes, expects: Expects, ending: str = "tar") -> ShardCase:
    return ShardCase("tars", name, data, expects, ending)


def _cut(whole: bytes) -> Iterator[Case]:
    image = _BLOCK + len(_padded(_IMAGE))
    sample = image + _BLOCK + len(_padded(_MASK))
    end = 3 * sample
    for name, cut, kept in (
        ("inside the first header", 100, ""),
        ("after the first header", _BLOCK, ""),
        ("inside the first image", _BLOCK + 77, ""),
        ("inside the first image's padding", _BLOCK + len(_IMAGE) + 1, ""),
        ("at the first mask's header", image, ""),
        ("at the second sample's header", sample, ""),
        ("inside the second sample's header", sample + 300, ""),
        ("inside the second image", sample + _BLOCK + 10, "a"),
        ("inside the second mask's padding", sample + image + _BLOCK + len(_MASK) + 3, "a"),
        ("inside the last mask", end - 2 * _BLOCK, "ab"),
        ("before the end blocks", end, "ab"),
        ("inside the first end block", end + 100, "ab"),
        ("between the end blocks", end + _BLOCK, "abc"),
        ("inside the second end block", end + _BLOCK + 1, "abc"),
    ):
        yield _case(f"cut {name}", whole[:cut], shard(list(kept), fault="tar_truncated"))
    yield _case("cut in the padding behind the end blocks", whole[: end + 2 * _BLOCK + 99], shard(list("abc")))
    yield _case("a byte", b"a", shard(fault="tar_truncated"))
    yield _case("a zero byte", b"\0", shard(fault="tar_truncated"))
    yield _case("the first byte of gzip", b"\x1f", shard(fault="tar_truncated"))
    yield _case("an empty file", b"", shard(fault="shard_empty"))
    yield _case("an empty file named .tar.gz", b"", shard(fault="shard_empty"), "tar.gz")
    yield _case("no members", make_tar([]), shard())
    yield _case("two end blocks and nothing else", bytes(1024), shard())
    yield _case("one end block and nothing else", bytes(512), shard(fault="tar_truncated"))
    yield _case("zeros without end", bytes(5_000_000), shard())


def _damaged(whole: bytes) -> Iterator[Case]:
    image = _BLOCK + len(_padded(_IMAGE))
    sample = image + _BLOCK + len(_padded(_MASK))

    def flipped(place: int) -> bytes:
        data = bytearray(whole)
        data[place] ^= 0x10
        return bytes(data)

    corrupt = "tar_corrupt"
    yield _case("a bit in the first header", flipped(2), shard(fault=corrupt))
    yield _case("a bit in a size", flipped(sample + 130), shard([], fault=corrupt))
    yield _case("a bit in a checksum", flipped(2 * sample + 150), shard(["a"], fault=corrupt))
    yield _case("a bit in an image", flipped(sample + _BLOCK + 60), shard(["a", "c"], {"b": "image_undecodable"}))
    yield _case("a bit in the padding", flipped(image - 1), shard(list("abc")))
    yield _case("a bit in the end blocks", flipped(3 * sample + 5), shard(["a", "b"], fault=corrupt))
    yield _case("a bit behind the end blocks", flipped(len(whole) - 9), shard(list("abc"), fault="tar_trailing_data"))
    yield _case("garbage after the end", whole + b"garbage", shard(list("abc"), fault="tar_trailing_data"))
    twice = whole + make_tar(members("de"))
    yield _case("two archives one behind the other", twice, shard(list("abc"), fault="tar_trailing_data"))
    joined = _body(whole) + make_tar(members("de"))
    yield _case("two archives joined as tar -A does", joined, shard(list("abcde")))
    lone = whole[:sample] + bytes(_BLOCK) + whole[sample:]
    yield _case("a lone zero block in the middle", lone, shard(["a"], fault="tar_trailing_data"))
    shifted = whole[:sample] + b"\n" + whole[sample:]
    yield _case("a byte too many between members", shifted, shard([], fault=corrupt))
    missing = whole[:_BLOCK] + whole[_BLOCK + 1 :]
    yield _case("a byte too few in an image", missing, shard([], fault=corrupt))
    yield _case("a web page", b"<html>404 Not Found</html>" * 100, shard(fault=corrupt))
    yield _case("a ZIP", b"PK\3\4" + bytes(2000), shard(fault=corrupt))
    yield _case("a PNG", (_IMAGE * 9)[:4096], shard(fault=corrupt))
    yield _case("a Parquet file named .tar", b"PAR1" + bytes(3000) + b"PAR1", shard(fault=corrupt))


def _packed(whole: bytes) -> Iterator[Case]:
    packed = gzip.compress(whole, mtime=0)
    corrupt = "gzip_corrupt"
    yield _case("gzip", packed, shard(list("abc")), "tar.gz")
    yield _case("gzip named .tgz", packed, shard(list("abc")), "tgz")
    yield _case("gzip named .tar", packed, shard(list("abc")))
    yield _case("a plain tar named .tar.gz", whole, shard(list("abc")), "tar.gz")
    for share in (0.3, 0.6, 0.9):
        keys = _whole_in(packed[: int(share * len(packed))])
        yield _case(f"gzip cut at {share}", packed[: int(share * len(packed))], shard(keys, fault=corrupt), "tar.gz")
    yield _case("gzip cut in its header", packed[:7], shard(fault=corrupt), "tar.gz")
    yield _case("gzip without its checksum", packed[:-8], shard(list("abc"), fault=corrupt), "tar.gz")
    wrong = packed[:-8] + b"\1\2\3\4" + packed[-4:]
    yield _case("gzip with a wrong checksum", wrong, shard(list("abc"), fault=corrupt), "tar.gz")
    yield _case("garbage behind gzip", packed + b"garbage", shard(list("abc"), fault=corrupt), "tar.gz")
    yield _case("zeros behind gzip", packed + bytes(99), shard(list("abc")), "tar.gz")
    halves = gzip.compress(whole[:3000], mtime=0) + gzip.compress(whole[3000:], mtime=0)
    yield _case("gzip in two streams", halves, shard(list("abc")), "tar.gz")
    yield _case("gzip of two archives", packed + packed, shard(list("abc"), fault="tar_trailing_data"), "tar.gz")
    yield _case("gzip of gzip", gzip.compress(packed), shard(fault="tar_corrupt"), "tar.gz")
    bomb = gzip.compress(_header(tarfile.REGTYPE, 64 * 2**20, "big.bin") + bytes(64 * 2**20) + whole, 9)
    yield _case("gzip of 64 MiB of zeros in 64 kB", bomb, _after_big, "tar.gz")
    endless = gzip.compress(whole + bytes(64 * 2**20), 9)
    yield _case("gzip of 64 MiB of padding", endless, shard(list("abc")), "tar.gz")
    yield _case("bzip2 named .tar", bz2.compress(whole), shard(fault="tar_corrupt"))
    yield _case("xz named .tar", lzma.compress(whole), shard(fault="tar_corrupt"))


def _after_big(came: Any) -> str:
    return shard(["a", "b", "c"], {"big": "missing_image"})(came)


def _whole_in(packed: bytes) -> list[str]:
    """Keys of which the next sample's header is there."""
    stream = io.BytesIO()
    try:
        source = gzip.GzipFile(fileobj=io.BytesIO(packed))
        while byte := source.read1(1):
            stream.write(byte)
    except EOFError:
        pass
    found = stream.getvalue()
    image = _BLOCK + len(_padded(_IMAGE))
    sample = image + _BLOCK + len(_padded(_MASK))
    return list("abc")[: max(0, (len(found) - _BLOCK) // sample)]


def _kinds(whole: bytes) -> Iterator[Case]:
    """Links, devices, fifos and folders have no bytes; nothing is followed, opened or made."""
    kept = shard(list("abc"))
    for name, kind in {
        "a symbolic link": tarfile.SYMTYPE,
        "a hard link": tarfile.LNKTYPE,
        "a character device": tarfile.CHRTYPE,
        "a block device": tarfile.BLKTYPE,
        "a fifo": tarfile.FIFOTYPE,
        "a folder": tarfile.DIRTYPE,
    }.items():
        head = _header(kind, 0, "x.png", linkname="/etc/passwd")
        yield _case(f"{name} named as an image", head + whole, kept)
    yield _case("a hard link with a size", _header(tarfile.LNKTYPE, 4096, linkname="a.png") + whole, kept)
    yield _case("a contiguous file", _header(tarfile.CONTTYPE, 3, "x.txt") + _padded(b"abc") + whole, _with_x)
    yield _case("a file of version 7", _header(tarfile.AREGTYPE, 3, "x.txt") + _padded(b"abc") + whole, _with_x)
    yield _case("a type that nobody knows", _header(b"Q", 3) + _padded(b"abc") + whole, kept)
    yield _case("a folder of files", _header(tarfile.DIRTYPE, 0, "d/") + make_tar(_in_folder()), shard(["d/a"]))
    sparse = bytearray(_header(tarfile.GNUTYPE_SPARSE, 3, "s.png"))
    yield _case("a sparse file", bytes(sparse) + _padded(b"abc") + whole, kept)
    sparse[482] = 1
    sparse[148:156] = b"%06o\0 " % calc_chksums(bytes(sparse))[0]
    extended = bytes(sparse) + b"\1" * _BLOCK + bytes(_BLOCK) + _padded(b"abc")
    yield _case("a sparse file with a long map", extended + whole, kept)
    posix = _pax(tarfile.XHDTYPE, _record("GNU.sparse.major", b"1") + _record("GNU.sparse.name", b"s.png"))
    yield _case("a sparse file as PAX has it", posix + _header(tarfile.REGTYPE, 3) + _padded(b"abc") + whole, kept)
    nothing = _header(tarfile.REGTYPE, 0, "e.png") + _header(tarfile.REGTYPE, 0, "e.mask.png")
    yield _case("files without bytes", nothing + whole, shard(list("abc"), {"e": "image_empty"}))
    volume = _header(b"V", 0, "label")
    yield _case("a volume's label", volume + whole, kept)
    listing = _header(b"D", 6, "dump") + _padded(b"Ya.png")
    yield _case("an incremental dump's listing", listing + whole, kept)


def _with_x(came: Any) -> str:
    return shard(list("abc"), {"x": "missing_image"})(came)


def _names() -> Iterator[Case]:
    def one(name: str) -> list[tuple[str, bytes]]:
        return [(f"{name}.png", _IMAGE), (f"{name}.mask.png", _MASK)]

    for tar_format, word in ((tarfile.GNU_FORMAT, "GNU"), (tarfile.PAX_FORMAT, "PAX")):
        for key in ("/etc/passwd", "../../x", "n" * 300, "d/" * 100 + "x", "ü" * 200):
            shown = key if len(key) < 20 else f"{key[:3]}... ({len(key)})"
            yield _case(f"{word} names: {shown}", make_tar(one(key), tar_format), shard([key]))
    prefix = "p" * 150 + "/" + "x"
    yield _case("ustar's prefix", make_tar(one(prefix), tarfile.USTAR_FORMAT), shard([prefix]))
    nul = _pax(tarfile.XHDTYPE, _record("path", b"a\0b.png")) + _header(tarfile.REGTYPE, 0) + make_tar(members("c"))
    yield _case("a NUL in a PAX name", nul, shard(["c"], {"a\0b": "missing_mask"}))
    latin = _pax(tarfile.XHDTYPE, _record("path", b"caf\xe9.png")) + _header(tarfile.REGTYPE) + make_tar(members("c"))
    yield _case("a PAX name that is no UTF-8", latin, shard(["c"], {r"caf\xe9": "missing_mask"}))
    empty = _pax(tarfile.XHDTYPE, _record("path", b"")) + _header(tarfile.REGTYPE, 0, "q.png") + make_tar(members("c"))
    yield _case("a PAX name that is empty", empty, shard(["c"], {"q": "missing_mask"}))
    every = _pax(tarfile.XGLTYPE, _record("comment", b"git's hash") + _record("mtime", b"1.5")) + make_tar(members())
    yield _case("a global PAX header, as git archive writes", every, shard(list("abc")))


def _hostile(whole: bytes) -> Iterator[Case]:
    corrupt, cut = shard(fault="tar_corrupt"), shard(fault="tar_truncated")
    yield _case("an image of 10 TB", _header(tarfile.REGTYPE, 10**13) + whole, cut)
    yield _case("a skipped file of 10 TB", _header(tarfile.REGTYPE, 10**13, "x.bin") + whole, cut)
    yield _case("an image of a negative size", _header(tarfile.REGTYPE, -512) + whole, corrupt)
    yield _case("a PAX size of 99 GB", _pax(tarfile.XHDTYPE, _record("size", b"99999999999")) + whole, cut)
    yield _case("a PAX size of 99 digits", _pax(tarfile.XHDTYPE, _record("size", b"9" * 99)) + whole, corrupt)
    yield _case("a PAX size of letters", _pax(tarfile.XHDTYPE, _record("size", b"many")) + whole, corrupt)
    yield _case("a PAX record that is too long", _pax(tarfile.XHDTYPE, b"99 path=x\n") + whole, corrupt)
    yield _case("a PAX header of 1 TB", _header(tarfile.XHDTYPE, 10**12) + whole, corrupt)
    yield _case("a GNU long name of 1 TB", _header(tarfile.GNUTYPE_LONGNAME, 10**12) + whole, corrupt)
    chain = _header(tarfile.GNUTYPE_LONGNAME, 0) * 5000
    yield _case("5000 long names one behind the other", chain + whole, corrupt)
    broken = bytearray(_pax(tarfile.XHDTYPE, _record("path", b"x.png")))
    broken[150] ^= 1
    yield _case("a PAX header with a bad checksum", bytes(broken) + whole, corrupt)
    behind = bytearray(_pax(tarfile.XHDTYPE, _record("path", b"x.png")) + whole)
    behind[1024 + 150] ^= 1
    yield _case("a bad checksum behind a PAX header", bytes(behind), corrupt)
    yield _case("a PAX header of nothing", _pax(tarfile.XHDTYPE, _record("path", b"x.png")) + bytes(1024), corrupt)
    many = b"".join(_header(tarfile.REGTYPE, 0, f"{number}.bin") for number in range(3000))
    yield _case("3000 samples of nothing", many + whole, _three_thousand)


def _three_thousand(came: Any) -> str:
    odd = {row["code"] for row in came.errors}
    fits = [row["key"] for row in came.results] == list("abc") and odd == {"missing_image"} and len(came.errors) == 3000
    return "" if fits and not came.faults else f"{len(came.errors)} errors {odd}: {came}"
