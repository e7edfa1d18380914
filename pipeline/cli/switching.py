"""Commands on what servers serve: `serve-config`, `pin`, `unpin`, `promote`, `canary`."""

from __future__ import annotations

import click
import msgspec

from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.project import Project
from graftline.serving import traffic
from graftline.serving.base_path import BasePath
from graftline.serving.errors import UserError
from graftline.serving.models_config import told
from graftline.serving.switching import Switchboard, Switched
from graftline.serving.traffic import CANARY

reason_option = click.option("--reason", default="", metavar="TEXT", help="Why, for the history.")
wait_option = click.option(
    "--wait/--no-wait",
    default=True,
    help="Whether to wait until every server of serving.servers follows, and to undo the change "
    "when one does not. --no-wait is for servers that do not run. Default: wait.",
)
_version = click.argument("version", type=int)


def switchboard(project: Project, wait: bool = True) -> Switchboard:
    """What changes the servers of a project."""
    return Switchboard(BasePath(project.base_path), project.config.serving, wait)


@project_command("serve-config")
def serve_config(project: Project, as_json: bool) -> None:
    """Write this model's entry in models.config, and say how servers are started with it."""
    choice, new = switchboard(project).write()
    path = project.base_path.parent / "models.config"
    config = project.config.serving
    seen = f"{config.mounted_at.rstrip('/')}/models.config" if config.mounted_at else str(path)
    flags = [
        f"--model_config_file={seen}",
        "--model_config_file_poll_wait_seconds=1",
        "--allow_version_labels_for_unavailable_models=true",
    ]
    if as_json:
        _print_json({"models_config": str(path), "new": new, "told": choice, "flags": flags})
        return
    print(f"{'Written' if new else 'There already'}: {path}")
    print("Start every server with:")
    for flag in flags:
        print(f"  {flag}")
    if not config.servers:
        print("Then name the servers in graftline.yaml: serving.servers, http://HOST:8501 each.")
    print("Next: graftline serve, graftline promote V")


@project_command("pin")
@_version
@reason_option
@wait_option
def pin(project: Project, as_json: bool, version: int, reason: str, wait: bool) -> None:
    """Have servers answer with one version, whatever is published later."""
    print_switched(project, as_json, switchboard(project, wait).pin(version, reason))


@project_command("unpin")
@reason_option
@wait_option
def unpin(project: Project, as_json: bool, reason: str, wait: bool) -> None:
    """Have servers follow the newest version again; labels are taken away."""
    print_switched(project, as_json, switchboard(project, wait).unpin(reason))


@project_command("promote")
@_version
@reason_option
@wait_option
def promote(project: Project, as_json: bool, version: int, reason: str, wait: bool) -> None:
    """Move the label `stable`, and with it what answers, to a version."""
    print_switched(project, as_json, switchboard(project, wait).promote(version, reason))


@project_command("canary")
@click.argument("version", type=int, required=False)
@click.option(
    "--percent",
    type=click.FloatRange(0, 100),
    default=5.0,
    show_default=True,
    help="Share of the callers whom the gateway sends there.",
)
@click.option("--end", is_flag=True, help="Have all callers answered by the stable version again.")
@reason_option
@wait_option
def canary(
    project: Project,
    as_json: bool,
    version: int | None,
    percent: float,
    end: bool,
    reason: str,
    wait: bool,
) -> None:
    """Have some callers answered by another version, under the label `canary`."""
    if end == (version is not None):
        raise UserError("Name the version that is to be the canary, or end the one there is: --end")
    board = switchboard(project, wait)
    switched = (
        board.end_canary(reason) if version is None else board.canary(version, percent, reason)
    )
    print_switched(project, as_json, switched)


def print_switched(project: Project, as_json: bool, switched: Switched) -> None:
    """Says what a change came to, and what serves now."""
    base_path = BasePath(project.base_path)
    choice, split = told(base_path.root), traffic.read(base_path.root)
    number = base_path.in_service()
    if as_json:
        _print_json(
            {
                "changed": switched.event is not None,
                "in_service": number,
                "labels": choice.labels,
                "canary_percent": split.canary_percent if split.canary else None,
                "asked": switched.asked,
                "warning": switched.warning,
                "event": switched.event,
            }
        )
        return
    if switched.event is None:
        print("Everything is so already: nothing to do.")
    elif switched.event.withdrawn:
        print(f"Withdrawn: {', '.join(map(str, switched.event.withdrawn))}.")
    share = f" ({split.canary_percent:g}% of the callers)" if split.canary else ""
    labels = [
        f"{label} on version {number}{share if label == CANARY else ''}"
        for label, number in choice.labels.items()
    ]
    if labels:
        print(f"Labels: {', '.join(labels)}.")
    if switched.event is not None and (switched.asked or choice.needed):
        print(
            f"Followed by {', '.join(switched.asked)}."
            if switched.asked
            else "No server was asked whether it follows."
        )
    if switched.warning:
        print(switched.warning)
    print(f"In service: version {number}. Next: graftline versions")


def _print_json(document: object) -> None:
    print(msgspec.json.encode(document).decode())
