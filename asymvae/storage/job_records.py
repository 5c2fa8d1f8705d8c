"""What ``_job.json`` says of a job, compared with another's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def compare_jobs(earlier: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What differs between two ``_job.json`` so that their outputs don't belong in one OUT; [] if nothing does.

    Each line names a setting, what it was and what it is.
    """
    if earlier.get("fingerprint") == ours.get("fingerprint"):
        return []
    before, now = (_flat(job.get("affects_output", {})) for job in (earlier, ours))
    for job, settings in ((earlier, before), (ours, now)):
        settings["format_version"] = job.get("format_version")
        settings["job"] = job.get("job", "inpaint")
        settings["model.weights_sha256"] = job.get("model", {}).get("weights_sha256")
        settings["inpainter.sha256"] = job.get("inpainter", {}).get("sha256")
    lines = [
        f"{name}: was {json.dumps(before.get(name))}, is {json.dumps(now.get(name))}"
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
    ]
    return lines or [f"fingerprint: was {earlier.get('fingerprint')}, is {ours.get('fingerprint')}"]


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[f"{above}{name}"] = value
    return flat
