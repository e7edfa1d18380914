"""`graftline kubeflow compile`: the package that Kubeflow Pipelines runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.console import Console
from graftline.pipeline.project import Project


@project_command("compile")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write. Default: kubeflow.yaml in the project's folder.",
)
def compile(project: Project, as_json: bool, output: Path | None) -> None:
    """Write the pipeline as a package of Kubeflow Pipelines: one step per node.

    The package holds the project's configuration and schema. Every run of it trains on the next
    span that is complete and untrained, or on the one that its parameter names.
    """
    from graftline.kubeflow import compile as compiling

    output = (output or project.root / "kubeflow.yaml").resolve()
    with Console(Path(os.devnull), quiet=as_json) as console:
        console.progress("loading TensorFlow and TFX")
        package = compiling.compile_package(project, output)
    if as_json:
        click.echo(json.dumps({"package": str(output), "steps": list(package.steps)}))
        return
    click.echo(
        f"{output}: {len(package.steps)} steps in {project.config.kubeflow.image}. Upload it to "
        "Kubeflow Pipelines, or submit it from here."
    )
