"""The TFJob: what is submitted, followed and deleted, and what the cluster may say to it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from graftline.kubeflow import training_job
from graftline.kubeflow.kubernetes_api import KubernetesApi
from graftline.kubeflow.training_job import TrainingJob
from graftline.pipeline.config import Config, override
from graftline.serving.errors import UserError
from training_operator import Start, training_operator

NAME = "graftline-model-run-0001"
CONFIG = override(
    Config(),
    [
        "kubeflow.image=registry.example/graftline:1.0",
        "kubeflow.training_pods=3",
        "kubeflow.metadata.host=metadata-db",
        "kubeflow.image_pull_secrets=[registry]",
        "kubeflow.steps.Trainer={memory: 16G, accelerator: nvidia.com/gpu, accelerators: 1, "
        "node_selector: {pool: gpu}, tolerations: [{key: gpu}], "
        "annotations: {gke-gcsfuse/volumes: 'true'}}",
    ],
).kubeflow
MANIFEST = training_job.manifest(
    CONFIG,
    NAME,
    *(training_job.arguments(step, Path("/p"), Path("/p/runs"), "run-0001") for step in "rw"),
)


class Process:
    """A pod that runs a line of shell."""

    def __init__(self, script: str, folder: Path, environment: Mapping[str, str]):
        self._output = folder / f"{len(list(folder.iterdir()))}.log"
        with self._output.open("w") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", script], stdout=log, env={"PATH": "/bin:/usr/bin", **environment}
            )

    def code(self) -> int | None:
        return self._process.poll()

    def output(self) -> str:
        return self._output.read_text()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def pods(folder: Path, chief: str, worker: str = "sleep 600") -> Start:
    folder.mkdir(exist_ok=True)

    def start(name: str, container: Mapping[str, Any], environment: Mapping[str, str]) -> Process:
        return Process(chief if "-chief-" in name else worker, folder, environment)

    return start


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_job, "_POLL", 0.05)


def test_the_pods_are_valid_by_the_schemas_of_kubernetes():
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
    templates = [one["template"] for one in MANIFEST["spec"]["tfReplicaSpecs"].values()]
    for template in templates:
        kubernetes_validate.validate({**pod, **template}, "1.30", strict=True)
    odd = {**templates[0], "spec": {**templates[0]["spec"], "nodeSelectr": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**pod, **odd}, "1.30", strict=True)


def test_a_chief_and_the_other_workers_get_what_the_trainer_gets():
    replicas = MANIFEST["spec"]["tfReplicaSpecs"]
    assert {kind: one["replicas"] for kind, one in replicas.items()} == {"Chief": 1, "Worker": 2}
    for one in replicas.values():
        pod = one["template"]["spec"]
        [container] = pod["containers"]
        assert container["ports"] == [{"name": "tfjob-port", "containerPort": 2222}]
        assert container["resources"]["limits"] == {"memory": "16G", "nvidia.com/gpu": "1"}
        assert pod["nodeSelector"] == {"pool": "gpu"}
        assert one["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
        assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
        [_, password] = container["env"]
        assert password["valueFrom"]["secretKeyRef"] == {
            "name": "graftline-metadata",
            "key": "password",
        }


def test_the_chiefs_log_is_shown_and_the_job_deleted_when_it_has_succeeded(tmp_path):
    lines: list[str] = []
    start = pods(tmp_path / "pods", "echo epoch 1; sleep 0.3; echo $TF_CONFIG")
    with training_operator(start) as operator:
        job = TrainingJob(KubernetesApi(operator.address, tmp_path), NAME)
        with job.submitted(MANIFEST):
            assert job.follow(lines.append) == ("Succeeded", "completed")
    assert lines[0] == "epoch 1"
    assert '"task": {"type": "chief", "index": 0}, "environment": "cloud"' in lines[1]
    assert operator.deleted == [NAME]


@pytest.mark.parametrize(("chief", "worker"), [("exit 3", "sleep 600"), ("sleep 0.3", "exit 1")])
def test_a_pod_that_fails_fails_the_job(tmp_path, chief, worker):
    with training_operator(pods(tmp_path / "pods", chief, worker)) as operator:
        job = TrainingJob(KubernetesApi(operator.address, tmp_path), NAME)
        with job.submitted(MANIFEST):
            ended, said = job.follow(print)
    assert ended == "Failed"
    assert "has failed because" in said


def test_a_log_that_breaks_off_and_an_api_that_restarts_end_no_training(tmp_path):
    lines: list[str] = []
    start = pods(tmp_path / "pods", "echo epoch 1; sleep 0.5; echo epoch 2")
    with training_operator(start) as operator:
        job = TrainingJob(KubernetesApi(operator.address, tmp_path), NAME)
        with job.submitted(MANIFEST):
            operator.broken_logs, operator.unanswered = 2, 2
            assert job.follow(lines.append) == ("Succeeded", "completed")
        assert (operator.broken_logs, operator.unanswered) == (0, 0)
    assert lines == ["epoch 1", "epoch 2"]


def test_an_api_that_is_away_for_long_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(training_job, "_PATIENCE", 0.2)
    with training_operator(pods(tmp_path / "pods", "true")) as operator:
        job = TrainingJob(KubernetesApi(operator.address, tmp_path), NAME)
        with job.submitted(MANIFEST):
            operator.unanswered = 1000
            with pytest.raises(UserError, match="does not answer: 503 etcdserver"):
                job.follow(print)


def test_pods_have_no_proxy_and_no_rights():
    for replicas in MANIFEST["spec"]["tfReplicaSpecs"].values():
        template = replicas["template"]
        for kind in ("labels", "annotations"):
            assert template["metadata"][kind]["sidecar.istio.io/inject"] == "false"
        assert template["spec"]["automountServiceAccountToken"] is False
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True


def test_a_job_that_an_earlier_try_left_is_replaced(tmp_path):
    with training_operator(pods(tmp_path / "pods", "true")) as operator:
        api = KubernetesApi(operator.address, tmp_path)
        api.create("/apis/kubeflow.org/v1/namespaces/default/tfjobs", MANIFEST)
        with TrainingJob(api, NAME).submitted(MANIFEST):
            assert operator.deleted == [NAME]
            assert len(operator.created) == 2


def test_when_the_step_is_ended_the_job_is_deleted(tmp_path):
    with training_operator(pods(tmp_path / "pods", "sleep 600")) as operator:
        job = TrainingJob(KubernetesApi(operator.address, tmp_path), NAME)
        with pytest.raises(KeyboardInterrupt), job.submitted(MANIFEST):
            raise KeyboardInterrupt
    assert operator.deleted == [NAME]
    assert not operator.jobs


def test_a_job_that_somebody_deletes_is_missed(tmp_path):
    with training_operator(pods(tmp_path / "pods", "sleep 0.2")) as operator:
        api = KubernetesApi(operator.address, tmp_path)
        job = TrainingJob(api, NAME)
        with job.submitted(MANIFEST):
            api.delete(f"/apis/kubeflow.org/v1/namespaces/default/tfjobs/{NAME}")
            with pytest.raises(UserError, match="deleted by another hand"):
                job.follow(print)


def test_the_token_is_read_anew_and_a_wrong_one_told(tmp_path):
    (tmp_path / "token").write_text("old\n")
    with training_operator(pods(tmp_path / "pods", "true"), token="new") as operator:
        api = KubernetesApi(operator.address, tmp_path)
        with pytest.raises(UserError, match=r"401: Unauthorized\)\. Its role needs tfjobs"):
            api.create("/apis/kubeflow.org/v1/namespaces/default/tfjobs", MANIFEST)
        (tmp_path / "token").write_text("new\n")
        with TrainingJob(api, NAME).submitted(MANIFEST):
            assert operator.created


def test_a_cluster_without_the_operator_is_told(tmp_path):
    with training_operator(pods(tmp_path / "pods", "true"), installed=False) as operator:
        job = TrainingJob(KubernetesApi(operator.address, tmp_path), NAME)
        with (
            pytest.raises(UserError, match="install the Kubeflow training operator"),
            job.submitted(MANIFEST),
        ):
            pass


def test_no_cluster_at_the_address_and_no_pod_at_all_are_told(tmp_path, monkeypatch):
    nobody = KubernetesApi("http://127.0.0.1:1", tmp_path)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1 does not answer"):
        nobody.get("/api")
    with pytest.raises(UserError, match="This is no pod"):
        KubernetesApi.of_this_pod()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    assert KubernetesApi.of_this_pod().address == "https://[fd00::1]:6443"


def test_names_of_jobs_are_labels_and_each_runs_own():
    name = training_job.job_name("Müll_Sorter.v2", "run-0012", "9f1c-52d0-8a")
    assert name == "graftline-m-ll-sorter-v2-run-0012-9f1c-52d"
    longest = training_job.job_name("m" * 80, "run-12345", "9f1c52d08a")
    assert len(f"{longest}-worker-10") <= 63
