"""The numbers that a cluster's owner watches: scraped as Prometheus does, from a real run."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from pathlib import Path

import ray
from prometheus_client.parser import text_string_to_metric_families
from ray.cluster_utils import Cluster

from asymvae.pipeline.executor import RayExecutor
from asymvae.pipeline.job import run_job
from asymvae.pipeline.tail import Tail, largest_first, oversized
from asymvae.storage.shards import Shard
from tests.tiny import job


def scrape() -> dict[str, Counter[str]]:
    """Our metrics of every node: name -> its label's value ("" where it has none) -> sum over workers."""
    found: dict[str, Counter[str]] = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        text = urllib.request.urlopen(url, timeout=10).read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("ray_asymvae_"):
                    label = next((sample.labels[name] for name in OUR_LABELS if name in sample.labels), "")
                    found.setdefault(sample.name, Counter())[label] += sample.value  # type: ignore[assignment]
    return found


OUR_LABELS = ("code", "stage", "outcome", "queue")


def test_a_run_is_seen_as_its_commits_have_it(cluster: Cluster, shards: str, checkpoint: Path, tmp_path: Path) -> None:
    # Counters are of the whole session, in which other tests ran jobs too.
    before = scrape()
    result = run_job(job(shards, tmp_path, checkpoint, workers={"min": 2, "max": 2}), RayExecutor())
    assert result.exit_code == 0
    commits = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("_commits/*.json"))]
    expected = {
        "ray_asymvae_samples_total": {"": sum(commit["counts"]["samples"] for commit in commits)},
        "ray_asymvae_errors_total": dict(sum((Counter(commit["errors_by_code"]) for commit in commits), Counter())),
        "ray_asymvae_shards_total": {"committed": len(commits)},
        "ray_asymvae_bytes_read_total": {"": sum(commit["input"]["size"] for commit in commits)},
        "ray_asymvae_bytes_written_total": {"": sum(part["size"] for commit in commits for part in commit["parts"])},
        "ray_asymvae_shard_seconds_count": {"": len(commits)},
    }

    def grown() -> dict[str, dict[str, float]]:
        now = scrape()
        return {name: dict(now.get(name, Counter()) - before.get(name, Counter())) for name in expected}

    end = time.monotonic() + 30
    while (seen := grown()) != expected and time.monotonic() < end:
        time.sleep(0.5)
    assert seen == expected
    last = scrape()
    seconds = last["ray_asymvae_stage_seconds_total"] - before.get("ray_asymvae_stage_seconds_total", Counter())
    stages: Counter[str] = Counter()
    for commit in commits:
        stages.update(commit["run"]["stages"])
    assert seconds.keys() == stages.keys() - {"wall"}
    assert all(abs(seconds[stage] - stages[stage]) < 0.01 for stage in seconds)
    assert last["ray_asymvae_queue_bytes"].keys() == {"in_flight", "batching"}


def test_the_tail_counts_what_overlaps_once() -> None:
    tail = Tail()
    tail.add("a", 4.0, 4.0)
    tail.add("a", 4.0, 6.0)  # in flight beside the one before
    tail.add("b", 2.0, 3.0)  # began at 1
    tail.add("a", 1.0, 11.0)  # after four seconds without a shard
    assert tail.workers == 2
    assert tail.idle_seconds == 4 + 8
    assert tail.idle_share == 12 / (11 + 10)


def test_the_largest_shard_goes_first_and_one_too_large_is_named() -> None:
    shards = [Shard(name, name, "webdataset", size, "v") for name, size in (("a", 5), ("b", 50), ("c", 5), ("d", 20))]
    assert [shard.name for shard in largest_first(shards)] == ["b", "d", "a", "c"]
    assert [shard.name for shard in oversized(shards, 4)] == ["b"]
    assert oversized(shards, 1) == []
