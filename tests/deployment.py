"""Reads serving/deploy and kubeflow/manifests with the tools that will read them in earnest."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
DEPLOY = REPOSITORY / "serving" / "deploy"
MANIFESTS = REPOSITORY / "kubeflow" / "manifests"
# What example.env leaves to the user.
ENVIRONMENT = {"GRAFTLINE_BASE": "/srv/base", "GRAFTLINE_SECRETS": "/srv/secrets"}


def tool(name: str, package: str) -> str:
    """The path of a program, the environment's or the system's; skips where there is none."""
    own = Path(sys.executable).parent
    found = shutil.which(name, path=f"{own}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if found is None:
        pytest.skip(f"{name} is not here; it comes with {package}")
    return found


def run(*command: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program and returns how that ended."""
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def kustomized(folder: str | Path) -> list[dict[str, Any]]:
    """The objects that a folder stands for; relative: to serving/deploy/kubernetes."""
    if shutil.which("kustomize"):
        command = ["kustomize", "build"]
    else:
        command = [tool("kubectl", "Kubernetes' client (or kustomize)"), "kustomize"]
    done = run(*command, DEPLOY / "kubernetes" / folder)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def named(objects: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """The objects of a kind, by their names."""
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The specs of the pods, by the names of what makes them."""
    return {name: template["spec"] for name, template in pod_templates(objects).items()}


def pod_templates(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pods' labels and specs, by the names of what makes them."""
    found = {}
    for made in objects:
        spec = made.get("spec", {})
        if made["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if made["kind"] in ("Deployment", "StatefulSet", "CronJob"):
            found[made["metadata"]["name"]] = spec["template"]
    return found


def compose(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Calls the plugin of docker, or the program of that name."""
    docker = shutil.which("docker")
    if docker and run(docker, "compose", "version").returncode == 0:
        command = [docker, "compose"]
    else:
        command = [tool("docker-compose", "Debian's docker-compose")]
    file = ("--file", DEPLOY / "compose.yaml", "--env-file", DEPLOY / "example.env")
    return run(*command, *file, *arguments, env={"PATH": os.environ["PATH"], **environment})


def composition() -> dict[str, Any]:
    """compose.yaml as compose understands it."""
    done = compose("config", GRAFANA_PASSWORD="secret", **ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)
    return found


def server_flags(objects: list[dict[str, Any]]) -> list[str]:
    """The flags of TensorFlow Serving in Kubernetes."""
    [server] = pods(objects)["tensorflow-serving"]["containers"]
    flags: list[str] = server["args"]
    return flags


def alerts() -> list[dict[str, Any]]:
    """The rules of prometheus/alerts.yml."""
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard."""
    text = (DEPLOY / "grafana" / "dashboards" / "graftline.json").read_text()
    found: list[dict[str, Any]] = json.loads(text)["panels"]
    return found


def queries() -> Iterator[tuple[str, str]]:
    """Title and expression of every query of the dashboard, its variables filled in."""
    for panel in panels():
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*")
            yield f"{panel['title']} {target['refId']}", expression


def all_pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Labels and specs of all pods, those that Flink's operator makes among them."""
    found = pod_templates(objects)
    for name, cluster in named(objects, "FlinkDeployment").items():
        common = cluster["spec"]["podTemplate"]
        found[name] = copy.deepcopy(common)
        own = cluster["spec"]["taskManager"]["podTemplate"]["spec"]["containers"]
        assert own[0]["name"] == common["spec"]["containers"][0]["name"]
        found[name]["spec"]["containers"] += own[1:]
    return found


def with_components(folder: Path, *components: str) -> list[dict[str, Any]]:
    """The base with some components."""
    # kustomize knows resources by paths from where it is.
    up = "../" * len(folder.resolve().parts[1:]) + str(MANIFESTS)[1:]
    paths = [f"{up}/components/{name}" for name in components]
    (folder / "kustomization.yaml").write_text(
        f"namespace: graftline\nresources: ['{up}/base']\ncomponents: {paths}\n"
    )
    return kustomized(folder)
