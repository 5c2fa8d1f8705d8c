"""A benchmark's files: every single timing as Parquet, the table, and a picture."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from asymvae.benchmark.turns import Panels
from asymvae.storage import filesystem


def write(
    folder: str,
    kind: str,
    timings: Sequence[Any],
    machine: Mapping[str, str | int],
    *,
    text: str,
    panels: Panels,
    unit: str,
    title: str,
) -> tuple[list[str], list[str]]:
    """``<kind>-<date>.parquet`` (a row a timing, the machine in each), ``.md`` and ``.png`` in ``folder``.

    Returns the files that were written and, for those that could not be, which package is missing. So the files of
    several machines may share a folder, and are read as one table. Raises OSError where nothing can be written there.
    """
    stem = f"{kind}-{re.sub(r'[^0-9]', '', str(machine['date']))[:14]}"
    made: dict[str, bytes] = {f"{stem}.md": (text + "\n").encode()}
    missing = []
    try:
        made[f"{stem}.parquet"] = _parquet([asdict(timing) | dict(machine) for timing in timings])
    except ModuleNotFoundError as error:
        missing.append(f"{stem}.parquet: {error.name} is not installed")
    try:
        from asymvae.benchmark.plots import draw

        made[f"{stem}.png"] = draw(panels, unit, title=title)
    except ModuleNotFoundError as error:
        missing.append(f"{stem}.png: {error.name} is not installed")
    for name, content in made.items():
        filesystem.replace(filesystem.join(folder, name), content)
    return [filesystem.join(folder, name) for name in made], missing


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), out)
    return out.getvalue()
