"""Configuration of drops: what is accepted, how it is split, when a drop is refused."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from graftline.serving.image_check import ImageLimits

Share = Annotated[float, Meta(ge=0, le=1)]


class SplitConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of the images that go to each side, where the source itself does not say."""

    train: Annotated[Share, Meta(description="Images that the model learns from.")] = 0.8
    eval: Annotated[Share, Meta(description="Images that decide when to stop training.")] = 0.1
    test: Annotated[Share, Meta(description="Images that only the model gate sees.")] = 0.1

    def __post_init__(self) -> None:
        """Refuses shares that do not make a whole.

        Raises:
            ValueError: with their sum.
        """
        total = self.train + self.eval + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, eval and test must add up to 1, they make {total:g}")


class FeaturesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names of the features in TFRecords of your own."""

    image: Annotated[str, Meta(min_length=1, description="The encoded image, as bytes.")] = "image"
    label: Annotated[
        str, Meta(min_length=1, description="The class: its name as bytes, or an integer.")
    ] = "label"
    split: Annotated[
        str, Meta(description="Train, eval or test as bytes; empty: the records do not say.")
    ] = ""
    classes: Annotated[
        tuple[str, ...],
        Meta(description="Class names in the order of integer labels, from 0; empty: names."),
    ] = ()


class DropConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How images come in."""

    limits: ImageLimits = ImageLimits()
    split: SplitConfig = SplitConfig()
    features: FeaturesConfig = FeaturesConfig()
    near_duplicates: Annotated[
        bool,
        Meta(
            description="Keep recompressed and resized copies on the same side of the split. Exact "
            "copies are found in any case."
        ),
    ] = True
    max_quarantined: Annotated[
        Share,
        Meta(description="A drop of which a larger share cannot be used is refused as a whole."),
    ] = 0.2
    shard_bytes: Annotated[
        int, Meta(ge=1_000_000, description="Bytes of images in one TFRecord file, about.")
    ] = 64_000_000
