"""python -m jobs.benchmark: how fast the network, the pipeline and the codecs are on this machine."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asymvae.benchmark.config import CodecBenchmark, ModelBenchmark, PipelineBenchmark, SimulateBenchmark
from asymvae.benchmark.measured import (
    Measured,
    RunFailedError,
    measure_codecs,
    measure_model,
    measure_pipeline,
    measure_simulation,
)
from asymvae.config import JobSettings
from asymvae.storage import filesystem
from jobs.arguments import fail, parse

HELP = """\
Measure on this machine, and print a table (Markdown):

  model     the network: encode, decode, decode with image and mask, beside diffusers' with the same weights, in turns;
            images/s, TFLOP/s, share of what a matrix product reaches on the same device, memory
  pipeline  whole jobs beside a plain loop over the same samples: samples/s, samples an hour and GPU, seconds by stage
  simulate  how well many workers are kept busy by the executor: they wait where they would compute, on several Ray
            nodes of this machine, and commit; their share of the ideal, shards/s, time and memory of a worker's start
  codecs    milliseconds to decode and to encode an image, by format and size, on one core

Each has its own settings: python -m jobs.benchmark model --help
"""
EPILOG = """\
examples:
  python -m jobs.benchmark model --sizes=256,512 --dtypes=float32,bfloat16
  python -m jobs.benchmark model --sizes=512 --batches=1,16 --compiled=diffusers --output out/benchmark
  python -m jobs.benchmark pipeline --model.path=out/train/checkpoint --ray_workers=1,2 --output out/benchmark
  python -m jobs.benchmark simulate --workers=1,8,32,64 --nodes=4 --seconds=10 --output out/benchmark
  python -m jobs.benchmark codecs --input.urls='s3://bucket/set/00000.tar'

Speed over another is the median over rounds of each round's ratio, with the least and the most in brackets. Measure
on a machine that does nothing else.

exit codes:
  0  measured, and the files of --output are written
  2  nothing was measured (the configuration is wrong), or what was can't be written
  130  interrupted (Ctrl-C); nothing was written
"""
_ABOUT = {
    "model": "The network alone. FLOPs are the published architecture's, 2 a multiply-add, whoever is measured.\n"
    "Random weights are as fast as trained ones. Without diffusers, a dependency of the tests, ours is measured alone.",
    "pipeline": "A plain loop, the local executor and Ray workers, each in fresh processes, over the same shards.",
    "simulate": "Real actors on real Ray nodes, through the executor that jobs use; only the device's work is a wait.\n"
    "It shows what the driver, Ray and the commits cost, not the network or the stores. 64 workers take about 5 GiB.",
    "codecs": "The functions that jobs decode and encode with, on drawn pictures or on those of your shards.",
}


def read(arguments: Sequence[str]) -> tuple[JobSettings, argparse.Namespace]:
    """The benchmark that the arguments describe, and what is no setting. Exits with 2 where they are wrong."""
    overview = argparse.ArgumentParser(
        prog="python -m jobs.benchmark",
        usage="%(prog)s model|pipeline|simulate|codecs [--name.of.setting=value ...] [--config FILE] [--output FOLDER]",
        description=HELP,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    overview.add_argument("what", choices=_KINDS)
    what: str = overview.parse_args(arguments[:1]).what
    flags = argparse.ArgumentParser(
        prog=f"python -m jobs.benchmark {what}",
        usage="%(prog)s [--name.of.setting=value ...] [--config FILE] [--output FOLDER]",
        description=_ABOUT[what],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument(
        "--output", metavar="FOLDER", help="also write the table, every single timing as Parquet, and a plot"
    )
    job, flag = parse(_KINDS[what][0], flags, arguments[1:])
    flag.what = what
    return job, flag


def main(arguments: Sequence[str]) -> int:
    job, flag = read(arguments)
    try:
        measured = _KINDS[flag.what][1](job)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 128 + signal.SIGINT
    except (OSError, ValueError, ImportError, RunFailedError) as error:
        fail(filesystem.redact_text(str(error)))
    return _tell(flag.what, measured, "python -m jobs.benchmark " + shlex.join(arguments), flag.output)


def _tell(what: str, measured: Measured, command: str, folder: str | None) -> int:
    from asymvae.benchmark.machine import describe, headline
    from asymvae.benchmark.output import write

    machine = describe(filesystem.redact_text(command))
    head = [f"`{machine['command']}`", measured.subject, headline(machine)]
    text = "\n\n".join([*head, measured.table, *measured.notes])
    print(text)
    if folder is None:
        return 0
    try:
        written, missing = write(
            folder,
            what,
            measured.timings,
            machine,
            text=text,
            panels=measured.panels,
            unit=measured.unit,
            title=f"{measured.subject}\n{headline(machine)}",
        )
    except OSError as error:
        fail(f"--output: {filesystem.redact_text(str(error))}")
    for name in written:
        print(f"written  {filesystem.redact(name)}", file=sys.stderr)
    for name in missing:
        print(f"missing  {name}", file=sys.stderr)
    return 2 if missing else 0


def _measure_model(job: ModelBenchmark) -> Measured:
    return measure_model(job, _say)


def _measure_pipeline(job: PipelineBenchmark) -> Measured:
    with _scratch(job.scratch) as folder:
        return measure_pipeline(job, folder, _say)


def _measure_simulation(job: SimulateBenchmark) -> Measured:
    with _scratch(job.scratch) as folder:
        return measure_simulation(job, folder, _say)


def _measure_codecs(job: CodecBenchmark) -> Measured:
    return measure_codecs(job, _say)


@contextmanager
def _scratch(folder: str | None) -> Iterator[Path]:
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="asymvae-benchmark-", dir=folder) as name:
        yield Path(name).resolve()


def _say(said: str) -> None:
    print(said, file=sys.stderr, flush=True)


_KINDS: dict[str, tuple[type[JobSettings], Callable[[Any], Measured]]] = {
    "model": (ModelBenchmark, _measure_model),
    "pipeline": (PipelineBenchmark, _measure_pipeline),
    "simulate": (SimulateBenchmark, _measure_simulation),
    "codecs": (CodecBenchmark, _measure_codecs),
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
