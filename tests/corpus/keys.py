"""Keys that a file system, a table or a web page would trip over; and samples whose members are not in order."""

from __future__ import annotations

import tarfile
import unicodedata
from collections.abc import Iterator

from tests.corpus.case import Came, Case, Expects, SampleCase, ShardCase, hole, masked, photo, png, result, shard
from tests.storage.tars import make_tar

_GOOD = {
    "spaces": "a key with  spaces ",
    "a tab and a line's end": "tab\tand\nline\r\nend",
    "Cyrillic": "ключ",
    "an emoji of several code points": "👩‍👩‍👧/💡",
    "composed (NFC)": unicodedata.normalize("NFC", "café"),
    "decomposed (NFD)": unicodedata.normalize("NFD", "café"),
    "right to left": "مفتاح",
    "a direction override": "abc\u202egpj",
    "slashes": "a/b/c/d",
    "two slashes": "a//b",
    "dots in its folders": "v1.2.3/x.y/name",
    "an absolute path": "/etc/passwd",
    "the folder above": "../../../etc/shadow",
    "1000 characters": "k" * 1000,
    "1000 characters of three bytes": "鍵" * 1000,
    "a backslash": r"C:\images\1",
    "quotes": 'it\'s a "key"',
    "a glob": "[*]?{a,b}",
    "percent signs": "%2e%2e%2f%00",
    "a formula": "=1+1",
    "markup": "<script>alert(1)</script>",
    "null as a word": "null",
    "a number": "0007",
    "a control character": "bell\x07",
    "a byte order mark": "\ufeffkey",
    "upper case": "KEY",
    "lower case": "key",
    "a hash sign": "a#b?c=d",
    "a leading dash": "-rf",
    "what looks like a slash": "a\u2215b",
}


def _keyed(key: str) -> Expects:
    """The usual result, under this very key."""
    pixels = result(photo(), box=None)

    def check(came: Came) -> str:
        if [row["key"] for row in came.results] != [key]:
            return f"keys are {[row['key'] for row in came.results]!r}, not {key!r}: {came}"
        return pixels(came)

    return check


def _plain(key: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", png(photo())), (f"{key}.mask.png", png(hole(None)))]


def _tar(*members: tuple[str, bytes]) -> bytes:
    return make_tar(members, tarfile.PAX_FORMAT)


def cases() -> Iterator[Case]:
    for name, key in _GOOD.items():
        yield SampleCase("keys", name, masked(png(photo()), box=None), _keyed(key), key=key)
    yield from _odd()
    yield from _order()


def _odd() -> Iterator[Case]:
    group, kept = "keys", _plain("kept")
    yield ShardCase(group, "a leading dot is no key", _tar(*_plain(".hidden"), *kept), shard(["kept"]))
    yield ShardCase(
        group, "a leading dot in a folder: the folder is", _tar(*_plain("a/.b"), *kept), shard(["a/", "kept"])
    )
    dotted = _tar(*_plain("..."), *_plain("a/..b"), *kept)
    yield ShardCase(group, "dots alone", dotted, shard(["a/", "kept"]))
    dots = _tar(("a.b.c.png", png(photo())), ("a.b.c.mask.png", png(hole(None))), ("a.x.txt", b"x"))
    yield ShardCase(group, "the key ends at its first dot", dots, shard(["a"]))
    yield ShardCase(group, "no extension", _tar(("noextension", b"x"), ("d/none", b"y"), *kept), shard(["kept"]))
    raw = make_tar([(name.replace("K", "caf\udce9"), data) for name, data in _plain("K")], tarfile.GNU_FORMAT)
    yield ShardCase(group, "Latin-1, which is no UTF-8", raw, shard([r"caf\xe9"]))
    pair = _tar(*_plain(r"caf\xe9")), raw
    both = pair[0].rstrip(b"\0")
    both = both.ljust(-(-len(both) // 512) * 512, b"\0") + raw
    yield ShardCase(
        group, "one whose escaped form is another's key", both, shard([r"caf\xe9"], {r"caf\xe9": "duplicate_key"})
    )
    macos = _tar(("._a.png", b"\0\5\x16\7"), *kept, ("__MACOSX/._kept.png", b"\0\5\x16\7"), (".DS_Store", b"x"))
    yield ShardCase(group, "what macOS leaves in archives", macos, shard(["kept"], {"__MACOSX/": "missing_mask"}))
    cases = _tar(("a.PNG", png(photo())), ("a.Mask.Png", png(hole(None))))
    yield ShardCase(group, "fields in upper case", cases, shard(["a"]))


def _order() -> Iterator[Case]:
    group, image, mask = "order", png(photo()), png(hole(None))
    twice = _tar(*_plain("a"), *_plain("a"), *_plain("b"))
    yield ShardCase(group, "a key twice", twice, shard(["a", "b"], {"a": "duplicate_key"}))
    apart = _tar(*_plain("a"), *_plain("b"), *_plain("a"))
    yield ShardCase(group, "a key again, later", apart, shard(["a", "b"], {"a": "duplicate_key"}))
    bad_first = _tar(("a.png", b"bad"), ("a.mask.png", mask), *_plain("a"))
    yield ShardCase(group, "a key twice, the first is bad", bad_first, _twice_bad)
    three = _tar(*_plain("a"), *_plain("b"), *_plain("a"), *_plain("a"))
    yield ShardCase(group, "a key three times", three, _thrice)
    fields = _tar(("a.png", image), ("b.png", image), ("a.mask.png", mask), ("b.mask.png", mask))
    yield ShardCase(group, "two samples' fields interleaved", fields, _interleaved)
    sorted_by_field = _tar(
        *((f"{k}.png", image) for k in "ab"), ("m/x.txt", b"x"), *((f"{k}.mask.png", mask) for k in "ab")
    )
    yield ShardCase(group, "all images, then all masks", sorted_by_field, _images_then_masks)
    folders = _tar(("images/a.png", image), ("masks/a.mask.png", mask))
    yield ShardCase(
        group,
        "images and masks in folders of their own",
        folders,
        shard([], {"images/a": "missing_mask", "masks/a": "missing_image"}),
    )
    first = _tar(("a.mask.png", mask), ("a.json", b"{}"), ("a.png", image))
    yield ShardCase(group, "the mask before the image", first, shard(["a"]))
    again = _tar(("a.png", image), ("a.png", image), ("a.mask.png", mask))
    yield ShardCase(group, "an image twice in a sample", again, _second_is_kept)


def _codes(came: Came) -> list[tuple[str, str]]:
    return [(row["key"], row["code"]) for row in came.errors]


def _is(came: Came, results: list[str], errors: list[tuple[str, str]]) -> str:
    fits = [row["key"] for row in came.results] == results and _codes(came) == errors and not came.faults
    return "" if fits else str(came)


def _twice_bad(came: Came) -> str:
    return _is(came, [], [("a", "image_undecodable"), ("a", "duplicate_key")])


def _thrice(came: Came) -> str:
    return _is(came, ["a", "b"], [("a", "duplicate_key"), ("a", "duplicate_key")])


def _interleaved(came: Came) -> str:
    again = [("a", "duplicate_key"), ("b", "duplicate_key")]
    return _is(came, [], [("a", "missing_mask"), ("b", "missing_mask"), *again])


def _images_then_masks(came: Came) -> str:
    masks = [("m/x", "missing_image"), ("a", "duplicate_key"), ("b", "duplicate_key")]
    return _is(came, [], [("a", "missing_mask"), ("b", "missing_mask"), *masks])


def _second_is_kept(came: Came) -> str:
    """A field that comes again begins another sample of the key: the first has no mask, and stays."""
    return _is(came, [], [("a", "missing_mask"), ("a", "duplicate_key")])
