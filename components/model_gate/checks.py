"""The rules of the model gate: from predictions on the test images to a table of checks.

A bound per class needs enough images of the class; with fewer it is undecidable, which is shown and
refuses nobody. The comparison with the version in service refuses only what is shown to be worse:
with 250 test images an equally good candidate often looks a few percent worse.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from graftline.components.model_gate.bootstrap import difference_interval
from graftline.components.model_gate.config import Bound, ModelGateConfig
from graftline.components.model_gate.predictions import Predictions
from graftline.components.verdict import OVERALL, Check


def judge(predictions: Predictions, config: ModelGateConfig, in_service: str = "") -> list[Check]:
    """All checks of a candidate.

    Args:
        predictions: what the models said about the test images.
        config: bounds and tolerance.
        in_service: what to call the version in service, empty where there is none.
    """
    images = len(predictions.label)
    if not images:
        note = (
            "accuracy: the test split of the training window holds no image of a class of the "
            "schema, so that nothing can be judged; drop more images"
        )
        return [Check(metric="accuracy", slice=OVERALL, passed=False, note=note)]
    checks = [_accuracy(predictions, config)]
    if in_service:
        checks.append(_comparison(predictions, config, in_service))
    checks += _recalls(predictions, config)
    checks += [_bound(bound, predictions, config) for bound in config.bounds]
    checks += [
        Check(
            metric="recall",
            slice=label,
            passed=None,
            note=f"{label}: the model does not know this class; {count} test images left out",
        )
        for label, count in sorted(predictions.unknown.items())
    ]
    return checks


def _accuracy(predictions: Predictions, config: ModelGateConfig) -> Check:
    images = len(predictions.label)
    found = float(np.mean(predictions.candidate == predictions.label))
    most_frequent = float(np.bincount(predictions.label).max() / images)
    if config.min_accuracy is None:
        bound, passed = most_frequent, found > most_frequent
        needed = f"more than {bound:.3f} needed, what always naming the most frequent class gives"
    else:
        bound, passed = config.min_accuracy, found >= config.min_accuracy
        needed = f"at least {bound:.3f} needed"
    note = f"accuracy: {found:.3f} on {images} test images, {needed}"
    # Without a judgement of the whole a candidate would pass unseen.
    if images < config.min_test_images:
        passed = False
        note = (
            f"accuracy: only {images} test images, at least {config.min_test_images} are needed to "
            "judge a model; drop more images"
        )
    return Check(
        metric="accuracy",
        slice=OVERALL,
        candidate=found,
        baseline=_baseline_accuracy(predictions, np.ones(images, bool)),
        threshold=bound,
        passed=passed,
        note=note,
    )


def _comparison(predictions: Predictions, config: ModelGateConfig, in_service: str) -> Check:
    metric = "accuracy_change"
    if predictions.baseline is None:
        note = (
            f"{in_service}, now in service, cannot be compared with: it lacks the signature on "
            "tf.Examples that versions of this program have; bless the candidate to replace it"
        )
        return Check(metric=metric, slice=OVERALL, passed=False, note=note)
    known = predictions.known
    images = int(known.sum())
    if not images:
        note = (
            f"{in_service}, now in service, knows none of the classes of the test images; publish "
            "under another model name, or bless this one"
        )
        return Check(metric=metric, slice=OVERALL, passed=False, note=note)
    label = predictions.label[known]
    candidate = predictions.candidate[known] == label
    baseline = predictions.baseline[known] == label
    low, high = difference_interval(
        candidate, baseline, confidence=config.confidence, resamples=config.resamples
    )
    worse = high < -config.tolerance
    enough = images >= config.min_test_images
    new = sorted({predictions.classes[i] for i in np.unique(predictions.label[~known])})
    note = (
        f"accuracy against {in_service}: {candidate.mean():.3f} instead of {baseline.mean():.3f} "
        f"on {images} images, a change between {low:+.3f} and {high:+.3f}; "
    )
    if not enough:
        note += f"too few images to tell (at least {config.min_test_images})"
    elif worse:
        note += f"worse by more than the {config.tolerance:.3f} tolerated"
    else:
        note += f"not shown to be worse by more than {config.tolerance:.3f}"
    if new:
        note += f"; left out, because {in_service} does not know them: {', '.join(new)}"
    return Check(
        metric=metric,
        slice=OVERALL,
        candidate=float(candidate.mean()),
        baseline=float(baseline.mean()),
        threshold=-config.tolerance,
        passed=not worse if enough else None,
        note=note,
    )


def _recalls(predictions: Predictions, config: ModelGateConfig) -> Iterator[Check]:
    for i, name in enumerate(predictions.classes):
        mine = predictions.label == i
        bound = Bound(metric="recall", slice=name, at_least=config.min_class_recall)
        yield _bound(bound, predictions, config, _baseline_accuracy(predictions, mine))


def _bound(
    bound: Bound,
    predictions: Predictions,
    config: ModelGateConfig,
    baseline: float | None = None,
) -> Check:
    if bound.slice == OVERALL:
        images = len(predictions.label)
    else:
        images = int(np.sum(predictions.label == predictions.classes.index(bound.slice)))
    found = _measure(bound, predictions) if images else None
    enough = images >= config.min_test_images
    where = "" if bound.slice == OVERALL else f" of {bound.slice}"
    note = f"{bound.metric}{where}: "
    note += "no test images" if found is None else f"{found:.3f} on {images} test images"
    note += (
        f", at least {bound.at_least:.3f} needed"
        if enough
        else f", too few to tell (at least {config.min_test_images})"
    )
    return Check(
        metric=bound.metric,
        slice=bound.slice,
        candidate=found,
        baseline=baseline,
        threshold=bound.at_least,
        passed=found is not None and found >= bound.at_least if enough else None,
        note=note,
    )


def _measure(bound: Bound, predictions: Predictions) -> float:
    label, named = predictions.label, predictions.candidate
    if bound.metric == "accuracy":
        return float(np.mean(label == named))
    if bound.metric == "balanced_accuracy":
        right = np.bincount(label[label == named], minlength=len(predictions.classes))
        there = np.bincount(label, minlength=len(predictions.classes))
        return float(np.mean(right[there > 0] / there[there > 0]))
    index = predictions.classes.index(bound.slice)
    hits = int(np.sum((label == index) & (named == index)))
    possible = {
        "recall": np.sum(label == index),
        "precision": np.sum(named == index),
        "f1": (np.sum(label == index) + np.sum(named == index)) / 2,
    }[bound.metric]
    return float(hits / possible) if possible else 0.0


def _baseline_accuracy(predictions: Predictions, of: NDArray[np.bool_]) -> float | None:
    chosen = of & predictions.known
    if predictions.baseline is None or not chosen.any():
        return None
    return float(np.mean(predictions.baseline[chosen] == predictions.label[chosen]))
