"""A hung shard ends its process, also while its neighbour goes on."""

from __future__ import annotations

import subprocess
import sys

_BUSY_NEIGHBOUR = """
import time
from asymvae.pipeline.watchdog import Watchdog
dog = Watchdog(1.0)
with dog.watching("hung"), dog.watching("busy"):
    for _ in range(100):
        time.sleep(0.1)
        dog.stroke("busy")
"""
_BOTH_MOVE = """
import time
from asymvae.pipeline.watchdog import Watchdog
dog = Watchdog(1.0)
with dog.watching("a"), dog.watching("b"):
    for _ in range(15):
        time.sleep(0.1)
        dog.stroke("a")
        dog.stroke("b")
time.sleep(1.5)  # nothing is watched any more
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)


def test_a_hung_task_ends_the_process_with_a_trace_though_another_moves() -> None:
    ended = run(_BUSY_NEIGHBOUR)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr


def test_tasks_that_move_and_none_at_all_are_left_alone() -> None:
    assert run(_BOTH_MOVE).returncode == 0
