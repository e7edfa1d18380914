"""The main job: drop, run, predict, run again, go back; and a candidate that is worse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from commands import PRETRAINED, answer, graftline, last_run
from graftline.components.ingest.spans import SPLITS
from graftline.components.verdict import Verdict
from graftline.serving.base_path import BasePath
from node_outputs import output

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def trainer() -> str:
    return PRETRAINED


def in_service(project: Path) -> int | None:
    return BasePath(project / "serving" / "blobs").in_service()


def verdict(project: Path, gate: str) -> Verdict:
    return Verdict.read(project / "runs" / last_run(project).run_id / f"{gate}_gate.json")


def test_a_published_version_classifies_images(published):
    image = next((published.parent / "images" / "first" / "red").iterdir())
    assert "red" in graftline(published, "predict", str(image))
    graftline(published, "verify")


def test_examples_are_the_files_of_the_span_and_nothing_else(published):
    span = published / "spans" / "span-1" / "version-1"
    examples = output(published, "ImportExampleGen", "examples")
    of_span = {path.relative_to(span): path for path in span.glob("*/*")}
    taken = {path.relative_to(examples): path for path in examples.glob("*/*")}
    assert {Path(f"Split-{name}") for name in of_span} == set(taken)
    for name, path in of_span.items():
        assert taken[Path(f"Split-{name}")].read_bytes() == path.read_bytes()
    assert {path.name for path in examples.iterdir()} == {f"Split-{split}" for split in SPLITS}


def test_a_span_already_trained_is_not_trained_again(published):
    before = last_run(published).run_id
    assert "nothing to do" in graftline(published, "run")
    assert last_run(published).run_id == before


def test_status_and_drops_tell_what_happened(published):
    assert answer(published, "status")["state"] == "published"
    assert "version" in answer(published, "drops")[0]["trained"]


def test_a_worse_candidate_is_refused_and_kept_and_a_person_can_bless_it(published):
    before = in_service(published)
    worse = ["trainer.phases.frozen.rate=1e-9", "trainer.phases.frozen.epochs=1"]
    worse += ["model_gate.min_accuracy=0", "model_gate.min_class_recall=0"]

    refusal = answer(published, "run", "--force", *worse, expect=3)

    assert "nothing was published" in refusal["refused"]
    assert in_service(published) == before
    refused = last_run(published)
    assert any(
        check["passed"] is False and check["baseline"] for check in refusal["verdict"]["checks"]
    )
    assert "--reason" in graftline(published, "run", "--bless", expect=2)
    output = graftline(published, "run", "--bless", "--reason", "a drill")
    assert refused.run_id in output
    blessed = {node.id: node.state for node in last_run(published).nodes}
    assert (blessed["Trainer"], blessed["Evaluator"]) == ("cached", "cached")
    folder = BasePath(published / "serving" / "blobs").folder()
    assert json.loads((folder / "manifest.json").read_text())["overridden"] == "a drill"
    graftline(published, "rollback", "--reason", "the drill is over")
    assert in_service(published) == before


def test_after_a_rollback_a_forced_run_publishes_anew_and_compares_with_what_serves(published):
    graftline(published, "run", "--force")
    newest = in_service(published)
    graftline(published, "rollback")
    shutil.rmtree(published / "tfx")  # a lost metadata store does not lose the baseline

    graftline(published, "run", "--force")

    assert in_service(published) == newest + 1
    assert any(check.baseline is not None for check in verdict(published, "model").checks)
