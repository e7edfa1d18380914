"""What unit tests share: a server in place of Kubeflow Pipelines, and a project that is on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kubeflow_server import Backend


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """Kubeflow Pipelines, asked without long pauses; every request has to be in its definition."""
    from graftline.kubeflow import submit
    from kubeflow_server import kubeflow_server

    monkeypatch.setattr(submit, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(submit, "_LONGEST_PAUSE", 0.01)
    for name in ("GRAFTLINE_KUBEFLOW_TOKEN", "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with kubeflow_server() as server:
        yield server
        assert not server.misunderstood


@pytest.fixture
def on_cluster(tmp_path: Path, cluster: Backend) -> Path:
    """A project whose runs go there, and its package."""
    from kubeflow_server import package

    address = f"kubeflow: {{api: {{address: '{cluster.url}'}}}}"
    (tmp_path / "graftline.yaml").write_text(f"model: {{name: flowers}}\n{address}\n")
    package(tmp_path / "kubeflow.yaml")
    return tmp_path
