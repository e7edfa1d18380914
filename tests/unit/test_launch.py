"""What a try of a node that did not come to its end leaves to the next one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import ml_metadata as mlmd
import pytest

from graftline.pipeline import launch, store
from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.config import Config
from graftline.pipeline.create_pipeline import compile_pipeline
from graftline.pipeline.plan import Plan, SpanVersion
from graftline.pipeline.project import Project
from graftline.schemas import curated

HERE = BeamConfig()
FLINK = BeamConfig(runner="flink", job_server="flink:8099")
Execution = mlmd.proto.Execution


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path, Config())
    curated.write(curated.build(["a", "b"]), made.schema)
    made.artifacts.mkdir()
    return made


def tries(project: Project, beam: BeamConfig, count: int) -> list[Execution]:
    """The executions of a node that was tried, each time without its inputs."""
    ir = compile_pipeline(project, Plan(run_id="run-0001", target=SpanVersion(1, 1), window=()))
    launch.name_run(ir, "one run")
    nodes = {entry.pipeline_node.node_info.id: entry.pipeline_node for entry in ir.nodes}
    connection = store.connection(project, cluster=False)
    for _ in range(count):
        with pytest.raises(launch.InputsMissing, match="StatisticsGen could not run"):
            launch.run_node(ir, nodes["StatisticsGen"], connection, beam)
    return launch.executions_of(store.open_store(connection), nodes["StatisticsGen"])


def test_a_node_whose_inputs_are_not_there_has_failed_though_nothing_was_raised_by_it(project):
    [execution] = tries(project, HERE, 1)
    assert launch.how_it_ended(execution) == ""


def test_on_this_machine_the_next_try_takes_the_execution_up(project):
    assert len(tries(project, HERE, 2)) == 1


def test_on_a_cluster_every_try_has_an_execution_of_its_own(project):
    """The job of an earlier one may still be writing into its folders."""
    assert len(tries(project, FLINK, 3)) == 3


def test_what_a_killed_try_has_half_written_goes(project):
    metadata, execution = cut_off(project)
    folder = project.artifacts / "StatisticsGen" / "statistics" / str(execution)
    (folder / "Split-train").mkdir(parents=True)

    assert store.clean_after_kill(metadata, project.artifacts, metadata.get_executions()) == [
        "StatisticsGen"
    ]

    assert not folder.exists()
    [ended] = metadata.get_executions()
    assert ended.last_known_state == Execution.FAILED


def test_a_job_that_writes_there_meanwhile_stops_no_cleaning(project):
    metadata, execution = cut_off(project)
    folder = project.artifacts / "StatisticsGen" / "statistics" / str(execution)
    with writing(folder):
        for _ in range(20):
            metadata.put_executions(running(metadata))
            cleaned = store.clean_after_kill(metadata, project.artifacts, metadata.get_executions())
            assert cleaned == ["StatisticsGen"]
            assert [one.last_known_state for one in metadata.get_executions()] == [Execution.FAILED]


def cut_off(project: Project) -> tuple[mlmd.MetadataStore, int]:
    """A metadata store with an execution that nobody has ended, and its number."""
    metadata = store.open_store(store.connection(project, cluster=False))
    kind = metadata.put_execution_type(mlmd.proto.ExecutionType(name="tfx.StatisticsGen"))
    [execution] = metadata.put_executions(
        [Execution(type_id=kind, last_known_state=Execution.RUNNING)]
    )
    return metadata, execution


def running(metadata: mlmd.MetadataStore) -> list[Execution]:
    executions = metadata.get_executions()
    for execution in executions:
        execution.last_known_state = Execution.RUNNING
    return executions


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Somebody makes one file after the other in a folder, and the folder where it is gone."""
    begun, enough = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not enough.is_set():
            number += 1
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"part-{number}").touch()
            if number > 100:
                begun.set()

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait()
    try:
        yield
    finally:
        enough.set()
        writer.join()
