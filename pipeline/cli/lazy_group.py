"""A group of commands whose modules are imported only when one of them is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """Knows the names of its commands and where they are."""

    def __init__(self, *arguments: Any, commands_at: Mapping[str, str], **options: Any):
        """Takes the names.

        Args:
            arguments: as click's.
            commands_at: the module of each command below this package, in the order in which they
                are listed; its function has the command's name, with underscores for hyphens.
            options: as click's.
        """
        super().__init__(*arguments, **options)
        self._commands_at = commands_at

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return list(self._commands_at)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports one."""
        if cmd_name not in self._commands_at:
            return None
        module = importlib.import_module(f"{__package__}.{self._commands_at[cmd_name]}")
        return getattr(module, cmd_name.replace("-", "_"))
