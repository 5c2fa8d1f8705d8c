"""python -m jobs.submit: run a job on a Ray cluster, from anywhere that reaches its dashboard; watch, stop, repeat."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from ray.job_submission import JobDetails, JobStatus

from asymvae.storage.filesystem import redact
from jobs.arguments import EXIT_CONFIGURATION, fail, nearest
from jobs.job_server import JobServer, LostError, connect, exit_code, follow, told
from jobs.shipment import (
    JOBS,
    Shipment,
    as_command,
    code_digest,
    make_shipment,
    pack,
    parse_resources,
    read_runtime_env,
)

_HELP = """\
Run a job of this project on a Ray cluster, through the job server of its dashboard.

  python -m jobs.submit JOB [the job's own arguments] [--address http://HEAD:8265]     send it, follow it to its end
  python -m jobs.submit list                                                           what the cluster has run
  python -m jobs.submit status ID | logs ID [--follow] | stop ID
  python -m jobs.submit resubmit ID                        the same again; the same OUT goes on where it stood

JOB is one of {jobs}.
"""
_EPILOG = """\
The arguments and the configuration are checked here as the job will check them, before anything is sent. What is sent:
asymvae, jobs and the configuration, which must fit 32 MiB. Dependencies must be in the nodes' image, or come by
--runtime-env (cluster/runtime-env.yaml). Paths mean the cluster's file system. URLs with credentials are refused, since
Ray shows a job's command: give credentials to the nodes.

The job's first process runs on the head, without a GPU, unless --entrypoint-* ask for resources: then it runs wherever
there are such. Shards are run by actors, as workers.* say. train, evaluate and benchmark work in the first process.

A token is looked for as Ray does: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

examples:
  python -m jobs.submit inpaint --config configs/inpaint.yaml --address http://head:8265 --workers.max=8
  python -m jobs.submit train --config configs/train-x-1-5.yaml --entrypoint-num-gpus=1 --no-wait
  python -m jobs.submit logs raysubmit_TXiDk4ZuCKk5z3mM --follow

exit codes:
  those of the job (0, 1, 2), once it has ended; 1 also where it was stopped, never ran, or can't be seen any more
  2  nothing was sent: the configuration is wrong, the cluster can't be reached or doesn't take the token
  130  Ctrl-C: the job goes on
"""
_NOTE = "asymvae.shipment"  # the metadata's field that resubmit reads


def main(arguments: Sequence[str]) -> int:
    # Uploads, and connections that close. Two of them set a level of their own.
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    jobs = [name for name in JOBS if importlib.util.find_spec(f"jobs.{name}")]
    verbs = {"list": _list, "status": _status, "logs": _logs, "stop": _stop, "resubmit": _resubmit}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP.format(jobs=", ".join(jobs)) + "\noptions of JOB:\n" + _options().format_help() + "\n" + _EPILOG)
        return 0 if arguments else 2
    what, rest = arguments[0], list(arguments[1:])
    if what in verbs:
        flags = _flags(what).parse_args(rest)
        server = connect(flags.address)
        with told(server.get_address()):
            return verbs[what](server, flags)
    if what not in jobs:
        fail(f"unknown job {what}{nearest(what, [*jobs, *verbs])}; python -m jobs.submit --help lists them")
    flags, own = _options().parse_known_args(rest)
    environment = read_runtime_env(flags.runtime_env) if flags.runtime_env else {}
    checked = make_shipment(what, own, environment, parse_resources(flags))
    for warning in checked.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    server = connect(flags.address)
    with told(server.get_address()):
        return _send(server, checked.shipment, checked.output, wait=not flags.no_wait)


def _common() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard (RAY_API_SERVER_ADDRESS, else this machine's)",
    )
    return flags


def _options() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(parents=[_common()], add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    flags.add_argument("--runtime-env", metavar="FILE", help="YAML: pip, uv, py_modules, env_vars ... as Ray has them")
    flags.add_argument("--no-wait", action="store_true", help="send it and leave; logs ID --follow watches it")
    for resource in ("cpus", "gpus"):
        flags.add_argument(
            f"--entrypoint-num-{resource}", type=float, metavar="N", help=f"{resource.upper()} of the first process"
        )
    flags.add_argument("--entrypoint-resources", metavar="JSON", help="other resources of it, '{\"name\": 1}'")
    return flags


def _flags(verb: str) -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(prog=f"python -m jobs.submit {verb}", parents=[_common()], allow_abbrev=False)
    if verb != "list":
        flags.add_argument("id", metavar="ID", help="of the submission: raysubmit_...")
    if verb == "logs":
        flags.add_argument("--follow", action="store_true", help="until the job has ended, with its exit code")
    if verb == "resubmit":
        flags.add_argument("--no-wait", action="store_true", help="send it and leave")
    return flags


def _send(server: JobServer, shipment: Shipment, output: str, *, wait: bool) -> int:
    with tempfile.TemporaryDirectory(prefix="asymvae-submit-") as folder:
        pack(shipment, Path(folder))
        job = server.submit_job(
            entrypoint=shipment.entrypoint,
            runtime_env=shipment.runtime_env | {"working_dir": folder},
            metadata={_NOTE: shipment.to_json(), "output": redact(output)},
            **shipment.resources,
        )
    print(f"submitted {job}: {shipment.entrypoint}", file=sys.stderr)
    if wait:
        return _watch(server, job)
    at = f" --address {redact(server.get_address())}"
    print(f"watch it: python -m jobs.submit logs {job} --follow{at}", file=sys.stderr)
    return 0


def _watch(server: JobServer, job: str) -> int:
    at = f" --address {redact(server.get_address())}"
    try:
        details = follow(server, job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(f"\n{job} goes on; to end it: python -m jobs.submit stop {job}{at}", file=sys.stderr)
        return 128 + signal.SIGINT
    except LostError as error:
        print(
            f"error: the cluster doesn't answer any more ({error}). The job may go on; if the cluster comes back: "
            f"python -m jobs.submit logs {job} --follow{at}",
            file=sys.stderr,
        )
        return 1
    code = exit_code(details)
    print(f"{job} {_said(details)}", file=sys.stderr)
    if code and details.driver_exit_code is None and details.message and details.status == JobStatus.FAILED:
        print(f"error: {details.message.strip().splitlines()[-1]}", file=sys.stderr)
    if code not in (0, EXIT_CONFIGURATION):
        print(f"the same again, on the same OUT: python -m jobs.submit resubmit {job}{at}", file=sys.stderr)
    return code


def _said(details: JobDetails) -> str:
    code = "" if details.driver_exit_code is None else f", exit code {details.driver_exit_code}"
    return f"{details.status.value.lower()}{code}"


def _logs(server: JobServer, flags: argparse.Namespace) -> int:
    if flags.follow:
        server.get_job_info(flags.id)  # an id that isn't there is told at once
        return _watch(server, flags.id)
    print(server.get_job_logs(flags.id), end="")
    return 0


def _status(server: JobServer, flags: argparse.Namespace) -> int:
    details = server.get_job_info(flags.id)
    print(f"{flags.id}  {_said(details)}")
    print(f"command  {details.entrypoint}")
    if output := (details.metadata or {}).get("output"):
        print(f"output   {output}")
    print(f"started  {_time(details.start_time)}  {_lasted(details)}")
    if details.message and details.driver_exit_code is None and details.status == JobStatus.FAILED:
        print(f"because  {details.message.strip().splitlines()[-1]}")
    return 0


def _list(server: JobServer, flags: argparse.Namespace) -> int:
    jobs = [details for details in server.list_jobs() if details.submission_id]
    for details in sorted(jobs, key=lambda details: details.start_time or 0):
        what = (details.metadata or {}).get("output") or details.entrypoint
        print(f"{details.submission_id}  {_time(details.start_time)}  {_lasted(details):>9}  {_said(details)}  {what}")
    if not jobs:
        print("the cluster has run no submitted job", file=sys.stderr)
    return 0


def _stop(server: JobServer, flags: argparse.Namespace) -> int:
    before = server.get_job_info(flags.id)
    if before.status.is_terminal() or not server.stop_job(flags.id):
        print(f"{flags.id} had ended: {_said(server.get_job_info(flags.id))}")
        return 0
    try:
        details = follow(server, flags.id, lambda _: None)
    except LostError as error:
        print(f"error: it was told to stop, and the cluster doesn't answer any more ({error})", file=sys.stderr)
        return 1
    print(f"{flags.id} {_said(details)}; what is committed stays, and resubmit goes on from there")
    return 0


def _resubmit(server: JobServer, flags: argparse.Namespace) -> int:
    details = server.get_job_info(flags.id)
    if not details.status.is_terminal():
        fail(f"{flags.id} is {_said(details)}: two at once would do the same shards; stop it first")
    note = (details.metadata or {}).get(_NOTE)
    if note == "":
        fail(f"{flags.id} had a configuration too long to be kept with it: send {details.entrypoint} anew")
    try:
        shipment = Shipment.from_json(note or "")
    except (TypeError, ValueError):
        fail(f"{flags.id} was not sent by this command: send {details.entrypoint} as it was")
    if code_digest() != shipment.code:
        fail(
            f"{flags.id} ran other code than is here. To go on with this: python -m jobs.submit "
            + shlex.join(as_command(shipment))
        )
    return _send(server, shipment, (details.metadata or {}).get("output", ""), wait=not flags.no_wait)


def _time(milliseconds: int | None) -> str:
    return datetime.fromtimestamp((milliseconds or 0) / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _lasted(details: JobDetails) -> str:
    end = details.end_time or datetime.now(UTC).timestamp() * 1000
    return f"{max(0.0, end - (details.start_time or end)) / 1000:.0f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
