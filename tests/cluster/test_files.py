"""The files of ``cluster/``: each against its schema, and against what else in the project they must agree with."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import ray
import yaml
from botocore.validate import ParamValidator
from ray._private import ray_constants
from ray.runtime_env import RuntimeEnv

from asymvae.config import InpaintJob
from jobs.shipment import read_runtime_env
from tests.cluster.check import CLUSTER, documents, manifests, misspelt, problems
from tests.cluster.definitions import strict

ROOT = CLUSTER.parent
METRICS = {
    *("samples_total", "errors_total", "bytes_read_total", "bytes_written_total", "stage_seconds_total"),
    *("shards_total", "shard_seconds_bucket", "queue_bytes", "device_busy_ratio", "batch_fill_ratio"),
    "storage_retries_total",
}


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def pinned() -> dict[str, str]:
    """Versions of constraints.txt, by normalised name."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {normalised(line.split("==")[0]): line.split("==")[1] for line in lines}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("file", sorted(CLUSTER.iterdir()), ids=lambda file: file.name)
def test_every_file_says_at_its_head_which_command_uses_it(file: Path) -> None:
    if file.suffix == ".json":  # has no comments
        assert "import this file" in json.loads(file.read_text())["description"]
    elif file.suffix == ".dockerignore":
        assert "cluster/Dockerfile" in file.read_text().splitlines()[0]
    else:
        head = re.match(r"(#.*\n)+", file.read_text())
        assert head is not None
        assert re.search(rf"^#   .*{re.escape(file.name)}", head[0], re.MULTILINE), head[0]


@pytest.mark.parametrize(("name", "document"), documents(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_file_fits_its_definition_and_with_any_field_misspelt_does_not(name: str, document: dict[str, Any]) -> None:
    assert problems(name, document) == []
    assert [field for field, wrong in misspelt(document) if not problems(name, wrong)] == []


def test_a_customresourcedefinition_is_read_as_the_api_server_reads_it() -> None:
    schema = strict(
        {
            "type": "object",
            "properties": {
                "port": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "properties": {"type": "object", "properties": {"a": {"type": "string"}}},
                "any": {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True},
                "map": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        }
    )
    jsonschema.validate({"port": "http", "properties": {"a": ""}, "any": {"b": 1}, "map": {"c": "d"}}, schema)
    jsonschema.validate({"port": 80}, schema)
    for wrong in ({"port": 1.5}, {"prot": 80}, {"properties": {"b": ""}}, {"map": {"c": 1}}):
        assert not jsonschema.Draft7Validator(schema).is_valid(wrong), wrong


# --- Ray's cluster launcher -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_a_launchers_file_fits_rays_schema(name: str) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = load(name)
    jsonschema.validate(config, schema)
    head, gpu = config["available_node_types"]["head"], config["available_node_types"]["gpu"]
    assert config["head_node_type"] == "head"
    assert (head["resources"], gpu["resources"]["GPU"], gpu["min_workers"]) == ({"CPU": 0}, 1, 0)
    assert gpu["max_workers"] == config["max_workers"]
    market = gpu["node_config"].get("InstanceMarketOptions", {}).get("MarketType", "").upper()
    scheduling = gpu["node_config"].get("scheduling", [{}])[0].get("provisioningModel")
    assert "SPOT" in (market, scheduling)
    assert "SPOT" not in json.dumps(head).upper()
    (start,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start
    assert all(
        "RAY_AUTH_MODE=token" in line
        for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"]
        if "ray start" in line
    )


def test_aws_nodes_are_what_ec2_can_start() -> None:
    request = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    assert request is not None
    for kind in load("aws.yaml")["available_node_types"].values():
        asked = kind["node_config"] | {"MinCount": 1, "MaxCount": 1}  # as Ray does
        assert not ParamValidator().validate(asked, request).has_errors()
        assert ParamValidator().validate(asked | {"InstanceTyp": "g6.xlarge"}, request).has_errors()


# --- KubeRay --------------------------------------------------------------------------------------------------------


def clusters() -> list[dict[str, Any]]:
    specs = {document["kind"]: document.get("spec", {}) for document in manifests()}
    return [specs["RayCluster"], specs["RayJob"]["rayClusterSpec"]]


@pytest.mark.parametrize("spec", clusters(), ids=["RayCluster", "RayJob"])
def test_a_kuberay_cluster_keeps_its_head_free_and_its_token_on(spec: dict[str, Any]) -> None:
    assert spec["rayVersion"] == pinned()["ray"]
    assert spec["authOptions"]["mode"] == "token"
    head, (gpu,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in json.dumps(head)
    assert (gpu["minReplicas"], gpu["replicas"]) == (0, 0)
    for group in (head, gpu):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            for mount in container.get("volumeMounts", []):
                assert mount["name"] in {volume["name"] for volume in pod["volumes"]}
        assert {"metrics"} <= {port["name"] for port in pod["containers"][0]["ports"]}  # the PodMonitor's


@pytest.mark.parametrize("spec", clusters(), ids=["RayCluster", "RayJob"])
def test_a_worker_that_is_told_to_go_has_more_time_than_ray_takes_to_drain_it(spec: dict[str, Any]) -> None:
    pod = spec["workerGroupSpecs"][0]["template"]["spec"]
    (drain,) = pod["containers"][0]["env"]
    assert drain["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
    assert hasattr(ray_constants, drain["name"])  # Ray still knows it
    assert int(drain["value"]) + 15 <= pod["terminationGracePeriodSeconds"] <= 120  # AWS' notice
    assert spec["headGroupSpec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 45  # its default is 30


def test_the_rayjobs_configuration_is_one() -> None:
    (config,) = [document for document in manifests() if document["kind"] == "ConfigMap"]
    (job,) = [document for document in manifests() if document["kind"] == "RayJob"]
    settings = InpaintJob(**yaml.safe_load(config["data"]["inpaint.yaml"]))
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert settings.workers.max == worker["maxReplicas"]
    assert settings.workers.cpu_threads <= int(
        worker["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
    )
    assert settings.workers.spool == "/spool"
    assert "/config/inpaint.yaml" in job["spec"]["entrypoint"]


# --- images and environments ----------------------------------------------------------------------------------------


def test_the_image_has_what_the_tests_have() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert f'ARG TORCH="torch=={pinned()["torch"]}"' in text
    assert f"torch=={pinned()['torch']} --index-url" in (CLUSTER / "compose.yaml").read_text()
    assert all("constraints.txt" in line for line in re.findall(r"uv pip install .*", text) if "--no-deps" not in line)
    assert re.search(r"^USER ray$", text, re.MULTILINE)
    for image in re.findall(r"^ARG (?:BASE|UV)=(.*)$", text, re.MULTILINE):
        assert re.search(r":\S*\d", image), f"{image} is not pinned by a tag"
    copied = {name for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for name in line.split()[:-1]}
    allowed = {line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_the_runtime_environment_is_pyprojects_dependencies_as_pinned() -> None:
    environment = read_runtime_env(str(CLUSTER / "runtime-env.yaml"))
    RuntimeEnv(**environment)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["s3"], *extras["gcs"], *extras["diffusion"]]
    names = {normalised(re.match(r"[\w.-]+", line)[0]) for line in wanted} - {"ray"}  # type: ignore[index]
    versions = {}
    for package in environment["uv"]["packages"]:
        name, version = re.sub(r"\[.*\]", "", package).split("==")
        versions[normalised(name)] = version
    assert versions == {name: pinned()[name] for name in names}


def test_the_two_nodes_of_compose_share_a_folder_and_a_token() -> None:
    services = load("compose.yaml")["services"]
    for node in (services["head"], services["worker"]):
        assert any(volume.startswith("shared:") for volume in node["volumes"])
        assert node["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
        assert node["environment"]["RAY_AUTH_MODE"] == "token"
        assert (CLUSTER / node["build"]["context"] / node["build"]["dockerfile"]).exists()
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert all((CLUSTER / v.split(":")[0]).exists() for v in service["volumes"] if v.startswith("."))


# --- metrics --------------------------------------------------------------------------------------------------------


def test_the_dashboard_shows_every_metric_of_ours_and_no_other() -> None:
    dashboard = json.loads((CLUSTER / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = {name for expression in expressions for name in re.findall(r"ray_asymvae_(\w+)", expression)}
    assert used == METRICS
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        assert panel["description"]
        taken |= cells


def test_prometheus_finds_the_nodes_where_ray_and_compose_put_them() -> None:
    ray_job, compose_job = load("prometheus.yaml")["scrape_configs"]
    assert ray_job["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
    (names,) = compose_job["dns_sd_configs"]
    services = load("compose.yaml")["services"]
    assert set(names["names"]) <= set(services)
    assert all(f"--metrics-export-port={names['port']}" in services[name]["command"] for name in names["names"])
