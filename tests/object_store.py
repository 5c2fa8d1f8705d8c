"""A real S3 server for tests: SeaweedFS on loopback, with signed requests."""

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
from dataclasses import dataclass
from pathlib import Path

BUCKET = "asymvae-tests"
ACCESS_KEY = "test-access-key"
SECRET_KEY = "test-secret-key-that-no-record-may-hold"


@dataclass
class ObjectStore:
    """A running server. ``env`` is all that boto, s3fs and child processes need to reach it."""

    endpoint: str
    process: subprocess.Popen[bytes]

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # SIGTERM takes 4 s, and nothing in it is worth keeping
            self.process.wait()


def start_object_store(folder: Path) -> ObjectStore:
    """Start the server with its data in ``folder``; returns when it answers (1 to 3 s)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
    names += ["s3.port", "s3.port.grpc"]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    weed = Path(sys.executable).with_name("weed")
    command = [
        str(weed),
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
    with (folder / "log").open("wb") as log:
        # In its own group and folder: it writes where it stands.
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    store = ObjectStore(f"http://127.0.0.1:{ports['s3.port']}", process)
    try:
        _wait_until_ready(store, folder / "log")
    except BaseException:
        store.stop()
        raise
    return store


def _wait_until_ready(store: ObjectStore, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and store.process.poll() is None:
        try:
            urllib.request.urlopen(f"{store.endpoint}/{BUCKET}", timeout=2)
        except urllib.error.HTTPError as error:
            if error.code == 403:  # it answers, and refuses what isn't signed
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the object store did not start:\n{log.read_text()[-3000:]}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
