"""The space that is searched, as KerasTuner and as the trainer's configuration see it.

KerasTuner chooses among numbers and words; a list of values that may be anything, hidden layers
for one, is handed to it as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from graftline.components.settings import get_value, set_value
from graftline.components.trainer.config import TrainerConfig
from graftline.components.tuner.config import Range, Space
from graftline.serving.errors import UserError

if TYPE_CHECKING:
    import keras_tuner


# What a trial cannot have otherwise than the search, and why.
_FIXED = {
    **dict.fromkeys(
        ("workers", "strategy", "devices", "precision", "feature_store_gb", "tensorboard"),
        "it says where and how training runs, not what is learned",
    ),
    "backbone": "images are prepared for one network; compare several by runs, with `graftline "
    "runs`",
    **dict.fromkeys(("weights", "warm_start"), "all trials start from the same weights"),
    "seed": "the best of several seeds is luck on the eval split",
}


def check(trainer: TrainerConfig, space: Space) -> None:
    """Tries the ends of every range and every value of a list on the trainer's configuration.

    Raises:
        UserError: a key or value is none that the trainer takes, or what is configured now cannot
            be among what is tried; says which and why.
    """
    if not space:
        raise UserError("tuner.space is empty: there is nothing to try.")
    for key, values in space.items():
        if why := _FIXED.get(key.partition(".")[0]):
            raise UserError(f"tuner.space.{key} cannot be tried: {why}.")
        ends = (values.min, values.max) if isinstance(values, Range) else values
        for value in ends:
            try:
                with_values(trainer, {key: _as_configured(trainer, key, value)})
            except ValueError as error:
                raise UserError(
                    f"tuner.space.{key}: {value!r} cannot be tried: "
                    f"{str(error).partition(' - at ')[0]}"
                ) from error
        now = get_value(_plain(trainer), key)
        if isinstance(values, Range) and values.log and now <= 0:
            raise UserError(
                f"tuner.space.{key}: the value as it is, {now:g}, has no logarithm, and it is "
                "tried first. Leave log out, or configure another."
            )


def with_values(trainer: TrainerConfig, values: Mapping[str, Any]) -> TrainerConfig:
    """The section `trainer` with some values set.

    Args:
        trainer: the section.
        values: by key, e.g. `phases.frozen.rate`.

    Raises:
        ValueError: a key is unknown, or a value not allowed.
    """
    tree = _plain(trainer)
    for key, value in values.items():
        set_value(tree, _plain(TrainerConfig()), key, value)
    return msgspec.convert(tree, TrainerConfig)


def last_phase(trainer: TrainerConfig, space: Space) -> int:
    """How many phases a trial trains: the leading ones of the head alone, or as far as is tried."""
    names = [phase.name for phase in trainer.phases]
    tried = {key.split(".")[1] for key in space if key.startswith("phases.")}
    frozen = 0
    for phase in trainer.phases:
        if phase.fraction or phase.blocks:
            break
        frozen += 1
    return max(1, frozen, *(names.index(name) + 1 for name in tried))


def hyperparameters(trainer: TrainerConfig, space: Space) -> keras_tuner.HyperParameters:
    """The space for KerasTuner, widened where need be by the values as they are, its defaults."""
    import keras_tuner

    found = keras_tuner.HyperParameters()
    tree = _plain(trainer)
    for key, values in space.items():
        now = get_value(tree, key)
        if isinstance(values, Range):
            smallest, largest = min(now, values.min), max(now, values.max)
            sampling = "log" if values.log else "linear"
            if _is_whole(now):
                found.Int(key, int(smallest), int(largest), sampling=sampling, default=now)
            else:
                found.Float(key, smallest, largest, sampling=sampling, default=now)
        else:
            choices = [json.dumps(value) for value in msgspec.to_builtins(values)]
            configured = json.dumps(now)
            if configured not in choices:
                choices.insert(0, configured)
            found.Choice(key, choices, ordered=False, default=configured)
    return found


def decoded(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """What KerasTuner chose, as the trainer's configuration has it; floats to three digits."""
    return {
        key: _rounded(value) if isinstance(space[key], Range) else json.loads(value)
        for key, value in values.items()
    }


def _rounded(value: float) -> float:
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _as_configured(trainer: TrainerConfig, key: str, value: Any) -> Any:
    """A bound, which is read as a float, as a whole number where the key takes those."""
    return int(value) if _is_whole(get_value(_plain(trainer), key)) and value % 1 == 0 else value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(section: TrainerConfig) -> dict[str, Any]:
    return msgspec.json.decode(msgspec.json.encode(section))
