"""The section `beam`: what is refused, and what Beam is told for each stage."""

import pytest

from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.beam.options import beam_options
from graftline.pipeline.config import Config, load_config, parse_config, write_config
from graftline.serving.errors import UserError

FLINK = {"runner": "flink", "job_server": "flink:8099", "parallelism": 4}


def section(**settings: object) -> BeamConfig:
    return parse_config({"beam": settings}, origin="test").beam


def given(options: list[str], name: str) -> str | None:
    """The value that Beam takes of an option: the last."""
    values = [option.partition("=")[2] for option in options if option.split("=")[0] == name]
    return values[-1] if values else None


def test_by_default_stages_run_in_this_process():
    options = beam_options(BeamConfig(), "Transform")
    assert given(options, "--runner") == (
        "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
    )
    assert given(options, "--direct_running_mode") == "in_memory"


def test_several_processes_of_this_machine_divide_a_stage():
    options = beam_options(section(parallelism=2), "drop")
    assert given(options, "--runner") == "graftline.pipeline.beam.processes.ProcessesRunner"
    assert given(options, "--direct_running_mode") == "multi_processing"
    assert given(options, "--direct_num_workers") == "2"


def test_flink_is_reached_through_its_job_server_and_starts_the_installed_worker():
    options = beam_options(section(**FLINK), "Transform")
    assert given(options, "--runner") == "graftline.pipeline.beam.runner.ClusterRunner"
    assert given(options, "--job_endpoint") == "flink:8099"
    assert given(options, "--parallelism") == "4"
    assert given(options, "--environment_type") == "PROCESS"
    assert given(options, "--environment_config") == '{"command":"graftline-beam-worker"}'


@pytest.mark.parametrize(
    ("workers", "kind", "told"),
    [
        ({"start": "external", "pool": "localhost:50001"}, "EXTERNAL", "localhost:50001"),
        ({"start": "docker", "image": "graftline:1"}, "DOCKER", "graftline:1"),
        ({"start": "loopback"}, "LOOPBACK", None),
    ],
)
def test_workers_are_started_as_the_cluster_has_them(workers, kind, told):
    options = beam_options(section(**FLINK, workers=workers), "Evaluator")
    assert given(options, "--environment_type") == kind
    assert given(options, "--environment_config") == told


def test_a_stage_may_run_elsewhere_and_have_options_of_its_own():
    beam = section(
        **FLINK,
        options=["--faster_copy"],
        nodes={
            "drop": {"runner": "direct"},
            "Transform": {"parallelism": 1, "options": ["--max_bundle_size=100"]},
        },
    )
    assert "ProcessesRunner" in (given(beam_options(beam, "drop"), "--runner") or "")
    transform = beam_options(beam, "Transform")
    assert given(transform, "--parallelism") == "1"
    assert transform[-2:] == ["--faster_copy", "--max_bundle_size=100"]
    assert given(beam_options(beam, "Evaluator"), "--parallelism") == "4"


def test_dataflow_takes_the_image():
    beam = section(
        runner="dataflow",
        parallelism=8,
        workers={"image": "graftline:1"},
        options=["--project=flowers", "--region=europe-west4"],
    )
    options = beam_options(beam, "StatisticsGen")
    assert given(options, "--runner") == "DataflowRunner"
    assert given(options, "--sdk_container_image") == "graftline:1"
    assert given(options, "--max_num_workers") == "8"
    assert given(options, "--project") == "flowers"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"runner": "hadoop"}, "hadoop"),
        ({"runner": "flink"}, "runner flink wants job_server"),
        ({"runner": "flink", "job_server": "http://flink:8081"}, "beam.job_server"),
        ({"runner": "dataflow"}, "--sdk_container_image"),
        ({**FLINK, "workers": {"start": "docker"}}, "workers.image"),
        ({**FLINK, "options": ["--runner=SparkRunner"]}, "contradict"),
        ({"options": ["parallelism=2"]}, "beam.options"),
        ({"parallelism": 0}, "beam.parallelism"),
        ({"probe_seconds": 0}, "beam.probe_seconds"),
        ({"nodes": {"Trainer": {"parallelism": 2}}}, "Trainer is no stage that Beam runs"),
        ({"nodes": {"drop": {"runner": "spark"}}}, "runner spark of drop wants job_server"),
        ({"nodes": {"drop": {"processes": 2}}}, "processes"),
    ],
)
def test_what_cannot_run_is_refused_with_the_key(settings, told):
    with pytest.raises(UserError) as refusal:
        section(**settings)
    assert told in str(refusal.value)


def test_a_section_of_one_stage_survives_writing_and_reading(tmp_path):
    beam = section(**FLINK, nodes={"Transform": {"parallelism": 1}})
    write_config(Config(beam=beam), tmp_path / "graftline.yaml")
    assert load_config(tmp_path / "graftline.yaml").beam == beam


def test_one_stage_is_overridden_on_the_command_line(tmp_path):
    (tmp_path / "graftline.yaml").write_text("")
    config = load_config(tmp_path / "graftline.yaml", ["beam.nodes.Evaluator.parallelism=2"])
    assert config.beam.parallelism_of("Evaluator") == 2
    assert config.beam.parallelism_of("Transform") is None
