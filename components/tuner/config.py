"""What a user can set about tuning: the section `tuner`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta


class Range(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Numbers between two bounds, both included."""

    min: Annotated[float, Meta(description="The smallest.")]
    max: Annotated[float, Meta(description="The largest.")]
    log: Annotated[
        bool, Meta(description="Drawn by their logarithm, as suits a rate; min is above 0.")
    ] = False

    def __post_init__(self) -> None:
        """Refuses bounds that hold nothing.

        Raises:
            ValueError: says which.
        """
        if self.min >= self.max:
            raise ValueError(f"min {self.min:g} is not below max {self.max:g}")
        if self.log and self.min <= 0:
            raise ValueError(f"min {self.min:g} has no logarithm: it must be above 0")


Space = dict[str, Range | Annotated[tuple[Any, ...], Meta(min_length=2)]]

_SPACE: Space = {
    "head.dropout": Range(min=0.0, max=0.6),
    "head.hidden": ([], [256]),
    "label_smoothing": (0.0, 0.05, 0.1, 0.2),
    "weight_decay": (0.0, 1e-3, 1e-2),
    "phases.frozen.rate": Range(min=3e-4, max=1e-2, log=True),
}


class TunerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `graftline tune` tries."""

    trials: Annotated[
        int, Meta(ge=2, le=1000, description="Trainings, the first with the values as they are.")
    ] = 20
    space: Annotated[
        Space,
        Meta(
            description="Keys of trainer and what to try for each: a list of values, or a range. A "
            "trial trains the head alone, on features computed once; only where the space names a "
            "phase that trains more, as phases.fine_tune.rate, it goes on up to that one."
        ),
    ] = msgspec.field(default_factory=lambda: dict(_SPACE))
