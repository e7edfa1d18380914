"""The rules by which a candidate is judged."""

import numpy as np
import pytest

from graftline.components.model_gate.bootstrap import difference_interval
from graftline.components.model_gate.checks import judge
from graftline.components.model_gate.config import Bound, ModelGateConfig
from graftline.components.model_gate.predictions import Predictions
from graftline.components.verdict import Check

CLASSES = ("rose", "tulip", "aster")


def predictions(
    label: list[int],
    candidate: list[int],
    baseline: list[int] | None = None,
    known: list[bool] | None = None,
    unknown: dict[str, int] | None = None,
) -> Predictions:
    return Predictions(
        classes=CLASSES,
        label=np.array(label, np.int32),
        candidate=np.array(candidate, np.int32),
        baseline=None if baseline is None else np.array(baseline, np.int32),
        known=np.array([baseline is not None] * len(label) if known is None else known, bool),
        unknown=unknown or {},
    )


def answers(label: list[int], right: float, seed: int = 0) -> list[int]:
    """What a model answers that is right with a probability, image by image."""
    random = np.random.default_rng(seed)
    hit = random.random(len(label)) < right
    return np.where(hit, label, (np.array(label) + 1) % len(CLASSES)).tolist()


def found(checks: list[Check], metric: str, of: str = "overall") -> Check:
    return next(check for check in checks if (check.metric, check.slice) == (metric, of))


THREE_EACH = [0, 1, 2] * 40


def test_a_good_first_candidate_passes_every_check() -> None:
    checks = judge(predictions(THREE_EACH, THREE_EACH), ModelGateConfig())
    assert all(check.passed for check in checks)
    assert found(checks, "accuracy").candidate == 1.0


def test_always_naming_the_most_frequent_class_is_refused_by_default() -> None:
    label = [0] * 60 + [1] * 20 + [2] * 20
    checks = judge(predictions(label, [0] * 100), ModelGateConfig())
    assert found(checks, "accuracy").passed is False
    assert "what always naming the most frequent class gives" in found(checks, "accuracy").note


def test_an_accuracy_below_the_configured_bound_is_refused_and_at_it_is_not() -> None:
    candidate = [0, 1, 2] * 30 + [1, 2, 0] * 10
    refused = judge(predictions(THREE_EACH, candidate), ModelGateConfig(min_accuracy=0.76))
    assert found(refused, "accuracy").passed is False
    assert found(refused, "accuracy").note == (
        "accuracy: 0.750 on 120 test images, at least 0.760 needed"
    )
    passed = judge(predictions(THREE_EACH, candidate), ModelGateConfig(min_accuracy=0.75))
    assert found(passed, "accuracy").passed


def test_a_class_that_is_hardly_recognised_is_refused_by_name() -> None:
    candidate = [0 if name == 1 else name for name in THREE_EACH]
    checks = judge(predictions(THREE_EACH, candidate), ModelGateConfig())
    assert [check.slice for check in checks if check.passed is False] == ["tulip"]
    assert found(checks, "recall", "tulip").note == (
        "recall of tulip: 0.000 on 40 test images, at least 0.100 needed"
    )


@pytest.mark.parametrize("right", [True, False])
def test_a_class_with_too_few_test_images_is_undecidable_whatever_was_found(right: bool) -> None:
    label = [0] * 40 + [1] * 40 + [2] * 9
    candidate = [0] * 40 + [1] * 40 + [2 if right else 0] * 9
    checks = judge(predictions(label, candidate), ModelGateConfig())
    assert found(checks, "recall", "aster").passed is None
    assert "on 9 test images, too few to tell" in found(checks, "recall", "aster").note


def test_a_class_without_test_images_is_undecidable() -> None:
    checks = judge(predictions([0, 1] * 20, [0, 1] * 20), ModelGateConfig())
    assert found(checks, "recall", "aster").passed is None
    assert found(checks, "recall", "aster").candidate is None


def test_no_test_images_at_all_are_refused_with_words() -> None:
    (check,) = judge(predictions([], []), ModelGateConfig(), "version 3")
    assert check.passed is False
    assert "nothing can be judged" in check.note


def test_a_handful_of_test_images_is_refused_rather_than_passed_unseen() -> None:
    checks = judge(predictions([0, 1, 2], [0, 1, 2]), ModelGateConfig())
    assert found(checks, "accuracy").passed is False
    assert "only 3 test images, at least 10" in found(checks, "accuracy").note


def test_images_of_a_class_that_the_model_does_not_know_are_counted_and_left_out() -> None:
    checks = judge(predictions(THREE_EACH, THREE_EACH, unknown={"lily": 7}), ModelGateConfig())
    assert found(checks, "recall", "lily").passed is None
    assert "7 test images left out" in found(checks, "recall", "lily").note
    assert found(checks, "accuracy").candidate == 1.0


def test_a_candidate_that_is_clearly_worse_than_the_version_in_service_is_refused() -> None:
    label = THREE_EACH * 2
    judged = predictions(label, answers(label, 0.80, seed=1), answers(label, 0.95, seed=2))
    check = found(judge(judged, ModelGateConfig(), "version 4"), "accuracy_change")
    assert check.passed is False
    assert check.note.startswith("accuracy against version 4: 0.8")
    assert "worse by more than the 0.010 tolerated" in check.note


def test_equally_good_candidates_are_rarely_refused() -> None:
    label = THREE_EACH * 2
    refused = 0
    for seed in range(200):
        judged = predictions(
            label, answers(label, 0.9, seed=2 * seed), answers(label, 0.9, seed=2 * seed + 1)
        )
        config = ModelGateConfig(resamples=1000)
        refused += found(judge(judged, config, "version 1"), "accuracy_change").passed is False
    assert refused <= 6


def test_what_is_worse_by_less_than_the_tolerance_is_not_refused() -> None:
    label = THREE_EACH * 100
    candidate = [(name + 1) % 3 if i % 50 == 0 else name for i, name in enumerate(label)]
    judged = predictions(label, candidate, label)
    strict, lenient = ModelGateConfig(tolerance=0.01), ModelGateConfig(tolerance=0.03)
    assert found(judge(judged, strict, "version 1"), "accuracy_change").passed is False
    assert found(judge(judged, lenient, "version 1"), "accuracy_change").passed is True


def test_a_few_images_do_not_decide_a_comparison() -> None:
    judged = predictions([0, 1, 2] * 3, [1, 2, 0] * 3, [0, 1, 2] * 3)
    assert found(judge(judged, ModelGateConfig(), "version 1"), "accuracy_change").passed is None


def test_a_baseline_with_fewer_classes_is_compared_on_those_that_both_know() -> None:
    known = [name != 2 for name in THREE_EACH]
    baseline = [name if name != 2 else 0 for name in THREE_EACH]
    check = found(
        judge(predictions(THREE_EACH, THREE_EACH, baseline, known), ModelGateConfig(), "version 1"),
        "accuracy_change",
    )
    assert check.passed
    assert check.baseline == 1.0
    assert "on 80 images" in check.note
    assert check.note.endswith("because version 1 does not know them: aster")


def test_a_baseline_without_a_class_in_common_is_refused_with_words() -> None:
    judged = predictions(THREE_EACH, THREE_EACH, [-1] * 120, [False] * 120)
    check = found(judge(judged, ModelGateConfig(), "version 1"), "accuracy_change")
    assert check.passed is False
    assert "knows none of the classes" in check.note


def test_a_baseline_that_gave_no_answers_is_refused_with_words() -> None:
    judged = predictions(THREE_EACH, THREE_EACH)
    check = found(judge(judged, ModelGateConfig(), "version 1"), "accuracy_change")
    assert check.passed is False
    assert "cannot be compared with" in check.note


def test_bounds_of_the_user_are_applied_to_their_metric_and_slice() -> None:
    # Of 40 roses 30 are named rose; so are 10 tulips.
    candidate = [0] * 30 + [2] * 10 + [1] * 30 + [0] * 10 + [2] * 40
    label = [0] * 40 + [1] * 40 + [2] * 40
    bounds = (
        Bound(metric="precision", slice="rose", at_least=0.8),
        Bound(metric="f1", slice="tulip", at_least=0.8),
        Bound(metric="balanced_accuracy", at_least=0.8),
    )
    checks = judge(predictions(label, candidate), ModelGateConfig(bounds=bounds))
    assert found(checks, "precision", "rose").candidate == pytest.approx(0.75)
    assert found(checks, "precision", "rose").passed is False
    assert found(checks, "f1", "tulip").candidate == pytest.approx(2 * 30 / 70)
    assert found(checks, "f1", "tulip").passed is True
    assert found(checks, "balanced_accuracy").candidate == pytest.approx((0.75 + 0.75 + 1) / 3)


@pytest.mark.parametrize(
    ("metric", "of", "message"),
    [("accuracy", "rose", "use recall"), ("precision", "overall", "measured per class")],
)
def test_a_bound_on_a_slice_that_its_metric_does_not_have_is_impossible(
    metric: str, of: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Bound(metric=metric, slice=of, at_least=0.5)  # type: ignore[arg-type]


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        baseline = random.random(250) < 0.9
        candidate = np.where(random.random(250) < 0.9, baseline, random.random(250) < 0.4)
        low, high = difference_interval(candidate, baseline, confidence=0.95, resamples=1000)
        covered += low <= -0.05 <= high
    assert covered / 300 > 0.9


def test_the_same_predictions_always_get_the_same_interval() -> None:
    right, wrong = np.array(answers(THREE_EACH, 0.9)) == THREE_EACH, np.zeros(120, bool)
    first, second = (
        difference_interval(right, wrong, confidence=0.95, resamples=1000) for _ in range(2)
    )
    assert first == second
