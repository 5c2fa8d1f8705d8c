"""One column of a Parquet batch, cell by cell: content, a URL, nothing, or a fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from asymvae.faults import Fault
from asymvae.storage.samples import MAX_FIELD_BYTES, safe_key


@dataclass(frozen=True, slots=True)
class Url:
    """A URL or path, still to be fetched."""

    text: str


class Column:
    """A role's column. ``column[row]`` is bytes, a Url, None for null, or a Fault where the type is none of ours.

    Strings are content where ``is_text``, else URLs. Of a struct, ``bytes`` counts if it isn't null, else
    ``path``, as in Hugging Face's Image columns.
    """

    def __init__(self, batch: pa.RecordBatch, name: str, *, is_text: bool) -> None:
        self._name = name
        array = _plain(batch, name)
        self._array = array  # says which rows are null, whatever the type
        self._bytes: pa.Array | None = None
        self._urls: pa.Array | None = None
        if pa.types.is_struct(array.type):
            members = {field.name for field in array.type}
            # struct_field, for StructArray.field would show what lies under a null struct
            if "bytes" in members:
                self._bytes = _as_bytes(pc.struct_field(array, "bytes"), _BYTES)
            if "path" in members:
                self._urls = _as_bytes(pc.struct_field(array, "path"), _STRINGS)
        else:
            self._bytes = _as_bytes(array, _BYTES + _STRINGS if is_text else _BYTES)
            self._urls = None if is_text else _as_bytes(array, _STRINGS)

    def __getitem__(self, row: int) -> bytes | Url | Fault | None:
        if not self._array[row].is_valid:
            return None
        if self._bytes is not None and (cell := self._bytes[row]).is_valid:
            size = len(cell.as_buffer())
            if size > MAX_FIELD_BYTES:
                return Fault("field_too_large", {"field": self._name, "size": size, "limit": MAX_FIELD_BYTES})
            content: bytes = cell.as_py()
            return content
        if self._urls is not None and (cell := self._urls[row]).is_valid:
            return Url(safe_key(cell.as_py()))
        if self._bytes is None and self._urls is None:
            return Fault("field_wrong_type", {"field": self._name})
        return None  # a struct whose members are null


class JsonColumn:
    """A column of JSON: text or bytes, as :class:`Column` has them, or structs, each of which is a JSON object."""

    def __init__(self, batch: pa.RecordBatch, name: str) -> None:
        self._text = Column(batch, name, is_text=True)
        array = _plain(batch, name)
        is_object = pa.types.is_struct(array.type) and not {field.name for field in array.type} <= {"bytes", "path"}
        self._objects: pa.Array | None = array if is_object else None

    def __getitem__(self, row: int) -> bytes | Url | Fault | None:
        if self._objects is None:
            return self._text[row]
        try:
            value = self._objects[row].as_py()
        except ValueError:  # text that is no UTF-8, a member that comes twice, a time that Python can't hold
            return Fault("json_invalid")
        # What JSON has no form for (times, bytes) becomes text: it is metadata that nobody here reads.
        return None if value is None else json.dumps(value, default=str).encode()


class KeyColumn:
    """The keys: strings, bytes or integers. ``keys[row]`` is a Fault where there is none."""

    def __init__(self, batch: pa.RecordBatch, name: str) -> None:
        self._name = name
        self._array = _plain(batch, name)
        self._bytes = _as_bytes(self._array, _BYTES + _STRINGS)

    def __getitem__(self, row: int) -> str | Fault:
        if not self._array[row].is_valid:
            return Fault("missing_key")
        if self._bytes is not None:
            return safe_key(self._bytes[row].as_py())
        if pa.types.is_integer(self._array.type):
            return str(self._array[row].as_py())
        return Fault("field_wrong_type", {"field": self._name})


_BYTES: Final = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
    pa.types.is_binary_view,
)
_STRINGS: Final = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def _plain(batch: pa.RecordBatch, name: str) -> pa.Array:
    """The column without dictionary or extension type; nulls where there is no such column, or two."""
    place = batch.schema.get_field_index(name)
    array = pa.nulls(batch.num_rows) if place < 0 else batch.column(place)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _as_bytes(array: pa.Array, kinds: tuple[Callable[[pa.DataType], bool], ...]) -> pa.Array | None:
    """The array as bytes if it is of one of these kinds. Strings too: files hold some that are no UTF-8."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(pa.large_binary()) if any(kind(array.type) for kind in kinds) else None
