"""The comparison of a span with the span before."""

import numpy as np
import pandas as pd
import pytest
import tensorflow_data_validation as tfdv

from graftline.components.data_gate.config import DataGateConfig
from graftline.components.data_gate.shift import compare, distance
from graftline.components.data_gate.summary import (
    IMAGE_FEATURES,
    QUANTILES,
    Numeric,
    Quantiles,
    SpanSummary,
    summarize,
)
from graftline.components.verdict import Check

CLASSES = ("rose", "tulip", "aster", "daisy", "lily")


def images(count: int, seed: int = 0) -> pd.DataFrame:
    """Features of photographs: two widths, one height, colour, continuous brightness."""
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "width": np.where(random.random(count) < 0.7, 320, 240),
            "height": 227,
            "channels": 3,
            "byte_size": random.lognormal(10, 0.5, count).astype(int),
            "luma_mean": random.normal(110, 30, count).clip(0, 255),
            "luma_std": random.gamma(9, 6, count).clip(0, 127),
            "label": random.choice(CLASSES, count),
        }
    )


def summary(frame: pd.DataFrame, span: int = 1) -> SpanSummary:
    """What `summarize` makes of a span, without TFDV's pass over the data."""
    steps = np.linspace(0, 1, QUANTILES + 1)
    return SpanSummary(
        span=span,
        version=1,
        images=len(frame),
        features={
            name: Numeric(
                mean=frame[name].mean(),
                deviation=frame[name].std(ddof=0),
                parts=(
                    Quantiles(
                        edges=tuple(np.quantile(frame[name], steps, method="inverted_cdf")),
                        below=tuple(steps * len(frame)),
                    ),
                ),
            )
            for name in IMAGE_FEATURES
        },
        classes=frame["label"].value_counts().to_dict(),
    )


def alarms(
    new: pd.DataFrame, old: pd.DataFrame, config: DataGateConfig | None = None
) -> list[Check]:
    checks = compare(summary(new, span=2), summary(old), config or DataGateConfig())
    return [check for check in checks if check.passed is False]


@pytest.mark.parametrize("size", [40, 400])
def test_at_most_one_in_twenty_random_resplits_of_the_same_images_raises_an_alarm(
    size: int,
) -> None:
    frame = images(2 * size)
    random = np.random.default_rng(1)
    raised = 0
    for _ in range(60):
        order = random.permutation(len(frame))
        raised += bool(alarms(frame.iloc[order[:size]], frame.iloc[order[size:]]))
    assert raised <= 3


def test_images_of_another_brightness_are_flagged_with_both_values_in_words() -> None:
    darker = images(100, seed=1).assign(luma_mean=lambda frame: frame["luma_mean"] * 0.6)
    (alarm,) = alarms(darker, images(100))
    assert alarm.slice == "luma_mean"
    assert alarm.note.startswith("luma_mean: 6")
    assert "instead of 1" in alarm.note
    assert "in span 1" in alarm.note


def test_a_constant_size_that_becomes_another_constant_size_is_flagged() -> None:
    larger = images(100, seed=1).assign(height=300)
    (alarm,) = alarms(larger, images(100))
    assert alarm.note.startswith("height: 300.0 instead of 227.0 in span 1, 100% of the images")


def test_a_spread_that_changes_around_the_same_mean_is_flagged() -> None:
    flatter = images(500, seed=1).assign(luma_mean=lambda f: 110 + (f["luma_mean"] - 110) * 0.2)
    assert [alarm.slice for alarm in alarms(flatter, images(500))] == ["luma_mean"]


def test_a_class_that_crowds_out_the_others_is_flagged_by_name() -> None:
    frame = images(200, seed=1)
    frame.loc[:99, "label"] = "tulip"
    (alarm,) = alarms(frame, images(200))
    assert alarm.slice == "label"
    assert alarm.note.startswith('label: "tulip" 6')


def test_a_class_that_vanishes_is_flagged() -> None:
    frame = images(300, seed=1)
    assert alarms(frame[frame["label"] != "rose"], images(300))


def test_a_difference_below_the_bound_is_let_through_however_many_images_show_it() -> None:
    brighter = images(20_000, seed=1).assign(luma_mean=lambda frame: frame["luma_mean"] + 5)
    assert not alarms(brighter, images(20_000))
    strict = DataGateConfig(max_image_shift=0.02)
    assert [alarm.slice for alarm in alarms(brighter, images(20_000), strict)] == ["luma_mean"]


def test_three_images_are_undecidable_rather_than_an_alarm() -> None:
    three = images(3).assign(height=5000, label="rose")
    (check,) = compare(summary(three, span=2), summary(images(500)), DataGateConfig())
    assert check.passed is None
    assert "span 2 holds 3 images: too few" in check.note


def test_few_images_in_the_span_before_are_undecidable_too() -> None:
    (check,) = compare(summary(images(500), span=2), summary(images(3)), DataGateConfig())
    assert check.passed is None
    assert "span 1 holds 3 images: too few" in check.note


def test_splits_together_describe_the_span_as_tfdv_saw_it() -> None:
    frame = images(400)
    splits = [
        tfdv.generate_statistics_from_dataframe(
            part, tfdv.StatsOptions(num_quantiles_histogram_buckets=QUANTILES)
        ).datasets[0]
        for part in (frame[:300], frame[300:360], frame[360:], frame[:0])
    ]
    found = summarize(7, 2, splits)
    expected = summary(frame)
    assert (found.span, found.version, found.images) == (7, 2, 400)
    assert found.classes == expected.classes
    for name in IMAGE_FEATURES:
        assert found.features[name].mean == pytest.approx(frame[name].mean())
        assert found.features[name].deviation == pytest.approx(frame[name].std(ddof=0), abs=1e-6)
        assert distance(found.features[name], expected.features[name]) < 0.02


def test_the_distance_of_two_samples_is_that_of_their_distributions() -> None:
    low = summary(images(1000)).features["luma_mean"]
    high = summary(images(1000).assign(luma_mean=lambda f: f["luma_mean"] + 1000)).features[
        "luma_mean"
    ]
    assert distance(low, low) == 0
    assert distance(low, high) == 1
