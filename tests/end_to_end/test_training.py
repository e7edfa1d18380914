"""The trainer, from TFRecords to an exported model, on small images and a small network."""

import functools
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
import tf_keras
from apache_beam.options.pipeline_options import PipelineOptions
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorflow_transform.tf_metadata.dataset_metadata import DatasetMetadata

from graftline.components import progress
from graftline.components.trainer import boundary
from graftline.components.trainer.backbones import registry
from graftline.components.trainer.backbones.scaling import PLAIN
from graftline.components.trainer.config import HeadConfig, TrainerConfig
from graftline.components.trainer.devices import Hardware
from graftline.components.trainer.feature_store import FeatureStore
from graftline.components.trainer.features import Features
from graftline.components.trainer.inputs import Images
from graftline.components.trainer.network import make_head
from graftline.components.trainer.record import TrainingRecord
from graftline.components.trainer.run import run_fn
from graftline.components.trainer.training import Training
from graftline.components.trainer.warm_start import start_from
from graftline.pipeline.config import BeamConfig
from graftline.pipeline.preprocessing import preprocessing_fn
from graftline.schemas import curated
from graftline.serving.errors import UserError

pytestmark = pytest.mark.end_to_end

CLASSES = ["blå", "green", "never seen", "red"]
COLOURS = {"blå": (40, 40, 220), "green": (40, 220, 40), "red": (220, 40, 40)}
SIZE = 32


def make(size: int, alpha: float) -> tf_keras.Model:
    """A network of two blocks."""
    layers = tf_keras.layers
    image = tf_keras.Input((size, size, 3))
    x = layers.Conv2D(8, 3, 4, activation="relu", name="first_conv")(image)
    x = layers.BatchNormalization(name="first_bn")(x)
    x = layers.Conv2D(16, 3, 2, activation="relu", name="second_conv")(x)
    return tf_keras.Model(image, x)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[str]:
    """Registers that network for the time of these tests; its weights are in a file."""
    registry.BACKBONES["small"] = registry.Backbone("small", make, PLAIN, r"(first|second)_")
    yield "small"
    del registry.BACKBONES["small"]


def picture(label: str, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(-40, 40, (SIZE, SIZE, 3))
    stream = io.BytesIO()
    Image.fromarray((COLOURS[label] + noise).clip(0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def example(image: bytes, label: str) -> bytes:
    name = hashlib.sha256(image).hexdigest()
    features = {"image": image, "label": label.encode(), "id": name.encode()}
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
    options = PipelineOptions([*BeamConfig().options])
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
    make(SIZE, 1.0).save_weights(str(weights))

    def run(
        folder: Path,
        patterns: dict[str, list[str]] | None = None,
        features: Path | None = None,
        code: str = "",
        weights_digest: str = "",
        start_from: Path | None = None,
        classes: Sequence[str] = CLASSES,
        **settings: object,
    ) -> TrainingRecord:
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
                    "classes": list(classes),
                    "weights_cache": "/nowhere",
                    "features": {"folder": str(features or folder / "features"), "code": code},
                    "start_from": str(start_from or ""),
                    "checkpoints": str((features or folder).parent / "checkpoints"),
                    "cluster": str(folder / "cluster"),
                    "last_good": str(folder / "last_good"),
                    "code": code,
                    "weights_digest": weights_digest,
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
            folder,
            phases=[
                {"name": "frozen", "epochs": 20, "rate": 0.02},
                {"name": "fine_tune", "epochs": 2, "rate": 1e-4, "fraction": 0.5},
            ],
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
    assert record.features_computed == 60
    assert record.features_seconds > 0
    assert [phase.name for phase in record.phases] == ["frozen", "fine_tune"]
    frozen, fine_tune = record.phases
    assert frozen.trainable_parameters == 16 * 4 + 4
    assert fine_tune.trainable_parameters == frozen.trainable_parameters + 9 * 8 * 16 + 16
    assert all(phase.images_per_second > 0 for phase in record.phases)
    epochs = frozen.epochs + fine_tune.epochs
    assert all(math.isfinite(epoch.loss) and epoch.eval_loss is not None for epoch in epochs)
    assert record.exported.eval_brier == min(epoch.eval_brier for epoch in epochs)
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
    assert any(line.startswith("computing features 48/48") for line in lines)
    assert any(line.startswith("frozen 1/20  accuracy ") for line in lines)
    assert any(line.startswith("fine_tune 2/2  accuracy ") for line in lines)


def test_phases_may_train_less_again_and_see_what_the_phase_before_made(train, tmp_path):
    lines: list[str] = []
    progress.listen(lines.append)
    record = train(
        tmp_path,
        phases=[
            {"name": "head", "epochs": 3, "rate": 0.02},
            {"name": "whole", "epochs": 1, "rate": 1e-3, "blocks": 2},
            {"name": "upper", "epochs": 1, "rate": 1e-3, "blocks": 1},
            {"name": "again", "epochs": 1, "rate": 1e-3},
        ],
    )
    progress.listen(None)
    assert [phase.name for phase in record.phases] == ["head", "whole", "upper", "again"]
    assert sum(line.startswith("computing features 48/48") for line in lines) == 3
    before = record.phases[1].epochs[-1].loss
    assert record.phases[2].epochs[0].loss == pytest.approx(before, rel=0.5, abs=0.1)


def test_more_blocks_than_there_are_cannot_train(train, tmp_path):
    with pytest.raises(UserError, match="small has 2 blocks, of which 3 cannot train"):
        train(tmp_path, phases=[{"name": "a", "epochs": 1, "rate": 1e-3, "blocks": 3}])


def test_a_network_without_weights_trains_whole_from_the_images(train, tmp_path):
    record = train(
        tmp_path,
        weights="none",
        phases=[{"name": "whole", "epochs": 1, "rate": 1e-3, "fraction": 1.0}],
    )
    assert [phase.name for phase in record.phases] == ["whole"]
    assert record.features_computed == 0


def test_without_eval_images_every_epoch_is_run(train, tmp_path):
    lines: list[str] = []
    progress.listen(lines.append)
    empty = write_span(tmp_path / "empty", [])
    record = train(
        tmp_path,
        {"eval": [empty]},
        patience=1,
        phases=[{"name": "frozen", "epochs": 3, "rate": 1e-9}],
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
    with pytest.raises(UserError, match=r"epoch 1 of the phase odd.*trainer.phases.odd.rate"):
        train(tmp_path, phases=[{"name": "odd", "epochs": 2, "rate": 1e38}])
    assert not (tmp_path / "Format-Serving").exists()


PHASES = [
    {"name": "frozen", "epochs": 2, "rate": 0.02},
    {"name": "fine_tune", "epochs": 1, "rate": 1e-4, "fraction": 0.5},
]


def test_the_next_training_computes_features_of_new_images_only(train, tmp_path, spans):
    kept = tmp_path / "features"
    first = {"train": spans["train"][:1]}
    assert train(tmp_path / "1", first, kept, phases=PHASES).features_computed == 30 + 12
    assert train(tmp_path / "2", None, kept, phases=PHASES).features_computed == 18
    record = train(tmp_path / "3", None, kept, phases=PHASES)
    assert record.features_computed == 0
    afresh = train(tmp_path / "4", phases=PHASES)
    for phase, other in zip(record.phases, afresh.phases, strict=True):
        assert phase.epochs[-1].loss == pytest.approx(other.epochs[-1].loss, rel=1e-4)


def test_features_of_other_code_or_other_weights_are_not_taken(train, tmp_path):
    kept = tmp_path / "features"
    train(tmp_path / "1", None, kept, phases=PHASES)
    assert train(tmp_path / "2", None, kept, "other", phases=PHASES).features_computed == 60
    tf_keras.utils.set_random_seed(6)
    make(SIZE, 1.0).save_weights(str(tmp_path / "other.h5"))
    weights = str(tmp_path / "other.h5")
    record = train(tmp_path / "3", None, kept, phases=PHASES, weights=weights)
    assert record.features_computed == 60


def test_damaged_features_are_found_and_computed_anew(train, tmp_path):
    kept = tmp_path / "features"
    expected = train(tmp_path / "1", None, kept, phases=PHASES).phases[-1].epochs[-1].loss
    for rows in kept.glob("*/0.rows"):
        damaged = bytearray(rows.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        rows.write_bytes(damaged)
    lines: list[str] = []
    progress.listen(lines.append)
    record = train(tmp_path / "2", None, kept, phases=PHASES)
    progress.listen(None)
    assert 0 < record.features_computed <= 2
    assert any("stored features were damaged and are computed anew" in line for line in lines)
    assert record.phases[-1].epochs[-1].loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("made", "read", "kinds"), [(10.0, 500.0, 2), (500.0, 10.0, 1)])
def test_with_a_gpu_activations_are_kept_where_they_are_read_faster_than_made(
    train, tmp_path, monkeypatch, made, read, kinds
):
    monkeypatch.setattr(Hardware, "is_accelerated", True)
    monkeypatch.setattr(boundary, "rates", lambda *_: (made, read))
    lines: list[str] = []
    progress.listen(lines.append)
    record = train(tmp_path, phases=PHASES)
    progress.listen(None)
    assert f"activations: {made:.0f} images/s made, {read:.0f} read from disk" in lines
    assert len(list((tmp_path / "features").glob("*/*.rows"))) == kinds
    assert [len(phase.epochs) for phase in record.phases] == [2, 1]


def test_how_fast_activations_are_made_and_read_is_measured(spans, transform_graph, tmp_path):
    images = Images.find(spans["train"], tft.TFTransformOutput(transform_graph))
    hardware = Hardware.find(TrainerConfig())
    lower = tf_keras.Sequential([tf_keras.Input((SIZE, SIZE, 3)), tf_keras.layers.Conv2D(8, 3)])
    made, read = boundary.rates(lower, images, 8, hardware, tmp_path)
    assert made > 0
    assert read > 0


def test_where_no_features_are_to_be_kept_none_are(train, tmp_path):
    train(tmp_path, None, tmp_path / "features", phases=PHASES, feature_store_gb=0)
    assert not (tmp_path / "features").exists()


def test_every_view_of_a_training_image_is_computed_once_and_the_eval_images_are_left_as_they_are(
    train, tmp_path
):
    augmentation = {"views": 3, "flip": "horizontal", "rotation": 20, "mixup": 0.2}
    record = train(tmp_path, phases=PHASES, augmentation=augmentation)
    assert record.features_computed == 48 * 3 + 12
    assert all(math.isfinite(epoch.loss) for phase in record.phases for epoch in phase.epochs)


def test_a_phase_that_reads_the_images_augments_and_resamples_them(train, tmp_path):
    record = train(
        tmp_path,
        phases=[{"name": "whole", "epochs": 2, "rate": 1e-3, "fraction": 1.0}],
        augmentation={"policy": "randaugment", "cutmix": 1.0},
        imbalance="resample",
        label_smoothing=0.1,
        weight_decay=0.01,
    )
    assert len(record.phases[0].epochs) == 2


class CutOff(Exception):
    """Stands for whatever ends a process."""


def cut_off_at(line: str, train: Train, folder: Path, **settings: object) -> list[str]:
    """Trains until a line of progress appears; returns the lines up to there."""
    lines: list[str] = []

    def listen(text: str) -> None:
        lines.append(text)
        if text.startswith(line):
            raise CutOff

    progress.listen(listen)
    try:
        with pytest.raises(CutOff):
            train(folder, None, folder.parent / "features", **settings)
    finally:
        progress.listen(None)
    return lines


LONG = [
    {"name": "frozen", "epochs": 4, "rate": 0.02},
    {"name": "fine_tune", "epochs": 3, "rate": 1e-3, "fraction": 0.5, "schedule": "cosine"},
]


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory) -> list[float]:
    """The errors of five trainings with other seeds that nothing cut off."""
    folder = tmp_path_factory.mktemp("undisturbed")
    trained = [
        train(folder / str(seed), None, folder / "features", phases=LONG, seed=seed)
        for seed in range(5)
    ]
    return [record.exported.eval_brier for record in trained]


@pytest.mark.parametrize("line", ["frozen 3/4", "fine_tune 1/3", "fine_tune 2/3"])
def test_a_training_that_was_cut_off_goes_on_after_its_last_whole_epoch(
    train, undisturbed, tmp_path, line
):
    # The line of an epoch is shown before its weights are kept.
    cut_off_at(line, train, tmp_path / "1", phases=LONG)
    lines: list[str] = []
    progress.listen(lines.append)
    record = train(tmp_path / "2", None, tmp_path / "features", phases=LONG)
    progress.listen(None)

    name, number = line.split()[0], int(line.split()[1].partition("/")[0])
    shown = [text for text in lines if text.startswith(name) and "accuracy" in text]
    assert shown[0].startswith(f"{name} {number}/")
    assert [len(phase.epochs) for phase in record.phases] == [4, 3]
    # Dropout is drawn anew: the result is one among those of several seeds, give or take.
    low, high = min(undisturbed), max(undisturbed)
    spread = high - low
    assert low - spread <= record.exported.eval_brier <= high + spread


def goes_on(train: Train, folder: Path, **settings: object) -> bool:
    """Whether a training takes up what another one has left."""
    lines: list[str] = []
    progress.listen(lines.append)
    train(folder, None, folder.parent / "features", phases=LONG, **settings)
    progress.listen(None)
    return any("goes on after" in line for line in lines)


@pytest.mark.parametrize("changed", [{"seed": 7}, {"code": "other"}, {"weights_digest": "other"}])
def test_what_follows_from_anything_else_begins_anew(train, tmp_path, changed):
    cut_off_at("frozen 3/4", train, tmp_path / "1", phases=LONG)
    assert not goes_on(train, tmp_path / "2", **changed)


def test_a_training_that_came_to_its_end_begins_anew_and_leaves_no_checkpoint(train, tmp_path):
    assert not goes_on(train, tmp_path / "1")
    assert not goes_on(train, tmp_path / "2")
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("left", [0, 100])
def test_a_checkpoint_that_the_disk_has_torn_is_a_beginning(train, tmp_path, left):
    cut_off_at("frozen 3/4", train, tmp_path / "1", phases=LONG)
    [checkpoint] = (tmp_path / "checkpoints").glob("*/state.npz")
    checkpoint.write_bytes(checkpoint.read_bytes()[:left])
    assert not goes_on(train, tmp_path / "2")


def test_where_memory_is_used_up_the_error_names_what_to_lower(train, tmp_path, monkeypatch):
    def run(training: Training, destination: str) -> None:
        tf.ones((1 << 50,))

    monkeypatch.setattr(Training, "run", run)
    with pytest.raises(UserError, match=r"trainer.batch_size \(8\).*anew with `graftline run`"):
        train(tmp_path)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_that_diverges_keeps_the_model_of_its_best_epoch(train, tmp_path, precision):
    odd = {"name": "odd", "epochs": 2, "rate": 1e38}
    with pytest.raises(UserError, match=r"odd.*best epoch before, frozen \d, is kept in") as said:
        train(tmp_path, phases=[PHASES[0], odd], precision=precision)
    kept = tf.saved_model.load(str(said.value).rsplit(" is kept in ", 1)[1].rstrip("."))
    operations = kept.signatures["serving_default"].graph.get_operations()
    assert not any(out.dtype == tf.bfloat16 for one in operations for out in one.outputs)
    answer = kept.signatures["serving_default"](image_bytes=tf.constant([picture("red", 900)]))
    assert np.isfinite(answer["scores"].numpy()).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_network_that_computes_in_16_bits_is_exported_in_32(train, tmp_path, name):
    record = train(tmp_path, phases=PHASES, precision=name)
    assert record.precision == name
    served = tf.saved_model.load(str(tmp_path / "Format-Serving"))
    assert {weight.dtype for weight in served.weights} == {tf.float32}
    operations = served.signatures["serving_default"].graph.get_operations()
    halves = {tf.float16, tf.bfloat16}
    assert not any(output.dtype in halves for one in operations for output in one.outputs)


def test_tensorboard_shows_resources_and_on_request_histograms_and_eval_images(train, tmp_path):
    train(tmp_path, phases=PHASES, tensorboard={"histograms": True, "embedding": 5})
    tags = {
        value.tag
        for file in (tmp_path / "run" / "fine_tune" / "train").glob("*.more")
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    }
    assert {"resources/images per second", "resources/memory in MB"} <= tags
    assert any(tag.startswith("weights/second_conv") for tag in tags)
    assert any(tag.startswith("gradients/second_conv") for tag in tags)
    assert any("second_conv" in tag for tag in tags if tag.startswith("activations/"))
    shown = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "run")).Reload().Runs()
    assert "embedding" in shown
    folder = tmp_path / "run" / "embedding"
    assert len((folder / "features.tsv").read_text().splitlines()) == 5
    assert (folder / "labels.tsv").read_text().splitlines() == [
        "blå",
        "green",
        "red",
        "blå",
        "green",
    ]
    assert Image.open(folder / "thumbnails.png").size == (3 * 48, 2 * 48)
    # Blue, green and red, from left to right.
    first = np.asarray(Image.open(folder / "thumbnails.png"))[24, [24, 72, 120]]
    assert first.argmax(axis=1).tolist() == [2, 1, 0]


def test_a_batch_larger_than_the_data_and_a_class_without_eval_images_are_no_matter(
    train, tmp_path
):
    greens = write_span(tmp_path / "eval", [example(picture("green", 1), "green")])
    record = train(tmp_path, {"eval": [greens]}, batch_size=500, phases=PHASES)
    assert record.eval_images == 1


def test_a_training_starts_from_a_version_and_keeps_what_it_knows_of_each_class(
    train, trained, tmp_path
):
    version = trained[0] / "Format-Serving"
    still = [{"name": "still", "epochs": 1, "rate": 1e-12}]
    record = train(tmp_path, start_from=version, phases=still)
    assert record.warm_start
    assert record.phases[0].epochs[0].eval_loss == pytest.approx(
        trained[1].exported.eval_loss, rel=1e-3
    )


def test_a_version_that_is_another_network_is_no_start(train, trained, tmp_path):
    lines: list[str] = []
    progress.listen(lines.append)
    version = trained[0] / "Format-Serving"
    head = {"hidden": [8]}
    assert not train(tmp_path, start_from=version, phases=PHASES, head=head).warm_start
    progress.listen(None)
    assert any("another network" in line for line in lines)


def test_a_version_that_another_program_has_written_is_no_start(train, tmp_path):
    (tmp_path / "foreign").mkdir()
    lines: list[str] = []
    progress.listen(lines.append)
    assert not train(tmp_path, start_from=tmp_path / "foreign", phases=PHASES).warm_start
    progress.listen(None)
    assert any("no weights in the version in service" in line for line in lines)


def test_classes_are_taken_over_by_name(trained):
    version, classes = trained[0] / "Format-Serving", ["red", "new", *CLASSES[:3]]
    backbone = tf_keras.Sequential([make(SIZE, 1.0), tf_keras.layers.GlobalAveragePooling2D()])
    head = make_head(HeadConfig(), 16, len(classes))
    random = head.get_weights()[0][:, 1].copy()
    assert start_from(version, (backbone, head), classes)
    images = np.stack([np.full((SIZE, SIZE, 3), 0.3, np.float32)])
    served = tf.saved_model.load(str(version))
    [*_, kernel, bias] = [weight.numpy() for weight in served.weights]
    order = [3, 0, 1, 2]
    np.testing.assert_array_equal(head.get_weights()[0][:, [0, 2, 3, 4]], kernel[:, order])
    np.testing.assert_array_equal(head.get_weights()[1][[0, 2, 3, 4]], bias[order])
    np.testing.assert_array_equal(head.get_weights()[0][:, 1], random)
    assert np.isfinite(head(backbone(images))).all()


def stored(count: int, folder: Path | None = None) -> Features:
    """Features that say which image they are of, of two views."""
    ids = np.arange(count).astype(np.uint64)
    stores = [FeatureStore(None, (2,), folder) for _ in range(2)]
    for view, store in enumerate(stores):
        store.append(ids, np.stack([np.arange(count), np.full(count, view)], axis=1))
    return Features(stores, np.stack([store.find(ids) for store in stores]), np.arange(count))


def test_each_epoch_sees_every_image_once_in_another_order_and_another_view(tmp_path):
    batches = stored(20, tmp_path).batches(8, (3, 0))
    epochs = [
        [np.concatenate(parts) for parts in zip(*batches.as_numpy_iterator(), strict=True)]
        for _ in range(2)
    ]
    for rows, labels in epochs:
        assert sorted(labels) == list(range(20))
        np.testing.assert_array_equal(rows[:, 0], labels)
        assert set(rows[:, 1]) == {0, 1}
    assert epochs[0][1].tolist() != epochs[1][1].tolist()


def test_unshuffled_features_come_in_order_and_as_they_are(tmp_path):
    rows, labels = zip(*stored(20, tmp_path).batches(8, None).as_numpy_iterator(), strict=True)
    assert np.concatenate(labels).tolist() == list(range(20))
    assert set(np.concatenate(rows)[:, 1]) == {0}
