"""The command line: projects are made and found, errors have their exit codes."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from graftline.components.ingest.spans import Summary
from graftline.pipeline import run_record
from graftline.pipeline.cli.drops import _trained
from graftline.pipeline.cli.main import main
from graftline.pipeline.config import Config, load_config
from graftline.pipeline.console import Console
from graftline.pipeline.plan import SpanVersion
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord
from graftline.schemas import curated


def graftline(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def images(folder: Path, *classes: str, size: tuple[int, int] = (120, 90), count: int = 3) -> Path:
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def a_span(project: Path, counts: dict[str, dict[str, int]]) -> None:
    folder = project / "spans" / "span-1" / "version-1"
    folder.mkdir(parents=True)
    summary = Summary(
        source="here",
        kind="folder per class",
        created="2026-01-01T00:00:00",
        graftline="0",
        images=sum(sum(split.values()) for split in counts.values()),
        bytes=1,
        counts=counts,
        quarantined={},
    )
    (folder / "drop.json").write_bytes(msgspec.json.encode(summary))


def test_init_writes_a_configuration_and_a_schema_for_the_images_found(tmp_path, capsys):
    source = images(tmp_path / "images", "rose", "Löwenzahn", "sun flower")

    assert graftline("init", tmp_path / "my flowers", "--images", source) == 0

    assert "9 images in 3 classes" in capsys.readouterr().out
    config = load_config(tmp_path / "my flowers" / "graftline.yaml")
    assert (config.model.name, config.image.size) == ("my-flowers", 96)
    schema = curated.read(tmp_path / "my flowers" / "schema" / "schema.pbtxt")
    assert curated.classes(schema) == ["Löwenzahn", "rose", "sun flower"]


def test_init_chooses_no_larger_size_than_backbones_are_made_for(tmp_path):
    source = images(tmp_path / "images", "a", "b", size=(700, 500), count=1)
    graftline("init", tmp_path / "p", "--images", source)
    assert load_config(tmp_path / "p" / "graftline.yaml").image.size == 224


def test_init_keeps_the_files_of_a_folder_that_is_in_use(tmp_path):
    source = images(tmp_path / "images", "a", "b")
    project = tmp_path / "p"
    project.mkdir()
    (project / ".gitignore").write_text("mine")

    assert graftline("init", project, "--images", source) == 0

    assert (project / ".gitignore").read_text() == "mine"
    (project / "graftline.yaml").unlink()
    (project / "schema" / "schema.pbtxt").write_text("reviewed")
    assert graftline("init", project, "--images", source) == 2
    assert (project / "schema" / "schema.pbtxt").read_text() == "reviewed"


def test_init_refuses_a_name_that_no_model_may_have_before_anything_is_written(tmp_path, capsys):
    source = images(tmp_path / "images", "a", "b")
    assert graftline("init", tmp_path / "p", "--images", source, "--name", "my flowers") == 2
    assert "my flowers" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_a_span_refused_and_let_through_later_is_listed_by_the_later_run(tmp_path):
    runs = tmp_path / "runs"
    span = (SpanVersion(1, 1),)
    for number, fields in enumerate(
        (
            {"state": "refused", "refused_by": "data", "refused_spans": span},
            {"state": "published", "published_version": 1, "window": span},
            {"state": "failed", "window": span},
        ),
        start=1,
    ):
        (runs / f"run-000{number}").mkdir(parents=True)
        RunRecord(run_id=f"run-000{number}", span=1, version=1, **fields).write(runs)

    assert _trained(Project(tmp_path, Config())) == {(1, 1): "run-0002, version 1"}


def test_init_does_not_touch_a_project_that_is_there(tmp_path, capsys):
    source = images(tmp_path / "images", "a", "b")
    graftline("init", tmp_path / "p", "--images", source)
    before = (tmp_path / "p" / "graftline.yaml").read_bytes()

    assert graftline("init", tmp_path / "p", "--images", source) == 2

    assert "not overwritten" in capsys.readouterr().err
    assert (tmp_path / "p" / "graftline.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("classes", "said"),
    [((), "holds no folder"), (("only",), "one class"), (("Rose", "rose"), "differ only in case")],
)
def test_init_refuses_images_that_make_no_classifier(tmp_path, capsys, classes, said):
    source = images(tmp_path / "images", *classes)
    source.mkdir(exist_ok=True)
    assert graftline("init", tmp_path / "p", "--images", source) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "p" / "graftline.yaml").exists()


def test_a_project_is_found_from_a_folder_inside_it(tmp_path, monkeypatch, capsys):
    graftline("init", tmp_path / "p", "--images", images(tmp_path / "images", "a", "b"))
    inside = tmp_path / "p" / "schema"
    monkeypatch.chdir(inside)
    assert graftline("drops") == 0
    assert "No span yet" in capsys.readouterr().out


def test_without_a_project_the_error_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert graftline("status") == 2
    assert "graftline init" in capsys.readouterr().err


def test_an_override_is_taken_wherever_it_stands_and_an_unknown_one_is_refused(tmp_path, capsys):
    graftline("init", tmp_path / "p", "--images", images(tmp_path / "images", "a", "b"))
    assert graftline("drops", "paths.spans=elsewhere", "--project", tmp_path / "p") == 0
    capsys.readouterr()
    assert graftline("drops", "--project", tmp_path / "p", "trainer.bach_size=3") == 2
    assert "Did you mean batch_size" in capsys.readouterr().err


def test_an_unknown_section_is_a_mistake_in_the_configuration(tmp_path, capsys):
    graftline("init", tmp_path / "p", "--images", images(tmp_path / "images", "a", "b"))
    assert graftline("drops", "--project", tmp_path / "p", "trainr.seed=3") == 2
    assert "Did you mean trainer" in capsys.readouterr().err


def test_the_value_of_an_option_is_no_override(tmp_path, capsys):
    graftline("init", tmp_path / "p", "--images", images(tmp_path / "images", "a", "b"))
    said = ("--reason", "trainer.bach_size=3 was wrong")
    assert graftline("rollback", "--project", tmp_path / "p", *said) == 2
    assert "nothing is published" in capsys.readouterr().err


def test_init_writes_what_is_overridden(tmp_path):
    source = images(tmp_path / "images", "a", "b")
    assert graftline("init", tmp_path / "p", "trainer.seed=7", "--images", source) == 0
    assert load_config(tmp_path / "p" / "graftline.yaml").trainer.seed == 7


def test_an_override_may_name_a_stage_as_it_is_called(tmp_path):
    source = images(tmp_path / "images", "a", "b")
    own = "beam.nodes.StatisticsGen.parallelism=2"
    assert graftline("init", tmp_path / "p", own, "--images", source) == 0
    written = load_config(tmp_path / "p" / "graftline.yaml").beam
    assert written.parallelism_of("StatisticsGen") == 2
    assert written.parallelism_of("drop") is None


def test_init_refuses_an_unknown_key_before_anything_is_written(tmp_path, capsys):
    source = images(tmp_path / "images", "a", "b")
    assert graftline("init", tmp_path / "p", "trainer.sed=7", "--images", source) == 2
    assert "Did you mean seed" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_drops_lists_images_per_class_and_split_of_every_span(tmp_path, capsys):
    graftline("init", tmp_path / "p", "--images", images(tmp_path / "images", "a", "b"))
    a_span(tmp_path / "p", {"train": {"a": 14, "b": 9}, "eval": {"a": 3}, "test": {"b": 4}})
    capsys.readouterr()

    assert graftline("drops", "--project", tmp_path / "p") == 0

    printed = capsys.readouterr().out
    assert "14 / 3 / 0" in printed
    assert "9 / 0 / 4" in printed


def test_a_weight_file_is_looked_for_in_the_project_and_missed_before_anything_runs(
    tmp_path, monkeypatch, capsys
):
    project = tmp_path / "p"
    graftline("init", project, "--images", images(tmp_path / "images", "a", "b"))
    a_span(project, {"train": {"a": 9, "b": 9}})
    monkeypatch.chdir(project / "schema")

    mobilenet = ("trainer.backbone=mobilenet_v2", "trainer.weights=weights/mine.h5")
    assert graftline("run", *mobilenet) == 2

    assert f"There is no weight file {project}/weights/mine.h5" in capsys.readouterr().err
    assert not list((project / "runs").glob("run-*"))


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--span", "x"]])
def test_with_json_a_mistaken_option_is_a_document_too(arguments, capsys):
    assert graftline("run", *arguments, "--json") == 2
    assert arguments[0] in json.loads(capsys.readouterr().out)["error"]


def test_with_json_an_error_is_a_document_too(tmp_path, capsys):
    assert graftline("drops", "--project", tmp_path, "--json") == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


def test_a_crash_is_one_line_on_screen_and_a_traceback_in_a_log(tmp_path, capsys):
    project = tmp_path / "p"
    graftline("init", project, "--images", images(tmp_path / "images", "a", "b"))
    (project / "runs" / "run-0001" / "run.json").mkdir(parents=True)
    # Of a command that the same process ran before.
    with Console(tmp_path / "log.txt"):
        pass

    assert graftline("status", "--project", project) == 1

    said = capsys.readouterr().err
    assert "crash.log" in said
    assert "Traceback" not in said
    assert "Traceback" in (project / "runs" / "crash.log").read_text()


def test_a_crash_in_a_project_that_cannot_be_written_shows_its_traceback(
    tmp_path, capsys, stranger
):
    project = tmp_path / "p"
    graftline("init", project, "--images", images(tmp_path / "images", "a", "b"))
    (project / "runs" / "run-0001" / "run.json").mkdir(parents=True)
    for folder in [*tmp_path.parents, tmp_path, project, project / "runs"]:
        folder.chmod(folder.stat().st_mode | 0o055)
    stranger()

    assert graftline("status", "--project", project) == 1

    assert "Traceback" in capsys.readouterr().err


def test_whoever_may_only_read_sees_whether_a_run_is_under_way(tmp_path, stranger):
    runs = tmp_path / "runs"
    held = run_record.lock(runs)
    for folder in [*tmp_path.parents, tmp_path, runs]:
        folder.chmod(folder.stat().st_mode | 0o055)
    stranger()
    assert run_record.is_locked(runs)
    with held:
        pass
    assert not run_record.is_locked(runs)


def test_runs_are_listed_by_number(tmp_path):
    for number in (9999, 10000):
        (tmp_path / f"run-{number}").mkdir()
        RunRecord(run_id=f"run-{number}", span=1, version=1).write(tmp_path)
    assert [r.run_id for r in run_record.records(tmp_path)] == ["run-10000", "run-9999"]
    assert run_record.new_run_id(tmp_path) == "run-10001"


def test_a_damaged_record_of_a_run_is_named(tmp_path, capsys):
    project = tmp_path / "p"
    graftline("init", project, "--images", images(tmp_path / "images", "a", "b"))
    (project / "runs" / "run-0001").mkdir(parents=True)
    (project / "runs" / "run-0001" / "run.json").write_text('{"run_id": ')
    assert graftline("status", "--project", project) == 2
    assert "run-0001/run.json is damaged" in capsys.readouterr().err
