"""Prompts for the one method that takes them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from tests.corpus.case import HOLE, Came, Case, Expects, SampleCase, ShardCase, error, hole, masked, photo, png, result


def _prompted(prompt: str) -> Expects:
    """A result whose row says that its hole was filled with this."""
    return result(photo(), box=HOLE, prompt=prompt)


def cases() -> Iterator[Case]:
    for name, raw, prompt in (
        ("plain", b"a dog", "a dog"),
        ("empty", b"", ""),
        ("a space", b" ", " "),
        ("of 100 kB", b"cat " * 25_600, "cat " * 25_600),
        ("of 100 kB without a space", b"x" * 102_400, "x" * 102_400),
        ("with newlines", b"a\r\nb\n\nc\n", "a\r\nb\n\nc\n"),
        ("not UTF-8", b"caf\xe9 \xff\xfe", "caf\ufffd \ufffd\ufffd"),
        ("UTF-16 with its mark", "dog".encode("utf-16"), "\ufffd\ufffdd\0o\0g\0"),
        ("with a NUL", b"a\0b", "a\0b"),
        ("with braces", b"{prompt} {0} %s", "{prompt} {0} %s"),
        ("an emoji", "🐕‍🦺".encode(), "🐕‍🦺"),
        ("a surrogate as UTF-8", b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        ("the tokenizer's own words", b"<|endoftext|><|startoftext|>", "<|endoftext|><|startoftext|>"),
    ):
        yield _case(name, {"txt": raw}, _prompted(prompt))
    yield _case("missing", {}, error("missing_prompt"))
    yield _case("in another field", {"text": b"a dog"}, error("missing_prompt"))
    yield _case("two of them: the first of input.prompt counts", {"caption": b"no", "txt": b"yes"}, _prompted("yes"))
    for name, text, expects in (
        ("a json's own", json.dumps({"asymvae": {"prompt": "a wall"}}), _prompted("a wall")),
        ("a json's null", json.dumps({"asymvae": {"prompt": None}}), _prompted("a dog")),
        ("a json's number", json.dumps({"asymvae": {"prompt": 3}}), error("override_out_of_range")),
        ("a json's unknown word", json.dumps({"asymvae": {"promt": "x"}}), error("override_unknown")),
        ("a json that is none", "{", error("json_invalid")),
        ("a json that is a list", "[]", error("json_invalid")),
        ("a json that is empty", "", error("json_invalid")),
        ("a json of 100,000 brackets", "[" * 100_000, error("json_invalid")),
        ("a json's integer of 10,000 digits", '{"asymvae": {"seed": ' + "9" * 10_000 + "}}", _either_range),
        ("a json's lone surrogate", '{"asymvae": {"prompt": "\\ud800"}}', _prompted("?")),
        ("a json with a NaN", '{"score": NaN}', _prompted("a dog")),
    ):
        yield _case(name, {"txt": b"a dog", "json": text.encode()}, expects)
    yield from _columns()


def _either_range(came: Came) -> str:
    return error("override_out_of_range", "json_invalid")(came)


def _case(name: str, fields: dict[str, bytes], expects: Expects) -> SampleCase:
    return SampleCase("prompts", name, masked(png(photo()), box=HOLE) | fields, expects, job="prompted")


def _columns() -> Iterator[Case]:
    """In Parquet: text, bytes, null."""
    image, mask = png(photo()), png(hole())

    def table(prompts: pa.Array) -> bytes:
        rows = len(prompts)
        out = io.BytesIO()
        pq.write_table(pa.table({"png": [image] * rows, "mask.png": [mask] * rows, "txt": prompts}), out)
        return out.getvalue()

    def said(*prompts: str) -> Expects:
        def check(came: Came) -> str:
            found = [row["prompt"] for row in came.results]
            missing = [row["code"] for row in came.errors]
            return (
                ""
                if found == list(prompts) and missing == ["missing_prompt"] and not came.faults
                else f"{found} {came}"
            )

        return check

    texts = pa.array(["a dog", None, "", "ein Hünd\n"])
    yield ShardCase(
        "prompts", "a column of text with a null", table(texts), said("a dog", "", "ein Hünd\n"), "parquet", "prompted"
    )
    raw = pa.array([b"a dog", None, b"\xff"])
    yield ShardCase("prompts", "a column of bytes", table(raw), said("a dog", "\ufffd"), "parquet", "prompted")
    numbers = table(pa.array([1, 2]))
    yield ShardCase("prompts", "a column of numbers", numbers, _wrong_types, "parquet", "prompted")


def _wrong_types(came: Came) -> str:
    codes = [row["code"] for row in came.errors]
    return "" if codes == ["field_wrong_type"] * 2 and not came.results and not came.faults else f"{codes}: {came}"
