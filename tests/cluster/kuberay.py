"""What KubeRay's and Kubernetes' references say of the fields that ``cluster/kuberay-*.yaml`` use: names and types.

Written down here field by field, and strict: any other field is refused, as a misspelt one must be (the API server
would drop it in silence). The whole definitions are more than a megabyte each; to check the files against them:

    curl -LO https://raw.githubusercontent.com/ray-project/kuberay/v1.6.2/helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml
    curl -LO https://raw.githubusercontent.com/ray-project/kuberay/v1.6.2/helm-chart/kuberay-operator/crds/ray.io_rayclusters.yaml
    python -m tests.cluster.kuberay ray.io_rayjobs.yaml ray.io_rayclusters.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jsonschema
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
# 7, "500m", "24Gi"
QUANTITY: Schema = {"anyOf": [COUNT, {"type": "string", "pattern": r"^[0-9.]+(m|[KMGT]i?)?$"}]}


def fields(required: tuple[str, ...] = (), **known: Schema) -> Schema:
    return {"type": "object", "properties": known, "required": list(required), "additionalProperties": False}


def several(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


RESOURCES = fields(
    requests={"type": "object", "additionalProperties": QUANTITY},
    limits={"type": "object", "additionalProperties": QUANTITY},
)
CONTAINER = fields(
    ("name", "image", "resources"),
    name=TEXT,
    image=TEXT,
    env=several(fields(("name", "value"), name=TEXT, value=TEXT)),
    ports=several(fields(("containerPort",), name={"type": "string", "maxLength": 15}, containerPort=COUNT)),
    resources=RESOURCES,
    securityContext=fields(allowPrivilegeEscalation=FLAG, capabilities=fields(drop=several(TEXT))),
    volumeMounts=several(fields(("name", "mountPath"), name=TEXT, mountPath=TEXT, readOnly=FLAG)),
)
POD = fields(
    ("spec",),
    spec=fields(
        ("containers",),
        serviceAccountName=TEXT,
        restartPolicy={"enum": ["Never", "OnFailure"]},
        terminationGracePeriodSeconds=COUNT,
        securityContext=fields(runAsNonRoot=FLAG, runAsUser=COUNT, fsGroup=COUNT),
        nodeSelector=TEXTS,
        tolerations=several(
            fields(
                key=TEXT,
                operator={"enum": ["Exists", "Equal"]},
                value=TEXT,
                effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
            )
        ),
        containers=several(CONTAINER),
        volumes=several(fields(("name",), name=TEXT, configMap=fields(name=TEXT), emptyDir=fields(sizeLimit=QUANTITY))),
    ),
)
RAY_CLUSTER = fields(
    ("rayVersion", "headGroupSpec", "workerGroupSpecs"),
    rayVersion=TEXT,
    authOptions=fields(mode={"enum": ["token", "disabled"]}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(
        idleTimeoutSeconds=COUNT, upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}, resources=RESOURCES
    ),
    headGroupSpec=fields(("template",), rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=several(
        fields(
            ("groupName", "template"),
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=POD,
        )
    ),
)
RAY_JOB = fields(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=RAY_CLUSTER,
    submitterPodTemplate=POD,
)


def manifest(api: str, kind: str, **body: Schema) -> Schema:
    return fields(
        ("apiVersion", "kind", "metadata", *body),
        apiVersion={"const": api},
        kind={"const": kind},
        metadata=fields(("name",), name=TEXT, labels=TEXTS),
        **body,
    )


KINDS = {
    "ConfigMap": manifest("v1", "ConfigMap", data=TEXTS),
    "RayJob": manifest("ray.io/v1", "RayJob", spec=RAY_JOB),
    "RayCluster": manifest("ray.io/v1", "RayCluster", spec=RAY_CLUSTER),
    "PodMonitor": manifest(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        spec=fields(
            ("selector", "podMetricsEndpoints"),
            jobLabel=TEXT,
            selector=fields(matchExpressions=several(fields(key=TEXT, operator={"const": "In"}, values=several(TEXT)))),
            podMetricsEndpoints=several(
                fields(
                    port=TEXT,
                    interval=TEXT,
                    relabelings=several(fields(sourceLabels=several(TEXT), targetLabel=TEXT)),
                )
            ),
        ),
    ),
}


def documents() -> list[tuple[str, dict[str, Any]]]:
    """Every manifest in ``cluster/``, with its file's name."""
    return [
        (file.name, document)
        for file in sorted(CLUSTER.glob("kuberay-*.yaml"))
        for document in yaml.safe_load_all(file.read_text())
    ]


def _strict(schema: Any) -> Any:
    """A definition's schema as JSON Schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {name: _strict(value) for name, value in schema.items()}
    if "properties" in made and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def main() -> int:
    flags = argparse.ArgumentParser(description="Check cluster/kuberay-*.yaml against KubeRay's own definitions.")
    flags.add_argument("crd", nargs="+", type=Path, help="ray.io_rayjobs.yaml, ray.io_rayclusters.yaml")
    wrong = 0
    for file in flags.parse_args().crd:
        definition = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
        kind = definition["spec"]["names"]["kind"]
        (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
        schema = _strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        for name, document in documents():
            if document["kind"] == kind:
                problems = list(jsonschema.Draft7Validator(schema).iter_errors(document))
                wrong += len(problems)
                print(f"{name}: {kind}, {len(problems)} problems")
                for problem in problems:
                    print("  " + ".".join(map(str, problem.absolute_path)), problem.message[:200])
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
