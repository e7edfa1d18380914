"""Configuration of the data gate."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Share = Annotated[float, Meta(ge=0, le=1)]


class DataGateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a span is stopped because its images differ from those of the span before."""

    shift: Annotated[
        bool,
        Meta(
            description="Compare size, brightness and class shares with the span before; anomalies "
            "against the schema stop the run in any case."
        ),
    ] = True
    significance: Annotated[
        float,
        Meta(
            gt=0,
            lt=1,
            description="Share of false alarms, over all features together, that is tolerated when "
            "both spans are drawn from the same images.",
        ),
    ] = 0.02
    max_image_shift: Annotated[
        Share,
        Meta(
            description="Largest tolerated shift of width, height, channels, byte_size, luma_mean "
            "and luma_std: the share of the images that would have to be others "
            "(Kolmogorov-Smirnov distance)."
        ),
    ] = 0.2
    max_class_shift: Annotated[
        Share,
        Meta(
            description="Largest tolerated shift of the class shares: the share of the images that "
            "would have to be of another class (total variation distance)."
        ),
    ] = 0.1
    min_images: Annotated[
        int,
        Meta(
            ge=2,
            description="With fewer images in either span the comparison is called undecidable and "
            "does not stop the run.",
        ),
    ] = 30
