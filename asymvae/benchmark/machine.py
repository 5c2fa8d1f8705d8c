"""Where and with what something was measured."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

_VERSIONS_OF = ("asymvae", "torch", "triton", "diffusers", "ray", "numpy", "opencv-python-headless", "simplejpeg")


def describe(command: str) -> dict[str, str | int]:
    """Processor, GPU, threads, versions, date and ``command``; what isn't installed is ``""``. No host's name."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "gpu": gpu,
        "driver_cuda": torch.version.cuda or "",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: torch.__version__ if name == "torch" else _version(name) for name in _VERSIONS_OF},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def headline(machine: dict[str, str | int]) -> str:
    """The machine in a line of Markdown."""
    has = [f"{machine['gpu']} (CUDA {machine['driver_cuda']})"] if machine["gpu"] else []
    has.append(f"{machine['processor']}, {machine['cores']} cores, torch's threads: {machine['threads']}")
    versions = [f"{name} {machine[name]}" for name in ("torch", "diffusers", "ray") if machine[name]]
    return " · ".join([*has, ", ".join(versions), str(machine["date"])])


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
