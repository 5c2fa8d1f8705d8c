"""The fields that files of ``cluster/`` may use, where no Python package brings their makers' own definitions.

Written down here field by field, and strict: any other field is refused, as a misspelt one must be (the API server
would drop it in silence). :mod:`tests.cluster.definitions` checks the files against the makers' own, by hand.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
DURATION: Schema = {"type": "string", "pattern": r"^\d+(ms|[smhd])$"}
# 7, "500m", "24Gi"
QUANTITY: Schema = {"anyOf": [COUNT, {"type": "string", "pattern": r"^[0-9.]+(m|[KMGT]i?)?$"}]}
POD: Schema = {"type": "object"}  # kubernetes-validate's


def fields(required: tuple[str, ...] = (), **known: Schema) -> Schema:
    return {"type": "object", "properties": known, "required": list(required), "additionalProperties": False}


def several(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}
RAY_CLUSTER = fields(
    ("rayVersion", "headGroupSpec", "workerGroupSpecs"),
    rayVersion=TEXT,
    authOptions=fields(mode={"enum": ["token", "disabled"]}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        resources=fields(requests=QUANTITIES, limits=QUANTITIES),
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
POD_MONITOR = fields(
    ("selector", "podMetricsEndpoints"),
    jobLabel=TEXT,
    selector=fields(matchExpressions=several(fields(key=TEXT, operator={"const": "In"}, values=several(TEXT)))),
    podMetricsEndpoints=several(
        fields(port=TEXT, interval=DURATION, relabelings=several(fields(sourceLabels=several(TEXT), targetLabel=TEXT)))
    ),
)


def manifest(api: str, kind: str, spec: Schema) -> Schema:
    return fields(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": api},
        kind={"const": kind},
        metadata=fields(("name",), name=TEXT, labels=TEXTS),
        spec=spec,
    )


KINDS = {
    "RayJob": manifest("ray.io/v1", "RayJob", RAY_JOB),
    "RayCluster": manifest("ray.io/v1", "RayCluster", RAY_CLUSTER),
    "PodMonitor": manifest("monitoring.coreos.com/v1", "PodMonitor", POD_MONITOR),
}
SERVICE = fields(
    ("image", "volumes"),
    image=TEXT,
    build=fields(("context", "dockerfile"), context=TEXT, dockerfile=TEXT, args=TEXTS),
    command=TEXT,
    depends_on={"type": "object", "additionalProperties": fields(condition={"const": "service_healthy"})},
    environment=TEXTS,
    healthcheck=fields(("test",), test=several(TEXT), interval=DURATION, timeout=DURATION, retries=COUNT),
    init=FLAG,
    ports=several(TEXT),
    profiles=several(TEXT),
    restart={"enum": ["no", "always", "on-failure", "unless-stopped"]},
    shm_size=TEXT,
    stop_grace_period=DURATION,
    volumes=several(TEXT),
)
COMPOSE: Schema = {
    **fields(("name", "services"), name=TEXT, services={"type": "object", "additionalProperties": SERVICE}),
    "patternProperties": {"^x-": {}, "^volumes$": {"type": "object", "additionalProperties": fields()}},
}
PROMETHEUS = fields(
    ("scrape_configs",),
    **{"global": fields(scrape_interval=DURATION)},
    scrape_configs=several(
        fields(
            ("job_name",),
            job_name=TEXT,
            file_sd_configs=several(fields(("files",), files=several(TEXT), refresh_interval=DURATION)),
            dns_sd_configs=several(
                fields(
                    ("names",),
                    names=several(TEXT),
                    type={"enum": ["SRV", "A", "AAAA", "MX", "NS"]},
                    port=COUNT,
                    refresh_interval=DURATION,
                )
            ),
        )
    ),
)
