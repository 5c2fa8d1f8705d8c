"""The files of ``cluster/`` against their makers' own definitions, which are downloaded by hand: megabytes, and no
Python package has them. KubeRay's (1.6.2 and 1.7.0), Prometheus Operator's, Compose's:

    curl -LO https://raw.githubusercontent.com/ray-project/kuberay/v1.6.2/helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml
    curl -LO https://raw.githubusercontent.com/ray-project/kuberay/v1.6.2/helm-chart/kuberay-operator/crds/ray.io_rayclusters.yaml
    curl -LO https://raw.githubusercontent.com/prometheus-operator/prometheus-operator/v0.93.0/example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml
    curl -LO https://raw.githubusercontent.com/compose-spec/compose-spec/main/schema/compose-spec.json
    python -m tests.cluster.definitions ray.io_*.yaml monitoring.coreos.com_*.yaml compose-spec.json

0 where each file fits, and is refused once any one field of it is misspelt.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.check import documents, misspelt, problems_by
from tests.cluster.schemas import Schema


def read_definition(path: Path) -> tuple[str, Schema]:
    """(the kind of a CustomResourceDefinition, or the name of the file that it is of; its schema, strict)."""
    definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    if definition.get("kind") != "CustomResourceDefinition":
        return "compose.yaml", definition
    spec = definition["spec"]
    (version,) = [version for version in spec["versions"] if version["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    # Of these the API server knows more than the definition says.
    schema["properties"]["apiVersion"] = {"const": f"{spec['group']}/v1"}
    schema["properties"]["kind"] = {"const": spec["names"]["kind"]}
    schema["properties"]["metadata"] = strict({"properties": {"name": {}, "namespace": {}, "labels": {}}})
    return spec["names"]["kind"], schema | {"required": ["apiVersion", "kind", "metadata", "spec"]}


def strict(schema: Any) -> Any:
    """A definition's schema as JSON Schema that refuses unknown fields, which the API server drops."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {name: strict(value) for name, value in schema.items()}
    if isinstance(made.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def main() -> int:
    flags = argparse.ArgumentParser(description="Check files of cluster/ against their makers' own definitions.")
    flags.add_argument("definition", nargs="+", type=Path, help="CustomResourceDefinitions (YAML), compose-spec.json")
    wrong = 0
    for path in flags.parse_args().definition:
        of, schema = read_definition(path)
        for name, document in documents():
            if of in (name, document.get("kind")):
                found = problems_by(schema, document)
                wrongly = dict(misspelt(document))
                found += [
                    f"{field}: misspelt, and fits" for field, it in wrongly.items() if not problems_by(schema, it)
                ]
                wrong += len(found)
                print(f"{name}: {of}, {len(found)} problems; {len(wrongly)} fields misspelt", *found, sep="\n  ")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
