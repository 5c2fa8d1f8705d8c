"""Packs the sample shards ``00000.tar`` to ``00002.tar`` and ``ATTRIBUTION.md`` from a folder of photographs.

The shards are in the project already; this script is how they were made, and how to change them::

    apt-get download lomiri-wallpapers-16.04          # Debian 12 and later; 16 MB
    dpkg -x lomiri-wallpapers-16.04_*.deb unpacked
    mkdir originals && cp unpacked/usr/share/backgrounds/*.jpg originals/
    cp "$(python -c 'import skimage; print(skimage.__path__[0])')"/data/{camera,chelsea,coffee}.png originals/
    python configs/samples/make_samples.py originals

The same photographs and the same Pillow give the same bytes (another Pillow may encode JPEG otherwise).
A mask's white is the hole. Its coordinates are pixels of the sample, origin at the top left; polygons were
laid by hand around what the photograph shows. Two samples are bad on purpose, so that a first run has an
``errors/`` part to look at: one whose JPEG is cut, one without its mask.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

Point = tuple[int, int]
Draw = Callable[[ImageDraw.ImageDraw, int, int], None]  # onto a black mask of that width and height

DEBIAN = "Debian package lomiri-wallpapers-16.04 20.04.0-2, gitlab.com/ubports/development/core/lomiri-wallpapers"
SKIMAGE = "scikit-image 0.26, skimage.data.{}"
LICENCES = {
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
}


@dataclass(frozen=True)
class Photo:
    file: str
    title: str
    author: str
    licence: str
    source: str
    caption: str


def _debian(file: str, title: str, author: str, caption: str, licence: str = "CC-BY-4.0") -> Photo:
    return Photo(f"{file}.jpg", title, author, licence, DEBIAN, caption)


def _skimage(file: str, title: str, author: str, caption: str) -> Photo:
    return Photo(f"{file}.png", title, author, "CC0-1.0", SKIMAGE.format(file), caption)


AITZOL = "Aitzol Berasategi"
PHOTOS = {
    "meadow": _debian("aitzgorri_by_Aitzol_Berasategi", "aitzgorri", AITZOL, "a meadow below autumn larches"),
    "dogs": _debian("friends_by_Aitzol_Berasategi", "friends", AITZOL, "two dogs look out of a window"),
    "brook": _debian("life_by_Aitzol_Berasategi", "life", AITZOL, "a brook runs over rocks in a wood"),
    "mountains": _debian("picosdeeuropa_by_Aitzol_Berasategi", "picosdeeuropa", AITZOL, "a mountain path"),
    "sunset": _debian("sunset_by_Aitzol_Berasategi", "sunset", AITZOL, "a stone dial on a hill at sunset"),
    "fig": _debian("Picture_0B_by_freespace", "Picture 0B", 'Trevor "Freespace"', "half a fig in a red bowl"),
    "brushes": _debian("Picture_1A_by_freespace", "Picture 1A", 'Trevor "Freespace"', "paint brushes"),
    "wine": _debian("Wine_by_Jakkub_Mede", "Wine", "Jakub Mede", "a bottle of wine, a drum on a beanbag"),
    "dandelion": _debian(
        "seeding_by_Clements_Engelhardt", "seeding", "Clemens Engelhardt", "a dandelion clock", "CC0-1.0"
    ),
    "cat": _skimage("chelsea", "Chelsea the cat", "Stefan van der Walt", "the face of a tabby cat"),
    "coffee": _skimage("coffee", "Coffee cup", "Rachel Michetti", "an espresso on a wooden table"),
    "camera": _skimage("camera", "Camera", "Lav Varshney", "a man looks through a camera on a tripod"),
}


def object_(*outline: Point) -> Draw:
    """A thing of the photograph, outlined by hand; the hole may reach past the sample's edge."""
    return lambda draw, width, height: draw.polygon(outline, fill=255)


def box(left: int, top: int, right: int, bottom: int) -> Draw:
    return lambda draw, width, height: draw.rectangle((left, top, right - 1, bottom - 1), fill=255)


def scribble(seed: int, strokes: int, thickness: int) -> Draw:
    """Round-ended strokes that wander over the sample."""

    def draw_strokes(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
        rng, radius = random.Random(seed), thickness // 2
        for _ in range(strokes):
            x, y = rng.random() * width, rng.random() * height
            dx, dy = rng.uniform(-1, 1), rng.uniform(-1, 1)
            points = []
            for _ in range(14):
                points.append((round(x), round(y)))
                dx, dy = dx + rng.uniform(-0.7, 0.7), dy + rng.uniform(-0.7, 0.7)
                x, y = x + dx * width / 24, y + dy * height / 24
            draw.line(points, fill=255, width=thickness, joint="curve")
            for cx, cy in points:
                draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=255)

    return draw_strokes


def text(words: str, size: int, top: int, step: int) -> Draw:
    """Lines of small print from ``top`` on, each shifted against the one above: strokes of 2 px or so."""

    def draw_lines(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
        draw.fontmode = "1"  # no grey edges: a pixel is the hole or it is not
        font = ImageFont.load_default(size)
        for line, y in enumerate(range(top, height - size, step)):
            draw.text((12 + 40 * line, y), words, fill=255, font=font)

    return draw_lines


def border(left: int, top: int, right: int, bottom: int) -> Draw:
    """All but a window; the arguments are the frame's thickness at each side."""

    def draw_frame(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
        draw.rectangle((0, 0, width, height), fill=255)
        draw.rectangle((left, top, width - right - 1, height - bottom - 1), fill=0)

    return draw_frame


def none(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """No hole."""


def all_(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    draw.rectangle((0, 0, width, height), fill=255)


@dataclass(frozen=True)
class Plan:
    """One sample: ``<photo>-<kind>``, the photograph cropped about its middle to that size."""

    photo: str
    kind: str
    size: tuple[int, int]  # width, height
    draw: Draw


LOWER_DOG = object_(
    (183, 265), (196, 257), (215, 254), (234, 259), (243, 273), (257, 285), (262, 305), (258, 349), (249, 352),
    (229, 351), (228, 337), (215, 337), (222, 352), (228, 360), (228, 373), (216, 381), (201, 378), (190, 366),
    (186, 351), (178, 336), (176, 310), (178, 280),
)  # fmt: skip
FIG = object_(
    (246, 180), (270, 181), (289, 178), (304, 170), (319, 153), (344, 142), (371, 143), (397, 156), (415, 175),
    (424, 200), (421, 226), (411, 249), (403, 271), (387, 293), (369, 304), (350, 307), (331, 302), (313, 288),
    (298, 272), (288, 249), (281, 226), (280, 207), (272, 204), (247, 203),
)  # fmt: skip
TOWER = object_((409, 131), (411, 118), (420, 113), (430, 116), (434, 130), (434, 194), (409, 194))
DANDELION = object_(
    (96, 138), (104, 98), (124, 68), (154, 44), (186, 32), (226, 28), (268, 32), (302, 46), (330, 74), (348, 106),
    (354, 140), (348, 176), (330, 206), (300, 232), (264, 246), (238, 250), (238, 432), (212, 432), (214, 248),
    (184, 246), (150, 232), (120, 206), (104, 176),
)  # fmt: skip
DIAL = object_(
    (400, 297), (410, 281), (449, 274), (491, 273), (541, 279), (577, 292), (595, 308), (597, 327), (584, 342),
    (551, 351), (526, 352), (528, 427), (454, 427), (453, 341), (428, 331), (405, 314),
)  # fmt: skip
BOTTLE = object_(
    (204, 74), (218, 74), (219, 115), (228, 131), (228, 210), (220, 216), (200, 215), (195, 209), (195, 131),
    (203, 117),
)  # fmt: skip
SPOON = object_(
    (398, 66), (420, 64), (427, 75), (424, 88), (416, 108), (409, 136), (401, 166), (391, 200), (386, 220),
    (385, 232), (398, 249), (409, 270), (407, 296), (396, 314), (376, 327), (355, 328), (339, 321), (326, 303),
    (324, 280), (331, 261), (348, 246), (368, 238), (374, 225), (381, 202), (392, 175), (403, 140), (408, 110),
    (402, 90),
)  # fmt: skip

SHARDS = [
    [
        Plan("dogs", "object", (384, 576), LOWER_DOG),
        Plan("mountains", "text", (640, 480), text("the path over the pass", 26, 40, 84)),
        Plan("fig", "object", (600, 406), FIG),
        Plan("brook", "scribble", (512, 341), scribble(3, strokes=5, thickness=12)),
        Plan("cat", "box", (451, 300), box(132, 78, 212, 154)),
        Plan("camera", "object", (512, 512), TOWER),
    ],
    [
        Plan("dandelion", "object", (768, 432), DANDELION),
        Plan("sunset", "object", (641, 427), DIAL),
        Plan("coffee", "scribble", (480, 320), scribble(5, strokes=4, thickness=9)),
        Plan("fig", "truncated", (320, 216), box(120, 70, 230, 170)),
        Plan("wine", "object", (427, 640), BOTTLE),
        Plan("meadow", "border", (640, 427), border(0, 0, 96, 56)),
        Plan("brushes", "text", (513, 404), text("please do not touch", 22, 24, 64)),
    ],
    [
        Plan("meadow", "none", (384, 256), none),
        Plan("cat", "all", (256, 256), all_),
        Plan("sunset", "box", (320, 320), box(128, 96, 208, 176)),
        Plan("coffee", "object", (600, 400), SPOON),
        Plan("dandelion", "unmasked", (320, 180), none),
        Plan("mountains", "scribble", (333, 250), scribble(11, strokes=4, thickness=14)),
        Plan("dogs", "border", (300, 450), border(28, 28, 28, 28)),
    ],
]


def render(plan: Plan, originals: Path) -> dict[str, bytes]:
    """A sample's files by extension."""
    photo = PHOTOS[plan.photo]
    with Image.open(originals / photo.file) as original:
        upright = ImageOps.exif_transpose(original)
        picture = ImageOps.fit(
            upright.convert("L" if upright.mode == "L" else "RGB"), plan.size, Image.Resampling.LANCZOS
        )
    jpeg, png = io.BytesIO(), io.BytesIO()
    picture.save(jpeg, "JPEG", quality=90, optimize=True)
    mask = Image.new("L", plan.size, 0)
    plan.draw(ImageDraw.Draw(mask), *plan.size)
    mask.save(png, "PNG", optimize=True)
    about = {
        "photo": photo.title,
        "author": photo.author,
        "licence": photo.licence,
        "mask_kind": plan.kind,
    }
    files = {
        "jpg": jpeg.getvalue(),
        "mask.png": png.getvalue(),
        "txt": photo.caption.encode(),
        "json": json.dumps(about, sort_keys=True).encode(),
    }
    if plan.kind == "truncated":
        files["jpg"] = files["jpg"][: len(files["jpg"]) // 2]
    if plan.kind == "unmasked":
        del files["mask.png"]
    return files


def pack(plans: list[Plan], originals: Path, target: Path) -> None:
    """A tar whose bytes depend on its samples alone: no times, no owners."""
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for plan in plans:
            for extension, data in render(plan, originals).items():
                entry = tarfile.TarInfo(f"{plan.photo}-{plan.kind}.{extension}")
                entry.size, entry.mode = len(data), 0o644
                tar.addfile(entry, io.BytesIO(data))


def attribution() -> str:
    """The page that CC-BY asks for: author, title, licence, source and what was changed, for each photograph."""
    lines = [
        "# Where the sample photographs come from",
        "",
        "Written by `make_samples.py`, which also tells how to get the originals. Changes made to every",
        "photograph: reduced, cropped about its middle to the sizes given, saved as JPEG (quality 90) without",
        "its metadata. The masks were drawn for this project (Apache-2.0). `fig-truncated` (its JPEG is cut in",
        "half) and `dandelion-unmasked` (no mask) are bad on purpose.",
        "",
        "| photograph | author | licence | source | samples |",
        "|---|---|---|---|---|",
    ]
    for name, photo in PHOTOS.items():
        samples = [
            f"`{name}-{plan.kind}` ({plan.size[0]}x{plan.size[1]})"
            for plans in SHARDS
            for plan in plans
            if plan.photo == name
        ]
        licence = f"[{photo.licence}]({LICENCES[photo.licence]})"
        source = f"{photo.source}, `{photo.file}`"
        lines.append(f"| {photo.title} | {photo.author} | {licence} | {source} | {', '.join(samples)} |")
    lines += [
        "",
        "The licences of the Debian package's photographs are stated in its `copyright` file; those of",
        'scikit-image\'s (all "No copyright restrictions. CC0 by the photographer") in the docstrings of',
        "`skimage.data`. No author endorses this project.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("originals", type=Path, help="folder with the original photographs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the shards")
    arguments = parser.parse_args()
    absent = sorted({p.file for p in PHOTOS.values() if not (arguments.originals / p.file).is_file()})
    if absent:
        parser.error(f"{arguments.originals} lacks {', '.join(absent)}; see --help for where they come from")
    for number, plans in enumerate(SHARDS):
        pack(plans, arguments.originals, arguments.out / f"{number:05}.tar")
    (arguments.out / "ATTRIBUTION.md").write_text(attribution(), encoding="utf-8")


if __name__ == "__main__":
    main()
