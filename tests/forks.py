"""Processes forked from one that has imported already: an import of torch takes longer than most of what tests run."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

_modules: list[str] = []


def forks_that_have_imported(*modules: str) -> ForkServerContext:
    """Makes processes. All that ask share one server, so each adds its modules before the first process is made."""
    _modules.extend(modules)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(dict.fromkeys(_modules)))
    return context
