"""How a Parquet page is written down: its header in Thrift's compact protocol, its levels as runs and packed bits.

Sources: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md and
https://parquet.apache.org/docs/file-format/data-pages/encodings/ (RLE / bit-packing hybrid).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

# Thrift's types, in the compact protocol.
_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _BINARY, _STRUCT = 0, 1, 2, 3, 4, 5, 6, 8, 12
_NUMBERS: Final = (_I16, _I32, _I64)
_MOST_BINARY: Final = 2**16  # a page's least and greatest value, where they are written
_MOST_DEEP: Final = 4


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_struct(source: Readable, deep: int = 0) -> dict[int, Any]:
    """The fields of a struct, by number: int, bool, bytes, and structs as dicts. Reads up to the struct's end.

    Raises:
        OSError: it is none, or has what no page header has (lists, doubles).
    """
    fields: dict[int, Any] = {}
    number = 0
    while (head := _byte(source)) != _STOP:
        step, kind = head >> 4, head & 0x0F
        number = number + step if step else _zigzag(source)
        if kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        elif kind == _BYTE:
            fields[number] = _byte(source)
        elif kind in _NUMBERS:
            fields[number] = _zigzag(source)
        elif kind == _BINARY and (size := _varint(source)) <= _MOST_BINARY:
            fields[number] = source.read(size)
        elif kind == _STRUCT and deep < _MOST_DEEP:
            fields[number] = read_struct(source, deep + 1)
        else:
            raise OSError(f"a damaged page header: field {number} of type {kind}")
    return fields


@lru_cache(16)  # nearly all pages of a file have the same levels
def begins_every(length: int, levels: bytes, count: int) -> bool:
    """Whether of ``count`` repetition levels of one bit just every ``length``-th is 0: there a list begins.

    Raises:
        OSError: they are cut off.
    """
    zeros = [*_zeros_of_runs(io.BytesIO(levels), count)]
    return np.array_equal(np.concatenate(zeros), np.arange(0, count, length))


def _zeros_of_runs(source: io.BytesIO, count: int) -> Iterator[NDArray[np.int64]]:
    place = 0
    while place < count:
        head = _varint(source)
        if head & 1:
            packed = np.frombuffer(source.read(head >> 1), np.uint8)
            bits = np.unpackbits(packed, count=min(packed.size * 8, count - place), bitorder="little")
            yield place + np.flatnonzero(bits == 0)
            place += packed.size * 8
        else:
            end = min(place + (head >> 1), count)
            if not _byte(source):
                yield np.arange(place, end)
            place = end


def _varint(source: Readable) -> int:
    """Seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 64, 7):
        byte = _byte(source)
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise OSError("a damaged page: a number of more than 64 bits")


def _zigzag(source: Readable) -> int:
    value = _varint(source)
    return (value >> 1) ^ -(value & 1)


def _byte(source: Readable) -> int:
    byte = source.read(1)
    if not byte:
        raise OSError("a damaged page: it is cut off")
    return byte[0]
