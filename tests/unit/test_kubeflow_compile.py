"""The package: its steps, what each gets, and what cannot be compiled."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from graftline.kubeflow import compile as compiling
from graftline.pipeline.config import Config, override
from graftline.pipeline.project import Project
from graftline.schemas import curated
from graftline.serving.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SDK = ROOT / ".venv-kfp" / "bin" / "python"

# For whoever wants to read one, or to give it to a cluster.
KEPT = ROOT / "build" / "kubeflow.yaml"

IMAGE = "kubeflow.image=registry.example/graftline:1.0"
ON_MARIADB = "kubeflow.metadata.host=metadata-db"
NODES = {
    *("ImportSchemaGen", "ImportExampleGen", "StatisticsGen", "ExampleValidator", "previous_span"),
    *("DataGate", "window", "Transform", "Trainer", "in_service", "Evaluator", "ModelGate"),
    *("ServingProbe", "Pusher"),
}


def make_project(folder: Path, *overrides: str) -> Project:
    project = Project(folder, override(Config(), overrides))
    curated.write(curated.build(["a", "ü"]), project.schema)
    return project


def compiled(folder: Path, *overrides: str) -> tuple[Any, Any]:
    """Both documents of a package."""
    output = folder / "package.yaml"
    return written(folder, output, *overrides)


def written(folder: Path, output: Path, *overrides: str) -> tuple[Any, Any]:
    """The same of one that is written to a certain file."""
    if not SDK.is_file():
        pytest.skip("there is no .venv-kfp: make kubeflow-environment")
    compiling.compile_package(make_project(folder, IMAGE, *overrides), output)
    spec, platform = yaml.safe_load_all(output.read_text())
    return spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def tasks_of(spec: Any) -> dict[str, Any]:
    """All tasks that are containers, by the name that is shown."""
    levels = [spec["root"], *spec["components"].values()]
    return {
        task["taskInfo"]["name"]: task
        for level in levels
        for task in level.get("dag", {}).get("tasks", {}).values()
        if "executorLabel" in spec["components"][task["componentRef"]["name"]]
    }


def container(spec: Any, name: str) -> Any:
    label = "exec-" + name.lower().replace("_", "-")
    return spec["deploymentSpec"]["executors"][label]["container"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return written(
        tmp_path_factory.mktemp("package"),
        KEPT,
        ON_MARIADB,
        "kubeflow.defaults={cpu: 500m, memory: 2Gi, retries: 3, retry_seconds: 7}",
        "kubeflow.steps.Trainer={memory: 16G, cpu_limit: '8', accelerator: nvidia.com/gpu, "
        "accelerators: 2, node_selector: {pool: gpu}, timeout_minutes: 90, retries: 0, "
        "annotations: {gke-gcsfuse/volumes: 'true'}, "
        "tolerations: [{key: gpu, operator: Equal, value: big, effect: NoSchedule}]}",
        "kubeflow.image_pull_secrets=[registry]",
        "kubeflow.secrets=[{name: mail, env: {SMTP_PASSWORD: password}}]",
    )


def test_every_node_is_a_step_beside_the_first_the_last_and_that_of_a_refusal(package):
    assert sorted(tasks_of(package[0])) == sorted([*NODES, "begin", "refused", "end"])


def test_steps_run_the_node_runner_in_the_image(package):
    found = container(package[0], "Trainer")
    assert found["image"] == "registry.example/graftline:1.0"
    assert found["command"] == ["python", "-m", "graftline.kubeflow.node"]
    assert found["args"][:6] == [
        *("run", "Trainer", "--project", "/graftline/project"),
        *("--runs", "/graftline/project/runs"),
    ]


def test_the_package_holds_configuration_and_schema_and_no_span(package):
    args = container(package[0], "begin")["args"]
    made_from = json.loads(args[args.index("--package") + 1])
    assert made_from["configuration"]["kubeflow"]["metadata"]["host"] == "metadata-db"
    assert sorted(made_from["nodes"]) == sorted(NODES)
    assert 'value: "ü"' in args[args.index("--schema") + 1]
    assert package[0]["root"]["inputDefinitions"]["parameters"]["span"]["defaultValue"] == 0


def test_what_follows_a_gate_stands_under_the_condition_that_it_passed(package):
    spec = package[0]

    def below(component: Any) -> set[str]:
        names: set[str] = set()
        for task in component.get("dag", {}).get("tasks", {}).values():
            names |= {task["taskInfo"]["name"]} | below(
                spec["components"][task["componentRef"]["name"]]
            )
        return names

    conditions = {
        task["taskInfo"]["name"]: below(spec["components"][task["componentRef"]["name"]])
        for level in (spec["root"], *spec["components"].values())
        for task in level.get("dag", {}).get("tasks", {}).values()
        if "condition" in task.get("triggerPolicy", {})
    }
    assert {"window", "Transform", "Trainer", "Pusher"} <= conditions["DataGate-passed"]
    assert not {"StatisticsGen", "DataGate", "in_service"} & conditions["DataGate-passed"]
    assert conditions["ServingProbe-passed"] == {"Pusher"}
    assert conditions["ModelGate-refused"] == {"refused"}
    assert conditions["train"] >= NODES


def test_a_step_gets_its_resources_retries_and_place(package):
    spec, platform = package
    trainer = container(spec, "Trainer")["resources"]
    assert (trainer["resourceMemoryLimit"], trainer["resourceCpuLimit"]) == ("16G", "8")
    assert trainer["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert trainer["accelerator"]["resourceCount"] == "2"
    assert "retryPolicy" not in tasks_of(spec)["Trainer"]
    extras = platform["exec-trainer"]
    assert extras["nodeSelector"]["labels"] == {"pool": "gpu"}
    assert extras["podMetadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert extras["tolerations"] == [
        {"key": "gpu", "operator": "Equal", "value": "big", "effect": "NoSchedule"}
    ]
    assert int(extras["activeDeadlineSeconds"]) == 90 * 60
    other = tasks_of(spec)["Transform"]["retryPolicy"]
    assert (other["maxRetryCount"], other["backoffDuration"]) == (3, "7s")
    assert container(spec, "Transform")["resources"]["resourceMemoryRequest"] == "2Gi"
    assert "retryPolicy" not in tasks_of(spec)["refused"]


def test_every_step_has_volumes_and_secrets_and_no_cache_of_kubeflow(package):
    spec, platform = package
    labels = set(spec["deploymentSpec"]["executors"])
    assert set(platform) == labels
    for label in labels:
        [volume] = platform[label]["pvcMount"]
        assert (volume["constant"], volume["mountPath"]) == ("graftline", "/graftline")
        secrets = {
            one["secretName"]: {e["envVar"]: e["secretKey"] for e in one["keyToEnv"]}
            for one in platform[label]["secretAsEnv"]
        }
        assert secrets == {
            "graftline-metadata": {
                "GRAFTLINE_METADATA_USER": "username",
                "GRAFTLINE_METADATA_PASSWORD": "password",
            },
            "mail": {"SMTP_PASSWORD": "password"},
        }
        assert [one["secretName"] for one in platform[label]["imagePullSecret"]] == ["registry"]
    assert not [t for t in tasks_of(spec).values() if t["cachingOptions"].get("enableCache")]


def test_the_package_is_one_of_schema_2_1_by_the_published_definition(package, tmp_path):
    check = (
        "import json, sys; from google.protobuf import json_format; "
        "from kfp.pipeline_spec import pipeline_spec_pb2 as p; spec = json.load(sys.stdin); "
        "json_format.ParseDict(spec, p.PipelineSpec()); "
        "json_format.ParseDict(spec['deploymentSpec'], p.PipelineDeploymentConfig())"
    )
    subprocess.run([SDK, "-c", check], input=json.dumps(package[0]), text=True, check=True)
    assert package[0]["schemaVersion"] == "2.1.0"


def test_on_sqlite_nodes_run_one_after_the_other(tmp_path):
    nodes = compiling.make_graph(make_project(tmp_path)).nodes
    assert all(before.id in node.upstream for before, node in itertools.pairwise(nodes))


def test_without_an_image_there_is_no_package(tmp_path):
    with pytest.raises(UserError, match=r"kubeflow.image is empty"):
        compiling.compile_package(make_project(tmp_path), tmp_path / "package.yaml")


def test_without_the_sdk_the_command_that_brings_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(compiling.PYTHON_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="make kubeflow-environment"):
        compiling.compile_package(make_project(tmp_path, IMAGE), tmp_path / "package.yaml")


def test_an_environment_without_the_sdk_is_found_out(tmp_path, monkeypatch):
    import sys

    monkeypatch.setenv(compiling.PYTHON_VARIABLE, sys.executable)
    output = tmp_path / "package.yaml"
    with pytest.raises(UserError, match="is not there: make the environment anew"):
        compiling.compile_package(make_project(tmp_path, IMAGE), output)
    assert not [path for path in tmp_path.iterdir() if "package" in path.name]


def test_a_step_that_is_none_is_refused_with_those_there_are(tmp_path):
    project = make_project(tmp_path, IMAGE, "kubeflow.steps.Trainr.memory=8G")
    with pytest.raises(UserError, match=r"kubeflow.steps.Trainr is no step .* Trainer"):
        compiling.make_graph(project)


def test_a_folder_on_no_volume_is_refused_and_one_on_a_second_volume_is_not(tmp_path):
    in_bucket = "paths.artifacts=/artifacts/tfx"
    with pytest.raises(UserError, match=r"paths.artifacts is /artifacts/tfx .* none .*/graftline"):
        compiling.make_graph(make_project(tmp_path, IMAGE, in_bucket))
    volumes = "{claim: graftline, path: /graftline}, {claim: bucket, path: /artifacts}"
    second = f"kubeflow.volumes=[{volumes}]"
    assert compiling.make_graph(make_project(tmp_path, IMAGE, in_bucket, second)).volumes[1:]


def test_a_schema_too_long_for_an_argument_is_refused(tmp_path):
    project = make_project(tmp_path, IMAGE)
    curated.write(curated.build([f"class {number:06d}" for number in range(9_000)]), project.schema)
    with pytest.raises(UserError, match="hold 120000 bytes together"):
        compiling.make_graph(project)


def test_schema_and_configuration_share_the_argument(tmp_path):
    classes = [f"class {number:06d}" for number in range(2_500)]
    project = make_project(tmp_path, IMAGE)
    curated.write(curated.build(classes), project.schema)
    assert compiling.make_graph(project)
    long = f"kubeflow.secrets=[{', '.join(secret(number) for number in range(900))}]"
    for classes_too, refused in ((classes, True), (["a", "b"], False)):
        project = make_project(tmp_path, IMAGE, long)
        curated.write(curated.build(classes_too), project.schema)
        with pytest.raises(UserError, match="together") if refused else contextlib.nullcontext():
            compiling.make_graph(project)


def secret(number: int) -> str:
    return f"{{name: secret-{number:04d}, env: {{V{number}: password}}}}"


def test_pods_of_which_each_has_workers_are_refused_at_once(tmp_path):
    for workers in (1, 2):
        project = make_project(
            tmp_path, IMAGE, "kubeflow.training_pods=2", f"trainer.workers={workers}"
        )
        refusal = pytest.raises(UserError, match="cannot both be more than 1")
        with refusal if workers > 1 else contextlib.nullcontext():
            compiling.make_graph(project)
