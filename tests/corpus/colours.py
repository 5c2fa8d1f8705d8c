"""Colour spaces, profiles, depths, palettes, alpha: what each must look like in 8-bit sRGB."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageCms

from tests.corpus.case import Case, SampleCase, error, masked, photo, result
from tests.media.files import png as png_of_rows
from tests.media.files import png16, save, tiff16
from tests.media.files import tiff as tiff_of


def cases() -> Iterator[Case]:
    yield from _inks()
    yield from _profiles()
    yield from _depths()
    yield from _alphas()
    yield from _frames()


def _sample(name: str, data: bytes, pixels: NDArray[np.uint8], within: int = 0, **more: object) -> SampleCase:
    return SampleCase("colours", name, masked(data), result(pixels, within=within, **more))  # type: ignore[arg-type]


def _inks() -> Iterator[Case]:
    """CMYK as most tools write it: Adobe's inverted ink, which Pillow writes too."""
    ink = np.dstack([255 - photo(), np.full(photo().shape[:2], 40, np.uint8)])
    plain = np.round((255.0 - ink[..., :3]) * (255 - 40) / 255).astype(np.uint8)
    picture = PIL.Image.fromarray(ink, "CMYK")
    yield _sample("CMYK JPEG without a profile", save(picture, "JPEG", quality=98, subsampling=0), plain, 8)
    yield _sample("CMYK TIFF without a profile", save(picture, "TIFF"), plain, 2)
    for name, icc in {"broken": b"nonsense" * 40, "RGB": _profile("sRGB"), "empty": b"", "cut": _press()[:200]}.items():
        data = save(picture, "JPEG", quality=98, subsampling=0, icc_profile=icc)
        yield _sample(f"CMYK JPEG with a profile that is {name}", data, plain, 8)
    # By this press's profile full cyan is red, and paper white: nothing that the plain formula could give.
    flat = np.zeros((*photo().shape[:2], 4), np.uint8)
    flat[:, :10, 0] = 255
    red = np.full((*photo().shape[:2], 3), 255, np.uint8)
    red[:, :10] = (255, 0, 0)
    for image_format in ("TIFF", "JPEG"):
        options = {"quality": 100, "subsampling": 0} if image_format == "JPEG" else {}
        data = save(PIL.Image.fromarray(flat, "CMYK"), image_format, icc_profile=_press(), **options)
        yield _sample(f"CMYK {image_format} with its press's profile", data, red, 4)


def _press() -> bytes:
    """A CMYK profile: cyan turns paper into sRGB's red, black into black, in Lab by a table of two points an ink."""
    white, red, black = (255, 128, 128), (138, 209, 198), (0, 128, 128)  # L, a, b in 8 bits; of red 54.3, 80.8, 69.9
    table = bytearray()
    for corner in range(16):  # cyan changes slowest
        table += bytes(black if corner & 1 else red if corner & 8 else white)
    linear = bytes(range(256))
    lut = struct.pack(">4sIBBBB", b"mft1", 0, 4, 3, 2, 0) + struct.pack(
        ">9i", *(65536 * (i % 4 == 0) for i in range(9))
    )
    lut += linear * 4 + bytes(table) + linear * 3
    tags = {
        b"desc": b"desc" + struct.pack(">II", 0, 6) + b"press\0" + bytes(79),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061),
        b"A2B0": lut,
    }
    at, head, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        head += name + struct.pack(">II", at + len(body), len(data))
        body += data
    profile = struct.pack(">I4sI4s4s4s", 0, bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ") + bytes(12) + b"acsp"
    profile = profile.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    profile = profile.ljust(128, b"\0") + struct.pack(">I", len(tags)) + head + body
    return struct.pack(">I", len(profile)) + profile[4:]


def _profile(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()  # type: ignore[arg-type]


def _bluish() -> bytes:
    """An RGB profile whose red and blue columns are swapped: a picture by it is seen to have been converted."""
    data = bytearray(_profile("sRGB"))
    entries = {bytes(data[at : at + 4]): at for at in range(132, 132 + 12 * struct.unpack(">I", data[128:132])[0], 12)}
    red, blue = (struct.unpack(">II", data[entries[tag] + 4 : entries[tag] + 12])[0] for tag in (b"rXYZ", b"bXYZ"))
    data[red : red + 20], data[blue : blue + 20] = data[blue : blue + 20], data[red : red + 20]
    return bytes(data)


def _profiles() -> Iterator[Case]:
    lossless = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
    for image_format, options in lossless.items():
        for name, icc in {
            "of noise": bytes(range(256)) * 4,
            "that is cut": _profile("sRGB")[:300],
            "whose header lies": _profile("sRGB")[:36] + b"none" + _profile("sRGB")[40:],
            "of another space": _profile("LAB"),
            "that is sRGB's": _profile("sRGB"),
        }.items():
            data = save(photo(), image_format, icc_profile=icc, **options)
            yield _sample(f"{image_format} with a profile {name}", data, photo())
        swapped = save(photo(), image_format, icc_profile=_bluish(), **options)
        yield _sample(f"{image_format} with red and blue swapped", swapped, photo()[..., ::-1], 2)
    large = _bluish() + bytes(2 * 2**20)
    data = save(photo(), "PNG", icc_profile=struct.pack(">I", len(large)) + large[4:])
    yield _sample("PNG with red and blue swapped by a profile of 2 MiB", data, photo()[..., ::-1], 2)
    jpeg = {"quality": 98, "subsampling": 0}
    data = save(photo(), "JPEG", icc_profile=_bluish(), **jpeg)
    yield _sample("JPEG with red and blue swapped", data, photo()[..., ::-1], 8)
    data = save(photo(), "JPEG", icc_profile=b"x" * 200_000, **jpeg)
    yield _sample("JPEG with a broken profile of 200 kB in four segments", data, photo(), 8)
    grey = np.repeat(photo()[..., :1], 3, axis=2)
    yield _sample("grey with an RGB profile", save(photo()[..., 0], "PNG", icc_profile=_profile("sRGB")), grey)
    yield _sample("grey with a broken profile", save(photo()[..., 0], "PNG", icc_profile=b"no"), grey)
    keep = save(photo(), "JPEG", quality=98, keep_rgb=True)
    yield _sample("JPEG that stores RGB", keep, photo(), 8)


def _depths() -> Iterator[Case]:
    chance = np.random.default_rng(5)
    deep = chance.integers(0, 65536, (*photo().shape[:2], 4), dtype=np.uint16)
    deep[0, 0] = (32767, 32768, 65535, 128)
    reduced = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)
    grey = np.repeat(reduced[..., :1], 3, axis=2)
    flagged = {"bit_depth_reduced": True}
    yield _sample("16-bit PNG, grey", png16(deep[..., :1]), grey, **flagged)
    yield _sample("16-bit PNG", png16(deep[..., :3]), reduced[..., :3], **flagged)
    yield _sample("16-bit PNG with alpha", png16(deep), reduced[..., :3], alpha=reduced[..., 3], **flagged)
    yield _sample("16-bit PNG, grey with alpha", png16(deep[..., :2]), grey, alpha=reduced[..., 1], **flagged)
    yield _sample("16-bit TIFF", tiff16(np.ascontiguousarray(deep[..., :3])), reduced[..., :3], **flagged)
    yield _sample("16-bit TIFF, grey", tiff16(np.ascontiguousarray(deep[..., 0])), grey, **flagged)
    yield _sample("8-bit PNG says that nothing was reduced", save(photo(), "PNG"), photo(), bit_depth_reduced=False)
    bits = photo()[..., 0] > 128
    black_white = np.repeat(np.where(bits, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    one = PIL.Image.fromarray(bits)
    yield _sample("1-bit PNG", save(one, "PNG"), black_white)
    yield _sample("1-bit TIFF", save(one, "TIFF"), black_white)
    yield _sample("1-bit TIFF by fax's group 4", save(one, "TIFF", compression="group4"), black_white)
    yield _sample("1-bit BMP", save(one, "BMP"), black_white)
    for depth in (2, 4):
        top = (1 << depth) - 1
        levels = photo()[..., 0] >> (8 - depth)
        rows = [_packed(row, depth) for row in levels]
        shown = np.repeat((levels * (255 // top)).astype(np.uint8)[..., None], 3, axis=2)
        yield _sample(f"{depth}-bit PNG, grey", png_of_rows(rows, levels.shape[1], depth, 0), shown)
    for name, data, mode in (
        ("a TIFF of floats", save(PIL.Image.fromarray(photo()[..., 0].astype(np.float32)), "TIFF"), "float"),
        ("a TIFF of 32-bit integers", save(PIL.Image.fromarray(photo()[..., 0].astype(np.int32)), "TIFF"), "integers"),
        ("a TIFF of three floats", tiff_of(bytes(32 * 48 * 12), 32, 48, bits=32, channels=3, tags={339: 3}), "floats"),
        ("a TIFF in Lab", save(PIL.Image.fromarray(photo(), "RGB").convert("RGB"), "TIFF"), ""),
    ):
        if mode:
            yield SampleCase("colours", name, masked(data), error("image_unsupported"))
    lab = ImageCms.profileToProfile(
        PIL.Image.fromarray(photo()), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    yield SampleCase("colours", "a TIFF in Lab", masked(save(lab, "TIFF")), error("image_unsupported"))
    ycc = PIL.Image.fromarray(photo()).convert("YCbCr")
    yield _sample("a TIFF in YCbCr", save(ycc, "TIFF"), np.asarray(ycc.convert("RGB")), 2)


def _packed(row: NDArray[np.uint8], depth: int) -> bytes:
    bits = np.unpackbits(row[:, None], axis=1)[:, 8 - depth :]
    return np.packbits(bits.reshape(-1)).tobytes()


def _alphas() -> Iterator[Case]:
    colours, grey = photo(), np.repeat(photo()[..., :1], 3, axis=2)
    alpha = np.roll(photo()[..., 1], 5, axis=1)
    both = np.dstack([colours, alpha])
    for image_format, options in {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}.items():
        yield _sample(f"{image_format} with alpha", save(both, image_format, **options), colours, alpha=alpha)
    opaque = np.full_like(alpha, 255)
    yield _sample("PNG with alpha that is all 255", save(np.dstack([colours, opaque]), "PNG"), colours, alpha=opaque)
    nothing = np.zeros_like(alpha)
    yield _sample("PNG that is all transparent", save(np.dstack([colours, nothing]), "PNG"), colours, alpha=nothing)
    pair = PIL.Image.merge("LA", [PIL.Image.fromarray(colours[..., 0]), PIL.Image.fromarray(alpha)])
    yield _sample("PNG, grey with alpha", save(pair, "PNG"), grey, alpha=alpha)
    palette = PIL.Image.fromarray(colours).quantize(16)
    numbers, shown = np.asarray(palette), np.asarray(palette.convert("RGB"))
    steps = bytes(range(0, 256, 16))
    data = save(palette, "PNG", transparency=steps)
    yield _sample(
        "PNG palette, each colour of its own alpha", data, shown, alpha=np.frombuffer(steps, np.uint8)[numbers]
    )
    single = np.where(numbers == 3, 0, 255).astype(np.uint8)
    yield _sample("PNG palette, one colour transparent", save(palette, "PNG", transparency=3), shown, alpha=single)
    yield _sample("GIF, one colour transparent", save(palette, "GIF", transparency=3), shown, alpha=single)
    key = int(colours[4, 4, 0])
    data = save(colours[..., 0], "PNG", transparency=key)
    yield _sample("PNG, one grey transparent", data, grey, alpha=np.where(grey[..., 0] == key, 0, 255).astype(np.uint8))


def _frames() -> Iterator[Case]:
    """Of several frames the first, whatever comes behind it."""
    frames = [PIL.Image.fromarray(np.roll(photo(), 9 * step, axis=0)) for step in range(4)]
    for image_format, options in {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.items():
        data = save(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
        yield _sample(f"{image_format} of four frames", data, photo())
    gif = [frame.quantize(32) for frame in frames]
    data = save(gif[0], "GIF", save_all=True, append_images=gif[1:], loop=0)
    yield _sample("GIF of four frames", data, np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")))
    pages = save(frames[0], "TIFF", save_all=True, append_images=[PIL.Image.new("L", (5, 5)), frames[2]])
    yield _sample("TIFF whose pages differ in size", pages, photo())
    late = save(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    yield _sample("APNG whose first picture is no frame", late, photo())
