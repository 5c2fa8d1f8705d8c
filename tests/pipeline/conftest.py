"""One set of shards and one undisturbed run for the tests of whole jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from asymvae.pipeline.executor import LocalExecutor
from asymvae.pipeline.job import run_job
from tests.tiny import job, parts_of, write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of four shards of eleven samples: three image sizes, partial batches, a bad sample each."""
    return write_shards(tmp_path_factory.mktemp("shards"), shards=4, samples=11)


@pytest.fixture(scope="session")
def undisturbed(shards: str, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The parts of a run in one process: what every other way of running must give, byte for byte."""
    out = tmp_path_factory.mktemp("undisturbed")
    result = run_job(job(shards, out, checkpoint), LocalExecutor())
    assert result.exit_code == 0
    return parts_of(out)


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """A real Ray cluster of two nodes, with one CPU each."""
    often = {"metrics_report_interval_ms": 1000}  # 10,000 as it comes
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": often})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, logging_level="warning")
    yield made
    ray.shutdown()
    made.shutdown()
