"""Commands on published versions: `versions`, `rollback`, `restore`, `withdraw`, `verify`."""

from __future__ import annotations

import collections
import datetime
import sys
from collections.abc import Sequence

import click
import msgspec

from graftline.pipeline.cli.project_command import project_command
from graftline.pipeline.cli.switching import (
    print_switched,
    reason_option,
    switchboard,
    wait_option,
)
from graftline.pipeline.project import Project
from graftline.serving import history, traffic
from graftline.serving.base_path import BasePath
from graftline.serving.history import Event
from graftline.serving.manifest import Manifest
from graftline.serving.models_config import Choice, told
from graftline.serving.server_states import Servers, ServerState
from graftline.serving.traffic import CANARY, Traffic
from graftline.serving.versions import Version

_DETAILS = ("created (UTC)", "age", "spans", "accuracy", "run")
_BRIEF = ("age", "spans", "accuracy", "run")
_NUMBERS = ("version", "age", "accuracy")
_STYLES = {"in service": "bold green", "withdrawn": "dim", "incomplete": "red", "present": ""}

_version = click.argument("version", type=int)


@project_command("versions")
def versions(project: Project, as_json: bool) -> None:
    """List the published versions and which one is in service."""
    base_path = BasePath(project.base_path)
    found = base_path.versions()
    choice, split = told(base_path.root), traffic.read(base_path.root)
    servers = Servers(project.config.serving.servers, base_path.root.name)
    states = servers.ask(tuple(choice.labels))
    if as_json:
        _print_json(
            {
                "base_path": str(base_path.root),
                "in_service": base_path.in_service(),
                "labels": choice.labels,
                "canary_percent": split.canary_percent if split.canary else None,
                "versions": [_as_data(version) for version in found],
                "servers": states,
                "history": base_path.history(),
            }
        )
        return
    if not found:
        print(f"Nothing is published in {base_path.root} yet. Next: graftline run")
        return
    _print_versions(base_path.root.name, found, choice, split, states)
    for state in states:
        if state.failure:
            print(f"{state.server} {state.failure}")
        elif trouble := _differs(state, base_path.in_service(), choice):
            print(f"{state.server} {trouble}")
    if changes := base_path.history():
        last = changes[-1]
        why = f": {last.reason}" if last.reason else ""
        print(f"{last.when:%Y-%m-%d %H:%M} {last.who}: {last.version} {last.what}{why}")
    if incomplete := [v.number for v in found if v.state == "incomplete"]:
        print(
            f"Version {incomplete[-1]} is incomplete: a server that watches this folder keeps "
            f"trying to load it. Next: graftline withdraw {incomplete[-1]}"
        )
    elif sum(v.state in ("in service", "present") for v in found) > 1:
        print("Next: graftline predict IMAGE, or graftline rollback to go back a version")
    else:
        print("Next: graftline predict IMAGE")


@project_command("rollback")
@click.option("--to", type=int, metavar="V", help="Default: the one below the one in service.")
@reason_option
@wait_option
def rollback(project: Project, as_json: bool, to: int | None, reason: str, wait: bool) -> None:
    """Go back a version: withdraw the one in service and every one above the target."""
    print_switched(project, as_json, switchboard(project, wait).rollback(to, reason))


@project_command("restore")
@_version
@reason_option
def restore(project: Project, as_json: bool, version: int, reason: str) -> None:
    """Put a withdrawn version back."""
    _print_change(project, as_json, BasePath(project.base_path).restore(version, reason), version)


@project_command("withdraw")
@_version
@reason_option
def withdraw(project: Project, as_json: bool, version: int, reason: str) -> None:
    """Take one version away from servers, without deleting it."""
    _print_change(project, as_json, BasePath(project.base_path).withdraw(version, reason), version)


@project_command("verify")
@click.argument("version", type=int, required=False)
def verify(project: Project, as_json: bool, version: int | None) -> None:
    """Compare published files with the hashes in their manifests; exit code 3 if any differs."""
    base_path = BasePath(project.base_path)
    problems = base_path.verify(version)
    damaged = [number for number, found in problems.items() if found]
    if as_json:
        _print_json({"verified": not damaged, "problems": problems})
    elif not problems:
        print(f"Nothing is published in {base_path.root} yet. Next: graftline run")
    else:
        from rich.console import Console
        from rich.table import Column, Table

        table = Table("version", Column("file", overflow="fold"), "finding", box=None)
        for number, found in problems.items():
            for problem in found:
                table.add_row(str(number), problem.file, problem.what, style="red")
            if not found:
                table.add_row(str(number), "all files", "as published")
        Console(markup=False, emoji=False, highlight=False).print(table)
        if damaged:
            numbers = ", ".join(map(str, damaged))
            print(f"Not as published: {numbers}. Next: graftline rollback, or publish again.")
        else:
            print("Every file is as it was published.")
    if damaged:
        sys.exit(3)


def _print_json(document: object) -> None:
    print(msgspec.json.encode(document).decode())


def _as_data(version: Version) -> dict[str, object]:
    data: dict[str, object] = {
        "version": version.number,
        "state": version.state,
        "path": str(version.path),
    }
    if manifest := version.manifest:
        return {**data, "accuracy": manifest.accuracy, "manifest": manifest}
    return data


def _print_versions(
    model: str,
    found: Sequence[Version],
    choice: Choice,
    split: Traffic,
    states: Sequence[ServerState],
) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    columns = ["version", "state"]
    columns += ["labels"] if choice.labels else []
    columns += ["servers"] if states else []
    # A terminal has 80 columns; with --json everything is told.
    details = _BRIEF if choice.labels or states else _DETAILS
    columns += details
    table = Table(
        *(Column(name, justify="right" if name in _NUMBERS else "left") for name in columns),
        title=model,
        title_justify="left",
        box=None,
    )
    for version in found:
        cells = [str(version.number), version.state]
        if choice.labels:
            cells.append(_labels(version.number, choice, split))
        if states:
            cells.append(_on_servers(version.number, states))
        told_of = _details(version.manifest)
        cells += [told_of.get(name, "") for name in details]
        table.add_row(*cells, style=_STYLES[version.state])
    Console(markup=False, emoji=False, highlight=False).print(table)


def _labels(number: int, choice: Choice, split: Traffic) -> str:
    """The labels of a version, with the canary's share of the callers."""
    return ", ".join(
        f"{label} {split.canary_percent:g}%" if label == CANARY and split.canary else label
        for label, version in choice.labels.items()
        if version == number
    )


def _on_servers(number: int, states: Sequence[ServerState]) -> str:
    """What the servers say of a version, as `2 available`; with one server without the count."""
    said = collections.Counter(
        "?" if state.failure else state.versions.get(number, "-").lower() for state in states
    )
    if len(states) == 1:
        return next(iter(said))
    return ", ".join(f"{count} {what}" for what, count in said.most_common())


def _differs(state: ServerState, in_service: int | None, choice: Choice) -> str:
    """How a server's state differs from what it should be."""
    if in_service is not None and in_service not in state.available:
        return f"does not serve version {in_service} (yet)."
    moved = [label for label, v in choice.labels.items() if state.labels.get(label) != v]
    return f"has the label {moved[0]} elsewhere (yet)." if moved else ""


def _details(manifest: Manifest | None) -> dict[str, str]:
    """What is known of a version, by column."""
    if manifest is None or manifest.created is None:
        return {}
    return {
        "created (UTC)": f"{manifest.created:%Y-%m-%d %H:%M}",
        "age": _age(manifest.created),
        "spans": manifest.span_ranges,
        "accuracy": "" if manifest.accuracy is None else f"{manifest.accuracy:.3f}",
        "run": manifest.run_id,
    }


def _age(created: datetime.datetime) -> str:
    """The time since then in its largest unit."""
    seconds = max(0, int((history.now() - created).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _print_change(
    project: Project, as_json: bool, event: Event | None, version: int | None
) -> None:
    number = BasePath(project.base_path).in_service()
    if as_json:
        _print_json({"changed": event is not None, "in_service": number, "event": event})
    elif event is None:
        print(f"Version {version} is there already: nothing to do. In service: version {number}.")
    else:
        if event.withdrawn:
            print(f"Withdrawn: {', '.join(map(str, event.withdrawn))}.")
        if event.what == "restored":
            print(f"Restored: {event.version}.")
        print(f"In service: version {number}. Next: graftline versions")
