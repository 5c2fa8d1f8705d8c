"""The pool on a real cluster whose nodes come and go."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from asymvae.pipeline.pool import Pool
from asymvae.pipeline.reports import Report
from asymvae.storage.shards import Shard

SPOT = {"ray.io/market-type": "spot"}


class Waits:
    """A worker that says where each shard began, and is done with it once it may go on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.node = folder, ray.get_runtime_context().get_node_id()

    def run(self, shard: Shard) -> Report:
        (self.folder / f"{self.node}.{shard.name}").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.05)
        return Report(shard.name, True, worker=self.node)


def pool(folder: Path, count: int, *, least: int, most: int, **options: object) -> Pool:
    todo = [Shard(f"{number}", f"{number}", "webdataset", 1, "v") for number in range(count)]
    actor = ray.remote(Waits).options(num_cpus=1, max_restarts=0, max_concurrency=2, **options)
    return Pool(
        lambda: actor.remote(folder),
        todo,
        count,
        count,
        least=least,
        most=most,
        in_flight=2,
        stop=(folder / "go").touch,
    )


def nodes_at_work(folder: Path) -> set[str]:
    return {file.name.partition(".")[0] for file in folder.glob("*.*")}


@pytest.fixture
def added(cluster: Cluster) -> Iterator[list[object]]:
    """Nodes to be taken away again."""
    nodes: list[object] = []
    yield nodes
    for node in nodes:
        cluster.remove_node(node)


def test_it_grows_onto_nodes_that_come_and_goes_on_without_those_that_go(
    cluster: Cluster, added: list[object], tmp_path: Path
) -> None:
    seen: Counter[str] = Counter()
    running = pool(tmp_path, 20, least=1, most=4).run()
    while len(nodes_at_work(tmp_path)) < 2:  # a CPU each, and all of them taken
        next(running)
    coming = cluster.add_node(num_cpus=2, wait=False)
    while len(nodes_at_work(tmp_path)) < 3:
        next(running)
    cluster.remove_node(coming, allow_graceful=False)
    (tmp_path / "go").touch()
    for news in running:
        if news is not None:
            assert news[1].committed, news
            seen[news[0].name] += 1
    # What was lost with the node is done elsewhere, and nothing is reported twice.
    assert seen == Counter(map(str, range(20)))


def test_workers_go_where_their_labels_say(cluster: Cluster, added: list[object], tmp_path: Path) -> None:
    added.append(cluster.add_node(num_cpus=1, labels=SPOT))
    spot = {node["NodeID"] for node in ray.nodes() if node["Labels"].get("ray.io/market-type") == "spot"}  # type: ignore[no-untyped-call]
    (tmp_path / "go").touch()
    done = [news for news in pool(tmp_path, 4, least=1, most=2, label_selector=SPOT).run() if news]
    assert len(done) == 4
    assert nodes_at_work(tmp_path) == spot
