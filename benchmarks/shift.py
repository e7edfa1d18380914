"""How often the data gate raises an alarm: on random resplits, and on planted changes.

    python benchmarks/shift.py FOLDER... [--draws 400] [--json FILE]

Each folder holds one sub-folder per class. Every image is examined as a drop does it. Then spans
are drawn from the same images without replacement: any alarm is a false one. Then one of the two
spans is changed (less or more light, fewer pixels, other class shares): how many draws raise an
alarm, is the share that was found. Summaries have as many quantiles as StatisticsGen keeps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd

from graftline.components.data_gate.config import DataGateConfig
from graftline.components.data_gate.shift import compare
from graftline.components.data_gate.summary import (
    IMAGE_FEATURES,
    QUANTILES,
    Numeric,
    Quantiles,
    SpanSummary,
)
from graftline.components.ingest.config import DropConfig
from graftline.components.ingest.examine import PixelBudget, examine
from graftline.serving.image_check import Limits, UnusableImage

# Images in the new span and in the one before.
_SIZES = ((30, 30), (100, 100), (100, 400), (500, 500))
_PLANTED_SIZES = ((100, 100), (250, 1000))
_SHARES = (0.8, 0.1, 0.1)

Change = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


def features(folder: Path) -> pd.DataFrame:
    """The numeric features and the class of every usable image below a folder."""
    limits = msgspec.convert(DropConfig(), Limits, from_attributes=True)
    budget = PixelBudget(limits.max_pixels)

    def one(path: Path) -> dict[str, object] | None:
        try:
            finding = examine(path.read_bytes(), limits, budget)
        except UnusableImage:
            return None
        numbers = {name: getattr(finding, name) for name in IMAGE_FEATURES}
        return {**numbers, "label": path.relative_to(folder).parent.name}

    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return pd.DataFrame([row for row in pool.map(one, paths) if row])


def summary(span: int, images: pd.DataFrame) -> SpanSummary:
    """What the gate keeps of a span that is divided into three splits."""
    borders = (np.cumsum((0.0, *_SHARES)) * len(images)).round().astype(int)
    splits = [images.iloc[a:b] for a, b in itertools.pairwise(borders)]
    return SpanSummary(
        span=span,
        version=1,
        images=len(images),
        features={
            name: Numeric(
                mean=float(images[name].mean()),
                deviation=float(images[name].std(ddof=0)),
                parts=tuple(_quantiles(split[name]) for split in splits),
            )
            for name in IMAGE_FEATURES
        },
        classes=images["label"].value_counts().to_dict(),
    )


def _quantiles(values: pd.Series) -> Quantiles:
    steps = np.linspace(0, 1, QUANTILES + 1)
    edges = np.quantile(values, steps, method="inverted_cdf")
    return Quantiles(edges=tuple(edges), below=tuple(steps * len(values)))


def _light(factor: float) -> Change:
    return lambda images, _: images.assign(
        luma_mean=(images.luma_mean * factor).clip(0, 255), luma_std=images.luma_std * factor
    )


def _pixels(factor: float, share: float) -> Change:
    def change(images: pd.DataFrame, chance: np.random.Generator) -> pd.DataFrame:
        scale = np.where(chance.random(len(images)) < share, factor, 1.0)
        return images.assign(width=images.width * scale, height=images.height * scale)

    return change


def _class_weight(weight: float) -> Change:
    """The most frequent class becomes so many times as frequent."""

    def change(images: pd.DataFrame, chance: np.random.Generator) -> pd.DataFrame:
        weights = np.where(images.label == images.label.value_counts().index[0], weight, 1.0)
        chosen = chance.choice(len(images), len(images) // 2, False, weights / weights.sum())
        return images.iloc[chosen]

    return change


PLANTED: dict[str, Change] = {
    "light x 0.9": _light(0.9),
    "light x 0.8": _light(0.8),
    "light x 0.7": _light(0.7),
    "light x 1.3": _light(1.3),
    "sides x 0.75": _pixels(0.75, 1.0),
    "half of the images: sides x 0.5": _pixels(0.5, 0.5),
    "largest class x 2": _class_weight(2),
    "largest class x 3": _class_weight(3),
    "largest class gone": _class_weight(0),
}


def alarms(
    images: pd.DataFrame, new: int, old: int, draws: int, change: Change | None = None
) -> float:
    """Share of the draws that raise an alarm.

    Args:
        images: all images of a set.
        new: images in the span that is judged.
        old: images in the span before.
        draws: how often.
        change: what is done to the span that is judged; class weights choose half of its images.
    """
    chance = np.random.default_rng(0)
    raised = 0
    for _ in range(draws):
        order = chance.permutation(len(images))
        after, before = images.iloc[order[: len(images) - old]], images.iloc[order[-old:]]
        if change:
            after = change(after, chance)
        checks = compare(summary(2, after.iloc[:new]), summary(1, before), DataGateConfig())
        raised += any(check.passed is False for check in checks)
    return raised / draws


def _measure(images: pd.DataFrame, draws: int) -> Iterator[tuple[str, int, int, float]]:
    for new, old in (*_SIZES, (len(images) // 2, len(images) // 2)):
        if new + old <= len(images):
            yield "none", new, old, alarms(images, new, old, draws)
    for new, old in _PLANTED_SIZES:
        for name, change in PLANTED.items():
            # Class weights choose from half as many.
            if 2 * new + old <= len(images):
                yield name, new, old, alarms(images, new, old, max(1, draws // 10), change)


def main() -> None:
    """Measures every set and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--draws", type=int, default=400, help="planted changes get a tenth")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    results = []
    print(f"{'set':<24}{'change':<34}{'new':>6}{'before':>8}{'alarms':>9}")
    for folder in options.folders:
        images = features(folder.resolve())
        if images.empty:
            sys.exit(f"No image in {folder}.")
        name = "/".join(folder.resolve().parts[-2:])
        for change, new, old, share in _measure(images, options.draws):
            results.append({"set": str(folder), "change": change, "new": new, "before": old})
            results[-1]["alarms"] = share
            print(f"{name:<24}{change:<34}{new:>6}{old:>8}{share:>9.2%}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
