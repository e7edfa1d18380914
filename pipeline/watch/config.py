"""What a user can set about watching for drops: the section `watch`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class WatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How `graftline watch` waits, and how often it tries."""

    interval_seconds: Annotated[
        float, Meta(gt=0, le=86_400, description="How often it looks for drops.")
    ] = 30.0
    patience_seconds: Annotated[
        float,
        Meta(
            gt=0,
            description="A drop that has not changed for so long and is not complete is told of as "
            "rejected, once; it is taken all the same when it is complete.",
        ),
    ] = 3600.0
    tries: Annotated[
        int, Meta(ge=1, description="A drop that fails so often, faults of all kinds, is given up.")
    ] = 4
    first_pause_seconds: Annotated[
        float,
        Meta(ge=0, description="Pause after the first failure; each later one is twice as long."),
    ] = 60.0
    longest_pause_seconds: Annotated[
        float, Meta(ge=0, description="No pause between two tries is longer.")
    ] = 3600.0
