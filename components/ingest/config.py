"""What a user can set about drops: the section `drop`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class FeaturesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names of the features in your own TFRecords."""

    image: Annotated[str, Meta(description="Feature with the encoded image, bytes.")] = "image"
    label: Annotated[
        str, Meta(description="Feature with the class: its name as bytes, or its number.")
    ] = "label"
    split: Annotated[
        str, Meta(description="Feature with the split (train, eval, test), bytes; empty: none.")
    ] = ""
    classes: Annotated[
        tuple[str, ...],
        Meta(description="Class names in the order of the numbers, where labels are numbers."),
    ] = ()


class DropConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How images are taken in."""

    eval_share: Annotated[
        float,
        Meta(ge=0.0, le=1.0, description="Share of the images that decide when training stops."),
    ] = 0.1
    test_share: Annotated[
        float,
        Meta(
            ge=0.0,
            le=1.0,
            description="Share of the images that judge the model, never trained on.",
        ),
    ] = 0.1
    max_quarantined: Annotated[
        float,
        Meta(
            ge=0.0,
            le=1.0,
            description="A drop of which a larger share is unusable is refused whole. Exact "
            "duplicates do not count.",
        ),
    ] = 0.2
    max_bytes: Annotated[int, Meta(ge=1, description="Larger files are quarantined unread.")] = (
        64_000_000
    )
    max_pixels: Annotated[
        int,
        Meta(
            ge=1,
            description="Images with more pixels, all frames of an animation together, are "
            "quarantined before decoding, which takes 3 to 9 bytes of memory for each pixel.",
        ),
    ] = 32_000_000
    min_side: Annotated[
        int, Meta(ge=1, description="Images with a shorter side, in pixels, are quarantined.")
    ] = 8
    max_aspect: Annotated[
        float,
        Meta(ge=1.0, description="Images whose sides differ by a larger factor are quarantined."),
    ] = 20.0
    near_duplicates: Annotated[
        bool,
        Meta(
            description="Find recompressed and resized copies, also of earlier spans, and keep "
            "them on one side of the split."
        ),
    ] = True
    shard_bytes: Annotated[
        int, Meta(ge=1_000_000, description="Images per TFRecord file, in bytes; 2,000 at most.")
    ] = 64_000_000
    features: FeaturesConfig = FeaturesConfig()

    def __post_init__(self) -> None:
        """Refuses shares that leave nothing to train on.

        Raises:
            ValueError: with both shares.
        """
        if self.eval_share + self.test_share >= 1:
            raise ValueError(
                f"eval_share {self.eval_share} and test_share {self.test_share} leave nothing to "
                "train on: together they must be below 1"
            )
