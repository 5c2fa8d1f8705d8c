"""The Ray cluster: joining it, what its nodes have, and which of them a worker may run on."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asymvae.config import ShardJob
from asymvae.pipeline.disk import full_disk_named
from asymvae.pipeline.plan import ConfigurationError
from asymvae.storage.filesystem import is_local, resolve

_MARKER = ".seen-by-all."
_ANSWERS_WITHIN_S = 10.0
_HTTP2_SETTINGS = 4
# The client's preface, and its empty frame of settings.
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _HTTP2_SETTINGS, 0, 0, 0, 0, 0])
# A marker that a killed driver left in OUT; none takes so long to be looked at.
_STALE_AFTER_S = 3600.0


def placement(job: ShardJob) -> dict[str, Any]:
    """Ray's options of a task or actor that runs where a worker of ``job`` may.

    Ray's autoscaler reads the same: nodes that have none of it aren't started for it.
    """
    workers = job.workers
    return {
        "num_gpus": workers.gpus,
        "num_cpus": workers.cpu_threads,
        "accelerator_type": workers.accelerator_type,
        "label_selector": workers.labels or None,
    }


def connect(address: str | None) -> None:
    """Join the cluster at ``address``, or RAY_ADDRESS, or start a Ray of this machine.

    Raises:
        ConfigurationError: it isn't an address, or nothing answers there.
    """
    setting, wanted = "ray.address", address
    if wanted is None:
        # "local" where nothing is said: Ray would join the cluster that was last started here, whoever's it is.
        setting, wanted = "RAY_ADDRESS", os.environ.get("RAY_ADDRESS") or "local"
    if host := re.fullmatch(r"(?:ray://)?\[?(?P<name>[^/\[\]]+?)\]?:(?P<port>[0-9]{1,5})", wanted):
        try:
            _greet(host["name"], int(host["port"]))
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"{setting} {wanted}: no Ray answers there ({error}); start it, correct the address, or leave it out "
                "to start one on this machine"
            ) from error
    on_terminate, terminated = signal.getsignal(signal.SIGTERM), False
    try:
        ray.init(address=wanted, logging_level=logging.WARNING)
    except (ValueError, ConnectionError) as error:
        raise ConfigurationError(f"{setting} {wanted}: {error}") from error
    except SystemExit:
        terminated = True  # by Ray's own handler, see below
    finally:
        # Ray puts a handler there, which ends the process with 1 in the middle of anything.
        if threading.current_thread() is threading.main_thread() and on_terminate is not None:
            signal.signal(signal.SIGTERM, on_terminate)
    if terminated:
        signal.raise_signal(signal.SIGTERM)


def _greet(host: str, port: int) -> None:
    """Is there a gRPC server, as Ray's head is one? Ray itself tries for many minutes where nothing answers.

    By HTTP/2 (RFC 9113, 3.4), each side begins with a frame of settings, without waiting for the other's.

    Raises:
        OSError: nothing answers there within a few seconds, or something else does.
    """
    with socket.create_connection((host, port), timeout=_ANSWERS_WITHIN_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return  # it would have to be greeted in TLS, with the cluster's own certificates
        connection.sendall(_HTTP2_GREETING)
        frame = connection.recv(9, socket.MSG_WAITALL)
        if len(frame) < 9 or frame[3] != _HTTP2_SETTINGS:
            raise ConnectionError("something else than a Ray head does")


def nodes() -> list[str]:
    """Ids of the nodes that are up."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def check_resources(job: ShardJob) -> None:
    """On a Ray of this machine, which won't grow: does an actor fit at all? Ray would wait for ever, and say little."""
    address = job.ray.address or os.environ.get("RAY_ADDRESS") or "local"
    if len(nodes()) > 1 or address != "local":
        return
    has = ray.cluster_resources()  # type: ignore[no-untyped-call]
    kind = job.workers.accelerator_type
    if kind is not None and f"accelerator_type:{kind}" not in has:
        raise ConfigurationError(f"workers.accelerator_type is {kind} and this machine's Ray has none: leave it out")
    for setting, resource, wanted in (
        ("workers.gpus", "GPU", job.workers.gpus),
        ("workers.cpu_threads", "CPU", job.workers.cpu_threads),
    ):
        if wanted > has.get(resource, 0):
            raise ConfigurationError(
                f"{setting} is {wanted:g} and this machine's Ray has {has.get(resource, 0):g} {resource}: lower it"
                + (", 0 runs on the CPU" if resource == "GPU" else "")
            )


def check_output_is_shared(out: str) -> None:
    """A local OUT on a cluster of several nodes: every node must see the same folder."""
    alive = nodes()
    if len(alive) < 2 or not is_local(out):
        return
    with full_disk_named(f"output.url {out}", "free some, or enlarge it"):
        marker = _marker_in(Path(resolve(out)[1]))
    try:
        look = ray.remote(num_cpus=0)(os.path.exists)
        seen = [
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(marker))
            for node in alive
        ]
        if not all(map(_seen, seen)):
            raise ConfigurationError(
                f"output.url {out} is a local folder that not every node of the cluster sees: "
                "set it to an object store (s3://, gs://) or a shared file system"
            )
    finally:
        marker.unlink(missing_ok=True)


def _marker_in(folder: Path) -> Path:
    """A new empty file that only this driver knows. What others left, killed, goes."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_MARKER}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _STALE_AFTER_S:
                left.unlink()
    # Not named as temporary files are: another driver's audit would take it for what a crash left, and remove it.
    marker = folder / f"{_MARKER}{uuid.uuid4().hex}"
    marker.touch()
    return marker


def _seen(answer: Any) -> bool:
    try:
        return bool(ray.get(answer))
    except RayError:  # the node was lost while it was asked: no worker runs there
        return True


def check_placement(job: ShardJob) -> None:
    """Raises ConfigurationError for labels that Ray has no syntax for."""
    try:
        ray.remote(nodes).options(**placement(job))
    except ValueError as error:
        raise ConfigurationError(f"workers.labels: {error}") from error
