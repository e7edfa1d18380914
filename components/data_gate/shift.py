"""Whether the images of a span differ from those of the span before.

A shift is reported where it is both shown and material. Shown: less likely by chance, when the
images of both spans are thrown together and dealt out again, than the significance allows, over all
features together (Bonferroni). Material: more images would have to be others than is tolerated.
Either alone would not do: among many images chance excludes differences that matter to nobody, and
among few a large difference is chance.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from graftline.components.data_gate.config import DataGateConfig
from graftline.components.data_gate.summary import (
    IMAGE_FEATURES,
    LABEL,
    Numeric,
    SpanSummary,
    cumulative,
)
from graftline.components.verdict import OVERALL, Check

SHIFT = "shift"

_DEALS = 5_000
_DEALS_AT_ONCE = 100  # of thousands of classes each


def compare(new: SpanSummary, old: SpanSummary, config: DataGateConfig) -> list[Check]:
    """Compares a span with the one before.

    Args:
        new: the span that is judged.
        old: the span before.
        config: what is tolerated.

    Returns:
        One check per image feature that both spans have, and one for the class shares. Where either
        span has too few images there is a single one, undecided.
    """
    few = min(new, old, key=lambda summary: summary.images)
    if few.images < config.min_images:
        note = (
            f"span {few.span} holds {few.images} images: too few to compare span {new.span} with "
            f"span {old.span} (at least {config.min_images})"
        )
        return [Check(metric=SHIFT, slice=OVERALL, passed=None, note=note)]
    names = [name for name in IMAGE_FEATURES if name in new.features and name in old.features]
    significance = config.significance / (len(names) + 1)
    checks = [_feature(name, new, old, config.max_image_shift, significance) for name in names]
    return [*checks, _classes(new, old, config.max_class_shift, significance)]


def distance(new: Numeric, old: Numeric) -> float:
    """Largest difference of two cumulative distributions (Kolmogorov and Smirnov), 0 to 1."""
    edges = [edge for feature in (new, old) for part in feature.parts for edge in part.edges]
    at = np.unique(np.asarray(edges, np.float64))
    return max(
        float(
            np.abs(cumulative(new, at, inclusive=side) - cumulative(old, at, inclusive=side)).max()
        )
        for side in (False, True)
    )


def _feature(
    name: str, new: SpanSummary, old: SpanSummary, bound: float, significance: float
) -> Check:
    after, before = new.features[name], old.features[name]
    found = distance(after, before)
    # Kolmogorov's limit distribution: exact enough from some 30 images on, and on the safe side
    # where values are equal, as widths often are.
    chance = float(
        stats.kstwobign.sf(found * np.sqrt(new.images * old.images / (new.images + old.images)))
    )
    passed = found <= bound or chance >= significance
    instead = "instead of" if not passed else "after"
    return Check(
        metric=SHIFT,
        slice=name,
        candidate=after.mean,
        baseline=before.mean,
        threshold=bound,
        passed=passed,
        note=f"{name}: {_spread(after)} {instead} {_spread(before)} in span {old.span}, "
        f"{found:.0%} of the images differ ({bound:.0%} tolerated)",
    )


def _classes(new: SpanSummary, old: SpanSummary, bound: float, significance: float) -> Check:
    names = sorted({*new.classes, *old.classes})
    after = np.array([new.classes.get(name, 0) for name in names])
    before = np.array([old.classes.get(name, 0) for name in names])
    shares_after, shares_before = after / after.sum(), before / before.sum()
    found = float(np.abs(shares_after - shares_before).sum() / 2)
    passed = found <= bound or _chance(after, before) >= significance
    return Check(
        metric=SHIFT,
        slice=LABEL,
        candidate=found,
        threshold=bound,
        passed=passed,
        note=_moves(names, shares_after, shares_before, old.span)
        + f", {found:.0%} of the images differ in class ({bound:.0%} tolerated)",
    )


def _chance(after: np.ndarray, before: np.ndarray) -> float:
    """How often dealing the same images out again gives class counts this far from proportional.

    Pearson's chi-square by permutation: exact for classes with few images, too.
    """
    total = after + before
    expected = total * (after.sum() / total.sum())

    def distance(counts: np.ndarray) -> np.ndarray:
        return ((counts - expected) ** 2 / total).sum(axis=-1)

    # A fixed seed: the same two spans must always get the same answer.
    random = np.random.default_rng(0)
    dealt = np.concatenate(
        [
            distance(
                random.multivariate_hypergeometric(
                    total, int(after.sum()), size=_DEALS_AT_ONCE, method="marginals"
                )
            )
            for _ in range(_DEALS // _DEALS_AT_ONCE)
        ]
    )
    found = distance(after)
    return float((1 + np.count_nonzero(dealt >= found * (1 - 1e-9))) / (1 + _DEALS))


def _spread(feature: Numeric) -> str:
    spread = f" ± {feature.deviation:.1f}" if feature.deviation > 0.05 else ""
    return f"{feature.mean:.1f}{spread}"


def _moves(names: list[str], after: np.ndarray, before: np.ndarray, span: int) -> str:
    """The classes whose share changed most, in words."""
    largest = np.argsort(-np.abs(after - before), kind="stable")[:3]
    moves = ", ".join(f'"{names[i]}" {after[i]:.0%} instead of {before[i]:.0%}' for i in largest)
    return f"{LABEL}: {moves} in span {span}"
