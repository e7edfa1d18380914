"""The trainer, from TFRecords to an exported model, on small images and a small network."""

import functools
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform.beam as tft_beam
import tf_keras
from apache_beam.options.pipeline_options import PipelineOptions
from PIL import Image
from tensorflow_transform.tf_metadata.dataset_metadata import DatasetMetadata

from graftline.components import progress
from graftline.components.trainer import backbones
from graftline.components.trainer.features import FeatureFile, Features, compute_features
from graftline.components.trainer.record import TrainingRecord
from graftline.components.trainer.run import run_fn
from graftline.pipeline.preprocessing import preprocessing_fn
from graftline.schemas import curated
from graftline.serving.errors import UserError

CLASSES = ["blå", "green", "never seen", "red"]
COLOURS = {"blå": (40, 40, 220), "green": (40, 220, 40), "red": (220, 40, 40)}
SIZE = 32


def make(size: int, alpha: float, weights: str | None) -> tf_keras.Model:
    """A network of two blocks."""
    layers = tf_keras.layers
    image = tf_keras.Input((size, size, 3))
    x = layers.Conv2D(8, 3, 4, activation="relu", name="first_conv")(image)
    x = layers.BatchNormalization(name="first_bn")(x)
    x = layers.Conv2D(16, 3, 2, activation="relu", name="second_conv")(x)
    return tf_keras.Model(image, layers.GlobalAveragePooling2D()(x))


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[str]:
    """Registers that network for the time of these tests; its weights are in a file."""
    scaling = backbones.BACKBONES["mobilenet_v2"].scaling
    backbones.BACKBONES["small"] = backbones.Backbone("small", make, scaling, r"(first|second)_")
    yield "small"
    del backbones.BACKBONES["small"]


def picture(label: str, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(-40, 40, (SIZE, SIZE, 3))
    stream = io.BytesIO()
    Image.fromarray((COLOURS[label] + noise).clip(0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def example(image: bytes, label: str) -> bytes:
    features = {"image": image, "label": label.encode()}
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                for name, value in features.items()
            }
        )
    ).SerializeToString()


def write_span(folder: Path, examples: list[bytes]) -> str:
    """Writes one shard and returns the pattern that finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    shard = str(folder / "data_tfrecord-00000-of-00001.gz")
    with tf.io.TFRecordWriter(shard, options) as writer:
        for one in examples:
            writer.write(one)
    return str(folder / "*")


def labelled(count: int, seed: int) -> list[bytes]:
    names = [list(COLOURS)[index % 3] for index in range(count)]
    return [example(picture(name, seed + index), name) for index, name in enumerate(names)]


@pytest.fixture(scope="module")
def transform_graph(tmp_path_factory: pytest.TempPathFactory, small: str) -> str:
    folder = tmp_path_factory.mktemp("transform_graph")
    config = {"image": {"size": SIZE}, "backbone": small, "classes": CLASSES}
    schema = DatasetMetadata(curated.build(CLASSES))
    options = PipelineOptions(["--runner=DirectRunner", "--direct_running_mode=in_memory"])
    with beam.Pipeline(options=options) as pipeline, tft_beam.Context(str(folder / "temporary")):
        function = functools.partial(preprocessing_fn, custom_config=config)
        analyzed = (pipeline | beam.Create([]), schema) | tft_beam.AnalyzeDataset(function)
        analyzed | tft_beam.WriteTransformFn(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("spans")
    return {
        "train": [
            write_span(folder / "1/train", labelled(30, 0)),
            write_span(folder / "2/train", labelled(18, 100)),
        ],
        "eval": [write_span(folder / "1/eval", labelled(12, 200))],
    }


Train = Callable[..., TrainingRecord]


@pytest.fixture(scope="module")
def train(tmp_path_factory, transform_graph, spans, small) -> Train:
    """Runs the trainer with some settings and returns its record; `folder` has the rest."""
    weights = tmp_path_factory.mktemp("weights") / "small.h5"
    tf_keras.utils.set_random_seed(5)
    make(SIZE, 1.0, None).save_weights(str(weights))

    def run(folder: Path, patterns: dict[str, list[str]] | None = None, **settings):
        trainer = {"backbone": small, "weights": str(weights), "batch_size": 8, **settings}
        files = {**spans, **(patterns or {})}
        run_fn(
            SimpleNamespace(
                train_files=files["train"],
                eval_files=files["eval"],
                transform_output=transform_graph,
                schema_path=None,
                serving_model_dir=str(folder / "Format-Serving"),
                model_run_dir=str(folder / "run"),
                custom_config={
                    "trainer": json.loads(json.dumps(trainer)),
                    "image": {"size": SIZE},
                    "classes": CLASSES,
                },
            )
        )
        return TrainingRecord.read(str(folder / "run"))

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train) -> tuple[Path, TrainingRecord, list[str]]:
    """Folder, record and progress of one training of both phases."""
    folder, lines = tmp_path_factory.mktemp("trained"), []
    progress.listen(lines.append)
    try:
        record = train(
            folder, frozen={"epochs": 20, "rate": 0.02}, fine_tune={"epochs": 2, "rate": 1e-4}
        )
    finally:
        progress.listen(None)
    return folder, record, lines


@pytest.fixture(scope="module")
def served(trained):
    return tf.saved_model.load(str(trained[0] / "Format-Serving"))


def test_both_signatures_name_the_classes_in_order_and_agree(served):
    images = [picture("red", 900), picture("blå", 901), picture("green", 902)]
    by_image = served.signatures["serving_default"](image_bytes=tf.constant(images))
    examples = tf.constant([example(image, "red") for image in images])
    by_example = served.signatures["serving_examples"](inputs=examples)
    assert by_image["classes"].numpy().tolist() == [[name.encode() for name in CLASSES]] * 3
    assert by_image["scores"].dtype == tf.float32
    np.testing.assert_allclose(by_image["scores"].numpy().sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(by_image["scores"], by_example["scores"])
    np.testing.assert_array_equal(by_image["classes"], by_example["classes"])


def test_the_model_has_learned_the_classes(served):
    images = tf.constant([picture(label, 950) for label in COLOURS])
    scores = served.signatures["serving_default"](image_bytes=images)["scores"].numpy()
    assert [CLASSES[best] for best in scores.argmax(axis=1)] == list(COLOURS)


@pytest.mark.parametrize("size", [0, 1, 5])
def test_a_request_may_hold_any_number_of_images(served, size):
    images = tf.constant([picture("red", 900)] * size, tf.string)
    answer = served.signatures["serving_default"](image_bytes=images)
    assert answer["scores"].shape == answer["classes"].shape == (size, len(CLASSES))


def test_an_example_needs_only_its_image(served):
    bare = tf.train.Example()
    bare.features.feature["image"].bytes_list.value.append(picture("red", 900))
    answer = served.signatures["serving_examples"](inputs=tf.constant([bare.SerializeToString()]))
    assert answer["scores"].shape == (1, len(CLASSES))


def test_bytes_that_are_no_image_are_an_error_that_says_so(served):
    with pytest.raises(tf.errors.InvalidArgumentError, match="Unknown image file format"):
        served.signatures["serving_default"](image_bytes=tf.constant([b"not an image"]))


def test_labels_lie_beside_the_model(trained):
    labels = trained[0] / "Format-Serving" / "assets.extra" / "labels.txt"
    assert labels.read_text(encoding="utf-8").splitlines() == CLASSES


def test_the_record_tells_what_happened(trained):
    folder, record, _ = trained
    assert (record.train_images, record.eval_images, record.classes) == (48, 12, 4)
    assert record.features_images_per_second > 0
    assert [phase.name for phase in record.phases] == ["frozen", "fine_tune"]
    frozen, fine_tune = record.phases
    assert frozen.trainable_parameters == 16 * 4 + 4
    assert fine_tune.trainable_parameters == frozen.trainable_parameters + 9 * 8 * 16 + 16
    assert all(phase.images_per_second > 0 for phase in record.phases)
    epochs = frozen.epochs + fine_tune.epochs
    assert all(math.isfinite(epoch.loss) and epoch.eval_loss is not None for epoch in epochs)
    assert record.exported.eval_loss == min(epoch.eval_loss for epoch in epochs)
    for phase in ("frozen", "fine_tune"):
        assert list((folder / "run" / phase).glob("train/events.*"))


def test_nothing_but_the_logs_is_left_behind(trained):
    left = {path.name for path in (trained[0] / "run").iterdir()}
    assert left == {"frozen", "fine_tune", "training.json"}


def test_fine_tuning_goes_on_where_the_head_ended(trained):
    frozen, fine_tune = trained[1].phases
    assert fine_tune.epochs[0].loss == pytest.approx(frozen.epochs[-1].loss, rel=0.3, abs=0.05)


def test_progress_is_reported(trained):
    lines = trained[2]
    assert "loading small" in lines
    assert any(line.startswith("computing features 60/60") for line in lines)
    assert any(line.startswith("training the head 1/20  accuracy ") for line in lines)
    assert any(line.startswith("fine-tuning 2/2  accuracy ") for line in lines)


def test_a_network_without_weights_trains_whole_from_the_images(train, tmp_path):
    record = train(
        tmp_path,
        weights="none",
        frozen={"epochs": 0},
        fine_tune={"epochs": 1, "rate": 1e-3, "fraction": 1.0},
    )
    assert [phase.name for phase in record.phases] == ["fine_tune"]
    assert record.features_images_per_second == 0


def test_without_eval_images_every_epoch_is_run(train, tmp_path):
    lines: list[str] = []
    progress.listen(lines.append)
    empty = write_span(tmp_path / "empty", [])
    record = train(
        tmp_path,
        {"eval": [empty]},
        patience=1,
        frozen={"epochs": 3, "rate": 1e-9},
        fine_tune={"epochs": 0},
    )
    progress.listen(None)
    assert [epoch.eval_loss for epoch in record.phases[0].epochs] == [None] * 3
    assert record.exported.epoch == 3
    assert "no image in the eval split: no early stopping, the last epoch is exported" in lines


def test_without_training_images_there_is_nothing_to_train_on(train, tmp_path):
    with pytest.raises(UserError, match="no image to train on"):
        train(tmp_path, {"train": [write_span(tmp_path / "empty", [])]})


def test_a_label_that_is_no_class_is_refused(train, tmp_path):
    strange = [example(picture("red", 1), "purple"), example(picture("red", 1), "red")]
    with pytest.raises(UserError, match="1 images of the eval split have a label that is none"):
        train(tmp_path, {"eval": [write_span(tmp_path / "strange", strange)]})


def test_a_loss_that_is_no_number_ends_the_training_and_says_when(train, tmp_path):
    with pytest.raises(UserError, match=r"epoch 1 of the phase frozen.*Lower trainer.frozen.rate"):
        train(tmp_path, frozen={"epochs": 2, "rate": 1e38}, fine_tune={"epochs": 0})
    assert not (tmp_path / "Format-Serving").exists()


def test_features_are_those_of_the_network_in_the_order_of_the_images(tmp_path):
    images = np.random.default_rng(0).normal(size=(10, SIZE, SIZE, 3)).astype(np.float32)
    network = make(SIZE, 1.0, None)
    both = tf_keras.Model(
        network.input, {"low": network.get_layer("second_conv").input, "high": network.output}
    )
    dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(10, dtype=np.int64))).batch(4)
    done: list[int] = []
    features = compute_features(both, dataset, tf.distribute.get_strategy(), tmp_path, done.append)
    expected = both.predict(images, verbose=0)
    for name in ("low", "high"):
        rows = features.files[name].read(np.array([7, 0, 7]))
        np.testing.assert_allclose(rows, expected[name][[7, 0, 7]], atol=1e-5)
    assert features.labels.tolist() == list(range(10))
    assert done == [4, 4, 2]
    assert list(tmp_path.iterdir()) == []


def test_each_epoch_sees_every_row_once_in_another_order(tmp_path):
    file = FeatureFile((2,), tmp_path)
    file.append(np.stack([np.arange(20), np.arange(20)], axis=1))
    features = Features({"x": file}, np.arange(20))
    batches = features.batches("x", 8, shuffle_seed=3)
    epochs = [np.concatenate([label for _, label in batches.as_numpy_iterator()]) for _ in "ab"]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0].tolist() != epochs[1].tolist()
    for rows, labels in features.batches("x", 8, shuffle_seed=3).as_numpy_iterator():
        np.testing.assert_array_equal(rows, np.stack([labels, labels], axis=1))
    unshuffled = [label for _, label in features.batches("x", 8, None).as_numpy_iterator()]
    assert np.concatenate(unshuffled).tolist() == list(range(20))
