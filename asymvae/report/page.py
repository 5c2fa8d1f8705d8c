"""The report: one HTML page that needs nothing else, and the contact sheet."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import jinja2

from asymvae.media.image import encode_image
from asymvae.report.contact_sheet import COLUMNS, SIDE, caption, draw_sheet
from asymvae.report.digest import Digest, Progress, read_digest
from asymvae.report.errors import Errors, read_errors
from asymvae.report.histograms import draw_histogram, draw_throughput
from asymvae.report.latents import Latents, caption_of, pictures_of, read_latents
from asymvae.report.metrics import Measured, Summary, read_metrics
from asymvae.report.pictures import Id, Pictures, Thumbnail, read_pictures, row_id
from asymvae.storage.filesystem import redact
from asymvae.storage.ledger import Ledger

_WORST: Final = 4  # rows shown of each metric
_ERROR_ROWS: Final = 100
_NAMED: Final = 50  # shards named in a list
_QUALITY: Final = 85
_LATENTS: Final = ("input", "encoded", "latent")  # what COLUMNS show of latents


@dataclass(frozen=True, slots=True)
class Report:
    """``page``: HTML. ``sheet``: PNG."""

    page: str
    sheet: bytes


def make_report(out_url: str, *, rows: int, progress: Progress | None = None) -> Report:
    """Read OUT, and the input for its pictures, and make both.

    Args:
        rows: of the contact sheet, at most; spread evenly over the shards, the same ones every time.

    Raises:
        FileNotFoundError: no job was ever opened in OUT. ValueError, KeyError: its record is not one of ours.
    """
    digest = read_digest(Ledger(out_url), progress)
    if digest.job.get("job") == "precompute_latents":
        return _latents_report(out_url, digest, rows, progress)
    measured = read_metrics(out_url, digest.shards, picks=rows, worst=_WORST, progress=progress)
    errors = read_errors(out_url, digest.shards, most=_ERROR_ROWS)
    chosen = measured.picked + [row for summary in measured.summaries for row in summary.worst if _telling(summary)]
    pictures = read_pictures(out_url, digest, chosen, side=SIDE, progress=progress)
    name = redact(out_url)
    sheet = draw_sheet(name, [(row, pictures[row_id(row)]) for row in measured.picked])
    page = _page(name, digest, measured, errors, pictures, {row_id(row): caption(row) for row in measured.picked})
    return Report(page, sheet)


def _latents_report(out_url: str, digest: Digest, rows: int, progress: Progress | None) -> Report:
    """Of a job that wrote latents: the same page with buckets and channels in the place of metrics."""
    latents = read_latents(out_url, digest.shards, picks=rows, progress=progress)
    picked = [of.row for of in latents.picked]
    pictures = read_pictures(out_url, digest, picked, side=SIDE, progress=progress)
    for of in latents.picked:
        shown = pictures[row_id(of.row)]
        shown.hole, shown.result = pictures_of(of, shown, SIDE)
    name, captions = redact(out_url), [caption_of(of) for of in latents.picked]
    sheet = draw_sheet(name, [(row, pictures[row_id(row)]) for row in picked], _LATENTS, captions)
    errors = read_errors(out_url, digest.shards, most=_ERROR_ROWS)
    measured = Measured(latents.summaries, picked, latents.unreadable)
    by_id = dict(zip(map(row_id, picked), captions, strict=True))
    return Report(_page(name, digest, measured, errors, pictures, by_id, latents), sheet)


def _telling(summary: Summary) -> bool:
    """There is a worst: not all are alike."""
    return summary.distribution.minimum < summary.distribution.maximum


def _page(
    name: str,
    digest: Digest,
    measured: Measured,
    errors: Errors,
    pictures: Mapping[Id, Pictures],
    captions: Mapping[Id, str],
    latents: Latents | None = None,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("asymvae.report", ""),
        autoescape=True,  # keys, prompts and paths are anybody's
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "number": _number, "size": _size, "share": _share}
    metrics = [(summary, _data_url("svg+xml", draw_histogram(summary))) for summary in measured.summaries]
    unreadable = digest.unreadable + measured.unreadable + errors.unreadable
    return environment.get_template("page.html.j2").render(
        name=name,
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        job=digest.job,
        settings=_flat(digest.job["settings"]),
        digest=digest,
        errors=errors,
        unreadable=unreadable,
        metrics=metrics,
        telling=_telling,
        picked=measured.picked,
        throughput=_data_url("svg+xml", draw_throughput(digest.shards)),
        busy_seconds=sum(shard.seconds for shard in digest.shards),
        captions=captions,
        latents=latents,
        columns=list(zip(COLUMNS, _LATENTS if latents else COLUMNS, strict=True)),
        pictures={id_: _jpegs(picture) for id_, picture in pictures.items()},
        row_id=row_id,
        named=_NAMED,
    )


def _jpegs(pictures: Pictures) -> dict[str, str]:
    shown = {name: _jpeg(getattr(pictures, name)) for name in COLUMNS}
    return shown | {"note": pictures.note}


def _jpeg(picture: Thumbnail | None) -> str:
    if picture is None:
        return ""
    data = encode_image(picture, image_format="jpeg", quality=_QUALITY)
    assert isinstance(data, bytes)  # a thumbnail is never too large
    return _data_url("jpeg", data)


def _data_url(kind: str, data: bytes | None) -> str:
    """For ``src``; "" where there is no data."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}" if data else ""


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """``{"mask.feather": "4"}``, in order of name."""
    flat: dict[str, str] = {}
    for name, value in sorted(settings.items()):
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{above}{name}.")
        elif isinstance(value, list):
            flat[above + name] = ", ".join(map(str, value))
        else:
            flat[above + name] = "" if value is None else str(value)
    return flat


def _count(number: int) -> str:
    return f"{number:,}"


def _number(value: float | None) -> str:
    """Three digits that matter, as few as they take."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.2e}"


def _size(number: int) -> str:
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g}%" if whole else "-"
