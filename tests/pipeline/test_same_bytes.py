"""The same parts, byte for byte, however a job runs and whatever happens to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from asymvae.pipeline.executor import LocalExecutor, RayExecutor
from asymvae.pipeline.job import JobResult, run_job
from asymvae.pipeline.plan import Recipe
from asymvae.pipeline.progress import Tally
from asymvae.pipeline.worker import Report
from asymvae.storage.audit import audit
from asymvae.storage.shards import Shard
from tests.soak.crash_job import gone, workers_of
from tests.tiny import job, parts_of

KILLERS = "tests.pipeline.killers"


class Backwards(LocalExecutor):
    def run(self, recipe: Recipe, shards: Sequence[Shard], tally: Tally) -> Generator[Report | None, None, None]:
        return super().run(recipe, shards[::-1], tally)


def check(result: JobResult, out: Path, undisturbed: dict[str, bytes]) -> None:
    assert result.exit_code == 0, result
    assert parts_of(out) == undisturbed
    report = audit(str(out), deep=True, shards=result.plan.shards)
    assert report.ok, report
    assert (report.samples, report.planned) == (44, 44)
    assert report.results + report.errors == 44
    leftovers = [path for path in out.rglob("*") if path.name.endswith(".tmp")]
    assert not leftovers


def test_shards_in_another_order(shards: str, checkpoint: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    check(run_job(job(shards, tmp_path, checkpoint), Backwards()), tmp_path, undisturbed)


def test_a_second_run_does_nothing_and_a_lost_part_can_be_had_again(
    shards: str, checkpoint: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    run_job(job(shards, tmp_path, checkpoint), LocalExecutor())
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    again = run_job(job(shards, tmp_path, checkpoint), LocalExecutor())
    assert again.plan.left == ()
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    check(again, tmp_path, undisturbed)


def test_one_actor_and_two_actors(
    cluster: Cluster, shards: str, checkpoint: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    for actors in (1, 2):
        out = tmp_path / str(actors)
        result = run_job(job(shards, out, checkpoint, workers={"min": actors, "max": actors}), RayExecutor())
        check(result, out, undisturbed)


def test_an_actor_killed_in_the_middle_of_its_work(
    cluster: Cluster, shards: str, checkpoint: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    marker, out = tmp_path / "killed", tmp_path / "out"
    method = {"method": f"{KILLERS}:KilledAtWork", "options": {"marker": str(marker), "key": "s1-0008"}}
    result = run_job(job(shards, out, checkpoint, inpaint=method), RayExecutor())
    assert marker.exists()
    check(result, out, undisturbed)


def test_an_actor_killed_in_the_middle_of_a_commit(
    cluster: Cluster, shards: str, checkpoint: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    marker, out = tmp_path / "killed", tmp_path / "out"
    method = {"method": f"{KILLERS}:KilledInCommit", "options": {"marker": str(marker)}}
    result = run_job(job(shards, out, checkpoint, inpaint=method), RayExecutor())
    assert marker.exists()
    check(result, out, undisturbed)


def test_a_poison_shard_is_given_up_by_name_and_takes_no_neighbour_along(
    cluster: Cluster, shards: str, checkpoint: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    method = {"method": f"{KILLERS}:AlwaysKilled", "options": {"key": "s2-0004"}}
    result = run_job(job(shards, tmp_path, checkpoint, inpaint=method, ray={"attempts": 1}), RayExecutor())
    assert result.exit_code == 1
    assert list(result.failed) == ["00002"]
    assert (tmp_path / "_failed" / "00002.json").exists()
    assert parts_of(tmp_path) == {name: part for name, part in undisturbed.items() if "00002" not in name}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_killed_and_restarted(
    number: signal.Signals,
    cluster: Cluster,
    shards: str,
    checkpoint: Path,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
) -> None:
    out, spool = tmp_path / "out", tmp_path / "spool"
    command = [sys.executable, "-m", "jobs.inpaint", f"--input.urls={shards}", f"--output.url={out}"]
    command += [f"--model.path={checkpoint}", "--workers.gpus=0", "--workers.batch_size=4", "--max_error_fraction=0.5"]
    command += ["--workers.shards_in_flight=1", f"--workers.spool={spool}"]
    environment = os.environ | {"RAY_ADDRESS": cluster.address}
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        while not list((out / "_commits").glob("*.json")):
            assert driver.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.02)
        driver.send_signal(number)
        code = driver.wait(60)
    if number == signal.SIGTERM:  # the workers were told, and have given up what they were at
        assert code == 128 + number
        assert "the same command goes on" in (tmp_path / "log").read_text()
        assert not list(spool.iterdir())
    wait_for_the_end_of_workers(cluster)
    committed = len(list((out / "_commits").glob("*.json")))
    assert 1 <= committed < 4
    result = run_job(job(shards, out, checkpoint, workers={"spool": str(spool)}), LocalExecutor())
    assert len(result.plan.left) == 4 - committed
    check(result, out, undisturbed)
    assert not list(spool.iterdir())


def wait_for_the_end_of_workers(cluster: Cluster) -> None:
    """A worker may commit one shard more until Ray notices that its driver is gone."""
    raylets = [
        process.process.pid
        for node in (cluster.head_node, *cluster.worker_nodes)
        for process in node.all_processes["raylet"]
    ]
    assert not gone(lambda: workers_of(raylets), within=30)
