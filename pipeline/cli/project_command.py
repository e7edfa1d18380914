"""What all commands on a project share: `--project`, `--json`, `key=value` overrides."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from graftline.pipeline.project import Project

_OVERRIDE = re.compile(r"^[a-z_]+(\.[A-Za-z0-9_]+)+=")


class OverridingCommand(click.Command):
    """Takes `section.key=value` out of the arguments wherever they stand, but as an option's value.

    They are in the context's `meta["overrides"]`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Sets the overrides aside; the rest is parsed as usual."""
        valued = {
            name
            for option in self.params
            if isinstance(option, click.Option) and not option.is_flag
            for name in option.opts
        }
        overrides: list[str] = []
        others: list[str] = []
        for before, arg in zip(["", *args], args, strict=False):
            taken = _OVERRIDE.match(arg) and before not in valued
            (overrides if taken else others).append(arg)
        ctx.meta["overrides"] = overrides
        return super().parse_args(ctx, others)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The usage line, overrides included."""
        return [*super().collect_usage_pieces(ctx), "[SECTION.KEY=VALUE]..."]


def project_command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """Makes a function `(project, as_json, **options)` a command on a project.

    Args:
        name: what the user types after `graftline`.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        @click.option(
            "--project",
            "directory",
            type=click.Path(path_type=Path, file_okay=False),
            help="The project's folder. Default: here, or the nearest parent that is one.",
        )
        @click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
        @functools.wraps(function)
        def command(directory: Path | None, as_json: bool, **options: Any) -> None:
            ctx = click.get_current_context()
            project = Project.find(directory, ctx.meta["overrides"])
            ctx.meta["project"] = project
            function(project, as_json=as_json, **options)

        return click.command(name, cls=OverridingCommand)(command)

    return decorate
