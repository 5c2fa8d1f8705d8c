"""A Ray cluster of two nodes with a job server and a token, in a process of its own: python -m tests.jobs.two_nodes

A process of its own, since Ray keeps a token's mode for as long as a process lives. It answers every line on stdin
with one of JSON: ``kill`` SIGKILLs the raylet of the second node, ``add`` brings another; the end of stdin ends it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from ray.cluster_utils import Cluster


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints is no answer
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": 0,
            "dashboard_agent_listen_port": 0,  # the default one may be another Ray's
        },
    )
    second = cluster.add_node(num_cpus=1)
    answers.write(json.dumps({"address": f"http://{cluster.webui_url}", "second": node_id(second)}) + "\n")
    try:
        for line in sys.stdin:
            if line.strip() == "kill":
                for process in second.live_processes():
                    if process[0] == "raylet":
                        os.kill(process[1].pid, signal.SIGKILL)
                        process[1].wait()
                answers.write("{}\n")
            else:
                second = cluster.add_node(num_cpus=1)
                answers.write(json.dumps({"second": node_id(second)}) + "\n")
    finally:
        cluster.shutdown()


def node_id(node: Any) -> str:
    return str(node.node_id)


if __name__ == "__main__":
    main()
