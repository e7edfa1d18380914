"""What is asked of a job server before anything is begun, and what a person is told."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2 as api
from apache_beam.portability.api import beam_job_api_pb2_grpc as services

from graftline.pipeline.beam import check
from graftline.pipeline.beam.check import check_beam
from graftline.pipeline.beam.config import BeamConfig, StageConfig
from graftline.pipeline.beam.failures import cause, explained
from graftline.serving.errors import UserError
from model_servers import free_port


class JobServer(services.JobServiceServicer):
    """One that describes itself, and takes no pipeline."""

    def DescribePipelineOptions(self, request, context):
        option = api.PipelineOptionDescriptor(name="flink_master")
        return api.DescribePipelineOptionsResponse(options=[option])

    def Prepare(self, request, context):
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Unknown urn beam:transform:newer:v1")


@contextmanager
def serving(servicer: JobServer | None) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    if servicer:
        services.add_JobServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(check, "_ANSWER_WITHIN", 1.0)


def refusal(runner: str, address: str, tmp_path) -> str:
    with pytest.raises(UserError) as refused:
        check_beam(BeamConfig(runner=runner, job_server=address), [tmp_path])
    return str(refused.value)


def test_where_nothing_answers_the_address_is_named(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    said = refusal("flink", address, tmp_path)
    assert f"No job server of Beam answers at {address} (beam.job_server)" in said


def test_a_service_that_is_no_job_server_is_named(tmp_path):
    with serving(None) as address:
        said = refusal("portable", address, tmp_path)
    assert f"What answers at {address} (beam.job_server) is no job server of Beam" in said


def test_a_job_server_for_another_cluster_is_named(tmp_path):
    with serving(JobServer()) as address:
        said = refusal("spark", address, tmp_path)
    assert "is not one for spark. Set beam.runner to flink or portable" in said


def test_a_job_server_that_cannot_run_this_beams_pipelines_is_named(tmp_path):
    with serving(JobServer()) as address:
        said = refusal("flink", address, tmp_path)
    assert "the job server cannot run the pipelines of this Beam" in said
    assert "Unknown urn beam:transform:newer:v1" in said
    assert list(tmp_path.iterdir()) == []


def test_stages_on_this_machine_need_no_cluster(tmp_path):
    config = BeamConfig(
        runner="flink",
        job_server=f"127.0.0.1:{free_port()}",
        nodes={"drop": StageConfig(runner="direct")},
    )
    check_beam(config, [tmp_path], stages=["drop"])


@pytest.mark.parametrize(
    ("said", "setting"),
    [
        (
            "java.io.IOException: Insufficient number of network buffers: required 65, but only 8 "
            "available. The total number of network buffers is currently set to 128.",
            "taskmanager.memory.network.min and taskmanager.memory.network.max",
        ),
        ("java.io.IOException: error=2, No such file or directory", "beam.workers.command"),
        (
            "org.apache.flink.runtime.jobmanager.scheduler.NoResourceAvailableException: Could not "
            "acquire the minimum required resources.",
            "beam.parallelism",
        ),
        ("java.util.concurrent.TimeoutException: Timeout has occurred: 8000 ms",
         "TaskManagers that are missing"),
        ("java.util.concurrent.TimeoutException: Heartbeat of TaskManager with id t timed out.",
         "restart-strategy.type"),
        ("java.lang.OutOfMemoryError: Metaspace", "taskmanager.memory.jvm-metaspace.size"),
        ("java.lang.OutOfMemoryError: Java heap space", "taskmanager.memory.task.heap.size"),
    ],
)  # fmt: skip
def test_what_a_cluster_says_becomes_the_setting_to_change(said, setting):
    config = BeamConfig(runner="flink", job_server="flink:8099")
    with pytest.raises(UserError) as refused, explained(config, "Transform"):
        raise RuntimeError(f"Pipeline job-1 failed in state FAILED: {said}")
    assert str(refused.value).startswith("Transform failed on flink: ")
    assert setting in str(refused.value)
    assert "graftline resume" in str(refused.value)


def test_what_is_not_known_stays_a_crash():
    config = BeamConfig(runner="flink", job_server="flink:8099")
    with pytest.raises(ZeroDivisionError), explained(config, "Transform"):
        raise ZeroDivisionError("division by zero")
    assert cause("division by zero", config) is None


@pytest.mark.parametrize(
    "said", ["unsupported operand type(s) for +", "'<' not supported between instances of 'str'"]
)
def test_a_mistake_in_python_is_not_blamed_on_the_job_server(said):
    config = BeamConfig(runner="flink", job_server="flink:8099")
    with pytest.raises(TypeError), explained(config, "Transform"):
        raise TypeError(said)
    of_a_worker = f"Error received from SDK harness: Traceback (most recent call last)\n{said}"
    with pytest.raises(RuntimeError, match="SDK harness"), explained(config, "Transform"):
        raise RuntimeError(of_a_worker)
    assert cause("java.lang.UnsupportedOperationException", config) is not None


def test_a_job_server_that_does_not_answer_in_time_is_one_that_went_away():
    config = BeamConfig(runner="flink", job_server="flink:8099")
    with pytest.raises(UserError, match="job server went away"), explained(config, "Transform"):
        raise grpc.FutureTimeoutError


def test_a_stage_on_this_machine_keeps_its_error():
    with pytest.raises(RuntimeError), explained(BeamConfig(), "Transform"):
        raise RuntimeError("Insufficient number of network buffers")
