"""Files with bytes of theirs changed, by a generator of the caller's: the same generator, the same file."""

from __future__ import annotations

import gzip
import random
import struct
import zlib
from collections.abc import Callable, Sequence

MOST_BYTES = 4 * 2**20  # of a mutated file

_BLOCK = 512  # of a tar
_EXTREMES = (
    0,
    1,
    2,
    3,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
_OCTAL = (b"00000000000\0", b"00000000001\0", b"77777777777\0", b"00000001000\0", b"00000000777\0", b"           \0")
_BASE_256 = (b"\x80" + bytes(10) + b"\1", b"\xff" * 12, b"\x80" + b"\xff" * 11)


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes]) -> tuple[bytes, list[str]]:
    """One to eight changes, after one another, and what they were. ``others``: files that parts are spliced in from."""
    out, done = bytearray(data), []
    for _ in range(1 if rng.random() < 0.5 else rng.randint(2, 8)):
        name = rng.choice(_NAMES)
        out = _MUTATIONS[name](rng, out, others)[:MOST_BYTES]
        done.append(name)
        if not out:
            break
    return bytes(out), done


def repaired(rng: random.Random, data: bytes) -> tuple[bytes, list[str]]:
    """Mostly with the checksums made right again, so that what lies behind them is reached."""
    if rng.random() < 0.25:
        return data, []
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_checksums(data), ["png checksums"]
    if len(data) >= _BLOCK and data[257:262] == b"ustar":
        return _tar_checksums(data), ["tar checksums"]
    return data, []


def compressed(rng: random.Random, data: bytes) -> bytes:
    """As a gzip file, of one member or of two."""
    cut = rng.randrange(len(data) + 1) if rng.random() < 0.3 else len(data)
    return gzip.compress(data[:cut], 1, mtime=0) + (gzip.compress(data[cut:], 1, mtime=0) if cut < len(data) else b"")


def _place(rng: random.Random, size: int, *, has_footer: bool = False) -> int:
    """Anywhere, but often near the beginning or the end, where formats have what they say of themselves.

    ``has_footer``: seldom there, for almost nothing else is reached when it is damaged.
    """
    where = rng.random()
    if where < 0.35:
        return min(size - 1, int(rng.expovariate(1 / 64)))
    if where < (0.4 if has_footer else 0.6):
        return max(0, size - 1 - int(rng.expovariate(1 / 400)))
    return rng.randrange(size * 2 // 3 + 1 if has_footer else size)


def _at(rng: random.Random, data: bytes | bytearray) -> int:
    return _place(rng, len(data), has_footer=data[-4:] == b"PAR1")


def _run(rng: random.Random, data: bytearray) -> tuple[int, int]:
    begin = _at(rng, data)
    return begin, min(len(data), begin + 1 + int(rng.expovariate(1 / rng.choice((2, 30, 1000)))))


def _flip_bits(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[_at(rng, data)] ^= 1 << rng.randrange(8)
    return data


def _set_byte(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    data[_at(rng, data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return data


def _step_byte(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    place = _at(rng, data)
    data[place] = (data[place] + rng.choice((-2, -1, 1, 2, 4, 16))) % 256
    return data


def _replace_run(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    begin, end = _run(rng, data)
    data[begin:end] = rng.choice((bytes(end - begin), b"\xff" * (end - begin), rng.randbytes(end - begin)))
    return data


def _truncate(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    return data[: _at(rng, data)]


def _drop_run(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    begin, end = _run(rng, data)
    return data[:begin] + data[end:]


def _repeat_run(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    begin, end = _run(rng, data)
    return data[:end] + data[begin:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def _append(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> bytearray:
    return data + rng.choice((data, bytes(rng.randrange(2000)), rng.randbytes(rng.randrange(600)), rng.choice(others)))


def _swap_blocks(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    """Two blocks of a tar, two pieces of anything else."""
    count = len(data) // _BLOCK
    if count < 2:
        return data
    first, second = (_BLOCK * rng.randrange(count) for _ in range(2))
    one, two = data[first : first + _BLOCK], data[second : second + _BLOCK]
    data[first : first + _BLOCK], data[second : second + _BLOCK] = two, one
    return data


def _splice(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> bytearray:
    other = rng.choice(others)
    if rng.random() < 0.5:  # our head, its tail
        return data[: _at(rng, data)] + other[_at(rng, other) :]
    begin, end = _run(rng, data)
    from_ = _at(rng, other)
    return data[:begin] + other[from_ : from_ + end - begin] + data[end:]


def _number(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    """An integer of 1, 2, 4 or 8 bytes at an extreme, or beside what it was: lengths, offsets, counts."""
    size = rng.choice((1, 2, 2, 4, 4, 4, 8))
    order = rng.choice(("little", "big"))
    place = _at(rng, data)
    old = int.from_bytes(data[place : place + size], order)
    new = rng.choice((*_EXTREMES, old + 1, old - 1, old * 2, old // 2, old + 2**16, -old))
    data[place : place + size] = (new % 256**size).to_bytes(size, order)
    return data


def _tar_field(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> bytearray:
    """The size, the type or another field of a tar's header; of what is no tar a number."""
    headers = [at for at in range(0, len(data) - _BLOCK + 1, _BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return _number(rng, data, ())
    at = rng.choice(headers)
    if rng.random() < 0.5:
        data[at + 124 : at + 136] = rng.choice((*_OCTAL, *_BASE_256, b"%011o\0" % rng.randrange(100_000)))
    elif rng.random() < 0.5:
        data[at + 156] = rng.choice(b"\0" + b"01234567LKxgXSDMVN?")
    else:
        name = rng.choice((b"", b"/", b"..", b"a.", b".jpg", b"a.jpg", b"\xff\xfe.png", b"a.mask.png", b"x" * 100))
        data[at : at + 100] = name.ljust(100, b"\0")
    return data


_MUTATIONS: dict[str, Callable[[random.Random, bytearray, Sequence[bytes]], bytearray]] = {
    "flip bits": _flip_bits,
    "set byte": _set_byte,
    "step byte": _step_byte,
    "replace run": _replace_run,
    "truncate": _truncate,
    "drop run": _drop_run,
    "repeat run": _repeat_run,
    "append": _append,
    "swap blocks": _swap_blocks,
    "splice": _splice,
    "number": _number,
    "tar field": _tar_field,
}
_WEIGHTS = {"flip bits": 3, "set byte": 2, "number": 5, "tar field": 3}
_NAMES = [name for name in _MUTATIONS for _ in range(_WEIGHTS.get(name, 1))]


def _png_checksums(data: bytes) -> bytes:
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 12 + int.from_bytes(out[at : at + 4], "big")
        if end > len(out):
            break
        out[end - 4 : end] = struct.pack(">I", zlib.crc32(out[at + 4 : end - 4]))
        at = end
    return bytes(out)


def _tar_checksums(data: bytes) -> bytes:
    out = bytearray(data)
    for at in range(0, len(out) - _BLOCK + 1, _BLOCK):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + _BLOCK])
    return bytes(out)
