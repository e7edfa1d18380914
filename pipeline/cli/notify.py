"""`graftline notify`: tries out the ways to tell people."""

from __future__ import annotations

import json

import click

from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.project import Project
from graftline.serving.errors import UserError


@project_command("notify")
def notify(project: Project, as_json: bool) -> None:
    """Send a trial notice through every channel of the section notify."""
    from graftline.pipeline.notify.delivery import TRIAL, deliver
    from graftline.pipeline.notify.notice import Notice, job_link

    model = project.config.model.name
    notice = Notice(
        event=TRIAL,
        model=model,
        title=f"{model}: a trial notice of Graftline",
        details="Nothing has happened. Notices of runs and drops will come this way.",
        links={"project": str(project.root), **job_link()},
    )
    outcomes = deliver(project.config.notify, notice, project.root)
    if not outcomes:
        raise UserError(
            "Nobody is told: no channel is configured. Set notify.webhook.url, notify.email.server "
            "or notify.command in graftline.yaml, or the environment variable "
            "GRAFTLINE_WEBHOOK_URL."
        )
    failed = [f"Not told by {name}: {problem}." for name, problem in outcomes.items() if problem]
    if failed:
        raise UserError("\n".join(failed))
    if as_json:
        click.echo(json.dumps({"told_by": list(outcomes)}))
    else:
        click.echo(f"Told by {', '.join(outcomes)}.")
