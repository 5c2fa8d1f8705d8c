"""What is wrong with a file of ``cluster/``: by the definitions of its maker, or by :mod:`tests.cluster.schemas`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.cluster.schemas import COMPOSE, KINDS, PROMETHEUS, Schema

CLUSTER = Path(__file__).parents[2] / "cluster"
KUBERNETES = "1.34"  # its pods and ConfigMaps
_OTHERS = {"compose.yaml": COMPOSE, "prometheus.yaml": PROMETHEUS}
_TEMPLATES = ("template", "submitterPodTemplate")
# What stands in these is named by us, by a cloud or by a program, and no field.
_FREE = {
    *("labels", "nodeSelector", "requests", "limits", "rayStartParams", "data"),
    *("services", "environment", "args", "depends_on", "volumes"),
}


def documents() -> list[tuple[str, dict[str, Any]]]:
    """Every manifest in ``cluster/``, Compose's and Prometheus' files, each with its file's name."""
    files = [*sorted(CLUSTER.glob("kuberay-*.yaml")), *(CLUSTER / name for name in _OTHERS)]
    return [(file.name, document) for file in files for document in yaml.safe_load_all(file.read_text())]


def manifests() -> list[dict[str, Any]]:
    return [document for _, document in documents() if "kind" in document]


def problems(name: str, document: dict[str, Any]) -> list[str]:
    """What is wrong with a document of that file, each with where it is."""
    kind = document.get("kind")
    if (document.get("apiVersion"), kind) == ("v1", "ConfigMap"):
        return _of_kubernetes(document)
    if name not in _OTHERS and kind not in KINDS:
        return [f"kind: {kind} is none of {', '.join(KINDS)}"]
    found = problems_by(_OTHERS.get(name) or KINDS[str(kind)], document)
    for template in _templates(document):
        found += _of_kubernetes({"apiVersion": "v1", "kind": "PodTemplate", "template": template})
    return found


def problems_by(schema: Schema, document: dict[str, Any]) -> list[str]:
    found = jsonschema.validators.validator_for(schema, jsonschema.Draft7Validator)(schema).iter_errors(document)
    return [_said(problem) for problem in found]


def misspelt(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Copies of it, in each of which one field, and one that no earlier copy has misspelt, lacks its last letter."""
    seen = set()
    for *above, name in _names(document):
        if name not in seen:
            seen.add(name)
            wrong = copy.deepcopy(document)
            holder: Any = wrong
            for step in above:
                holder = holder[step]
            holder[name[:-1]] = holder.pop(name)
            yield name, wrong


def _of_kubernetes(document: dict[str, Any]) -> list[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as problem:
        return [_said(problem)]
    return []


def _said(problem: jsonschema.ValidationError | kubernetes_validate.ValidationError) -> str:
    return f"{'.'.join(map(str, problem.absolute_path))}: {problem.message[:200]}"


def _templates(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for item in value:
            yield from _templates(item)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name in _TEMPLATES:
                yield inner
            else:
                yield from _templates(inner)


def _names(value: Any, *above: str | int) -> Iterator[tuple[Any, ...]]:
    """The paths of all fields, the outermost first."""
    if isinstance(value, list):
        for place, item in enumerate(value):
            yield from _names(item, *above, place)
    elif isinstance(value, dict):
        free = bool(above) and above[-1] in _FREE
        for name, inner in value.items():
            if name.startswith("x-"):  # anything goes
                continue
            if not free:
                yield (*above, name)
            yield from _names(inner, *above, name)
