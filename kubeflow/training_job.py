"""Training in several pods: the Trainer's step has a TFJob of the Kubeflow training operator do it.

The operator starts a chief and workers and tells each of all in TF_CONFIG. The chief runs the node
as the step would have; the workers take part in what it announces, as other machines do with
`graftline work`. The step shows the chief's log, waits for the job's end and deletes it; whether
the node succeeded it learns from the metadata store, like every step.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from graftline.kubeflow.kubernetes_api import KubernetesApi, NotThere, Unanswered
from graftline.pipeline.config import Config
from graftline.pipeline.kubeflow_config import KubeflowConfig, StepConfig
from graftline.serving.errors import UserError

# The operator finds the container and its port by these names.
CONTAINER, PORT_NAME, PORT = "tensorflow", "tfjob-port", 2222
SUCCEEDED, FAILED = "Succeeded", "Failed"

_POLL = 2.0  # seconds
_GONE = 300.0  # seconds
# A restart of the API ends no training: so long nobody need answer.
_PATIENCE = 600.0  # seconds
# Of Istio, in namespaces that put its proxy into every pod: workers could not reach each other at
# once, and the chief's pod would never end. A label for new versions, an annotation for old ones.
_WITHOUT_PROXY = {"sidecar.istio.io/inject": "false"}


def manifest(config: KubeflowConfig, name: str, chief: list[str], worker: list[str]) -> Any:
    """The TFJob, version kubeflow.org/v1.

    Args:
        config: what its pods get.
        name: of the job.
        chief, worker: arguments of `python -m graftline.kubeflow.node`.
    """
    step = config.step("Trainer")
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "TFJob",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "graftline"}},
        "spec": {
            # The step tries again, not the operator; workers that wait for a training that came
            # from the cache are ended with the chief.
            "runPolicy": {"cleanPodPolicy": "Running", "backoffLimit": 0},
            "tfReplicaSpecs": {
                "Chief": _replicas(config, step, 1, chief),
                "Worker": _replicas(config, step, config.training_pods - 1, worker),
            },
        },
    }


def _replicas(config: KubeflowConfig, step: StepConfig, count: int, arguments: list[str]) -> Any:
    volumes = [
        {"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": volume.claim}}
        for number, volume in enumerate(config.volumes)
    ]
    container = {
        "name": CONTAINER,
        "image": config.image,
        "command": ["python", "-m", "graftline.kubeflow.node"],
        "args": arguments,
        "ports": [{"name": PORT_NAME, "containerPort": PORT}],
        "env": [
            {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": key}}}
            for secret in config.all_secrets
            for variable, key in secret.env.items()
        ],
        "volumeMounts": [
            {"name": f"volume-{number}", "mountPath": volume.path}
            for number, volume in enumerate(config.volumes)
        ],
        "resources": _resources(step),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod = {
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": volumes,
        "nodeSelector": step.node_selector or {},
        "tolerations": [_toleration(one) for one in step.tolerations or ()],
        "imagePullSecrets": [{"name": name} for name in config.image_pull_secrets],
    }
    annotations = {**(step.annotations or {}), **_WITHOUT_PROXY}
    metadata = {"labels": _WITHOUT_PROXY, "annotations": annotations}
    return {
        "replicas": count,
        "restartPolicy": "Never",
        "template": {"metadata": metadata, "spec": pod},
    }


def _resources(step: StepConfig) -> Any:
    requests = {"cpu": step.cpu, "memory": step.memory}
    limits: dict[str, str | None] = {"cpu": step.cpu_limit, "memory": step.memory}
    if step.accelerator and step.accelerators:
        limits[step.accelerator] = str(step.accelerators)
    return {
        "requests": {name: value for name, value in requests.items() if value},
        "limits": {name: value for name, value in limits.items() if value},
    }


def _toleration(one: Any) -> dict[str, str]:
    found = {"key": one.key, "operator": one.operator, "value": one.value, "effect": one.effect}
    return {name: value for name, value in found.items() if value}


class TrainingJob:
    """One TFJob.

    Args:
        api: of the cluster.
        name: of the job.
    """

    def __init__(self, api: KubernetesApi, name: str):
        self._api, self._name = api, name
        self._jobs = f"/apis/kubeflow.org/v1/namespaces/{api.namespace}/tfjobs"

    @contextlib.contextmanager
    def submitted(self, manifest: Any) -> Iterator[None]:
        """Has the job for as long as the context lasts; one that an earlier try left is replaced.

        Raises:
            UserError: the cluster has no training operator, or does not let us.
        """
        self._delete()
        try:
            self._api.create(self._jobs, manifest)
        except NotThere:
            raise UserError(
                "This cluster knows no TFJob: install the Kubeflow training operator, or set "
                "kubeflow.training_pods to 1."
            ) from None
        try:
            yield
        finally:
            self._api.delete(f"{self._jobs}/{self._name}")

    def follow(self, tell: Callable[[str], None]) -> tuple[str, str]:
        """Waits for the job's end.

        Args:
            tell: is given every line of the chief's log.

        Returns:
            `Succeeded` or `Failed`, and what the operator says of it.

        Raises:
            UserError: somebody deleted the job, or nobody answers for long.
        """
        seen, answered = 0, time.monotonic()
        while True:
            with contextlib.suppress(NotThere, Unanswered):
                for number, line in enumerate(self._api.log(f"{self._name}-chief-0", CONTAINER)):
                    # The log begins anew with every connection.
                    if number >= seen:
                        seen = number + 1
                        tell(line)
            try:
                status = self._api.get(f"{self._jobs}/{self._name}").get("status") or {}
                answered = time.monotonic()
            except NotThere:
                raise UserError(
                    f"The TFJob {self._name} was deleted by another hand while it trained."
                ) from None
            except Unanswered:
                if time.monotonic() - answered > _PATIENCE:
                    raise
                status = {}
            for condition in status.get("conditions") or ():
                if condition["type"] in (SUCCEEDED, FAILED) and condition["status"] == "True":
                    return condition["type"], condition.get("message", "")
            time.sleep(_POLL)

    def _delete(self) -> None:
        path = f"{self._jobs}/{self._name}"
        self._api.delete(path)
        until = time.monotonic() + _GONE
        while time.monotonic() < until:
            try:
                self._api.get(path)
            except NotThere:
                return
            time.sleep(_POLL)
        raise RuntimeError(f"The TFJob {self._name} of an earlier try is still there.")


def refuse_workers(config: Config) -> None:
    """Refuses several workers in each of several pods.

    Raises:
        UserError: that is what is configured.
    """
    if config.kubeflow.training_pods > 1 and config.trainer.workers > 1:
        raise UserError(
            "kubeflow.training_pods and trainer.workers cannot both be more than 1: every pod is "
            "one worker."
        )


def job_name(model: str, run_id: str, kubeflow_run: str) -> str:
    """Name of a run's job: a DNS label, with room for what the operator adds.

    Another project of the namespace may have a model and a run of these names, but not this run of
    Kubeflow Pipelines.
    """
    plain, unique = (
        "".join(c if c.isalnum() and c.isascii() else "-" for c in name.lower()).strip("-")
        for name in (model, kubeflow_run)
    )
    return f"graftline-{plain[:20].rstrip('-')}-{run_id}-{unique[:8].rstrip('-')}"


def arguments(step: str, project: Path, runs: Path, run_id: str) -> list[str]:
    """Arguments of the node runner in a pod of the job: `run`, as the chief, or `work`."""
    folders = ["--project", str(project), "--runs", str(runs), "--run", run_id]
    if step == "run":
        return ["run", "Trainer", *folders, "--outcome-file", "/tmp/outcome"]
    return ["work", *folders]
