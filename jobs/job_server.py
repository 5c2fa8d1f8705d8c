"""A Ray cluster's job server: connected to with a token, within seconds, and followed through lost connections."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from asymvae.storage.filesystem import redact
from jobs.arguments import fail

CONNECT_S = 5.0
_ANSWER_S = 120.0  # a package is uploaded in one request
_LOST_S = 60.0
_TOKEN_HELP = "the cluster's token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"


class LostError(Exception):
    """The server can't be reached any more; what becomes of the job isn't known here."""


class JobServer(JobSubmissionClient):
    """Ray's client, which waits for ever where nothing answers, with time-outs."""

    def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=(CONNECT_S, _ANSWER_S), **more)


def connect(address: str | None) -> JobServer:
    """The job server at ``address`` (by default of RAY_API_SERVER_ADDRESS, else of this machine).

    Exits with 2, in one line, where it can't be reached or doesn't take our token.
    """
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or _of_ray_address() or "http://127.0.0.1:8265"
    if not address.startswith(("http://", "https://")):
        fail(f"--address {address}: give the dashboard's, as http://HEAD:8265")
    token = read_token()
    # Ray's client lets these variables win over what it is given.
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        with told(address):
            return JobServer(address, headers={"Authorization": f"Bearer {token}"} if token else None)
    finally:
        del os.environ["RAY_API_SERVER_ADDRESS"]
        if before is not None:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _of_ray_address() -> str | None:
    address = os.environ.get("RAY_ADDRESS", "")
    return address if address.startswith("http") else None


def read_token() -> str | None:
    """The token, from where Ray looks for it and in its order (Ray itself aborts where a file can't be read)."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        token = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        if not named:
            return None
        fail(f"RAY_AUTH_TOKEN_PATH {named}: no such file")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"the token's file {path} can't be read: {error}")
    if not token:
        fail(f"the token's file {path} is empty")
    return token


@contextmanager
def told(address: str) -> Iterator[None]:
    """What the server or the way to it raises becomes one line, and exit code 2."""
    where = redact(address)
    try:
        yield
    except AuthenticationError as error:
        if "Authentication required" in str(error):
            fail(f"{where} wants a token, and there is none here; set {_TOKEN_HELP} (`ray get-auth-token` on the head)")
        fail(f"{where} doesn't take this token; set {_TOKEN_HELP} (`ray get-auth-token` on the head)")
    except OSError as error:  # requests' errors are, too
        fail(
            f"no Ray job server answers at {where} ({_short(error)}): is the cluster up, its dashboard on this port, "
            "and, where it listens on the head's loopback alone, a tunnel there (ssh -L 8265:127.0.0.1:8265 HEAD)?"
        )
    except (RuntimeError, ValueError) as error:
        said = str(error)
        if "No available agent" in said:
            fail(
                f"{where}: the head's agent, which starts jobs, isn't up. If that stays so, its port (52365) is taken, "
                "by another Ray of that machine perhaps: ray start --head --dashboard-agent-listen-port=0 takes any"
            )
        if "Version check returned 404" in said:
            fail(f"{where} answers, but is no Ray dashboard")
        fail(f"{where}: {_short(error)}")


def _short(error: Exception) -> str:
    """Of an answer with a traceback the last line; of requests' chains the kind alone."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    said = lines[-1].strip() if lines else type(error).__name__
    said = re.sub(r"^Request failed with status code \d+: ", "", said).rstrip(".")
    return type(error).__name__ if len(said) > 200 else said


def follow(server: JobServer, job: str, write: Callable[[str], Any]) -> JobDetails:
    """Write the job's log as it grows, until the job has ended; returns what is known of it then.

    Raises:
        LostError: the server was out of reach for a minute. The job may be going on.
    """
    shown, lost_since = 0, 0.0
    while True:
        try:

            async def tail() -> None:
                nonlocal shown, lost_since
                seen = 0  # each connection begins at the log's beginning
                async for text in server.tail_job_logs(job):
                    lost_since = 0.0
                    if seen + len(text) > shown:
                        write(text[max(0, shown - seen) :])
                        shown = seen + len(text)
                    seen += len(text)

            asyncio.run(tail())
            details = server.get_job_info(job)
            if details.status.is_terminal():
                return details
            lost_since = 0.0
        except AuthenticationError:
            raise
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > _LOST_S:
                raise LostError(_short(error)) from error
        time.sleep(1)


def exit_code(details: JobDetails) -> int:
    """The job's own where it has one; 1 where it was stopped or never ran."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    code = details.driver_exit_code
    if code is None or code == 0:
        return 1
    return int(code) if code > 0 else 128 - int(code)  # ended by a signal
