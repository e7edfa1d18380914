"""TFX's Pusher with our executor in a real pipeline with a real metadata store."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from graftline.serving.base_path import BasePath

pytestmark = pytest.mark.end_to_end

PIPELINE = """
import os, signal, sys
from pathlib import Path
from graftline.components import publisher
from tfx.components.pusher.component import Pusher
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.dsl.components.common.importer import Importer
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.metadata import sqlite_metadata_connection_config
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import pusher_pb2
from tfx.types.standard_artifacts import Model, ModelBlessing

root, mode = Path(sys.argv[1]), sys.argv[2]


class KilledAfterTheRename(publisher.Executor):
    def Do(self, *arguments):
        super().Do(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)


model = Importer(source_uri=str(root / "model"), artifact_type=Model).with_id("model")
blessing = Importer(
    source_uri=str(root / "blessing"),
    artifact_type=ModelBlessing,
    custom_properties={"blessed": int(mode != "refused")},
    reimport=mode == "refused",
).with_id("blessing")
destination = pusher_pb2.PushDestination.Filesystem(base_directory=str(root / "base" / "m"))
executor = KilledAfterTheRename if mode == "killed" else publisher.Executor
pusher = Pusher(
    model=model.outputs["result"],
    model_blessing=blessing.outputs["result"],
    push_destination=pusher_pb2.PushDestination(filesystem=destination),
    custom_config={"model": "m", "spans": [], "config": {}, "code_revision": "", "run_id": mode},
    custom_executor_spec=ExecutorClassSpec(executor),
)
pipeline = Pipeline(
    pipeline_name="publishing",
    pipeline_root=str(root / "tfx"),
    components=[model, blessing, pusher],
    enable_cache=True,
    metadata_connection_config=sqlite_metadata_connection_config(str(root / "metadata.sqlite")),
)
LocalDagRunner().run(pipeline)

import ml_metadata as mlmd
store = mlmd.MetadataStore(sqlite_metadata_connection_config(str(root / "metadata.sqlite")))
pushed = store.get_artifacts_by_type("PushedModel")[-1].custom_properties
print(pushed["pushed"].int_value, pushed["pushed_version"].string_value)
"""


@pytest.fixture
def run(tmp_path: Path):
    (tmp_path / "model" / "Format-Serving").mkdir(parents=True)
    (tmp_path / "model" / "Format-Serving" / "saved_model.pb").write_bytes(b"graph")
    (tmp_path / "blessing").mkdir()

    def run(mode: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", PIPELINE, str(tmp_path), mode],
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_kill_between_the_rename_and_the_metadata_stores_commit_publishes_once(run, tmp_path):
    base_path = BasePath(tmp_path / "base" / "m")
    assert run("killed").returncode == -signal.SIGKILL
    assert base_path.in_service() == 1
    again = run("again")
    assert again.returncode == 0, again.stderr
    assert again.stdout.split()[-2:] == ["1", "1"]
    assert [version.number for version in base_path.versions()] == [1]
    assert base_path.verify() == {1: []}


def test_a_refused_model_goes_through_the_pipeline_and_is_not_published(run, tmp_path):
    refused = run("refused")
    assert refused.returncode == 0, refused.stderr
    assert refused.stdout.split()[-1] == "0"
    assert not (tmp_path / "base").exists()
