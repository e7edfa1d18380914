"""Real servers that batch: with parameters for all models, and with a version's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_servers import (
    ModelServer,
    linear_model,
    predict_request,
    prediction,
    publish,
    serving,
    until,
)

pytestmark = pytest.mark.end_to_end

PER_MODEL = "batching_params.pbtxt"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base paths `four`, `two` and `free`, each with a version 1 that says how it is batched."""
    folder = tmp_path_factory.mktemp("models")
    for add, name in enumerate(("four", "two", "free"), 1):
        linear_model(folder / name / "1", add=add)
    for name, most in (("four", 4), ("two", 2)):
        parameters = f"max_batch_size {{ value: {most} }} batch_timeout_micros {{ value: 10000 }}"
        (folder / name / "1" / PER_MODEL).write_text(parameters)
    return folder


def flags(folder: Path, models: Path, parameters: str) -> list[str]:
    """The flags of a server of all models."""
    listed = " ".join(
        f'config {{ name: "{base.name}" base_path: "{base}" model_platform: "tensorflow" }}'
        for base in sorted(models.iterdir())
    )
    (folder / "models.config").write_text(f"model_config_list {{ {listed} }}")
    (folder / "batching").write_text(parameters)
    (folder / "monitoring").write_text('prometheus_config { enable: true path: "/m" }')
    return [
        f"--model_config_file={folder / 'models.config'}",
        f"--monitoring_config_file={folder / 'monitoring'}",
        "--enable_batching",
        f"--batching_parameters_file={folder / 'batching'}",
    ]


@pytest.fixture(scope="module")
def alike(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server with one set of parameters for all models."""
    folder = tmp_path_factory.mktemp("alike")
    parameters = 'max_batch_size { value: 3 } thread_pool_name { value: "all" }'
    with serving(folder, *flags(folder, models, parameters)) as made:
        yield made


@pytest.fixture
def apart(models: Path, tmp_path: Path) -> Iterator[ModelServer]:
    """A server that goes by what each version says."""
    own = shutil.copytree(models, tmp_path / "models")
    parameters = 'max_batch_size { value: 1 } thread_pool_name { value: "shared" }'
    more = "--enable_per_model_batching_parameters"
    with serving(tmp_path, *flags(tmp_path, own, parameters), more) as made:
        yield made


def too_large(size: int, most: int) -> dict[str, str]:
    return {"error": f"Task size {size} is larger than maximum input batch size {most}"}


def test_one_file_holds_for_every_model(alike):
    for add, name in enumerate(("four", "two", "free"), 1):
        assert alike.predict(0, 2, 4, path=name) == [add, add + 1, add + 2]
        assert alike.predict(0, 2, 4, 6, path=name) == too_large(4, 3)


def test_requests_to_several_models_at_once_get_the_answers_of_their_own(alike):
    stub = prediction(alike)
    names = ("four", "two", "free") * 20
    pending = [stub.Predict.future(predict_request(n, name=name)) for n, name in enumerate(names)]
    for n, each in enumerate(pending):
        assert list(each.result().outputs["y"].float_val) == [n / 2 + n % 3 + 1]


def test_a_version_brings_its_own_parameters_and_without_them_is_not_batched(apart):
    assert apart.predict(*range(4), path="four") == [1, 1.5, 2, 2.5]
    assert apart.predict(*range(5), path="four") == too_large(5, 4)
    assert apart.predict(*range(2), path="two") == [2, 2.5]
    assert apart.predict(*range(3), path="two") == too_large(3, 2)
    assert len(apart.predict(*range(1500), path="free")) == 1500
    # Of the file for all, only the threads count.
    _, page = apart.raw("GET", "/m")
    assert b'queuing_latency_count{thread_pool_name="shared"}' in page


def test_the_next_version_brings_others_and_one_with_broken_ones_is_not_taken(
    apart, models, tmp_path
):
    base, incoming = tmp_path / "models" / "two", tmp_path / "incoming"
    for number, parameters in ((2, "max_batch_size { value: 5 }"), (3, "max_batch_size: many")):
        shutil.copytree(models / "two" / "1", incoming / str(number))
        (incoming / str(number) / PER_MODEL).write_text(parameters)
    publish(incoming, base, 2)
    apart.until_states({2: "AVAILABLE", 1: "END"}, "two")
    assert apart.predict(*range(6), path="two") == too_large(6, 5)
    publish(incoming, base, 3)
    until(lambda: apart.states("two").get(3) == "END", "the end of version 3")
    assert apart.predict(*range(5), path="two") == [2, 2.5, 3, 3.5, 4]
    _, answer = apart.get("two/versions/3")
    (version,) = answer["model_version_status"]
    assert "Error parsing text-format" in version["status"]["error_message"]
    assert PER_MODEL in version["status"]["error_message"]
