"""The command line, called in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.inpaint import main
from jobs.submit import main as submit_main


@dataclass(frozen=True)
class Ran:
    """What a call of a job came to."""

    code: int | str | None
    out: str
    err: str


Inpaint = Callable[..., Ran]
Submit = Callable[..., Ran]


@pytest.fixture
def inpaint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> Inpaint:
    """``jobs.inpaint`` with these flags, on the CPU, without Ray, with a tiny checkpoint. No exception gets out but
    what would be a traceback."""

    def run(*flags: str) -> Ran:
        capsys.readouterr()
        fixed = ["--executor=local", "--workers.gpus=0", f"--model.path={checkpoint}"]
        try:
            code: int | str | None = main([*fixed, *flags])
        except SystemExit as error:
            code = error.code
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture
def submit(capsys: pytest.CaptureFixture[str]) -> Submit:
    """``jobs.submit`` with these arguments; no exception gets out but what would be a traceback."""

    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        try:
            code: int | str | None = submit_main(arguments)
        except SystemExit as error:
            code = error.code
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run
