"""The contact sheet: a row a sample, with input, hole and result side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import Final

import PIL.Image
from matplotlib.font_manager import findfont
from PIL.ImageDraw import Draw, ImageDraw
from PIL.ImageFont import FreeTypeFont, truetype

from asymvae.report.metrics import Row
from asymvae.report.pictures import Pictures, Thumbnail

SIDE: Final = 300  # px, of a picture's longer side
COLUMNS: Final = ("input", "hole", "result")
_GAP, _MARGIN, _CAPTION = 12, 24, 40
_INK, _PALE, _PAPER, _BLANK = (31, 41, 55), (107, 114, 128), (255, 255, 255), (238, 240, 243)


def draw_sheet(
    title: str,
    rows: Sequence[tuple[Row, Pictures]],
    columns: Sequence[str] = COLUMNS,
    captions: Sequence[str] | None = None,
) -> bytes:
    """A PNG. Pictures, at most :data:`SIDE` px long, are drawn as they come; a missing one is its note.

    Args:
        columns: what to call the three pictures of a row.
        captions: a line below each row; by default :func:`caption`'s.
    """
    captions = captions or [caption(row) for row, _ in rows]
    width = 2 * _MARGIN + len(COLUMNS) * SIDE + (len(COLUMNS) - 1) * _GAP
    heights = [_height(pictures) for _, pictures in rows]
    top = _MARGIN + 56
    height = top + sum(heights) + len(rows) * (_CAPTION + _GAP) + _MARGIN
    sheet = PIL.Image.new("RGB", (width, height if rows else top + 60), _PAPER)
    draw = Draw(sheet)
    write_line(draw, (_MARGIN, _MARGIN), title, font(16, bold=True), _INK, width - 2 * _MARGIN)
    if not rows:
        write_line(draw, (_MARGIN, top), "no results to show", font(13), _PALE, width - 2 * _MARGIN)
    for column, name in enumerate(columns if rows else ()):
        write_line(draw, (_left(column), top - 22), name, font(13), _PALE, SIDE)
    for (row, pictures), row_height, line in zip(rows, heights, captions, strict=True):
        for column, name in enumerate(COLUMNS):
            _picture(sheet, draw, (_left(column), top), getattr(pictures, name), pictures, row_height)
        top += row_height
        write_line(draw, (_MARGIN, top + 4), _name(row), font(13, bold=True), _INK, width - 2 * _MARGIN)
        write_line(draw, (_MARGIN, top + 21), line, font(12), _PALE, width - 2 * _MARGIN)
        top += _CAPTION + _GAP
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def _name(row: Row) -> str:
    return f"{row.key}  ·  variant {row.variant}" if row.variant else row.key


def caption(row: Row) -> str:
    """What a row's metrics say about its known pixels, in a line."""
    hole, mse, psnr = (row.values[name] for name in ("hole_fraction", "mse_known", "psnr_known"))
    if mse is None:
        return "no hole: passed through" if hole == 0 else "all hole: nothing known"
    infinite = "infinite" if mse == 0 else "null"
    return f"mse_known {mse:.2e}  ·  psnr_known {infinite if psnr is None else f'{psnr:.1f} dB'}"


def _left(column: int) -> int:
    return _MARGIN + column * (SIDE + _GAP)


def _height(pictures: Pictures) -> int:
    there = [picture.shape[0] for picture in (pictures.input, pictures.result) if picture is not None]
    return max(there, default=60)


def _picture(
    sheet: PIL.Image.Image,
    draw: ImageDraw,
    place: tuple[int, int],
    picture: Thumbnail | None,
    pictures: Pictures,
    height: int,
) -> None:
    if picture is not None:
        sheet.paste(PIL.Image.fromarray(picture), place)
        return
    left, top = place
    draw.rectangle((left, top, left + SIDE - 1, top + height - 1), fill=_BLANK)
    write_line(draw, (left + 10, top + height // 2 - 8), pictures.note or "none", font(12), _PALE, SIDE - 20)


def write_line(
    draw: ImageDraw, place: tuple[int, int], text: str, font: FreeTypeFont, fill: tuple[int, int, int], width: int
) -> None:
    """One line, cut with an ellipsis where it is too wide; what can't be printed is shown escaped."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    if font.getlength(line) > width:
        while line and font.getlength(line + "…") > width:
            line = line[: -max(1, len(line) // 50)]
        line += "…"
    draw.text(place, line, font=font, fill=fill)


@cache
def font(size: int, *, bold: bool = False) -> FreeTypeFont:
    return truetype(findfont("DejaVu Sans:bold" if bold else "DejaVu Sans"), size)
