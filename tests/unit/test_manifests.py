"""kubeflow/manifests as kustomize and the schemas of Kubernetes read it."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import yaml

from deployment import (
    MANIFESTS,
    REPOSITORY,
    all_pods,
    kustomized,
    named,
    pod_templates,
    with_components,
)
from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.config import Config, override
from graftline.pipeline.kubeflow_config import (
    PASSWORD_VARIABLE,
    USER_VARIABLE,
    KubeflowConfig,
)
from graftline.pipeline.notify import config as notify

# The oldest version of Kubernetes in which all of it is stable, and a new one.
KUBERNETES = ("1.28", "1.34")
# Held against their own definitions in end_to_end/test_custom_resources.py, and by serving's tests.
CUSTOM = ("FlinkDeployment", "PodMonitor", "PrometheusRule")


@pytest.fixture(scope="module")
def production() -> list[dict[str, Any]]:
    return kustomized(MANIFESTS / "overlays/production")


@pytest.fixture(scope="module")
def standalone() -> list[dict[str, Any]]:
    return kustomized(MANIFESTS / "overlays/standalone")


def container(objects: list[dict[str, Any]], pod: str, name: str) -> dict[str, Any]:
    [found] = [c for c in all_pods(objects)[pod]["spec"]["containers"] if c["name"] == name]
    return found


def variables(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in found.get("env", [])}


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("overlay", ["production", "standalone"])
def test_the_manifests_fit_the_schemas_of_kubernetes(overlay, version, request):
    schemas = pytest.importorskip("kubernetes_validate")
    checked = [o for o in request.getfixturevalue(overlay) if o["kind"] not in CUSTOM]
    assert len(checked) > 10
    for found in checked:
        schemas.validate(found, version, strict=True)


def test_every_pod_is_confined(production):
    for name, template in all_pods(production).items():
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for found in pod["containers"]:
            context = found["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            # Flink's image writes its configuration beside itself; its operator sets its memory.
            if found["name"] != "flink-main-container":
                assert context["readOnlyRootFilesystem"] is True, name
                assert "memory" in found["resources"]["limits"], name


def test_the_service_account_changes_nothing_but_what_runs_need(production):
    roles = named(production, "Role")
    assert set(roles) == {"graftline", "graftline-submitter", "graftline-tfjobs"}
    [of_kubeflow] = {rule["apiGroups"][0] for rule in roles.pop("graftline-submitter")["rules"]}
    assert of_kubeflow == "pipelines.kubeflow.org"
    assert not named(production, "ClusterRole") and not named(production, "ClusterRoleBinding")
    for role in roles.values():
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            if {"secrets", "configmaps"} & set(rule["resources"]):
                assert rule["verbs"] == ["get"] and rule["resourceNames"]
            if {"create", "patch", "update", "delete"} & set(rule["verbs"]):
                assert set(rule["resources"]) <= {"workflowtaskresults", "tfjobs"}
    for name, binding in named(production, "RoleBinding").items():
        [subject] = binding["subjects"]
        account = "graftline-submitter" if name == "graftline-submitter" else "graftline"
        assert (subject["name"], subject["namespace"]) == (account, "graftline")
        assert binding["roleRef"]["name"] == name


def test_no_secret_has_a_value_here(production, standalone):
    for objects in (production, standalone):
        assert not named(objects, "Secret")
        for name, template in all_pods(objects).items():
            for found in template["spec"]["containers"]:
                for variable in variables(found).values():
                    secret = re.search("(PASSWORD|PWD|TOKEN|USER)$", variable["name"])
                    assert not (secret and "value" in variable), name


def test_everything_that_is_named_is_there(production, standalone):
    for objects in (production, standalone):
        there = {(o["kind"], o["metadata"]["name"]) for o in objects}
        there |= {
            ("PersistentVolumeClaim", claim["metadata"]["name"])
            for made in named(objects, "StatefulSet").values()
            for claim in made["spec"]["volumeClaimTemplates"]
        }
        # Made by the operator of the cluster; the one of notices only where they are wanted.
        there |= {("Secret", "gateway-api-keys"), ("Secret", "graftline-metadata")}
        there |= {("Secret", "graftline-notify")}
        for name, template in all_pods(objects).items():
            pod = template["spec"]
            for kind, found in _references(pod):
                assert (kind, found) in there, name
            volumes = {volume["name"] for volume in pod.get("volumes", [])}
            claims = named(objects, "StatefulSet").get(name, {"spec": {}})["spec"]
            volumes |= {c["metadata"]["name"] for c in claims.get("volumeClaimTemplates", [])}
            for found in pod["containers"]:
                mounted = {mount["name"] for mount in found.get("volumeMounts", [])}
                assert mounted <= volumes, name


def _references(pod: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for volume in pod.get("volumes", []):
        for kind, key, name in (
            ("ConfigMap", "configMap", "name"),
            ("Secret", "secret", "secretName"),
            ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
        ):
            if key in volume:
                found.append((kind, volume[key][name]))
    for container in pod["containers"]:
        for variable in variables(container).values():
            if "valueFrom" in variable:
                found.append(("Secret", variable["valueFrom"]["secretKeyRef"]["name"]))
    return found


def test_the_defaults_of_the_configuration_name_what_is_there(standalone):
    config = KubeflowConfig()
    claims = named(standalone, "PersistentVolumeClaim")
    for volume in config.volumes:
        assert claims[volume.claim]["spec"]["accessModes"] == ["ReadWriteMany"]
        workbench = container(standalone, "graftline-workbench", "workbench")
        assert volume.path in {mount["mountPath"] for mount in workbench["volumeMounts"]}
    [port] = named(standalone, "Service")["graftline-metadata"]["spec"]["ports"]
    assert port["port"] == config.metadata.port
    # The user may make databases of these names.
    assert config.metadata.database.startswith("graftline")
    given = variables(container(standalone, "graftline-metadata", "mariadb"))
    for name, key in ((USER_VARIABLE, "username"), (PASSWORD_VARIABLE, "password")):
        assert given[name]["valueFrom"]["secretKeyRef"] == {
            "name": config.metadata.secret,
            "key": key,
        }


def test_a_worker_of_beam_finds_everything_where_a_step_does(production):
    config = KubeflowConfig()
    worker = container(production, "graftline-flink", "beam-workers")
    volumes = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in all_pods(production)["graftline-flink"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    mounts = {mount["mountPath"]: volumes.get(mount["name"]) for mount in worker["volumeMounts"]}
    assert {volume.path: volume.claim for volume in config.volumes}.items() <= mounts.items()


def test_the_job_server_is_where_the_flink_component_says(production):
    text = (MANIFESTS / "components/flink/kustomization.yaml").read_text()
    said = re.search(r"^#   beam:$(?:\n#   .*)+", text, re.MULTILINE)
    beam = yaml.safe_load(re.sub("^#   ", "", said[0], flags=re.MULTILINE))["beam"]
    server = container(production, "graftline-beam-jobs", "job-server")
    ports = {port["name"]: port["port"] for port in _service(production, beam["job_server"])}
    for key, name in (("job_server", "jobs"), ("artifact_server", "artifacts")):
        host, _, port = beam[key].partition(":")
        assert host == "graftline-beam-jobs" and int(port) == ports[name]
        assert {"name": name, "containerPort": int(port)} in server["ports"]
    assert f"--job-port={ports['jobs']}" in server["args"]
    assert f"--artifact-port={ports['artifacts']}" in server["args"]
    # TaskManagers read what the server has taken.
    assert any(arg.startswith("--artifacts-dir=/graftline/") for arg in server["args"])
    task_manager = container(production, "graftline-flink", "flink-main-container")
    assert "/graftline" in {mount["mountPath"] for mount in task_manager["volumeMounts"]}
    config = msgspec.convert(beam, BeamConfig)
    assert (config.runner, config.workers.start) == ("flink", "external")
    worker = container(production, "graftline-flink", "beam-workers")
    [port] = worker["ports"]
    assert config.workers.pool == f"localhost:{port['containerPort']}"


def _service(objects: list[dict[str, Any]], address: str) -> list[dict[str, Any]]:
    ports: list[dict[str, Any]] = named(objects, "Service")[address.partition(":")[0]]["spec"][
        "ports"
    ]
    return ports


def test_images_are_pinned_name_no_registry_and_fit_the_lock_file(production):
    images = {
        found["image"]
        for template in all_pods(production).values()
        for found in template["spec"]["containers"]
        if "image" in found
    }
    images.add(named(production, "FlinkDeployment")["graftline-flink"]["spec"]["image"])
    for image in images:
        assert re.fullmatch(r"([a-z-]+/)?[a-z0-9._-]+:v?\d+\.\d+\.\d+[a-z0-9-]*", image), image
    lock = (REPOSITORY / "requirements/tfx-1.21.lock").read_text()
    [beam] = re.findall(r"^apache-beam==(\S+)", lock, re.MULTILINE)
    spec = named(production, "FlinkDeployment")["graftline-flink"]["spec"]
    flink = spec["flinkVersion"].removeprefix("v").replace("_", ".")
    assert f"apache/beam_flink{flink}_job_server:{beam}" in images
    assert spec["image"].startswith(f"flink:{flink}.")


def test_an_overlay_sets_the_images_of_workers_of_beam_too(tmp_path):
    overlay = tmp_path / "kustomization.yaml"
    # kustomize knows resources by paths from where it is.
    up = "../" * len(tmp_path.resolve().parts[1:])
    overlay.write_text(
        f"resources: ['{up}{str(MANIFESTS)[1:]}/overlays/production']\n"
        "images: [{name: graftline, newName: images.example.com/graftline, newTag: abc}]\n"
    )
    found = kustomized(tmp_path)
    worker = container(found, "graftline-flink", "beam-workers")
    assert worker["image"] == "images.example.com/graftline:abc"


def _amount(quantity: str | int | float) -> Decimal:
    """A quantity of Kubernetes in units and bytes."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity)).groups()
    units = {"": 1, "m": Decimal("0.001"), "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return Decimal(number) * units[unit]


def test_the_quota_has_room_for_all_that_is_always_there_and_a_run(production):
    hard = named(production, "ResourceQuota")["graftline"]["spec"]["hard"]
    most = {
        scaler["spec"]["scaleTargetRef"]["name"]: scaler["spec"]["maxReplicas"]
        for scaler in named(production, "HorizontalPodAutoscaler").values()
    }
    taken = {"requests.cpu": Decimal(0), "requests.memory": Decimal(0)}
    for name, template in pod_templates(production).items():
        for found in template["spec"]["containers"]:
            for kind in ("cpu", "memory"):
                amount = _amount(found["resources"]["requests"][kind])
                taken[f"requests.{kind}"] += amount * most.get(name, 1)
    flink = named(production, "FlinkDeployment")["graftline-flink"]["spec"]
    worker = container(production, "graftline-flink", "beam-workers")["resources"]["requests"]
    pods = flink["taskManager"]["replicas"]
    taken["requests.cpu"] += 1 + pods * (1 + _amount(worker["cpu"]))
    taken["requests.memory"] += 2**31 + pods * (2**32 + _amount(worker["memory"]))
    # A Trainer that gets a whole large machine.
    assert taken["requests.cpu"] + 16 <= _amount(hard["requests.cpu"])
    assert taken["requests.memory"] + 64 * 2**30 <= _amount(hard["requests.memory"])
    stored = sum(
        _amount(claim["spec"]["resources"]["requests"]["storage"])
        for claim in named(production, "PersistentVolumeClaim").values()
    )
    assert stored < _amount(hard["requests.storage"])


def test_gpus_are_had_with_the_component_alone(production, tmp_path):
    [quota] = named(production, "ResourceQuota").values()
    assert quota["spec"]["hard"]["requests.nvidia.com/gpu"] == "4"
    [without] = named(with_components(tmp_path, "quota"), "ResourceQuota").values()
    assert without["spec"]["hard"]["requests.nvidia.com/gpu"] == "0"


def test_a_bucket_can_hold_the_artifacts_of_the_configuration_that_its_component_shows(tmp_path):
    text = (MANIFESTS / "components/bucket/kustomization.yaml").read_text()
    said = re.search(r"^#   kubeflow:$(?:\n#   .*)+", text, re.MULTILINE)
    shown = yaml.safe_load(re.sub("^#   ", "", said[0], flags=re.MULTILINE))
    config = override(Config(), [f"{name}={json.dumps(value)}" for name, value in shown.items()])
    assert config.kubeflow.step("Trainer").annotations == {"gke-gcsfuse/volumes": "true"}

    objects = with_components(tmp_path, "bucket")

    claims = named(objects, "PersistentVolumeClaim")
    assert {volume.claim for volume in config.kubeflow.volumes} <= set(claims)
    [bucket] = [v for v in config.kubeflow.volumes if v.claim == "graftline-artifacts"]
    assert config.paths.artifacts.startswith(f"{bucket.path}/")
    claim, volume = claims[bucket.claim]["spec"], named(objects, "PersistentVolume")[bucket.claim]
    assert claim["volumeName"] == volume["metadata"]["name"]
    assert claim["storageClassName"] == volume["spec"]["storageClassName"]
    schemas = pytest.importorskip("kubernetes_validate")
    for found in (volume, claims[bucket.claim]):
        schemas.validate(found, "1.34", strict=True)


def test_beside_kubeflow_itself_nothing_binds_the_whole_namespace(standalone):
    assert {found["metadata"]["namespace"] for found in standalone} == {"kubeflow"}
    kinds = {found["kind"] for found in standalone}
    assert not kinds & {"Namespace", "ResourceQuota", "LimitRange"}
    for policy in named(standalone, "NetworkPolicy").values():
        assert policy["spec"]["podSelector"].get("matchLabels")


def test_who_watches_gets_the_secrets_of_notices_and_starts_without_them():
    path = MANIFESTS / "components/watch/watch.yaml"
    [found] = yaml.safe_load(path.read_text())["spec"]["template"]["spec"]["containers"]
    secrets = {
        name: variable["valueFrom"]["secretKeyRef"]
        for name, variable in variables(found).items()
        if "valueFrom" in variable
    }
    # What pipeline/notify/config.py says that it reads.
    read = set(re.findall(r"GRAFTLINE_(?:WEBHOOK|SMTP)_[A-Z]+", str(notify.__doc__)))
    assert set(secrets) == read and len(read) == 3
    for name, secret in secrets.items():
        assert secret == {"name": "graftline-notify", "key": name, "optional": True}
