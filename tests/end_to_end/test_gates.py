"""Gates and Evaluator on real records, real statistics and real SavedModels."""

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import tensorflow as tf
import tensorflow_data_validation as tfdv
import tensorflow_model_analysis as tfma
from tfx.components.example_validator.executor import Executor as ValidatorExecutor
from tfx.components.statistics_gen.executor import Executor as StatisticsExecutor
from tfx.components.util import model_utils
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import proto_utils

from graftline.components.data_gate.component import DataBlessing
from graftline.components.data_gate.component import Executor as DataGateExecutor
from graftline.components.data_gate.config import DataGateConfig
from graftline.components.model_gate.component import Executor as ModelGateExecutor
from graftline.components.model_gate.config import ModelGateConfig
from graftline.components.model_gate.evaluator import Executor as EvaluatorExecutor
from graftline.components.model_gate.predictions import read_rows
from graftline.components.verdict import Verdict
from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.beam.options import beam_options
from graftline.pipeline.evaluation import eval_config
from graftline.schemas import curated
from graftline.serving.errors import Refused

pytestmark = pytest.mark.end_to_end

CLASSES = ["rose", "tulip", "aster"]
BEAM = beam_options(BeamConfig(), "drop")


class Model(tf.Module):
    """Takes the first character of an image for the number of its class."""

    def __init__(self, classes: Sequence[str]):
        super().__init__()
        self._classes = tf.constant(list(classes))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def serving_examples(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(inputs, {"image": tf.io.FixedLenFeature([], tf.string)})
        number = tf.strings.to_number(tf.strings.substr(parsed["image"], 0, 1), tf.int32)
        count = tf.shape(self._classes)[0]
        return {
            "classes": tf.repeat(self._classes[None], tf.shape(number)[0], axis=0),
            "scores": 0.7 * tf.one_hot(number % count, count) + 0.3 / tf.cast(count, tf.float32),
        }


def save(folder: Path, classes: Sequence[str], signature: str = "serving_examples") -> None:
    model = Model(classes)
    tf.saved_model.save(
        model, str(folder / "Format-Serving"), signatures={signature: model.serving_examples}
    )


def record(number: int, label: str, image: bytes, size: int = 227) -> bytes:
    values = {
        "image": image,
        "label": label.encode(),
        "id": b"%064x" % number,
        "group": b"%064x" % number,
        "width": size,
        "height": size,
        "channels": 3,
        "byte_size": len(image) + number % 50,
        "luma_mean": 100.0 + number % 40,
        "luma_std": 50.0 + number % 20,
    }
    lists = {
        bytes: lambda value: {"bytes_list": tf.train.BytesList(value=[value])},
        int: lambda value: {"int64_list": tf.train.Int64List(value=[value])},
        float: lambda value: {"float_list": tf.train.FloatList(value=[value])},
    }
    feature = {
        name: tf.train.Feature(**lists[type(value)](value)) for name, value in values.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def write(folder: Path, splits: dict[str, list[bytes]]) -> standard_artifacts.Examples:
    for split, records in splits.items():
        (folder / f"Split-{split}").mkdir(parents=True)
        path = folder / f"Split-{split}" / "images-00000-of-00001.gz"
        with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
            for content in records:
                writer.write(content)
    examples = artifact(standard_artifacts.Examples, folder)
    examples.split_names = artifact_utils.encode_split_names(list(splits))
    return examples


def artifact(kind: type, folder: Path) -> object:
    made = kind()
    made.uri = str(folder)
    return made


def schema(folder: Path) -> standard_artifacts.Schema:
    curated.write(curated.build(CLASSES), folder / "schema.pbtxt")
    return artifact(standard_artifacts.Schema, folder)


def context(kind: type, folder: Path) -> object:
    return kind.Context(beam_pipeline_args=[*BEAM], tmp_dir=str(folder / "tmp"), unique_id="1")


def take_in(
    folder: Path, span: int, splits: dict[str, list[bytes]], previous: list[DataBlessing]
) -> DataBlessing:
    """StatisticsGen, ExampleValidator and the data gate on one span."""
    folder = folder / f"span-{span}"
    examples = write(folder / "examples", splits)
    examples.set_int_custom_property("span", span)
    examples.set_int_custom_property("version", 1)
    curated_schema = schema(folder / "schema")
    statistics = artifact(standard_artifacts.ExampleStatistics, folder / "statistics")
    anomalies = artifact(standard_artifacts.ExampleAnomalies, folder / "anomalies")
    blessing = artifact(DataBlessing, folder / "blessing")
    options = tfdv.StatsOptions(feature_allowlist=list(curated.DESCRIBED_FEATURES))
    StatisticsExecutor(context(StatisticsExecutor, folder)).Do(
        {"examples": [examples], "schema": [curated_schema]},
        {"statistics": [statistics]},
        {"stats_options_json": options.to_json()},
    )
    ValidatorExecutor().Do(
        {"statistics": [statistics], "schema": [curated_schema]}, {"anomalies": [anomalies]}, {}
    )
    DataGateExecutor().Do(
        {
            "examples": [examples],
            "statistics": [statistics],
            "anomalies": [anomalies],
            "previous": previous,
        },
        {"blessing": [blessing]},
        {
            "config": msgspec.json.encode(DataGateConfig()).decode(),
            "accept_reason": "",
            "report_dir": str(folder / "run"),
        },
    )
    return blessing


def evaluate(
    folder: Path, records: list[bytes], *, baseline: bool = False
) -> standard_artifacts.ModelEvaluation:
    """Our Evaluator on the models in `candidate` and `baseline`."""
    evaluation = artifact(standard_artifacts.ModelEvaluation, folder / "evaluation")
    inputs = {
        "examples": [write(folder / "examples", {"test": records})],
        "model": [artifact(standard_artifacts.Model, folder / "candidate")],
        "schema": [schema(folder / "schema")],
        "baseline_model": [artifact(standard_artifacts.Model, folder / "baseline")] * baseline,
    }
    EvaluatorExecutor(context(EvaluatorExecutor, folder)).Do(
        inputs,
        {
            "evaluation": [evaluation],
            "blessing": [artifact(standard_artifacts.ModelBlessing, folder / "unused")],
        },
        {
            "eval_config": proto_utils.proto_to_json(eval_config(ModelGateConfig(), CLASSES)),
            "example_splits": json.dumps(["test"]),
        },
    )
    return evaluation


def judge(
    folder: Path, evaluation: standard_artifacts.ModelEvaluation, *, baseline: bool = False
) -> tuple[bool, Verdict]:
    """The model gate on an evaluation: whether it blessed, and its verdict."""
    blessing = artifact(standard_artifacts.ModelBlessing, folder / "blessing")
    ModelGateExecutor().Do(
        {
            "evaluation": [evaluation],
            "model": [artifact(standard_artifacts.Model, folder / "candidate")],
            "baseline": [artifact(standard_artifacts.Model, folder / "baseline")] * baseline,
        },
        {"blessing": [blessing]},
        {
            "config": msgspec.json.encode(ModelGateConfig()).decode(),
            "classes": msgspec.json.encode(CLASSES).decode(),
            "bless_reason": "",
            "baseline_version": int(baseline),
            "report_dir": str(folder / "run"),
        },
    )
    return model_utils.is_model_blessed(blessing), Verdict.read(folder / "run/model_gate.json")


def images(count: int, wrong_every: int = 10) -> list[bytes]:
    """Test images of which the model takes every tenth for the next class."""
    return [
        record(i, CLASSES[i % 3], b"%d..." % ((i + (i % wrong_every == 0)) % 3))
        for i in range(count)
    ]


def test_statistics_of_real_records_lead_to_a_blessing_and_a_shift_to_a_refusal(
    tmp_path: Path,
) -> None:
    small = {"train": images(80), "eval": [], "test": images(20)}
    large = {
        split: [record(i, "rose", b"0...", size=300) for i in range(count)]
        for split, count in (("train", 80), ("eval", 10), ("test", 10))
    }
    first = take_in(tmp_path, 1, small, previous=[])
    assert (first.span, first.blessed) == (1, 1)
    with pytest.raises(Refused) as refusal:
        take_in(tmp_path, 2, large, previous=[first])
    assert "width: 300.0 instead of 227.0 in span 1" in str(refusal.value)
    assert 'label: "rose" 100% instead of 34' in str(refusal.value)
    assert "luma_mean" not in str(refusal.value)


def test_a_first_candidate_is_evaluated_image_by_image_and_blessed(tmp_path: Path) -> None:
    save(tmp_path / "candidate", CLASSES)
    evaluation = evaluate(tmp_path, images(150))
    rows = list(read_rows(Path(evaluation.uri)))
    assert sorted(row.id for row in rows) == [f"{i:064x}" for i in range(150)]
    assert all(row.baseline is None for row in rows)
    assert all(row.candidate.score == pytest.approx(0.8) for row in rows)
    metrics = dict(tfma.load_eval_result(evaluation.uri).slicing_metrics)
    assert metrics[()][""][""]["accuracy"]["doubleValue"] == pytest.approx(0.9)
    assert metrics[(("label", "aster"),)][""][""]["example_count"]["doubleValue"] == 50
    blessed, verdict = judge(tmp_path, evaluation)
    assert blessed
    assert verdict.checks[0].candidate == pytest.approx(0.9)


def test_a_candidate_with_a_new_class_is_compared_on_the_old_ones(tmp_path: Path) -> None:
    save(tmp_path / "candidate", CLASSES)
    save(tmp_path / "baseline", CLASSES[:2])
    foreign = [record(1000 + i, "lily", b"0...") for i in range(5)]
    evaluation = evaluate(tmp_path, images(120) + foreign, baseline=True)
    result = tfma.load_eval_result(evaluation.uri, model_name="candidate")
    assert dict(result.slicing_metrics)[()][""][""]["example_count"]["doubleValue"] == 120
    blessed, verdict = judge(tmp_path, evaluation, baseline=True)
    assert blessed
    comparison = next(check for check in verdict.checks if check.metric == "accuracy_change")
    assert "on 80 images" in comparison.note
    assert "does not know them: aster" in comparison.note
    assert "5 test images left out" in verdict.in_words()


def test_a_baseline_without_the_signature_is_left_out_and_the_gate_says_so(tmp_path: Path) -> None:
    save(tmp_path / "candidate", CLASSES)
    save(tmp_path / "baseline", CLASSES, signature="serving_default")
    evaluation = evaluate(tmp_path, images(60), baseline=True)
    blessed, verdict = judge(tmp_path, evaluation, baseline=True)
    assert not blessed
    assert "version 1, now in service, cannot be compared with" in verdict.in_words()


def test_an_empty_test_split_ends_in_a_refusal_with_words(tmp_path: Path) -> None:
    save(tmp_path / "candidate", CLASSES)
    evaluation = evaluate(tmp_path, [])
    blessed, verdict = judge(tmp_path, evaluation)
    assert not blessed
    assert "the test split of the training window holds no image" in verdict.in_words()
