"""`tuned.yaml`: what tuning found stands between the configuration and the command line."""

import json
from pathlib import Path

import pytest
from PIL import Image

from graftline.components.tuner.config import Range
from graftline.pipeline import tuned
from graftline.pipeline.cli.main import main
from graftline.pipeline.project import Project
from graftline.pipeline.tuned import Trial
from graftline.serving.errors import UserError

TRIED = {"head.dropout": Range(min=0.0, max=0.6), "head.hidden": [[], [256]]}
TRIALS = [
    Trial(number=3, error=0.11, values={"head.dropout": 0.4, "head.hidden": [256]}),
    Trial(number=1, error=0.14, values={"head.dropout": 0.2, "head.hidden": []}),
    Trial(number=2, error=0.19, values={"head.dropout": 0.6, "head.hidden": []}),
]


def graftline(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for label in ("red", "blue"):
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("RGB", (40, 40), label).save(tmp_path / "images" / label / "1.png")
    graftline("init", tmp_path / "project", "--images", tmp_path / "images")
    return tmp_path / "project"


def test_the_trials_are_read_the_best_first_and_as_the_trainer_has_them(tmp_path):
    rows = [
        {"trial_id": "00", "score": 0.14, "head.dropout": 0.2, "head.hidden": "[]"},
        {"trial_id": "02", "score": 0.11, "head.dropout": 0.40012, "head.hidden": "[256]"},
        {"trial_id": "01", "score": 0.19, "head.dropout": 0.6, "head.hidden": "[]"},
    ]
    (tmp_path / "tuner_results.json").write_text(json.dumps(rows))
    assert tuned.read_trials(tmp_path, TRIED) == TRIALS


def test_of_equals_the_one_that_was_configured_is_the_best(tmp_path):
    rows = [
        {"trial_id": "02", "score": 0.11, "head.dropout": 0.4, "head.hidden": "[]"},
        {"trial_id": "00", "score": 0.11, "head.dropout": 0.2, "head.hidden": "[]"},
    ]
    (tmp_path / "tuner_results.json").write_text(json.dumps(rows))
    assert tuned.read_trials(tmp_path, TRIED)[0].number == 1


def test_every_command_sees_the_best_values(project):
    tuned.write_tuned(project, TRIALS, "run-0004")
    opened = Project.find(project)
    assert opened.config.trainer.head.dropout == 0.4
    assert opened.config.trainer.head.hidden == (256,)
    assert tuned.in_force(opened) == {
        "trainer.head.dropout": 0.4,
        "trainer.head.hidden": [256],
    }


def test_the_file_says_where_its_values_are_from(project):
    tuned.write_tuned(project, TRIALS, "run-0004")
    text = (project / "tuned.yaml").read_text()
    assert "run-0004, trial 3 of 3" in text
    assert "0.1100, with the values before 0.1400" in text


def test_the_command_line_has_the_last_word(project):
    tuned.write_tuned(project, TRIALS, "run-0004")
    opened = Project.find(project, ["trainer.head.dropout=0.1"])
    assert opened.config.trainer.head.dropout == 0.1
    assert tuned.in_force(opened) == {"trainer.head.hidden": [256]}


def test_without_the_file_the_configuration_stands(project):
    tuned.write_tuned(project, TRIALS, "run-0004")
    (project / "tuned.yaml").unlink()
    assert Project.find(project).config.trainer.head.dropout == 0.2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainer.head.dropout: 2.0", r"with what was tuned: trainer.head.dropout: .*found 2.0"),
        ("trainer.phases.thawed.rate: 0.1", "The tuned value trainer.phases.thawed.rate: .*frozen"),
        ("- a list", "must hold lines such as"),
        ("trainer.seed: [", "cannot be read.*Mend or delete it"),
    ],
)
def test_a_damaged_file_is_named(project, text, said):
    (project / "tuned.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        Project.find(project)


def test_tuning_a_key_that_does_not_exist_is_refused_before_anything_runs(project, capsys):
    (project / "spans" / "span-1" / "version-1").mkdir(parents=True)
    code = graftline("tune", "--project", project, "tuner.space={head.dropot: [0.1, 0.2]}")
    assert code == 2
    assert not list((project / "runs").glob("run-*"))
