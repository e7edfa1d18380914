"""Two pods train one model on a cluster: the training operator's part played by a small server."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from commands import Command, graftline, last_run
from graftline.components.trainer.record import TrainingRecord
from graftline.kubeflow.kubernetes_api import ADDRESS_VARIABLE
from kubeflow_backend import Backend
from training_operator import training_operator

pytestmark = pytest.mark.end_to_end


class Pod:
    """A pod of a TFJob as a process of its own."""

    def __init__(self, folder: Path, name: str, container: Any, environment: Mapping[str, str]):
        assert container["command"] == ["python", "-m", "graftline.kubeflow.node"]
        workplace = folder / name
        workplace.mkdir(exist_ok=True)
        path = os.pathsep.join((str(Path(sys.executable).parent), "/usr/bin", "/bin"))
        self._command = Command(
            workplace,
            *container["args"],
            environment={"PATH": path, "HOME": str(folder), **environment},
            nothing_else=True,
            module="graftline.kubeflow.node",
        )

    def code(self) -> int | None:
        return self._command.process.exitcode

    def output(self) -> str:
        return self._command.output

    def end(self) -> None:
        if self.code() is None:
            os.kill(self._command.process.pid or 0, signal.SIGTERM)
        self._command.wait()


def test_two_pods_train_the_model_that_is_published(project, tmp_path):
    package = tmp_path / "package.yaml"
    graftline(
        project,
        "kubeflow",
        "compile",
        f"--output={package}",
        "kubeflow.image=registry.example/graftline:1.0",
        f"kubeflow.project={project}",
        f"kubeflow.volumes=[{{claim: graftline, path: {tmp_path}}}]",
        "kubeflow.training_pods=2",
    )
    pods = tmp_path / "pods"
    pods.mkdir()

    def start(name: str, container: Any, environment: Mapping[str, str]) -> Pod:
        return Pod(pods, name, container, environment)

    with training_operator(start) as operator:
        backend = Backend(tmp_path, image={ADDRESS_VARIABLE: operator.address})
        backend.upload(package)
        run = backend.run()

    assert run.state == "SUCCEEDED", [step.output for step in run.steps.values()]
    assert last_run(project).published_version == 1
    [folder] = (project / "tfx" / "Trainer" / "model_run").iterdir()
    record = TrainingRecord.read(str(folder))
    assert (record.workers, record.replicas) == (2, 2)
    [job] = operator.deleted
    assert job.startswith("graftline-blobs-run-0001-")
    assert f"2 pods train: TFJob {job}" in run.steps["Trainer"].output
