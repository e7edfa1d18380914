"""The publisher as an executor of TFX's Pusher: what it publishes, marks and refuses."""

import json
from pathlib import Path

import pytest
from tfx.proto import pusher_pb2
from tfx.types import standard_artifacts
from tfx.utils import json_utils, proto_utils

from graftline.components.publisher import Executor
from graftline.components.verdict import Check, Verdict
from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError

SHARD = "variables.data-00000-of-00001"


class Node:
    """One execution of the Pusher on real artifacts in a folder."""

    def __init__(self, root: Path):
        self.base_path = BasePath(root / "serving" / "flowers")
        self.directory = str(self.base_path.root)
        self.model = standard_artifacts.Model()
        self.model.uri = str(root / "tfx" / "Trainer" / "model" / "5")
        self.blessing = standard_artifacts.ModelBlessing()
        self.blessing.uri = str(root / "tfx" / "ModelGate" / "blessing" / "7")
        self.pushed = standard_artifacts.PushedModel()
        self.pushed.uri = str(root / "tfx" / "Pusher" / "pushed_model" / "8")
        self.train(b"weights")
        self.bless(True)

    def train(self, weights: bytes) -> None:
        saved_model = Path(self.model.uri) / "Format-Serving"
        (saved_model / "variables").mkdir(parents=True, exist_ok=True)
        (saved_model / "assets.extra").mkdir(exist_ok=True)
        (saved_model / "saved_model.pb").write_bytes(b"graph")
        (saved_model / "variables" / "variables.index").write_bytes(b"index")
        (saved_model / "variables" / SHARD).write_bytes(weights)
        (saved_model / "assets.extra" / "labels.txt").write_text("daisy\nred rose\n")

    def bless(self, blessed: bool) -> None:
        self.blessing.set_int_custom_property("blessed", int(blessed))
        check = Check(metric="accuracy", slice="overall", candidate=0.93, passed=blessed)
        verdict = Verdict(gate="model", passed=blessed, overridden="new label", checks=(check,))
        verdict.write(Path(self.blessing.uri) / "model_gate.json")

    def run(self) -> None:
        destination = pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=self.directory)
        )
        Executor().Do(
            {"model": [self.model], "model_blessing": [self.blessing]},
            {"pushed_model": [self.pushed]},
            {
                "push_destination": proto_utils.proto_to_json(destination),
                "custom_config": json_utils.dumps(
                    {
                        "model": "flowers",
                        "spans": [[1, 1], [2, 3]],
                        "config": {"trainer": {"epochs": 3}},
                        "code_revision": "0c0ffee",
                        "run_id": "run-0007",
                        "report_dir": "runs/run-0007",
                    }
                ),
            },
        )


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_blessed_model_becomes_the_next_version(node):
    node.run()
    version = node.base_path.root / "1"
    assert node.base_path.in_service() == 1
    assert (version / "variables" / SHARD).read_bytes() == b"weights"
    assert node.base_path.verify() == {1: []}


def test_it_is_marked_as_tfx_marks_it_with_a_pointer_in_place_of_a_copy(node):
    node.run()
    version = str(node.base_path.root / "1")
    assert node.pushed.get_int_custom_property("pushed") == 1
    assert node.pushed.get_string_custom_property("pushed_destination") == version
    assert node.pushed.get_string_custom_property("pushed_version") == "1"
    [pointer] = Path(node.pushed.uri).iterdir()
    assert json.loads(pointer.read_text()) == {"pushed_destination": version, "pushed_version": 1}


def test_the_manifest_says_what_the_pipeline_and_the_gate_said(node):
    node.run()
    manifest = node.base_path.versions()[0].manifest
    assert manifest.classes == ("daisy", "red rose")
    assert manifest.spans == ((1, 1), (2, 3))
    assert manifest.configuration == {"trainer": {"epochs": 3}}
    assert (manifest.code_revision, manifest.run_id) == ("0c0ffee", "run-0007")
    assert (manifest.accuracy, manifest.overridden) == (0.93, "new label")
    assert node.model.uri in manifest.lineage["model"]
    assert "tensorflow" in manifest.packages


def test_a_refused_model_is_not_published(node):
    node.bless(False)
    node.run()
    assert node.pushed.get_int_custom_property("pushed") == 0
    assert not node.base_path.root.exists()


def test_run_again_after_a_kill_it_publishes_nothing_and_marks_the_same_version(node):
    node.run()
    node.pushed = standard_artifacts.PushedModel()
    node.pushed.uri = str(Path(node.model.uri).parents[2] / "Pusher" / "pushed_model" / "9")
    node.run()
    assert node.pushed.get_string_custom_property("pushed_version") == "1"
    assert [version.number for version in node.base_path.versions()] == [1]


def test_the_same_content_of_another_training_is_another_version(node):
    node.run()
    node.model.uri = str(Path(node.model.uri).with_name("6"))
    node.train(b"weights")
    node.run()
    assert node.base_path.in_service() == 2


def test_the_same_content_at_the_same_address_trained_later_is_another_version(node):
    node.model.mlmd_artifact.create_time_since_epoch = 1_000
    node.run()
    node.model.mlmd_artifact.create_time_since_epoch = 2_000
    node.run()
    assert node.base_path.in_service() == 2


def test_two_projects_with_the_same_addresses_do_not_collide_on_one_base_path(node):
    node.run()
    node.train(b"weights of the other project's container")
    node.run()
    assert node.base_path.in_service() == 2


def test_an_object_store_is_refused_rather_than_taken_for_a_folder(node):
    node.directory = "gs://bucket/serving/flowers"
    with pytest.raises(UserError, match=r"must be a folder, found 'gs://bucket"):
        node.run()
    assert node.pushed.get_int_custom_property("pushed") == 0
