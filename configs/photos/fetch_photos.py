"""Fetches the photographs that the demonstration model is trained on, as WebDataset shards::

    python configs/photos/fetch_photos.py --out out/photos

They come from four Debian packages (500 MB, kept in ``--out``/packages), so it needs ``apt-get`` and ``dpkg-deb``.
Nothing of them is in the project; what they show, who made them and under which licences is in ``SOURCES.md`` here,
which this script wrote (``--out``/SOURCES.md). The lists below were made by looking at every picture: what is drawn
or rendered is left out. So is whatever shows the same picture as a sample of ``configs/samples``: those are
held out, and found by comparing the pictures themselves. The same packages give the same bytes.
"""

from __future__ import annotations

import argparse
import fnmatch
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from asymvae.faults import Fault
from asymvae.media.image import decode_image, encode_image, probe_size

Pixels = NDArray[np.uint8]  # (H, W, 3)
Kind = Literal["scene", "texture"]

SAMPLES = Path(__file__).parent.parent / "samples"
SHORT_SIDE = 1280
SMALLEST_SIDE = 512
SHARD_SIZE = 18
MAX_PIXELS = 2**26
THUMBNAIL = 16
COMPARED_SIDE = 128
SAME_PICTURE = 0.95  # correlation of thumbnails; of two different pictures here it is 0.91 at most


@dataclass(frozen=True)
class Package:
    """``files``: paths inside ``folder``, which is a folder of the package or a zip archive in it; of a path that
    ends in ``/`` the largest file below. ``source``: what the copyright file calls that folder."""

    name: str
    kind: Kind
    folder: str
    source: str
    files: tuple[str, ...]


def _names(pattern: str, names: str) -> tuple[str, ...]:
    return tuple(pattern.format(name) for name in names.split())


PACKAGES = (
    # Not: analogpattern, umang. The nine of configs/samples are listed, for the comparison to find.
    Package(
        "lomiri-wallpapers-16.04", "scene", "usr/share/backgrounds", "16.04/",
        _names("{}.jpg", """Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Picture_0B_by_freespace
            Picture_1A_by_freespace Wine_by_Jakkub_Mede aitzgorri_by_Aitzol_Berasategi free_by_Peter_Nerlich
            friends_by_Aitzol_Berasategi greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi
            picosdeeuropa_by_Aitzol_Berasategi seeding_by_Clements_Engelhardt sunset_by_Aitzol_Berasategi"""),
    ),
    # Not: abstract/ and desktop/, which are drawn.
    Package(
        "mate-backgrounds", "scene", "usr/share/backgrounds/mate", "",
        _names("nature/{}.jpg", """Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings
            Wood YellowFlower"""),
    ),
    # Not the drawn and rendered ones (Autumn and Volna look like photographs at first).
    Package(
        "plasma-workspace-wallpapers", "scene", "usr/share/wallpapers", "",
        _names("{}/contents/images/", """BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey
            Kite OneStandsOut Path summer_1am"""),
    ),
    # Flat, even light, mostly tileable; no maps of normals (_nm), gloss (_sm, _gm) or glow, nothing with alpha.
    Package(
        "ufoai-textures", "texture", "usr/share/games/ufoai/base/0textures.pk3", "base/",
        _names("textures/tex_nature/{}", """
            desert002.* desert005.* desert007.* dirt003.* railway.* grass_tall_green_a.* pjrock1.* pjrock16.*
            rock004.* rock006.* rock008.* rock009.* rock012.* rock014.* rock017.* tree001.* tree003.*""")
        + _names("textures/tex_mattn/{}", """
            dirt001.* floor028.* concrete002.* grass001.* grass002.* grass003.* straw2.* dung2.* rock004.* floor009.*
            floor010.* wall053.* wall054.* wall079.* wall_bricks002.* wall_bricks005.* wall067.* wall049.* wall008.*
            wall065.* wall071.* wall047.* wall088.* door060.* door061.* door065.* door037.* door055.* wood006.*
            wood008.* wood013.* wood016.* rust.*""")
        + _names("textures/tex_buildings/{}", "floor_se01.* floor_se03.* floor_se04.* wall042.* surface2.*")
        + _names("textures/{}", """tex_buildings_snow/wall002.* tex_misc/container004.* tex_misc/straw.*
            tex_doors/door014.* tex_material/wood003.*"""),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Photo:
    package: str
    version: str
    file: str
    kind: Kind
    author: str
    licence: str
    pixels: Pixels

    @property
    def key(self) -> str:
        path = PurePosixPath(self.file)
        name = path.parts[0] if "contents" in path.parts else path.stem
        group = path.parent.name.removeprefix("tex_") + "-" if self.kind == "texture" else ""
        return f"{self.package.split('-')[0]}-{group}{name}".replace(".", "_")


# --- the same picture twice -----------------------------------------------------------------------------------------


def thumbnail(pixels: Pixels, aspect: float | None = None) -> NDArray[np.float64]:
    """16 x 16 grey levels with mean 0 and norm 1, of the middle of that aspect (width / height) or of the whole."""
    height, width = pixels.shape[:2]
    if aspect is not None:
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        top, left = (height - h) // 2, (width - w) // 2
        pixels = pixels[top : top + h, left : left + w]
    small = cv2.resize(np.ascontiguousarray(pixels), (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float64)
    grey -= grey.mean()
    return np.asarray(grey / max(float(np.linalg.norm(grey)), 1e-9))


def similarity(one: Pixels, other: Pixels) -> float:
    """-1 to 1; 1 for two sizes of one picture, its whole or what is left of it in another aspect, mirrored too."""
    best = -1.0
    for aspect in (None, one.shape[1] / one.shape[0], other.shape[1] / other.shape[0]):
        mine, theirs = thumbnail(one, aspect), thumbnail(other, aspect)
        best = max(best, float((mine * theirs).sum()), float((mine[:, ::-1] * theirs).sum()))
    return best


def find_same(pixels: Pixels, others: dict[str, Pixels]) -> str | None:
    """The name of the one that shows the same picture."""
    alike = {name: similarity(pixels, other) for name, other in others.items()}
    best = max(alike, key=alike.__getitem__, default=None)
    return best if best is not None and alike[best] >= SAME_PICTURE else None


def read_samples(folder: Path) -> dict[str, Pixels]:
    """The held-out pictures, small, by key; samples that are broken on purpose have an unbroken sibling."""
    found: dict[str, Pixels] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.name.endswith(".jpg") else None
                image = decode_image(stream.read(), max_pixels=MAX_PIXELS) if stream else Fault("image_empty")
                if not isinstance(image, Fault):
                    found[member.name.removesuffix(".jpg")] = reduce(image.pixels, COMPARED_SIDE)
    if not found:
        raise SystemExit(f"{folder} has no samples, which must be held out of the photographs")
    return found


def keep_new(photos: Iterable[Photo], held_out: dict[str, Pixels]) -> list[Photo]:
    """Those that show neither a held-out picture nor one that is there already; the others are named."""
    kept: list[Photo] = []
    seen: dict[str, Pixels] = {}
    for photo in photos:
        small = reduce(photo.pixels, COMPARED_SIDE)
        same, twin = find_same(small, held_out), find_same(small, seen)
        if same or twin:
            reason = f"shows the held-out sample {same}" if same else f"shows the same as {twin}"
            print(f"  left out: {photo.package} {photo.file} {reason}")
        else:
            kept.append(photo)
            seen[photo.key] = small
    return kept


# --- packages -> photographs ----------------------------------------------------------------------------------------


def download(package: str, cache: Path) -> Path:
    """The package's .deb, from the cache if it is there."""
    cache.mkdir(parents=True, exist_ok=True)
    cached = any(cache.glob(f"{package}_*.deb"))
    missing = [tool for tool in ("dpkg-deb", "apt-get")[: 2 - cached] if shutil.which(tool) is None]
    if missing:
        raise SystemExit(
            f"{' and '.join(missing)} not found: the photographs come from Debian packages. Run this on Debian 12 or "
            "later (a container of the image debian:12 with Python 3.11 will do), and copy the shards."
        )
    if not cached:
        print(f"downloading {package}", flush=True)
        command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode and os.geteuid() == 0:  # perhaps there are no package lists yet
                subprocess.run(["apt-get", "-q", "update"], capture_output=True)
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(
                    f"{done.stderr.strip()}\n{' '.join(command)} failed: is there a network, was `apt-get update` run "
                    "(by root), and is this Debian 12 or later, with main among its sources?"
                )
            for path in Path(folder).glob("*.deb"):
                path.replace(cache / path.name)
    return max(cache.glob(f"{package}_*.deb"))


def read_copyright(text: str, file: str) -> tuple[str, str]:
    """(holders, licence) of a file of the source package: the last paragraph that matches counts (DEP 5)."""
    found: dict[str, list[str]] = {}
    for paragraph in text.split("\n\n"):
        fields: dict[str, list[str]] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1].strip() and ":" in line:
                name, _, line = line.partition(":")
            fields.setdefault(name, []).append(line.strip())
        patterns = " ".join(fields.get("Files", ())).split()
        if any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns):
            found = fields
    if "License" not in found:
        raise SystemExit(f"the copyright file states no licence for {file}")
    licence = " ".join(found["License"]).strip()
    holders = [re.sub(r"<[^>]*>\W*|\b[0-9-]{4,9}\b[.,]?", "", line).strip(" ,") for line in found.get("Copyright", ())]
    holders = [holder for holder in holders if holder]
    if len(holders) > 3:  # the textures' authors are listed by licence, not by file
        return f"UFO:AI contributors, listed under {licence}", licence
    return ", ".join(holders), licence


def read_package(package: Package, deb: Path, unpacked: Path) -> Iterator[Photo]:
    subprocess.run(["dpkg-deb", "-x", str(deb), str(unpacked)], check=True)
    copyright_file = unpacked / "usr/share/doc" / package.name / "copyright"
    zipped = copyright_file.with_name("copyright.gz")
    text = gzip.decompress(zipped.read_bytes()).decode() if zipped.exists() else copyright_file.read_text("utf-8")
    version = deb.name.split("_")[1].replace("%3a", ":")
    folder = unpacked / package.folder
    root: Any = zipfile.Path(folder) if folder.is_file() else folder
    for wanted in package.files:
        found = _find(root, wanted)
        if found is None:
            print(f"  {package.name} {version} has no {wanted}", file=sys.stderr)
            continue
        file, data = found
        image = decode_image(data, max_pixels=MAX_PIXELS)
        if isinstance(image, Fault) or min(image.pixels.shape[:2]) < SMALLEST_SIDE:
            reason = image.code if isinstance(image, Fault) else "too small"
            print(f"  {package.name} {file}: {reason}", file=sys.stderr)
            continue
        author, licence = read_copyright(text, package.source + file)
        about = folder / PurePosixPath(file).parts[0] / "metadata.json"
        if folder.is_dir() and about.is_file():  # Plasma's: names the photographer, and another licence, free as well
            plugin = json.loads(about.read_text("utf-8"))["KPlugin"]
            author = ", ".join(person["Name"] for person in plugin["Authors"])
            licence = f"{licence} (package), {plugin['License']} (wallpaper)"
        yield Photo(package.name, version, file, package.kind, author, licence, reduce(image.pixels, SHORT_SIDE))


def _find(root: Any, wanted: str) -> tuple[str, bytes] | None:
    """A file by its path; ``name.*`` is a PNG or JPEG; of ``folder/`` the picture with most pixels."""
    if wanted.endswith("/"):
        if not (root / wanted).is_dir():
            return None
        files = {entry.name: entry.read_bytes() for entry in (root / wanted).iterdir() if not entry.is_symlink()}
        name = max(sorted(files), key=lambda name: _area(files[name]))
        return wanted + name, files[name]
    for path in (wanted.removesuffix(".*") + end for end in ((".png", ".jpg") if wanted.endswith(".*") else ("",))):
        if (root / path).is_file():
            return path, (root / path).read_bytes()
    return None


def _area(data: bytes) -> int:
    size = probe_size(data)
    return 0 if isinstance(size, Fault) else size[0] * size[1]


def reduce(pixels: Pixels, short_side: int) -> Pixels:
    """No larger than that on its shorter side; every pixel the mean of those that it covers."""
    height, width = pixels.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return pixels
    return np.asarray(
        cv2.resize(pixels, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA), np.uint8
    )


# --- photographs -> shards ------------------------------------------------------------------------------------------


def _hash(photo: Photo) -> bytes:
    return hashlib.sha256(photo.key.encode()).digest()


def write_shards(photos: Sequence[Photo], out: Path) -> list[Path]:
    """Tars whose bytes depend on the photographs alone. Each has its share of either kind, mixed by a hash."""
    for old in out.glob("photos-*.tar"):
        old.unlink()
    mixed = sorted(photos, key=_hash)
    mixed.sort(key=lambda photo: photo.kind)
    count = -(-len(mixed) // SHARD_SIZE)
    shards = []
    for number in range(count):
        shards.append(out / f"photos-{number:03}.tar")
        with tarfile.open(shards[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for photo in sorted(mixed[number::count], key=_hash):
                jpeg = encode_image(photo.pixels, image_format="jpeg", quality=95)
                assert not isinstance(jpeg, Fault), photo.key
                names = ("package", "version", "file", "kind", "author", "licence")
                about = json.dumps({name: getattr(photo, name) for name in names}, sort_keys=True, ensure_ascii=False)
                for extension, data in (("jpg", jpeg), ("json", about.encode())):
                    entry = tarfile.TarInfo(f"{photo.key}.{extension}")
                    entry.size, entry.mode = len(data), 0o644
                    tar.addfile(entry, io.BytesIO(data))
    return shards


def sources(photos: Sequence[Photo]) -> str:
    """The page that says where every photograph comes from."""
    lines = [
        "# Where the training photographs come from",
        "",
        "Written by `fetch_photos.py`, which fetches them: none is in the project. Authors and licences are those that",
        "the Debian packages' `copyright` files state, all free ones; for Plasma's wallpapers the photographer is the",
        "one named in the wallpaper's `metadata.json`, which also names another licence than the package does. Changes",
        f"made: reduced to {SHORT_SIDE} px on the shorter side, converted to sRGB, saved as JPEG (quality 95) without",
        "metadata. No photograph that is a sample of `configs/samples` is among them. No author endorses this project.",
        "",
        "| key | kind | size | author | licence | package | file |",
        "|---|---|---|---|---|---|---|",
    ]
    for photo in photos:
        size = f"{photo.pixels.shape[1]}x{photo.pixels.shape[0]}"
        package = f"{photo.package} {photo.version}"
        author = photo.author.replace("<", "&lt;").replace(">", "&gt;")
        lines.append(
            f"| `{photo.key}` | {photo.kind} | {size} | {author} | {photo.licence} | {package} | `{photo.file}` |"
        )
    return "\n".join([*lines, ""])


def fetch(out: Path) -> Iterator[Photo]:
    for package in PACKAGES:
        deb = download(package.name, out / "packages")
        with tempfile.TemporaryDirectory(dir=out) as unpacked:
            yield from read_package(package, deb, Path(unpacked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/photos"), help="folder for the shards and the packages")
    out: Path = parser.parse_args().out
    photos = keep_new(fetch(out), read_samples(SAMPLES))
    shards = write_shards(photos, out)
    (out / "SOURCES.md").write_text(sources(photos), encoding="utf-8")
    for package in PACKAGES:
        areas = [photo.pixels.shape[0] * photo.pixels.shape[1] for photo in photos if photo.package == package.name]
        print(f"{package.name}: {len(areas)} {package.kind}s, {sum(areas) / 1e6:.1f} megapixels")
    print(f"{len(photos)} photographs in {len(shards)} shards, {out}/photos-{{000..{len(shards) - 1:03}}}.tar")
    print("next: python -m jobs.train --config configs/train-demo.yaml")


if __name__ == "__main__":
    main()
