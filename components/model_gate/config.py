"""Configuration of the model gate."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from graftline.components.verdict import OVERALL

Share = Annotated[float, Meta(ge=0, le=1)]


class Bound(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bound of the user's own, e.g. `{metric: precision, slice: tulip, at_least: 0.8}`."""

    metric: Literal["accuracy", "balanced_accuracy", "recall", "precision", "f1"]
    at_least: Share
    slice: str = OVERALL

    def __post_init__(self) -> None:
        overall = self.metric in ("accuracy", "balanced_accuracy")
        if overall and self.slice != OVERALL:
            raise ValueError(
                f"{self.metric} is measured overall; for the class {self.slice!r} use recall, "
                "precision or f1"
            )
        if not overall and self.slice == OVERALL:
            raise ValueError(f"{self.metric} is measured per class: name it in `slice`")


class ModelGateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a candidate must reach on the test images before it is published."""

    min_accuracy: Annotated[
        Share | None,
        Meta(
            description="Smallest accuracy; null: more than always naming the most frequent class."
        ),
    ] = None
    min_class_recall: Annotated[
        Share,
        Meta(
            description="Smallest share of a class's images that are recognised, for every class."
        ),
    ] = 0.1
    min_test_images: Annotated[
        int,
        Meta(
            ge=1,
            description="With fewer test images of a class, or in all, a bound is called "
            "undecidable: it is shown, and neither passes nor refuses.",
        ),
    ] = 10
    tolerance: Annotated[
        Share,
        Meta(
            description="How much less accurate than the version in service a candidate may be; it "
            "is refused when more than that is shown.",
        ),
    ] = 0.01
    confidence: Annotated[
        float,
        Meta(gt=0, lt=1, description="Confidence of the interval around that difference."),
    ] = 0.95
    resamples: Annotated[
        int, Meta(ge=100, description="Resamples of the paired bootstrap behind the interval.")
    ] = 10_000
    bounds: Annotated[
        tuple[Bound, ...],
        Meta(
            description="Bounds of your own: metric is accuracy or balanced_accuracy, or, with a "
            "class as slice, recall, precision or f1; at_least is the bound."
        ),
    ] = ()
