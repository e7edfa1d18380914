"""The model gate as TFX runs it: an evaluation in, a standard ModelBlessing out."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from tfx.components.util import model_utils
from tfx.types import standard_artifacts

from graftline.components.model_gate import confusion
from graftline.components.model_gate.component import Executor
from graftline.components.model_gate.config import ModelGateConfig
from graftline.components.model_gate.predictions import Answer, Row, encode, read_predictions
from graftline.components.verdict import Verdict

CLASSES = ["rose", "tulip"]
TRUTH = ["rose", "tulip"] * 30


class Gate:
    """Runs the executor on answers that a test makes up."""

    def __init__(self, folder: Path):
        self.report_dir = folder / "run"
        self._folder = folder

    def judge(
        self,
        candidate: Sequence[str],
        baseline: Sequence[str] | None = None,
        label: Sequence[str] = TRUTH,
        bless_reason: str = "",
    ) -> standard_artifacts.ModelBlessing:
        evaluation = self._artifact(standard_artifacts.ModelEvaluation, "evaluation")
        write(Path(evaluation.uri), label, candidate, baseline)
        model = self._artifact(standard_artifacts.Model, "model", 5)
        in_service = self._artifact(standard_artifacts.Model, "in_service", 3)
        blessing = self._artifact(standard_artifacts.ModelBlessing, "blessing")
        Executor().Do(
            {
                "evaluation": [evaluation],
                "model": [model],
                "baseline": [] if baseline is None else [in_service],
            },
            {"blessing": [blessing]},
            {
                "config": msgspec.json.encode(ModelGateConfig()).decode(),
                "classes": msgspec.json.encode(CLASSES).decode(),
                "bless_reason": bless_reason,
                "baseline_version": 0 if baseline is None else 4,
                "report_dir": str(self.report_dir),
            },
        )
        return blessing

    @property
    def verdict(self) -> Verdict:
        return Verdict.read(self.report_dir / "model_gate.json")

    def _artifact(self, kind: type, name: str, number: int = 0) -> object:
        artifact = kind()
        artifact.uri, artifact.id = str(self._folder / name), number
        return artifact


def write(
    folder: Path,
    label: Sequence[str],
    candidate: Sequence[str],
    baseline: Sequence[str] | None = None,
) -> None:
    """Two shards of rows, as the Evaluator writes them."""
    rows = [
        Row(
            id=f"{i:064x}",
            label=true,
            candidate=Answer(named, 0.9, 0.1),
            baseline=None if baseline is None else Answer(baseline[i], 0.9, 0.1),
        )
        for i, (true, named) in enumerate(zip(label, candidate, strict=True))
    ]
    folder.mkdir(parents=True)
    for shard in range(2):
        lines = "".join(encode(row) + "\n" for row in rows[shard::2])
        path = folder / f"predictions-0000{shard}-of-00002.jsonl.gz"
        path.write_bytes(gzip.compress(lines.encode()))


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def test_a_good_candidate_is_blessed_in_the_way_that_tfx_understands(gate: Gate) -> None:
    blessing = gate.judge(TRUTH, baseline=TRUTH)
    assert model_utils.is_model_blessed(blessing)
    assert (Path(blessing.uri) / "BLESSED").exists()
    assert blessing.get_int_custom_property("current_model_id") == 5
    assert blessing.get_string_custom_property("current_model").endswith("/model")
    assert blessing.get_int_custom_property("baseline_model_id") == 3
    assert blessing.get_string_custom_property("baseline_model").endswith("/in_service")


def test_a_worse_candidate_is_not_blessed_and_the_reason_stands_beside(gate: Gate) -> None:
    blessing = gate.judge(["rose"] * 30 + TRUTH[30:], baseline=TRUTH)
    assert not model_utils.is_model_blessed(blessing)
    assert (Path(blessing.uri) / "NOT_BLESSED").exists()
    assert not (Path(blessing.uri) / "BLESSED").exists()
    assert Verdict.read(Path(blessing.uri) / "model_gate.json") == gate.verdict
    assert "accuracy against version 4" in gate.verdict.in_words()


def test_a_person_can_bless_a_refused_candidate_and_the_reason_is_recorded(gate: Gate) -> None:
    blessing = gate.judge(["rose"] * 60, bless_reason="the only model we have")
    assert model_utils.is_model_blessed(blessing)
    assert gate.verdict.passed
    assert gate.verdict.overridden == "the only model we have"
    assert gate.verdict.failed


def test_a_reason_that_was_not_needed_is_not_recorded(gate: Gate) -> None:
    gate.judge(TRUTH, bless_reason="to be sure")
    assert gate.verdict.overridden == ""


def test_without_a_version_in_service_nothing_is_compared(gate: Gate) -> None:
    blessing = gate.judge(TRUTH)
    assert "accuracy_change" not in {check.metric for check in gate.verdict.checks}
    assert not blessing.has_custom_property("baseline_model")


def test_an_empty_test_split_is_refused_not_a_crash(gate: Gate) -> None:
    blessing = gate.judge([], label=[])
    assert not model_utils.is_model_blessed(blessing)
    assert "nothing can be judged" in gate.verdict.in_words()


def test_the_confusion_matrix_is_drawn(gate: Gate) -> None:
    gate.judge(TRUTH)
    with Image.open(gate.report_dir / "confusion_matrix.png") as picture:
        assert picture.format == "PNG"


def test_class_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    classes = np.arange(2, dtype=np.int32)
    confusion.draw(classes, classes, [r"$\\frac$", "a_b^{"], tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").exists()


def test_of_more_classes_than_can_be_read_those_with_most_mistakes_are_drawn(
    tmp_path: Path,
) -> None:
    label = np.arange(30_000, dtype=np.int32)
    named = np.where(label % 1000 == 7, label + 1, label).astype(np.int32)
    named[5] = -1
    confusion.draw(label, named, [f"class {i}" for i in label], tmp_path / "matrix.png")
    with Image.open(tmp_path / "matrix.png") as picture:
        assert max(picture.size) < 4000


def test_rows_of_every_shard_become_arrays_in_the_order_of_the_classes(tmp_path: Path) -> None:
    write(tmp_path / "e", ["rose", "tulip", "lily"], ["rose", "lily", "rose"], ["lily"] * 3)
    found = read_predictions(tmp_path / "e", CLASSES)
    assert dict(zip(found.label, found.candidate, strict=True)) == {0: 0, 1: -1}
    assert found.baseline is not None
    assert found.baseline.tolist() == [-1, -1]
    assert found.unknown == {"lily": 1}


def test_confusion_counts_true_classes_by_row() -> None:
    label, named = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, -1])
    assert confusion.count(label, named, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
