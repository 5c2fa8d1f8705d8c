"""A grid of pictures: a row a sample, under headings, each picture pixel for pixel."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL.ImageDraw import Draw

from asymvae.report.contact_sheet import font, write_line
from asymvae.report.pictures import Thumbnail, tinted

Cell = Thumbnail | tuple[Thumbnail, NDArray[np.bool_]]  # the latter: the picture and its hole, which is tinted

_GAP, _MARGIN, _CAPTION = 12, 24, 40
_INK, _PALE, _PAPER = (31, 41, 55), (107, 114, 128), (255, 255, 255)
_NARROWEST: Final = 160  # px of a column, so that its heading fits


def draw_grid(title: str, columns: Sequence[str], rows: Sequence[tuple[str, str, Sequence[Cell]]]) -> bytes:
    """A PNG. ``rows``: a name, a caption and a picture a column, (h, w, 3) uint8, which are never resized."""
    drawn = [(name, caption, [_drawn(cell) for cell in cells]) for name, caption, cells in rows]
    wide = max([_NARROWEST, *(cell.shape[1] for _, _, cells in drawn for cell in cells)])
    heights = [max(cell.shape[0] for cell in cells) for _, _, cells in drawn]
    lefts = [_MARGIN + number * (wide + _GAP) for number in range(len(columns))]
    width = lefts[-1] + wide + _MARGIN
    top = _MARGIN + 56
    sheet = PIL.Image.new("RGB", (width, top + sum(heights) + len(rows) * (_CAPTION + _GAP) + _MARGIN), _PAPER)
    draw = Draw(sheet)
    write_line(draw, (_MARGIN, _MARGIN), title, font(16, bold=True), _INK, width - 2 * _MARGIN)
    for left, column in zip(lefts, columns, strict=True):
        write_line(draw, (left, top - 22), column, font(13), _PALE, wide)
    for (name, caption, cells), height in zip(drawn, heights, strict=True):
        for left, cell in zip(lefts, cells, strict=True):
            sheet.paste(PIL.Image.fromarray(cell), (left, top))
        top += height
        write_line(draw, (_MARGIN, top + 4), name, font(13, bold=True), _INK, width - 2 * _MARGIN)
        write_line(draw, (_MARGIN, top + 21), caption, font(12), _PALE, width - 2 * _MARGIN)
        top += _CAPTION + _GAP
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()


def _drawn(cell: Cell) -> Thumbnail:
    if isinstance(cell, tuple):
        picture, hole = cell
        return tinted(picture, hole.astype(np.float32))
    return cell
