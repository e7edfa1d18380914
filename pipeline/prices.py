"""What machines and disks cost: the section `prices`, from which `graftline plan` tells money."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Price = Annotated[float, Meta(ge=0.0)]


class PricesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What machines and disks cost, for `graftline plan`."""

    currency: Annotated[str, Meta(max_length=8, description="How amounts are written.")] = ""
    hour: Annotated[
        Price, Meta(description="One hour of the machine that stages run on; 0: not told.")
    ] = 0.0
    nodes: Annotated[
        dict[str, Price],
        Meta(description="One hour of what a stage runs on instead: Trainer, drop, …"),
    ] = {}
    gigabyte_month: Annotated[Price, Meta(description="One gigabyte of disk for a month.")] = 0.0

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return bool(self.hour or self.nodes or self.gigabyte_month)

    def of(self, stage: str, seconds: float) -> float:
        """What so many seconds of a stage cost."""
        return self.nodes.get(stage, self.hour) * seconds / 3600
