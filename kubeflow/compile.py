"""From a project to a package of Kubeflow Pipelines: `graftline kubeflow compile`.

The pipeline is compiled as for a run, only to learn its nodes and what each waits for. That graph,
with what the configuration says of every step, goes as JSON to `compile_package.py`, which runs in
an environment of its own: the SDK of Kubeflow Pipelines and TFX want different libraries.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from graftline.kubeflow import training_job
from graftline.kubeflow.beginning import MadeFrom
from graftline.kubeflow.steps import GATES
from graftline.pipeline.config import to_tree
from graftline.pipeline.kubeflow_config import (
    SecretConfig,
    StepConfig,
    VolumeConfig,
)
from graftline.pipeline.plan import Plan, SpanVersion
from graftline.pipeline.project import Project
from graftline.schemas import curated
from graftline.serving.errors import UserError

# The Python whose environment has the SDK; the default is what `make kubeflow-environment` makes.
PYTHON_VARIABLE = "GRAFTLINE_KFP_PYTHON"
# Steps beside the nodes.
OTHER_STEPS = ("begin", "refused", "end")
# One argument of a command may have 128 KiB on Linux, and the backend hands a container's whole
# description, as JSON, to a program of its own in one: what else is in it has the rest.
_LONGEST = 120_000


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One node of the pipeline.

    Attributes:
        id: its name.
        upstream: the nodes that it waits for.
        gate: whether it may say no.
    """

    id: str
    upstream: tuple[str, ...]
    gate: bool


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """All that a package is made from.

    Attributes:
        name: of the pipeline, as Kubeflow Pipelines shows it.
        image: of all steps.
        project, runs: folders, as the steps see them.
        package: what the package was made from, for the first step, as JSON.
        schema: text of the curated schema.
        nodes: of the pipeline, each after those that it waits for.
        steps: what every step gets.
        volumes, secrets, image_pull_secrets: of all steps.
    """

    name: str
    image: str
    project: str
    runs: str
    package: str
    schema: str
    nodes: tuple[Node, ...]
    steps: dict[str, StepConfig]
    volumes: tuple[VolumeConfig, ...]
    secrets: tuple[SecretConfig, ...]
    image_pull_secrets: tuple[str, ...]


def compile_package(project: Project, output: Path) -> Graph:
    """Writes a package of Kubeflow Pipelines.

    Args:
        project: the project.
        output: the YAML file to write; it appears whole or not at all.

    Returns:
        what it was made from.

    Raises:
        UserError: the configuration names no image or steps that are none, the schema is refused,
            or the SDK is not there.
    """
    if not project.config.kubeflow.image:
        raise UserError(
            "kubeflow.image is empty: name the image that the steps run in, with a tag of its own "
            "for every version of the code, e.g. kubeflow.image=registry.example/graftline:1.0"
        )
    python = _sdk_python()
    graph = make_graph(project)
    staged = output.with_name(f".{output.stem}.tmp.yaml")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _run_compiler(python, graph, staged)
        staged.replace(output)
    except OSError as error:
        raise UserError(f"The package {output} cannot be written: {error.strerror}.") from error
    finally:
        staged.unlink(missing_ok=True)
    return graph


def make_graph(project: Project) -> Graph:
    """What a project's package is made from.

    Raises:
        UserError: as `compile_package`.
    """
    config = project.config.kubeflow
    training_job.refuse_workers(project.config)
    curated.read(project.schema)
    schema = project.schema.read_text("utf-8")
    nodes = _nodes(project, in_turn=not config.metadata.host)
    names = [*(node.id for node in nodes), *OTHER_STEPS]
    unknown = [name for name in config.steps if name not in names]
    if unknown:
        raise UserError(
            f"kubeflow.steps.{unknown[0]} is no step of this pipeline. Steps: {', '.join(names)}."
        )
    made_from = MadeFrom(
        graftline=importlib.metadata.version("graftline"),
        configuration=to_tree(project.config),
        nodes=tuple(node.id for node in nodes),
    )
    package = msgspec.json.encode(made_from).decode()
    sizes = [len(msgspec.json.encode(text)) for text in (schema, package)]
    if sum(sizes) > _LONGEST:
        raise UserError(
            f"Schema and configuration are handed to the first step in its arguments, which hold "
            f"{_LONGEST} bytes together, as JSON: {project.schema} has {sizes[0]}, the "
            f"configuration {sizes[1]}."
        )
    remote = Project(Path(config.project), project.config)
    _refuse_lost_folders(remote)
    return Graph(
        name=f"graftline-{project.config.model.name}".lower().replace("_", "-").replace(".", "-"),
        image=config.image,
        project=str(remote.root),
        runs=str(remote.runs),
        package=package,
        schema=schema,
        nodes=nodes,
        steps={name: _step(project, name) for name in names},
        volumes=config.volumes,
        secrets=config.all_secrets,
        image_pull_secrets=config.image_pull_secrets,
    )


def _refuse_lost_folders(remote: Project) -> None:
    """Refuses folders that would go with the pod that wrote them.

    Raises:
        UserError: a folder is on none of the volumes.
    """
    mounted = [Path(volume.path) for volume in remote.config.kubeflow.volumes]
    for name, folder in {
        "schema": remote.schema,
        "drops": remote.drops,
        "spans": remote.spans,
        "quarantine": remote.quarantine,
        "runs": remote.runs,
        "artifacts": remote.artifacts,
        "serving": remote.base_path,
    }.items():
        if not any(folder.is_relative_to(path) for path in mounted):
            raise UserError(
                f"paths.{name} is {folder} for the steps, which is on none of their volumes "
                f"({', '.join(map(str, mounted))}): what one of them writes no other would find. "
                "Mount a volume there (kubeflow.volumes), or set the path to one."
            )


def _nodes(project: Project, *, in_turn: bool) -> tuple[Node, ...]:
    """The pipeline's nodes.

    Args:
        project: the project.
        in_turn: each waits for the one before, for SQLite has room for one writer.
    """
    from graftline.pipeline.create_pipeline import create_pipeline

    # Which nodes there are, and what waits for what, is the same whatever a run decides.
    plan = Plan(run_id="run", target=SpanVersion(1, 1), window=())
    nodes: list[Node] = []
    for component in create_pipeline(project, plan).components:
        upstream = sorted(node.id for node in component.upstream_nodes)
        before = (nodes[-1].id,) if nodes and in_turn else ()
        nodes.append(
            Node(
                id=component.id,
                upstream=tuple(dict.fromkeys((*upstream, *before))),
                gate=component.id in GATES,
            )
        )
    return tuple(nodes)


def _step(project: Project, name: str) -> StepConfig:
    """What a step gets; the Trainer's only waits where pods of their own train."""
    config = project.config.kubeflow
    if name == "Trainer" and config.training_pods > 1:
        own = config.step(name)
        return msgspec.structs.replace(
            config.defaults,
            accelerators=None,
            retries=own.retries,
            retry_seconds=own.retry_seconds,
            timeout_minutes=own.timeout_minutes,
        )
    return config.step(name)


def _sdk_python() -> Path:
    """The Python that has the SDK.

    Raises:
        UserError: there is none.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    made = Path(__file__).resolve().parents[1] / ".venv-kfp" / "bin" / "python"
    python = Path(named) if named else made
    if not python.is_file():
        lock = Path(__file__).with_name("requirements.lock")
        raise UserError(
            f"There is no {python}, the environment with the SDK of Kubeflow Pipelines, which "
            "cannot be that of TFX. Make it with `make kubeflow-environment`, or elsewhere with "
            f"`pip install -r {lock}`, and name its Python in the environment variable "
            f"{PYTHON_VARIABLE}."
        )
    return python


def _run_compiler(python: Path, graph: Graph, output: Path) -> None:
    script = Path(__file__).with_name("compile_package.py")
    ended = subprocess.run(
        [python, "-I", script, output],
        input=msgspec.json.encode(graph),
        capture_output=True,
        env=_environment(os.environ),
        check=False,
    )
    said = ended.stderr.decode(errors="replace").strip()
    if ended.returncode:
        missing = "ModuleNotFoundError" in said or "ImportError" in said
        raise UserError(
            f"The SDK of Kubeflow Pipelines in {python} "
            + (
                "is not there: make the environment anew with `make kubeflow-environment`."
                if missing
                else f"refused the pipeline: {_last_lines(said)}"
            )
        )


def _environment(present: Mapping[str, str]) -> dict[str, str]:
    """What the SDK's process gets: nothing of this one's Python."""
    return {name: value for name, value in present.items() if not name.startswith("PYTHON")}


def _last_lines(text: str) -> str:
    lines: Sequence[str] = text.splitlines()
    return " / ".join(lines[-3:]) or "it gave no reason"
