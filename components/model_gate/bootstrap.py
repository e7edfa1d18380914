"""How sure the difference in accuracy of two models on the same images is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def difference_interval(
    candidate: NDArray[np.bool_],
    baseline: NDArray[np.bool_],
    *,
    confidence: float,
    resamples: int,
) -> tuple[float, float]:
    """Percentile interval of the paired bootstrap (Efron and Tibshirani, 1993, chapter 13).

    Images are drawn with replacement, each with what both models made of it. As an image counts +1,
    0 or -1, drawing images is drawing three counts, so that neither time nor memory depends on the
    number of images.

    Args:
        candidate: whether the candidate was right, bool (N,).
        baseline: whether the baseline was right on the same images, bool (N,).
        confidence: of the interval, e.g. 0.95.
        resamples: number of draws.

    Returns:
        Lower and upper bound of accuracy(candidate) - accuracy(baseline).
    """
    images = len(candidate)
    better = np.count_nonzero(candidate & ~baseline)
    worse = np.count_nonzero(baseline & ~candidate)
    shares = np.array([better, worse, images - better - worse]) / images
    # A fixed seed: the same predictions must always get the same verdict.
    draws = np.random.default_rng(0).multinomial(images, shares, size=resamples)
    differences = (draws[:, 0] - draws[:, 1]) / images
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
