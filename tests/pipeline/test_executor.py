"""The executors: what goes wrong around the shards, with a real Ray."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from asymvae.inpaint.harmonic import HarmonicFill
from asymvae.pipeline import executor
from asymvae.pipeline.cluster import check_output_is_shared, check_resources, connect
from asymvae.pipeline.executor import RayExecutor
from asymvae.pipeline.job import run_job
from asymvae.pipeline.plan import ConfigurationError
from asymvae.pipeline.progress import Board, Tally
from tests.tiny import job


class StartsOnlyIn(HarmonicFill):
    """An inpainter that only one process can make: the driver, so that every worker fails to start."""

    def __init__(self, process: int) -> None:
        super().__init__()
        if os.getpid() != process:
            raise RuntimeError("no such model here: https://host/model?token=secret")


def test_workers_that_cannot_start_end_the_job_with_the_reason(
    cluster: Cluster, shards: str, checkpoint: Path, tmp_path: Path
) -> None:
    method = {"method": f"{__name__}:StartsOnlyIn", "options": {"process": os.getpid()}}
    result = run_job(job(shards, tmp_path, checkpoint, inpaint=method), RayExecutor())
    assert result.exit_code == 1
    assert "the workers failed: " in result.stopped
    assert "no such model here: https://host/model" in result.stopped
    assert "secret" not in result.stopped
    assert len(result.plan.left) == 4


def test_a_board_that_is_lost_takes_nothing_along(cluster: Cluster) -> None:
    board: Any = Board.remote()  # type: ignore[attr-defined]
    board.tell.remote("a", 3, {})
    ray.get(board.take.remote())
    ray.kill(board)
    tally = Tally()
    executor._listen(board, tally)
    assert tally.samples == 0


def test_an_actor_that_does_not_fit_is_refused_here_but_not_on_a_cluster_that_may_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asymvae.pipeline.cluster.nodes", lambda: ["head"])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    settings = job("unused", "unused", "unused", workers={"gpus": 1})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigurationError, match=r"workers\.gpus is 1 .* lower it"):
        check_resources(settings)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # as `ray job submit` sets it, on a head without GPUs
    check_resources(settings)


def test_a_node_that_is_lost_while_it_is_asked_is_not_asked_again(cluster: Cluster, tmp_path: Path) -> None:
    # The job ended with Ray's traceback, before anything had been begun.
    node = cluster.add_node(num_cpus=0)
    cluster.wait_for_nodes()
    lost = next(found["NodeID"] for found in ray.nodes() if found["NodeManagerPort"] == node.node_manager_port)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asymvae.pipeline.cluster.nodes", lambda: [lost, *_others(lost)])
        cluster.remove_node(node, allow_graceful=False)
        check_output_is_shared(str(tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


def _others(lost: str) -> list[str]:
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != lost]


def test_labels_and_kinds_of_gpu_that_cannot_be_are_wrong_settings(cluster: Cluster) -> None:
    with pytest.raises(ConfigurationError, match=r"workers\.labels: .*not a label"):
        RayExecutor().start(job("unused", "unused", "unused", workers={"labels": {"market": "not a label"}}))


def test_an_address_that_is_none_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConfigurationError, match=r"ray\.address nonsense"):
        RayExecutor().start(job("unused", "unused", "unused", ray={"address": "nonsense"}))


def test_a_cluster_that_does_not_answer_is_said_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ray would try for many minutes, and not say which setting led there.
    monkeypatch.setattr("asymvae.pipeline.cluster._ANSWERS_WITHIN_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=rf"ray\.address {address}: no Ray answers there \(timed out\)"):
            connect(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigurationError, match=rf"RAY_ADDRESS {address}: no Ray answers there .*refused"):
        connect(None)
