"""What tuning found: `tuned.yaml` in the project folder, read after `graftline.yaml`.

The values take the place of those in `graftline.yaml` in every later run, until tuning finds
others; whoever deletes a line of the file, or the file, goes back to what is written there. A run
saves the configuration that came of both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from graftline.components.settings import get_value
from graftline.components.tuner import space
from graftline.components.tuner.config import Space
from graftline.pipeline.config import to_tree
from graftline.serving.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from graftline.pipeline.project import Project

FILE_NAME = "tuned.yaml"

_RESULTS = "tuner_results.json"  # as TFX's Tuner calls it
_SHOWN = 5


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One trial.

    Attributes:
        number: from 1, which has the values as they were configured.
        error: Brier score of its best epoch on the eval split.
        values: what it tried, by key of the section `trainer`.
    """

    number: int
    error: float
    values: dict[str, Any]


def read_trials(folder: Path, tried: Space) -> list[Trial]:
    """The trials that TFX's Tuner has recorded in a folder, the best first.

    Args:
        folder: its artifact with the results.
        tried: the space that was searched.
    """
    trials = []
    for row in json.loads((folder / _RESULTS).read_text(encoding="utf-8")):
        number, error = int(row.pop("trial_id")) + 1, float(row.pop("score"))
        trials.append(Trial(number=number, error=error, values=space.decoded(tried, row)))
    # Of equals the one that was tried first: the configured values before all others.
    return sorted(trials, key=lambda trial: (trial.error, trial.number))


def write_tuned(root: Path, trials: Sequence[Trial], run_id: str) -> None:
    """Replaces the project's `tuned.yaml` by the best trial's values.

    Args:
        root: the project folder.
        trials: the best first.
        run_id: the run that tried them.
    """
    best, configured = trials[0], min(trials, key=lambda trial: trial.number)
    text = (
        f"# Found by `graftline tune` in {run_id}, trial {best.number} of {len(trials)}: error on "
        f"the eval split\n# {best.error:.4f}, with the values before {configured.error:.4f}. They "
        "take the place of those in graftline.yaml;\n# delete a line, or the file, to go back to "
        "these.\n"
    )
    for key, value in best.values.items():
        text += f"trainer.{key}: {json.dumps(value)}\n"
    staged = root / f".{FILE_NAME}.tmp"
    staged.write_text(text, encoding="utf-8")
    staged.replace(root / FILE_NAME)


def read_tuned(root: Path) -> dict[str, Any]:
    """What was tuned in a project, by key, e.g. `trainer.head.dropout`; empty where nothing was.

    Raises:
        UserError: the file cannot be read.
    """
    path = root / FILE_NAME
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read: {reason}. Mend or delete it.") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path} must hold lines such as `trainer.head.dropout: 0.3`.")
    return values


def in_force(project: Project) -> dict[str, Any]:
    """What of the tuned values a project's configuration has, by key."""
    tree = to_tree(project.config)
    return {key: value for key, value in project.tuned.items() if get_value(tree, key) == value}


def told(values: Mapping[str, Any]) -> str:
    """Values in a line."""
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in values.items())


def table(trials: Sequence[Trial]) -> Table:
    """The best trials, and the one with the values as they were, side by side."""
    from rich.table import Table

    shown = Table("trial", "error on eval", *trials[0].values, box=None, pad_edge=False)
    rows = [*trials[:_SHOWN], *(trial for trial in trials[_SHOWN:] if trial.number == 1)]
    for trial in rows:
        name = f"{trial.number}, as configured" if trial.number == 1 else str(trial.number)
        shown.add_row(name, f"{trial.error:.4f}", *map(json.dumps, trial.values.values()))
    return shown
