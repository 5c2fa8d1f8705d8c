"""What is sent to a cluster for one job: the command, the code, the configuration; and what may not be sent."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import asymvae
from asymvae.config import ShardJob
from asymvae.storage.filesystem import is_local
from jobs.arguments import NO_SETTINGS, fail, nearest, read_yaml

JOBS = ("inpaint", "precompute_latents", "decode_latents", "train", "evaluate", "audit", "report", "benchmark")
MAX_BYTES = 32 * 2**20  # of code and configuration; Ray takes 512 MiB, and then keeps that in the head's memory
_MAX_NOTE = 64 * 2**10
# Of a job that is stopped; Ray's own 3 s are short for actors that put away what they have spooled.
_STOP_WITHIN_S = 30
_PACKAGES = ("asymvae", "jobs")
_CODE = Path(asymvae.__file__).parents[1]
_ENVIRONMENT = {
    *("env_vars", "pip", "uv", "conda", "py_modules", "py_executable", "image_uri", "container", "nsight"),
    *("excludes", "config", "worker_process_setup_hook"),
}
# Flags that name files and are no settings, by job.
_FILES = {
    "audit": {"out": "OUT"},
    "report": {"out": "OUT", "folder": "--out"},
    "evaluate": {"picture": "--picture"},
    "benchmark": {"output": "--output"},
}
_FLAGS = {flag for flags in _FILES.values() for flag in flags.values()}
_PATHS = {"urls", "url", "root", "lpips_weights", "block_transform"}
_PATHS_OR_HUB_IDS = {"path", "encoder"}
_PATHS_OF_A_NODE = {"spool", "scratch"}
_USER_IN_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s'\"@]+@")
_SECRET_IN_QUERY = re.compile(
    r"://[^\s'\"]*[?&][^=&\s]*(sig|token|secret|passw|key|credential|auth)[^=&\s]*=[^&\s]", re.IGNORECASE
)
_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|ACCESS_KEY|API_KEY|PRIVATE_KEY)(_ID)?$")


@dataclass(frozen=True)
class Shipment:
    """A job as it is sent. ``arguments`` are the job's own, without ``--config``; ``config``, that file's path here and
    its content; ``runtime_env``, Ray's, without the working folder; ``code``, the hash of the code that goes along."""

    job: str
    arguments: tuple[str, ...]
    config: tuple[str, str] | None
    runtime_env: dict[str, Any]
    resources: dict[str, Any]
    code: str

    @property
    def entrypoint(self) -> str:
        config = ["--config", f"configs/{Path(self.config[0]).name}"] if self.config else []
        # A sub-command, as benchmark has them, must stay in front.
        front = [word for word in self.arguments[:1] if not word.startswith("-")]
        return shlex.join(["python", "-m", f"jobs.{self.job}", *front, *config, *self.arguments[len(front) :]])

    def to_json(self) -> str:
        """For the job's metadata, which Ray hands to the job in an environment variable, of 128 KiB at the most; ""
        where it is too long for that (a list of all shards, say), and can't be sent again from there."""
        text = json.dumps(asdict(self))
        return text if len(text) <= _MAX_NOTE else ""

    @classmethod
    def from_json(cls, text: str) -> Shipment:
        """Raises ValueError or TypeError where ``text`` isn't one of :meth:`to_json`."""
        made = cls(**json.loads(text))
        return replace(made, arguments=tuple(made.arguments), config=tuple(made.config) if made.config else None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Checked:
    """A shipment, with where its output goes (without secrets, for lists) and what should be known before it runs."""

    shipment: Shipment
    output: str
    warnings: list[str]


def make_shipment(
    job: str, arguments: Sequence[str], runtime_env: dict[str, Any], resources: dict[str, Any]
) -> Checked:
    """Read the job's arguments as the job itself will, and refuse what can't run there or may not be sent.

    Exits with 2, naming the remedy.
    """
    settings, flags = importlib.import_module(f"jobs.{job}").read(arguments)
    file = getattr(flags, "config", None)
    config = (file, Path(file).read_text(encoding="utf-8")) if file else None
    runtime_env = _with_variable(runtime_env, "RAY_JOB_STOP_WAIT_TIME_S", str(_STOP_WITHIN_S))
    for name, value in os.environ.items():  # they have been read as settings here, so they must be so there
        if name.upper().startswith("ASYMVAE_") and name.upper() not in NO_SETTINGS:
            runtime_env = _with_variable(runtime_env, name, value)
    named = {label: getattr(flags, attribute) for attribute, label in _FILES.get(job, {}).items()}
    values = [*named.items(), *(_leaves(settings) if settings is not None else ())]
    _refuse_secrets([*values, *[("the arguments", word) for word in arguments]], config, runtime_env)
    warnings = list(_look_at_paths(values))
    if job == "report" and flags.folder is None and not is_local(flags.out):
        fail(f"report of {flags.out}: say --out URL, for what it writes beside itself is gone with the job")
    if isinstance(settings, ShardJob):
        warnings += _look_at_executor(settings)
    elif settings is not None and not resources.get("entrypoint_num_gpus"):
        warnings.append(
            f"jobs.{job} works in the process that is submitted, which has no GPU; --entrypoint-num-gpus=1 gives it one"
        )
    output = str(dict(values).get("output.url") or named.get("OUT") or "")
    shipment = Shipment(job, tuple(_without_config(arguments)), config, runtime_env, resources, code_digest())
    return Checked(shipment, output, warnings)


def _with_variable(runtime_env: dict[str, Any], name: str, value: str) -> dict[str, Any]:
    """The environment with a variable, unless it has it."""
    return runtime_env | {"env_vars": {name: value} | (runtime_env.get("env_vars") or {})}


def read_runtime_env(path: str) -> dict[str, Any]:
    """A runtime environment as Ray's ``--runtime-env`` takes it, its local paths absolute. Exits with 2."""
    content = read_yaml("--runtime-env", path)
    if not isinstance(content, dict):
        fail(f"--runtime-env {path} must hold fields such as 'pip: [...]' or 'env_vars: {{...}}'")
    if "working_dir" in content:
        fail(f"--runtime-env {path}: leave working_dir out; it is the code and the configuration that are sent here")
    for field in content:
        if field not in _ENVIRONMENT:
            fail(f"--runtime-env {path}: unknown field {field}{nearest(str(field), _ENVIRONMENT)}")
    for field in ("pip", "uv"):
        if isinstance(content.get(field), str):
            content[field] = str(_existing(path, field, content[field]))
    if "py_modules" in content:
        modules = content["py_modules"]
        content["py_modules"] = [m if "://" in m else str(_existing(path, "py_modules", m)) for m in modules]
    return content


def _existing(runtime_env: str, field: str, path: str) -> Path:
    if not Path(path).exists():
        fail(f"--runtime-env {runtime_env}: {field}: there is no {path} here")
    return Path(path).absolute()


def _leaves(value: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting that is a text, or texts in a list, by its dotted name."""
    for name in type(value).model_fields:
        inner = getattr(value, name)
        if isinstance(inner, BaseModel):
            yield from _leaves(inner, f"{prefix}{name}.")
        elif isinstance(inner, str):
            yield prefix + name, inner
        elif isinstance(inner, tuple):
            yield from ((prefix + name, item) for item in inner if isinstance(item, str))


def _look_at_paths(values: Sequence[tuple[str, str | None]]) -> Iterator[str]:
    absolute = []
    for name, value in values:
        last = name.rpartition(".")[2]
        known = last in _FLAGS | _PATHS | _PATHS_OF_A_NODE | _PATHS_OR_HUB_IDS
        if not known or not value or ("://" in value and not value.startswith("file://")):
            continue
        path = value.removeprefix("file://")
        if path.startswith("/"):
            absolute += [] if last in _PATHS_OF_A_NODE else [f"{name} {value}"]
        elif last not in _PATHS_OR_HUB_IDS or path.startswith((".", "~")) or Path(path).exists():
            fail(
                f"{name} {value} is relative, to the job's folder on the cluster, which is gone with the job: give a "
                "URL (s3://, gs://), or an absolute path that every node sees"
            )
    if absolute:
        yield f"{', '.join(absolute)}: on the cluster's disks, not on this machine's; every node must see the same"


def _look_at_executor(job: ShardJob) -> Iterator[str]:
    if job.ray.address not in (None, "auto"):
        fail(f"ray.address {job.ray.address}: leave it out; Ray tells a submitted job its own cluster's")
    if job.executor == "local":
        yield "executor local runs the shards one by one in the head's process: ray is what uses the cluster"


def _refuse_secrets(
    values: Sequence[tuple[str, str | None]], config: tuple[str, str] | None, runtime_env: Mapping[str, Any]
) -> None:
    """Ray shows a job's command and environment to whoever sees its dashboard, and the head logs them."""
    texts = [*values]
    if config:
        texts.append(("--config", config[1]))
    texts.append(("the runtime environment", json.dumps(runtime_env)))
    for name, text in texts:
        if text and (_USER_IN_URL.search(text) or _SECRET_IN_QUERY.search(text)):
            fail(
                f"{name} holds a URL with credentials, which Ray would show to whoever sees the cluster's dashboard: "
                "give them to the nodes instead (an instance's role, a Kubernetes Secret, their environment)"
            )
    for name in runtime_env.get("env_vars") or {}:
        if _SECRET_NAME.search(name.upper()):
            fail(
                f"env_vars {name} looks like a secret, which Ray would show to whoever sees the cluster's dashboard: "
                "give it to the nodes instead (an instance's role, a Kubernetes Secret, their environment)"
            )


def _without_config(arguments: Sequence[str]) -> Iterator[str]:
    words = iter(arguments)
    for word in words:
        if word == "--config":
            next(words, None)
        elif not word.startswith("--config="):
            yield word


def _code_files() -> Iterator[tuple[str, Path]]:
    for package in _PACKAGES:
        for path in sorted((_CODE / package).rglob("*")):
            below = path.relative_to(_CODE)
            if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in below.parts):
                yield below.as_posix(), path


def code_digest() -> str:
    """sha256 of the code that goes along. Exits with 2 where it is too large, naming what is."""
    digest, sizes = hashlib.sha256(), {}
    for name, path in _code_files():
        sizes[name] = path.stat().st_size
        if sum(sizes.values()) <= MAX_BYTES:
            digest.update(f"{name}\0{sizes[name]}\0".encode() + path.read_bytes())
    if sum(sizes.values()) > MAX_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        fail(
            f"the code in {_CODE} is {sum(sizes.values()) / 2**20:.0f} MiB, and at most {MAX_BYTES // 2**20} are sent; "
            "move out: " + ", ".join(f"{name} ({sizes[name] / 2**20:.0f} MiB)" for name in largest)
        )
    return digest.hexdigest()


def pack(shipment: Shipment, folder: Path) -> None:
    """Fill ``folder`` with what the job needs: asymvae, jobs, its configuration; no data, no environment, no tests."""
    for name, path in _code_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    if shipment.config:
        (folder / "configs").mkdir()
        (folder / "configs" / Path(shipment.config[0]).name).write_text(shipment.config[1], encoding="utf-8")
    # What a job writes into _job.json; an image with the dependencies alone has no other.
    number = version("asymvae")
    metadata = folder / f"asymvae-{number}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: asymvae\nVersion: {number}\n")


def as_command(shipment: Shipment) -> list[str]:
    """The job's part of the command line that sent it, to send it with other code."""
    return [shipment.job, *shipment.arguments, *(["--config", shipment.config[0]] if shipment.config else [])]


def parse_resources(flags: argparse.Namespace) -> dict[str, Any]:
    """What ``--entrypoint-*`` ask for, in Ray's words; {} leaves the job's first process on the head."""
    asked: dict[str, Any] = {}
    if flags.entrypoint_num_cpus is not None:
        asked["entrypoint_num_cpus"] = flags.entrypoint_num_cpus
    if flags.entrypoint_num_gpus is not None:
        asked["entrypoint_num_gpus"] = flags.entrypoint_num_gpus
    if flags.entrypoint_resources is not None:
        try:
            named = json.loads(flags.entrypoint_resources)
        except ValueError:
            named = None
        if not isinstance(named, dict) or not all(isinstance(amount, int | float) for amount in named.values()):
            fail("--entrypoint-resources must be JSON, resources by name: '{\"driver\": 1}'")
        asked["entrypoint_resources"] = named
    return asked
