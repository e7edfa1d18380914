"""The trainer, from TFRecords to an exported model, on small images and a small network."""

import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from graftline.components import progress
from graftline.components.trainer.config import HeadConfig
from graftline.components.trainer.network import make_head
from graftline.components.trainer.record import TrainingRecord
from graftline.components.trainer.training import Training
from graftline.components.trainer.warm_start import start_from
from graftline.serving.errors import UserError
from small_training import CLASSES, COLOURS, PHASES, SIZE, example, make, picture, write_span

pytestmark = pytest.mark.end_to_end


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


def test_what_normalises_keeps_the_means_that_it_came_with_also_where_all_is_trained(
    train, tmp_path
):
    whole = [{"name": "whole", "epochs": 2, "rate": 1e-2, "fraction": 1.0}]
    train(tmp_path, phases=whole)
    served = tf.saved_model.load(str(tmp_path / "Format-Serving"))
    values = {weight.name.partition(":")[0]: weight.numpy() for weight in served.weights}
    np.testing.assert_array_equal(values["first_bn/moving_mean"], np.zeros(8))
    np.testing.assert_array_equal(values["first_bn/moving_variance"], np.ones(8))
    assert np.any(values["first_bn/beta"])


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
    with pytest.raises(UserError, match=r"in step \d+ of epoch 1 of the phase odd.*odd.rate"):
        train(tmp_path, phases=[{"name": "odd", "epochs": 2, "rate": 1e38}])
    assert not (tmp_path / "Format-Serving").exists()


def test_a_last_step_that_ruins_the_weights_is_no_result(train, tmp_path):
    # The loss of the only step is that of the weights before it.
    odd = {"name": "odd", "epochs": 1, "rate": 1e38}
    with pytest.raises(UserError, match=r"after epoch 1 of the phase odd.*trainer.phases.odd.rate"):
        train(tmp_path, phases=[odd], batch_size=500)
    assert not (tmp_path / "Format-Serving").exists()


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
    labels = (folder / "labels.tsv").read_text().splitlines()
    sheet = np.asarray(Image.open(folder / "thumbnails.png"))
    # From left to right, line by line, on a square, as TensorBoard wants it.
    assert sheet.shape == (3 * 48, 3 * 48, 3)
    shown = [sheet[y + 24, x + 24].argmax() for y in (0, 48) for x in (0, 48, 96)]
    assert [["red", "green", "blå"][channel] for channel in shown[:5]] == labels


def test_the_embedding_shows_images_of_all_classes_however_they_are_sorted(train, tmp_path):
    names = ["blå"] * 12 + ["red"] * 12
    ordered = [example(picture(name, 300 + index), name) for index, name in enumerate(names)]
    train(
        tmp_path,
        {"eval": [write_span(tmp_path / "eval", ordered)]},
        phases=PHASES[:1],
        tensorboard={"embedding": 8},
    )
    labels = (tmp_path / "run" / "embedding" / "labels.tsv").read_text().splitlines()
    assert len(labels) == 8
    assert set(labels) == {"blå", "red"}


def test_a_batch_larger_than_the_data_is_no_matter_and_a_class_without_eval_images_is_told(
    train, tmp_path
):
    greens = write_span(tmp_path / "eval", [example(picture("green", 1), "green")])
    lines: list[str] = []
    progress.listen(lines.append)
    record = train(tmp_path, {"eval": [greens]}, batch_size=500, phases=PHASES)
    progress.listen(None)
    assert record.eval_images == 1
    assert any("no image of blå, red in the eval split" in line for line in lines)


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
