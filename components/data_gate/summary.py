"""What one span looks like: the few numbers that the comparison with the next span needs.

Read from the statistics of StatisticsGen, all splits together: a split is a hash of the image, so
the splits of a span differ by chance only. Every data blessing keeps a copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from tensorflow_metadata.proto.v0 import statistics_pb2

IMAGE_FEATURES = ("width", "height", "channels", "byte_size", "luma_mean", "luma_std")
LABEL = "label"

# Quantiles that StatisticsGen should keep. TFDV's default of 10 blurs a distribution by up to a
# tenth of the images, which is as much as the shifts that are looked for.
QUANTILES = 100


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """The values of one split.

    Attributes:
        edges: ascending values; one that stands several times is shared by many images.
        below: of every edge, how many values lie below it in this order.
    """

    edges: tuple[float, ...]
    below: tuple[float, ...]


class Numeric(msgspec.Struct, frozen=True, kw_only=True):
    """One numeric feature of a span.

    Attributes:
        mean: arithmetic mean.
        deviation: standard deviation.
        parts: the quantiles of each split that holds images.
    """

    mean: float
    deviation: float
    parts: tuple[Quantiles, ...]


class SpanSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One span.

    Attributes:
        span: its number.
        version: its version.
        images: number of images in all splits.
        features: the numeric image features by name.
        classes: images per class name.
    """

    span: int
    version: int
    images: int
    features: dict[str, Numeric]
    classes: dict[str, int]

    def write(self, path: Path) -> None:
        """Writes the summary as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(self))

    @staticmethod
    def read(path: Path) -> SpanSummary:
        """Reads a summary that `write` wrote."""
        return msgspec.json.decode(path.read_bytes(), type=SpanSummary)


def summarize(
    span: int, version: int, splits: Iterable[statistics_pb2.DatasetFeatureStatistics]
) -> SpanSummary:
    """Puts the statistics of a span's splits together.

    Args:
        span: number of the span.
        version: its version.
        splits: TFDV's statistics of each split.
    """
    images = 0
    numeric: dict[str, list[statistics_pb2.NumericStatistics]] = {}
    classes: dict[str, int] = {}
    for split in splits:
        images += split.num_examples
        for feature in split.features:
            name = feature.path.step[0]
            if name in IMAGE_FEATURES and feature.num_stats.common_stats.num_non_missing:
                numeric.setdefault(name, []).append(feature.num_stats)
            if name == LABEL:
                for bucket in feature.string_stats.rank_histogram.buckets:
                    classes[bucket.label] = classes.get(bucket.label, 0) + round(
                        bucket.sample_count
                    )
    return SpanSummary(
        span=span,
        version=version,
        images=images,
        features={name: _pool(parts) for name, parts in numeric.items()},
        classes=classes,
    )


def cumulative(
    feature: Numeric, at: NDArray[np.float64], *, inclusive: bool
) -> NDArray[np.float64]:
    """Share of a feature's values that lie below given points.

    Args:
        feature: the feature.
        at: points, float64 (n,), ascending.
        inclusive: count values that equal a point, too.

    Returns:
        float64 (n,), 0 to 1; linear between quantiles.
    """
    counts = np.zeros(len(at))
    total = 0.0
    for part in feature.parts:
        edges, below = np.asarray(part.edges), np.asarray(part.below)
        # Among equal edges the count jumps: a point that equals them is before or behind the jump.
        index = np.searchsorted(edges, at, side="right" if inclusive else "left")
        left, right = np.maximum(index - 1, 0), np.minimum(index, len(edges) - 1)
        width = edges[right] - edges[left]
        inner = np.divide(at - edges[left], width, out=np.zeros_like(at), where=width > 0)
        counts += below[left] + inner * (below[right] - below[left])
        total += below[-1]
    return counts / total


def _pool(parts: list[statistics_pb2.NumericStatistics]) -> Numeric:
    counts = np.array([part.common_stats.num_non_missing for part in parts], np.float64)
    means = np.array([part.mean for part in parts])
    squares = np.array([part.std_dev for part in parts]) ** 2 + means**2
    mean = np.average(means, weights=counts)
    square = np.average(squares, weights=counts)
    return Numeric(
        mean=float(mean),
        deviation=float(np.sqrt(max(square - mean**2, 0.0))),
        parts=tuple(_quantiles(part) for part in parts),
    )


def _quantiles(part: statistics_pb2.NumericStatistics) -> Quantiles:
    buckets = next(
        histogram.buckets
        for histogram in part.histograms
        if histogram.type == statistics_pb2.Histogram.QUANTILES
    )
    shares = np.cumsum([0.0, *(bucket.sample_count for bucket in buckets)])
    return Quantiles(
        edges=(buckets[0].low_value, *(bucket.high_value for bucket in buckets)),
        below=tuple(float(share) for share in shares),
    )
