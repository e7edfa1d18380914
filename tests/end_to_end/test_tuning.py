"""`graftline tune`: trials, the values that did best, and the runs that train with them."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
import yaml

from commands import PRETRAINED, Command, draw, graftline, last_run
from graftline.pipeline import run_record

pytestmark = pytest.mark.end_to_end

SPACE = "tuner.space={head.dropout: {min: 0.0, max: 0.6}, head.hidden: [[], [16]]}"


@pytest.fixture(scope="module")
def trainer():
    return PRETRAINED


@pytest.fixture(scope="module")
def searched(untrained):
    """A project that was tuned once, and what the command said."""
    return untrained, graftline(untrained, "tune", SPACE, "tuner.trials=4")


@pytest.fixture
def project(searched):
    """The same, for a search that starts from what is in graftline.yaml."""
    (searched[0] / "tuned.yaml").unlink(missing_ok=True)
    return searched[0]


def trials(project: Path) -> list[dict]:
    """What the last search has tried, the best first."""
    record = last_run(project)
    assert record is not None
    assert record.state == run_record.TUNED
    return json.loads((project / "runs" / record.run_id / "trials.json").read_text())


def test_the_best_values_are_kept(searched):
    project, said = searched
    tried = trials(project)
    assert len(tried) == 4
    assert tried[0]["error"] == min(trial["error"] for trial in tried)
    configured = next(trial for trial in tried if trial["number"] == 1)
    assert configured["values"] == {"head.dropout": 0.2, "head.hidden": []}
    best = {f"trainer.{key}": value for key, value in tried[0]["values"].items()}
    assert yaml.safe_load((project / "tuned.yaml").read_text()) == best
    assert "as configured" in said
    assert "graftline run" in said
    assert "tuned" in graftline(project, "status")


def test_nothing_is_tried_again_where_nothing_has_changed(project):
    before = trials(project)
    said = graftline(project, "tune", SPACE, "tuner.trials=4")
    assert re.search(r"Tuner .*\(from the cache\)", said)
    assert trials(project) == before
    best = {f"trainer.{key}": value for key, value in before[0]["values"].items()}
    assert yaml.safe_load((project / "tuned.yaml").read_text()) == best


def test_the_next_run_trains_with_what_was_found(searched):
    project, _ = searched
    (project / "tuned.yaml").write_text("trainer.head.dropout: 0.35\ntrainer.head.hidden: [16]\n")
    said = graftline(project, "run")
    assert "as tuned before (tuned.yaml): trainer.head.dropout 0.35" in said
    run = last_run(project)
    saved = yaml.safe_load((project / "runs" / run.run_id / "config.yaml").read_text())
    assert saved["trainer"]["head"]["dropout"] == 0.35
    [manifest] = (project / "serving" / "blobs" / "1").rglob("manifest.json")
    published = json.loads(manifest.read_text())["configuration"]["trainer"]
    assert published["head"]["hidden"] == [16]


def test_a_search_that_was_killed_goes_on_with_the_trials_it_has(project):
    command = Command(project, "tune", SPACE, "tuner.trials=5")
    # The third begins once what became of the second is on disk.
    while len(list(project.glob("tfx/trials/*/trial_*/trial.json"))) < 3:
        assert command.process.is_alive(), command.output
        time.sleep(0.05)
    command.process.kill()
    assert command.wait() == -signal.SIGKILL
    assert len(done(project)) >= 2
    graftline(project, "resume")
    assert len(trials(project)) == 5
    log = (project / "runs" / last_run(project).run_id / "run.log").read_text()
    for number in (1, 2):
        assert log.count(f"trial {number}/5  error") == 1
    assert not done(project)


def done(project: Path) -> list[Path]:
    """The trials whose end is recorded."""
    found = []
    for path in project.glob("tfx/trials/*/trial_*/trial.json"):
        text = path.read_text()
        if text and json.loads(text)["status"] == "COMPLETED":
            found.append(path)
    return found


def test_values_with_which_training_diverges_are_the_worst(project):
    # The rate of a bad guess makes the loss infinite at once.
    graftline(project, "tune", "tuner.space={phases.frozen.rate: [3e-3, 1e37]}", "tuner.trials=2")
    tried = trials(project)
    assert [trial["values"]["phases.frozen.rate"] for trial in tried] == [3e-3, 1e37]
    assert tried[1]["error"] == 2.0


def test_values_that_cannot_go_together_are_the_worst_and_end_nothing(project):
    tried = "tuner.space={phases.frozen.fraction: [0.0, 0.1], phases.frozen.blocks: [0, 1]}"
    graftline(project, "tune", tried, "trainer.phases.frozen.epochs=1", "tuner.trials=15")
    impossible = {"phases.frozen.fraction": 0.1, "phases.frozen.blocks": 1}
    assert {trial["error"] for trial in trials(project) if trial["values"] == impossible} == {2.0}


def test_the_chief_of_a_cluster_tunes_without_waiting_for_the_others(project):
    cluster = {"chief": ["127.0.0.1:1"], "worker": ["127.0.0.1:2"]}
    task = {"type": "chief", "index": 0}
    command = Command(
        project,
        *("tune", "--force", SPACE, "tuner.trials=2", "trainer.strategy=multi_worker"),
        environment={"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})},
    )
    assert command.wait() == 0, command.output
    assert len(trials(project)) == 2


def test_without_an_eval_image_there_is_nothing_to_judge_by(tmp_path):
    images = draw(tmp_path / "images", 12, seed=1)
    graftline(tmp_path, "init", "project", "--images", str(images))
    project = tmp_path / "project"
    graftline(project, "drop", str(images), "drop.eval_share=0", "drop.test_share=0.25")
    said = graftline(project, "tune", SPACE, "tuner.trials=2", expect=2)
    assert "no image in the eval split" in said
    assert not (project / "tuned.yaml").exists()
