"""`graftline kubeflow`: the same pipeline on Kubeflow Pipelines."""

from __future__ import annotations

import click

from graftline.pipeline.cli.lazy_group import LazyGroup

# In the order in which a project meets them.
_COMMANDS = {
    "compile": "kubeflow_package",
    "submit": "kubeflow_runs",
    "schedule": "kubeflow_runs",
    "status": "kubeflow_runs",
}


@click.group("kubeflow", cls=LazyGroup, commands_at=_COMMANDS)
def kubeflow() -> None:
    """Run the pipeline on Kubeflow Pipelines."""
