"""`graftline runs`: runs in a table and side by side, from what they left behind."""

import json
from pathlib import Path

import pytest
from PIL import Image

from graftline.components.verdict import Check, Verdict
from graftline.pipeline import run_record
from graftline.pipeline.cli.main import main
from graftline.pipeline.config import load_config, write_config
from graftline.pipeline.plan import SpanVersion
from graftline.pipeline.run_record import NodeRecord, RunRecord


def graftline(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a published run, and one that the model gate refused."""
    for label in ("red", "blue"):
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("RGB", (40, 40), label).save(tmp_path / "images" / label / "1.png")
    folder = tmp_path / "project"
    graftline("init", folder, "--images", tmp_path / "images")
    runs = (
        ("run-0001", run_record.PUBLISHED, 0.91, ()),
        ("run-0002", run_record.REFUSED, 0.85, ("trainer.phases.fine_tune.epochs=3",)),
    )
    for number, (name, state, accuracy, overrides) in enumerate(runs, 1):
        (folder / "runs" / name).mkdir(parents=True)
        config = load_config(folder / "graftline.yaml", overrides)
        write_config(config, folder / "runs" / name / "config.yaml")
        checks = [
            Check(metric="accuracy", slice="overall", candidate=accuracy, passed=number == 1),
            Check(metric="recall", slice="red", candidate=0.8, passed=True),
        ]
        verdict = Verdict(gate="model", passed=number == 1, checks=tuple(checks))
        verdict.write(folder / "runs" / name / "model_gate.json")
        RunRecord(
            run_id=name,
            span=number,
            version=1,
            window=tuple(SpanVersion(span, 1) for span in range(1, number + 1)),
            state=state,
            started=f"2026-01-0{number}T10:00:00+00:00",
            nodes=[NodeRecord(id="Trainer", state="done", seconds=60.0 * number)],
            refused_by="" if number == 1 else "model",
            published_version=1 if number == 1 else None,
        ).write(folder / "runs")
    return folder


def test_runs_are_listed_with_their_end_their_accuracy_and_what_they_changed(project, capsys):
    capsys.readouterr()
    assert graftline("runs", "--project", project) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == "run-0002"
    assert "refused, model gate" in lines[1]
    assert "0.850" in lines[1]
    assert "version 1" in next(line for line in lines if line.startswith("run-0001"))
    assert "run-0002 changed trainer.phases.fine_tune.epochs=3" in lines
    assert lines[-1] == "Side by side: graftline runs run-0001 run-0002"


def test_named_runs_stand_side_by_side(project, capsys):
    capsys.readouterr()
    assert graftline("runs", "run-0001", "run-0002", "--project", project) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["accuracy", "0.91", "0.85"] in rows
    assert ["recall", "of", "red", "0.8", "0.8"] in rows
    assert ["Trainer", "60", "120"] in rows
    assert ["trainer.phases.fine_tune.epochs", "6", "3"] in rows


def test_as_json_every_run_has_its_whole_configuration(project, capsys):
    capsys.readouterr()
    assert graftline("runs", "--json", "--project", project) == 0
    newest, first = json.loads(capsys.readouterr().out)
    assert newest["configuration"]["trainer.phases.fine_tune.epochs"] == 3
    assert first["measures"] == {"accuracy": 0.91, "recall of red": 0.8}


def test_a_run_that_is_not_there_is_named_with_those_that_are(project, capsys):
    capsys.readouterr()
    assert graftline("runs", "run-9", "--project", project) == 2
    assert "'run-9'. There are: run-0002, run-0001" in capsys.readouterr().err


def test_without_runs_the_next_step_is_said(project, capsys):
    for folder in (project / "runs").iterdir():
        for file in folder.iterdir():
            file.unlink()
    capsys.readouterr()
    assert graftline("runs", "--project", project) == 0
    assert "graftline run" in capsys.readouterr().out
