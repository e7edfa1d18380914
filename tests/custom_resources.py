"""Schemas of custom resources as their projects publish them, fetched with the ordinary clients.

The definitions lie in packages: TFJob's in the Go module of Kubeflow's training operator,
FlinkDeployment's in a jar of the Flink Kubernetes Operator. They are kept in build/schemas; where
they cannot be had, tests skip with the reason.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployment import REPOSITORY, run, tool

_FOLDER = REPOSITORY / "build" / "schemas"
_TRAINING_OPERATOR = "github.com/kubeflow/training-operator@v1.9.3"
_FLINK_OPERATOR = "org.apache.flink:flink-kubernetes-operator-api:1.10.0"


def check(found: dict[str, Any]) -> None:
    """Holds an object against its definition, unknown fields refused.

    Raises:
        ValueError: where it does not fit, and why.
    """
    schemas = pytest.importorskip("jsonschema")
    version = found["apiVersion"].rpartition("/")[2]
    [schema] = [
        served["schema"]["openAPIV3Schema"]
        for served in _definition(found["kind"])["spec"]["versions"]
        if served["name"] == version
    ]
    # Every object has these, and not every definition says so.
    implied = {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}}
    schema = {**schema, "properties": {**implied, **schema["properties"]}}
    for error in schemas.Draft7Validator(_strict(schema)).iter_errors(found):
        raise ValueError(f"{error.json_path}: {error.message}")


def _definition(kind: str) -> dict[str, Any]:
    kept = _FOLDER / f"{kind}.json"
    if not kept.is_file():
        _FOLDER.mkdir(parents=True, exist_ok=True)
        text = {"TFJob": _from_go, "FlinkDeployment": _from_maven}[kind]()
        kept.write_text(json.dumps(yaml.safe_load(text)))
    definition: dict[str, Any] = json.loads(kept.read_text())
    return definition


def _from_go() -> str:
    with tempfile.TemporaryDirectory() as folder:
        done = run(tool("go", "Go"), "mod", "download", "-json", _TRAINING_OPERATOR, cwd=folder)
    if done.returncode != 0:
        pytest.skip(f"{_TRAINING_OPERATOR} cannot be fetched: {done.stdout[-300:]}")
    module = Path(json.loads(done.stdout)["Dir"])
    return (module / "manifests/base/crds/kubeflow.org_tfjobs.yaml").read_text()


def _from_maven() -> str:
    maven = tool("mvn", "Maven")
    with tempfile.TemporaryDirectory() as folder:
        goal = ("dependency:copy", f"-Dartifact={_FLINK_OPERATOR}", f"-DoutputDirectory={folder}")
        done = run(maven, "--batch-mode", *goal, cwd=folder)
        jars = list(Path(folder).glob("*.jar"))
        if done.returncode != 0 or not jars:
            pytest.skip(f"{_FLINK_OPERATOR} cannot be fetched: {done.stdout[-300:]}")
        with zipfile.ZipFile(jars[0]) as jar:
            name = "META-INF/fabric8/flinkdeployments.flink.apache.org-v1.yml"
            return jar.read(name).decode()


def _strict(schema: Any) -> Any:
    """As the API server prunes: a field that a structural schema does not name is none."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: {name: _strict(part) for name, part in value.items()}
        if key == "properties"
        else _strict(value)
        for key, value in schema.items()
    }
    open_ended = "additionalProperties" in schema or schema.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    if "properties" in schema and not open_ended:
        found["additionalProperties"] = False
    return found
