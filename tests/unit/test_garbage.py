"""What `graftline gc` finds beside the pipeline's outputs: features, copies, checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest

from graftline.components.trainer.feature_store import describe
from graftline.pipeline import garbage, run_record
from graftline.pipeline.cli.main import main
from graftline.pipeline.code_digest import features_digest
from graftline.pipeline.config import Config, override, write_config
from graftline.pipeline.plan import Plan, SpanVersion
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord


@pytest.fixture
def project(tmp_path: Path) -> Project:
    write_config(Config(), tmp_path / "graftline.yaml")
    return Project(tmp_path, Config())


def store(project: Project, name: str, code: str, used: int, size: int = 1000) -> Path:
    """A store of features, last used so many seconds after 1970."""
    folder = project.features / name
    folder.mkdir(parents=True)
    (folder / "0.rows").write_bytes(b"0" * size)
    describe(folder, {"code": code})
    (folder / "used").touch()
    os.utime(folder / "used", (used, used))
    return folder


def run(project: Project, state: str, baseline_uri: str = "") -> None:
    """A run that ended so, compared with a version."""
    record = RunRecord(run_id="run-0001", span=1, version=1, state=state)
    folder = project.runs / record.run_id
    folder.mkdir(parents=True)
    target = SpanVersion(1, 1)
    Plan(run_id="run-0001", target=target, window=(target,), baseline_uri=baseline_uri).write(
        folder
    )
    record.write(project.runs)


def found(project: Project) -> dict[str, str]:
    """Kind of everything that can go, by name."""
    return {one.path.name: one.kind for one in garbage.find(project, [])}


def with_bound(project: Project, gigabytes: float) -> Project:
    trainer = msgspec.structs.replace(project.config.trainer, feature_store_gb=gigabytes)
    return Project(project.root, msgspec.structs.replace(project.config, trainer=trainer))


def test_features_that_other_code_made_go_and_those_of_this_code_stay(project):
    store(project, "old", "of another version", used=2)
    store(project, "new", features_digest(), used=1)
    assert found(project) == {"old": garbage.FEATURES}


def test_features_beyond_the_bound_go_those_unused_for_longest_first(project):
    for used, name in enumerate(("first", "second", "third")):
        store(project, name, features_digest(), used, size=10_000)
    assert set(found(with_bound(project, 25e-6))) == {"first"}
    assert set(found(with_bound(project, 0))) == {"first", "second", "third"}


def test_the_copy_that_the_last_run_was_compared_with_stays(project):
    folders = [project.artifacts / "in_service" / name for name in ("1-abc", "2-def")]
    for folder in folders:
        (folder / "Format-Serving").mkdir(parents=True)
    run(project, run_record.PUBLISHED, baseline_uri=str(folders[1]))
    assert found(project) == {"1-abc": garbage.IN_SERVICE}


@pytest.mark.parametrize(
    ("state", "goes"),
    [(run_record.PUBLISHED, True), (run_record.FAILED, False), (run_record.INTERRUPTED, False)],
)
def test_checkpoints_stay_while_the_last_run_can_go_on(project, state, goes):
    (project.checkpoints / "training").mkdir(parents=True)
    run(project, state)
    assert bool(found(project)) == goes


def test_a_second_name_of_a_file_frees_nothing(tmp_path):
    (tmp_path / "copies").mkdir()
    (tmp_path / "version").write_bytes(b"0" * 100_000)
    (tmp_path / "copies" / "version").hardlink_to(tmp_path / "version")
    (tmp_path / "copies" / "other").write_bytes(b"0" * 100_000)
    assert 100_000 <= garbage.freed_by(tmp_path / "copies") < 200_000


def test_a_gc_that_was_killed_is_finished_by_the_next(project):
    (project.artifacts / ".trash" / "half").mkdir(parents=True)
    garbage.remove(project, [], garbage.find(project, []))
    assert not (project.artifacts / ".trash").exists()


def test_beside_a_run_it_is_refused_and_touches_nothing(project, capfd):
    store(project, "old", "of another version", used=2)
    with run_record.lock(project.runs):
        assert _main(project) == 2
        assert "under way" in capfd.readouterr().err
    assert (project.features / "old").exists()
    assert _main(project, "--json") == 0
    assert json.loads(capfd.readouterr().out)["kinds"][garbage.FEATURES]["items"] == 1
    assert not (project.features / "old").exists()


def test_beside_a_run_on_a_cluster_it_is_refused(project, capfd):
    record = RunRecord(run_id="run-0001", span=1, version=1, cluster="abc", lease_minutes=5)
    (project.runs / record.run_id).mkdir(parents=True)
    record.write(project.runs)
    assert _main(project) == 2
    assert "under way" in capfd.readouterr().err


def test_what_a_cluster_has_left_stays_where_its_metadata_cannot_be_asked(project, capfd):
    record = RunRecord(run_id="run-0001", span=1, version=1, cluster="abc", state="published")
    folder = project.runs / record.run_id
    folder.mkdir(parents=True)
    config = override(Config(), ["kubeflow.metadata.host=mariadb"])
    write_config(config, folder / "config.yaml")
    record.write(project.runs)
    assert _main(project) == 2
    assert "kept their metadata at mariadb" in capfd.readouterr().err


def _main(project: Project, *arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["gc", "--project", str(project.root), *arguments])
    return int(end.value.code or 0)
