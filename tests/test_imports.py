"""Who may import whom: the rooms of the house, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "asymvae").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])

# What each room may import of ours, besides itself. Modules of the first level are rooms of one file.
MAY_IMPORT: dict[str, set[str]] = {
    "model": set(),
    "media": {"faults"},
    "storage": {"faults"},
    "faults": set(),
    "config": set(),
    "config_latents": {"config"},
    "fingerprint": {"config"},
    "batch": {"model", "faults"},
    "to_diffusers": {"model"},
    "inpaint": {"model", "batch", "config", "faults"},
    "stages": {"inpaint", "model", "media", "batch", "config", "config_latents", "faults", "fingerprint"},
    "pipeline": {
        *("stages", "inpaint", "model", "media", "storage", "batch", "config", "config_latents", "faults"),
        "fingerprint",
    },
    "tables": set(),
    "training": {
        "tables",
        "stages",
        "inpaint",
        "model",
        "media",
        "storage",
        "batch",
        "config",
        "faults",
        "fingerprint",
    },
    "latents": {"storage"},
    "report": {"media", "storage", "faults"},
    "benchmark": {
        *(
            "tables",
            "pipeline",
            "stages",
            "inpaint",
            "model",
            "media",
            "storage",
            "batch",
            "config",
            "faults",
            "report",
        ),
    },
    "jobs": {"benchmark", "pipeline", "training", "report", "storage", "config", "config_latents", "faults"},
}
IMPORT_RAY = {
    "asymvae/pipeline/worker.py",
    "asymvae/pipeline/cluster.py",
    "asymvae/pipeline/executor.py",
    "asymvae/pipeline/pool.py",
    "asymvae/pipeline/metrics.py",
    "asymvae/pipeline/progress.py",
    "asymvae/benchmark/simulate.py",
    "jobs/submit.py",
    "jobs/job_server.py",
}
WITHOUT_TORCH = {"media", "storage", "faults", "config", "config_latents", "fingerprint", "report", "jobs"}


def room_of(module: str) -> str:
    """``asymvae.media.mask`` -> ``media``; ``jobs.audit`` -> ``jobs``; ``asymvae`` -> ``""``."""
    first, _, below = module.partition(".")
    return below.partition(".")[0] if first == "asymvae" else first


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute name of a module) of every import, those inside functions and TYPE_CHECKING included."""
    package = list(file.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield node.lineno, base
            if base == "asymvae":  # from asymvae import media
                yield from ((node.lineno, f"asymvae.{name.name}") for name in node.names)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_imports_what_its_room_may(file: Path) -> None:
    where = str(file.relative_to(ROOT))
    room = room_of(".".join(file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    if where == "asymvae/__init__.py":  # what it offers is imported when it is asked for
        assert {module for _, module in imports(file)} == {"__future__", "typing", "asymvae.latents.dataset"}
        return
    assert room in MAY_IMPORT, f"{where}: say in MAY_IMPORT what this new room may import"
    wrong = []
    for line, module in imports(file):
        first = module.partition(".")[0]
        if first in ("asymvae", "jobs"):
            allowed = {room, *MAY_IMPORT[room], ""}
            if room_of(module) not in allowed:
                wrong.append(f"{where}:{line} imports {module}")
        if first == "ray" and where not in IMPORT_RAY:
            wrong.append(f"{where}:{line} imports {module}: only {sorted(IMPORT_RAY)} may")
        if first == "torch" and room in WITHOUT_TORCH:
            wrong.append(f"{where}:{line} imports {module}: {room} works without torch")
    assert not wrong, "\n".join(wrong)


def test_the_rooms_form_no_circle() -> None:
    done: list[str] = []
    left = dict(MAY_IMPORT)
    while left:
        free = [room for room, below in left.items() if below <= set(done)]
        assert free, f"a circle among {sorted(left)}"
        for room in free:
            done.append(room)
            del left[room]


def test_what_is_read_here_is_what_is_imported(tmp_path: Path) -> None:
    found = dict.fromkeys(module for _, module in imports(ROOT / "asymvae/model/decoder.py"))
    assert list(found) == [
        "__future__", "typing", "torch", "torch.nn",
        "asymvae.model.blocks", "asymvae.model.condition", "asymvae.model.config", "asymvae.model.convolution",
        "asymvae.model.norm",
    ]  # fmt: skip


def test_importing_asymvae_costs_nothing() -> None:
    code = "import sys, asymvae; print([name for name in ('torch', 'numpy', 'pyarrow') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
