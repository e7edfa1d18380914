"""Steps of a run on a cluster: what they refuse, and how runs keep out of each other's way."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from graftline.components.ingest.spans import SUMMARY
from graftline.kubeflow import beginning, node, steps
from graftline.kubeflow.beginning import MadeFrom, Parameters
from graftline.pipeline import retrain, run_record
from graftline.pipeline.config import FILE_NAME, Config, override, to_tree, write_config
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord
from graftline.schemas import curated
from graftline.serving.errors import UserError
from webhooks import Webhook, webhook

MADE_FROM = MadeFrom(graftline="1", configuration=to_tree(Config()), nodes=("Pusher",))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path, Config())
    curated.write(curated.build(["a", "b"]), made.schema)
    return made


@pytest.fixture
def schema(project: Project) -> str:
    return project.schema.read_text()


def begin(project: Project, schema: str, run: str = "first", **parameters: object) -> str:
    asked = msgspec.convert(parameters, Parameters)
    return beginning.begin(project.root, project.runs, run, MADE_FROM, schema, asked)[1]


def a_run(project: Project, state: str = "running", cluster: str = "first") -> RunRecord:
    record = RunRecord(
        run_id="run-0001", span=1, version=1, state=state, cluster=cluster, lease_minutes=60
    )
    folder = project.runs / record.run_id
    folder.mkdir(parents=True)
    write_config(project.config, folder / "config.yaml")
    record.write(project.runs)
    run_record.show_life(project.runs, record.run_id)
    return record


def a_span(project: Project) -> None:
    folder = project.spans / "span-1" / "version-1"
    folder.mkdir(parents=True)
    (folder / SUMMARY).write_text("{}")


def silent_for(project: Project, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(project.runs / "run-0001" / ".alive", (then, then))


def exit_code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        node.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_a_project_without_a_drop_has_nothing_to_do(project, schema):
    assert begin(project, schema) == "nothing"


def test_the_package_brings_configuration_and_schema_to_an_empty_volume(project, schema, tmp_path):
    volume = Project(tmp_path / "volume", Config())
    assert begin(volume, schema) == "nothing"
    assert volume.schema.read_text() == schema
    assert Project.find(volume.root).config == Config()


def test_a_changed_schema_is_taken_over_and_a_changed_configuration_there_left_alone(
    project, schema
):
    (project.root / "graftline.yaml").write_text("model: {name: mine}\n")
    begin(project, schema + "# reviewed\n")
    assert project.schema.read_text().endswith("# reviewed\n")
    assert Project.find(project.root).config.model.name == "mine"


def test_a_root_that_cannot_be_written_is_named(project, schema, stranger):
    stranger()
    with pytest.raises(UserError, match=str(project.root)):
        begin(project, schema)


def test_a_second_run_is_turned_away_while_the_first_shows_signs_of_life(project, schema):
    a_span(project)
    a_run(project)
    silent_for(project, 40 * 60)
    with pytest.raises(UserError, match=r"run-0001 \(run first .* 40 min ago") as refused:
        begin(project, schema, "second")
    assert "counts as dead" in str(refused.value)
    with pytest.raises(UserError, match="run first of Kubeflow Pipelines"):
        retrain.run(project, retrain.Request())


def test_a_run_without_signs_of_life_keeps_nobody_off(project, schema):
    a_run(project)
    silent_for(project, 61 * 60)
    assert next(run_record.records(project.runs)).state == run_record.INTERRUPTED
    assert begin(project, schema, "second") == "nothing"


def test_a_clock_that_jumps_does_not_let_two_runs_in(project, schema, monkeypatch):
    a_span(project)
    a_run(project)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_400)
    with pytest.raises(UserError, match="Another run is under way"):
        begin(project, schema, "second")
    silent_for(project, -86_400)  # the file server's clock was set back since
    with pytest.raises(UserError, match="Another run is under way"):
        begin(project, schema, "second")


def test_a_run_on_a_cluster_is_not_resumed_on_one_machine(project):
    a_run(project, "failed")
    with pytest.raises(UserError, match="run first of Kubeflow Pipelines: retry it there"):
        retrain.resume(project)


def test_a_run_that_broke_off_is_closed_by_the_last_step_and_says_so(project, capsys):
    a_run(project)
    steps.end(project.root, project.runs, "first")
    assert "run-0001: interrupted" in capsys.readouterr().out
    assert next(run_record.records(project.runs)).state == run_record.INTERRUPTED


def test_where_there_was_nothing_to_do_the_last_step_says_so_and_tells_nobody(
    project, schema, capsys
):
    with webhook() as hook:
        notified_by(hook, project)
        assert begin(project, schema) == "nothing"
        steps.end(project.root, project.runs, "first")
    assert "there was nothing to do" in capsys.readouterr().out
    assert not hook.received
    assert not list(project.runs.glob(".nothing-*"))


def test_that_the_first_step_could_not_begin_a_run_is_told(project, schema, capsys):
    with webhook() as hook:
        notified_by(hook, project)
        with pytest.raises(UserError):
            begin(project, schema, overrides=("paths.runs=elsewhere",))
        steps.end(project.root, project.runs, "first")
    assert "No run was begun: the step `begin` says why" in capsys.readouterr().out
    [told] = hook.received
    assert told.notice["event"] == "failed"
    assert "failed before it began" in told.notice["title"]


def notified_by(hook: Webhook, project: Project) -> None:
    config = override(project.config, [f"notify.webhook.url={hook.url}"])
    write_config(config, project.root / FILE_NAME)


def test_an_override_that_gives_every_pod_several_workers_is_refused(project, schema):
    several = ("kubeflow.training_pods=2", "trainer.workers=2")
    with pytest.raises(UserError, match="cannot both be more than 1"):
        begin(project, schema, overrides=several)


def test_a_package_of_another_version_is_refused():
    with pytest.raises(UserError, match="made by another version"):
        MadeFrom.read('{"configuration": {}}')


def test_a_configuration_of_another_version_is_refused_with_the_key(project, schema):
    newer = MadeFrom(graftline="9", configuration={"trainer": {"later": 1}}, nodes=())
    with pytest.raises(UserError, match=r"the package's configuration: trainer.later is not"):
        beginning.begin(project.root, project.runs, "first", newer, schema, Parameters())


def test_the_folder_of_the_runs_is_the_same_for_all_steps(project, schema):
    with pytest.raises(UserError, match="cannot be overridden for one run"):
        begin(project, schema, overrides=("paths.runs=elsewhere",))


@pytest.mark.parametrize("overrides", ["trainer.epochs=3", '{"a": 1}', "[1]", '"one"'])
def test_overrides_that_are_no_list_of_words_are_refused(overrides):
    with pytest.raises(UserError, match="`overrides` must be a list"):
        Parameters.read({"overrides": overrides})


def test_parameters_of_the_wrong_type_end_the_step_with_2(project, capsys):
    always = ["--project", project.root, "--runs", project.runs, "--kubeflow-run", "first"]
    always += ["--package", "{}", "--schema", "", "--run-file", "r", "--outcome-file", "o"]
    assert exit_code("begin", *always, "--span", "newest") == 2
    assert exit_code("begin", *always, "--force", "perhaps") == 2
    assert exit_code("begin", *always, "--spam", "1") == 2
    said = capsys.readouterr().err
    assert not [word for word in ("newest", "perhaps", "--spam") if word not in said]


def test_an_unknown_run_ends_the_step_with_2(project, capsys, tmp_path):
    arguments = ["--project", project.root, "--runs", project.runs, "--run", "run-0009"]
    assert exit_code("run", "Trainer", *arguments, "--outcome-file", tmp_path / "o") == 2
    assert "There is no run 'run-0009'" in capsys.readouterr().err


def test_a_run_that_a_gate_stopped_ends_with_3_and_the_verdict(project, capsys):
    record = a_run(project, "refused")
    record.error = "the candidate is worse"
    record.write(project.runs)
    assert exit_code("refused", "--runs", project.runs, "--run", "run-0001") == 3
    assert "the candidate is worse" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has not ended"),
        (b"\xff\xff\xff", "another version wrote it"),
        (b"", "has no node 'Trainer'"),
    ],
)
def test_a_pipeline_that_cannot_be_read_or_lacks_the_node_is_refused(
    project, tmp_path, capfd, content, words
):
    a_run(project)
    if content is not None:
        (project.runs / "run-0001" / beginning.PIPELINE_NAME).write_bytes(content)
    arguments = ["--project", project.root, "--runs", project.runs, "--run", "run-0001"]
    assert exit_code("run", "Trainer", *arguments, "--outcome-file", tmp_path / "o") == 2
    assert words in capfd.readouterr().err
    record = next(run_record.records(project.runs))
    assert (record.state, [one.state for one in record.nodes]) == ("failed", ["failed"])
    assert not (tmp_path / "o").exists()


def test_a_pipeline_that_other_code_compiled_is_refused(project, tmp_path, capfd):
    from tfx.proto.orchestration import pipeline_pb2

    a_run(project)
    ir = pipeline_pb2.Pipeline()
    entry = ir.nodes.add().pipeline_node
    entry.node_info.id = "Trainer"
    entry.parameters.parameters["code_digest"].field_value.string_value = "another"
    (project.runs / "run-0001" / beginning.PIPELINE_NAME).write_bytes(ir.SerializeToString())
    arguments = ["--project", project.root, "--runs", project.runs, "--run", "run-0001"]
    assert exit_code("run", "Trainer", *arguments, "--outcome-file", tmp_path / "o") == 2
    assert "compiled by other code than this step has" in capfd.readouterr().err
