"""Command of the machines that train for another one: `work`."""

from __future__ import annotations

import click

from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.interruption import stop_on_signal
from graftline.pipeline.project import Project


@project_command("work")
@click.option("--once", is_flag=True, help="End after the next training.")
def work(project: Project, as_json: bool, once: bool) -> None:
    """Take part in the trainings of the cluster that TF_CONFIG names."""
    from graftline.components.trainer.workers import take_part

    with stop_on_signal():
        take_part(project.cluster, lambda line: click.echo(line, err=as_json), once=once)
