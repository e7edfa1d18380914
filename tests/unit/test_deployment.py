"""serving/deploy as its own tools and the schemas of Kubernetes read it."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deployment import (
    DEPLOY,
    REPOSITORY,
    alerts,
    compose,
    composition,
    kustomized,
    named,
    panels,
    pods,
    queries,
    run,
    server_flags,
    tool,
)
from graftline.serving.server.flags import parse

# The oldest version of Kubernetes in which all of it is stable, and a new one.
KUBERNETES = ("1.28", "1.34")
CUSTOM = ("PodMonitor", "PrometheusRule")


@pytest.fixture(scope="module")
def base() -> list[dict[str, Any]]:
    return kustomized("base")


@pytest.fixture(scope="module")
def production() -> list[dict[str, Any]]:
    return kustomized("overlays/production")


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_manifests_fit_the_schemas_of_kubernetes(production, version):
    schemas = pytest.importorskip("kubernetes_validate")
    checked = [found for found in production if found["kind"] not in CUSTOM]
    assert len(checked) > 20
    for found in checked:
        schemas.validate(found, version, strict=True)


def test_a_field_that_does_not_exist_does_not_fit(production):
    schemas = pytest.importorskip("kubernetes_validate")
    wrong = copy.deepcopy(named(production, "Deployment")["gateway"])
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(schemas.ValidationError, match="livenesProbe"):
        schemas.validate(wrong, KUBERNETES[-1], strict=True)


def test_the_base_needs_no_custom_resources(base):
    assert {found["apiVersion"] for found in base} == {
        "v1",
        "apps/v1",
        "autoscaling/v2",
        "networking.k8s.io/v1",
        "policy/v1",
    }


def test_every_pod_is_confined(production):
    for name, pod in pods(production).items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in container["resources"]["limits"], name
    [namespace] = named(production, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_a_pod_that_answers_is_probed_and_gets_no_requests_before_it_is_ready(production):
    served = pods(production)
    found = {
        name: {probe for probe in served[name]["containers"][0] if probe.endswith("Probe")}
        for name in ("tensorflow-serving", "gateway")
    }
    assert found == {
        "tensorflow-serving": {"startupProbe", "readinessProbe", "livenessProbe"},
        "gateway": {"readinessProbe", "livenessProbe"},
    }


def test_only_the_toolbox_may_write_to_the_base_path(production):
    writers = [
        name
        for name, pod in pods(production).items()
        for mount in pod["containers"][0]["volumeMounts"]
        if mount["name"] == "models" and not mount.get("readOnly")
    ]
    assert writers == ["toolbox"]


def test_everything_that_is_named_is_there(production):
    there = {(found["kind"], found["metadata"]["name"]) for found in production}
    outside = {("Secret", "gateway-api-keys")}  # made by the operator
    for pod in pods(production).values():
        for volume in pod["volumes"]:
            for kind, key, name in (
                ("ConfigMap", "configMap", "name"),
                ("Secret", "secret", "secretName"),
                ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
            ):
                if key in volume:
                    assert (kind, volume[key][name]) in there | outside
    labels = [
        found["spec"]["template"]["metadata"]["labels"]
        for found in production
        if found["kind"] == "Deployment"
    ]
    for service in named(production, "Service").values():
        assert any(service["spec"]["selector"].items() <= pod.items() for pod in labels)
    for scaler in named(production, "HorizontalPodAutoscaler").values():
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in there
        # A number in the deployment would undo what the scaler decided, at every apply.
        assert "replicas" not in named(production, "Deployment")[target["name"]]["spec"]
    for kind in ("HorizontalPodAutoscaler", "PodDisruptionBudget"):
        assert set(named(production, kind)) == {"gateway", "tensorflow-serving"}


def test_nobody_is_reached_but_by_a_policy(base):
    policies = named(base, "NetworkPolicy")
    assert policies["default-deny"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    callers = policies["tensorflow-serving"]["spec"]["ingress"][0]["from"]
    [match] = callers[0]["podSelector"]["matchExpressions"]
    assert match["values"] == ["gateway", "toolbox"]


def test_images_are_pinned_and_name_no_registry(production):
    images = {c["image"] for pod in pods(production).values() for c in pod["containers"]}
    images |= {service["image"] for service in composition()["services"].values()}
    dockerfile = (DEPLOY / "gateway" / "Dockerfile").read_text()
    images |= set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE))
    assert len(images) >= 6
    for image in images:
        assert re.fullmatch(r"([a-z-]+/)?[a-z-]+:v?\d+\.\d+\.\d+[a-z-]*", image), image


def test_compose_reads_its_file():
    services = composition()["services"]
    assert set(services) == {
        "tensorflow-serving",
        "gateway",
        "prometheus",
        "blackbox-exporter",
        "grafana",
    }
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["user"].partition(":")[0]) > 0, name


def test_compose_says_what_is_not_set():
    done = compose("config", GRAFANA_PASSWORD="")
    assert done.returncode != 0
    assert "GRAFANA_PASSWORD" in done.stderr


def test_both_ways_start_the_server_with_the_same_flags_and_it_knows_them_all(base):
    flags = server_flags(base)
    composed = composition()["services"]["tensorflow-serving"]["command"]
    assert [flag.replace("/srv/base", "/models") for flag in composed] == flags[: len(composed)]
    # Connections behind an address each, in Kubernetes alone, are ended now and then.
    assert [flag.partition("=")[0] for flag in flags[len(composed) :]] == [
        "--grpc_channel_arguments"
    ]
    assert parse(flags).model_config_file == "/models/models.config"


def test_prometheus_takes_its_configuration_and_rules():
    promtool = tool("promtool", "Debian's prometheus")
    for check, file in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
        done = run(promtool, "check", check, DEPLOY / "prometheus" / file)
        assert done.returncode == 0, done.stderr


def test_each_alert_fires_when_it_should_and_not_otherwise():
    done = run(
        tool("promtool", "Debian's prometheus"),
        "test",
        "rules",
        DEPLOY / "prometheus" / "alerts_test.yml",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tried = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tried
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in alerts()}


def test_each_alert_has_its_place_in_the_runbook():
    page = (REPOSITORY / "docs" / "deployment.md").read_text()
    for rule in alerts():
        assert f"\n### {rule['alert']}\n" in page
        anchor = rule["annotations"]["runbook"]
        assert anchor == f"docs/deployment.md#{rule['alert'].lower()}"


def test_the_operators_rules_are_those_of_the_file():
    rules = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    indented = re.sub(r"^(?=.)", "  ", rules, flags=re.MULTILINE)
    file = DEPLOY / "kubernetes/components/prometheus-operator/prometheus_rule.yaml"
    assert file.read_text().endswith(f"\nspec:\n{indented}"), "copy alerts.yml, two spaces in"


def test_the_blackbox_exporter_takes_its_configuration():
    exporter = tool("prometheus-blackbox-exporter", "Debian's package of that name")
    done = run(
        exporter, "--config.check", f"--config.file={DEPLOY / 'prometheus' / 'blackbox.yml'}"
    )
    assert done.returncode == 0, done.stderr


def test_the_dashboard_is_whole():
    found = panels()
    assert len({panel["id"] for panel in found}) == len(found)
    taken: set[tuple[int, int]] = set()
    for panel in found:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            ids = [target["refId"] for target in panel["targets"]]
            assert ids and len(set(ids)) == len(ids)
    assert len(dict(queries())) > 15


def test_the_dockerfile_passes_its_linter():
    done = run(tool("hadolint", "hadolint"), DEPLOY / "gateway" / "Dockerfile")
    assert done.returncode == 0, done.stdout


def _named_packages() -> list[Requirement]:
    text = (DEPLOY / "gateway" / "requirements.in").read_text()
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def _installed_packages() -> set[str]:
    """What is installed in the gateway's image: the packages named, and those that they need."""
    found: set[str] = set()
    wanted = _named_packages()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        wanted += map(Requirement, metadata.requires(name) or [])
    return found


def test_the_gateways_image_is_made_from_the_lock_file():
    lock = (REPOSITORY / "requirements" / "tfx-1.21.lock").read_text()
    locked = {line.partition("==")[0] for line in lock.splitlines()}
    assert {canonicalize_name(named.name) for named in _named_packages()} <= locked


# What `docker build` installs besides, without what it depends on.
_ALONE = "tensorflow-serving-api"
_COMMAND = (
    "import sys; sys.argv[0] = 'graftline'; from graftline.pipeline.cli.main import main; main()"
)


def _in_the_image(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code that finds only what the gateway's image holds, in a project."""
    packages = _installed_packages()
    assert not {"tensorflow", "tfx", "apache-beam"} & packages
    assert f"--no-deps {_ALONE} " in (DEPLOY / "gateway" / "Dockerfile").read_text()
    modules = {
        file.parts[0].partition(".")[0]
        for package in {*packages, _ALONE}
        for file in metadata.files(package) or []
    }
    version = folder / "serving" / "flowers" / "1"
    version.mkdir(parents=True)
    (version / "saved_model.pb").touch()
    config = (DEPLOY / "tensorflow_serving" / "models.config").read_text()
    (folder / "serving" / "models.config").write_text(config)
    (folder / "graftline.yaml").write_text("model: {name: flowers}")
    guard = (
        "import sys, importlib.abc\n"
        f"allowed = {modules | {'graftline'}!r} | sys.stdlib_module_names\n"
        "class Guard(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if path is None and name not in allowed:\n"
        "            raise ModuleNotFoundError(f'not in the image: {name}', name=name)\n"
        "sys.meta_path.insert(0, Guard())\n"
    )
    return run(sys.executable, "-c", guard + code, *arguments, cwd=folder)


def test_the_gateways_image_holds_what_the_gateway_imports(tmp_path):
    code = "import graftline.serving.gateway.__main__, graftline.serving.gateway.service"
    done = _in_the_image(tmp_path, code)
    assert done.returncode == 0, done.stderr


def test_the_gateways_image_holds_what_commands_on_versions_import(tmp_path):
    done = _in_the_image(tmp_path, _COMMAND, "versions")
    assert (done.returncode, done.stderr) == (0, "")
    assert "in service" in done.stdout


def test_the_gateways_image_holds_what_waiting_for_servers_imports(tmp_path):
    server = "serving.servers=[http://127.0.0.1:1]"
    done = _in_the_image(tmp_path, _COMMAND, "promote", "1", server, "serving.wait_seconds=0.1")
    assert done.returncode == 2, done.stderr
    assert "cannot be reached" in done.stderr
