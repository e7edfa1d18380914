"""What the network below computes is kept: what is computed anew, what is taken, in which order."""

import math
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import tensorflow_transform as tft
import tf_keras

from graftline.components import progress
from graftline.components.trainer import boundary
from graftline.components.trainer.config import TrainerConfig
from graftline.components.trainer.devices import Hardware
from graftline.components.trainer.feature_store import FeatureStore
from graftline.components.trainer.features import FeatureFolder, Features
from graftline.components.trainer.inputs import Images
from small_training import PHASES, SIZE, make

pytestmark = pytest.mark.end_to_end


def test_the_next_training_computes_features_of_new_images_only(train, tmp_path, spans):
    kept = tmp_path / "features"
    first = {"train": spans["train"][:1]}
    assert train(tmp_path / "1", first, kept, phases=PHASES).features_computed == 30 + 12
    assert train(tmp_path / "2", None, kept, phases=PHASES).features_computed == 18
    record = train(tmp_path / "3", None, kept, phases=PHASES)
    assert record.features_computed == 0
    # A window that leaves a span out finds those of the others.
    assert train(tmp_path / "5", first, kept, phases=PHASES).features_computed == 0
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


HEAD = [{"name": "head", "epochs": 1, "rate": 0.02}]


def test_after_a_fine_tuned_version_features_follow_from_the_activations_that_are_stored(
    train, tmp_path, spans
):
    kept = tmp_path / "features"
    train(tmp_path / "1", {"train": spans["train"][:1]}, kept, phases=PHASES)
    version = tmp_path / "1" / "Format-Serving"
    record = train(tmp_path / "2", None, kept, start_from=version, phases=HEAD)
    assert record.warm_start
    assert (record.features_derived, record.features_computed) == (30 + 12, 18)
    afresh = train(tmp_path / "3", None, start_from=version, phases=HEAD)
    assert (afresh.features_derived, afresh.features_computed) == (0, 60)
    assert record.phases[0].epochs[0].loss == pytest.approx(
        afresh.phases[0].epochs[0].loss, rel=1e-4
    )
    again = train(tmp_path / "4", None, kept, start_from=version, phases=HEAD)
    assert (again.features_derived, again.features_computed) == (0, 0)


def test_so_do_the_views_of_training_images(train, tmp_path):
    kept, varied = tmp_path / "features", {"views": 2, "flip": "horizontal", "rotation": 20}
    train(tmp_path / "1", None, kept, phases=PHASES, augmentation=varied)
    version = tmp_path / "1" / "Format-Serving"
    record = train(
        tmp_path / "2", None, kept, start_from=version, phases=PHASES, augmentation=varied
    )
    assert (record.features_derived, record.features_computed) == (48 * 2 + 12, 0)


def test_activations_that_are_damaged_are_computed_anew_from_their_image(train, tmp_path):
    kept = tmp_path / "features"
    train(tmp_path / "1", None, kept, phases=PHASES)
    version = tmp_path / "1" / "Format-Serving"
    for rows in kept.glob("*/0.rows"):
        damaged = bytearray(rows.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        rows.write_bytes(damaged)
    record = train(tmp_path / "2", None, kept, start_from=version, phases=HEAD)
    assert 0 < record.features_computed <= 2
    assert record.features_derived + record.features_computed == 60


def test_below_a_block_that_has_trained_activations_of_the_network_before_are_not_taken(
    train, tmp_path
):
    kept = tmp_path / "features"
    whole = [{"name": "whole", "epochs": 1, "rate": 1e-2, "fraction": 1.0}]
    train(tmp_path / "1", None, kept, phases=[*PHASES, *whole])
    version = tmp_path / "1" / "Format-Serving"
    record = train(tmp_path / "2", None, kept, start_from=version, phases=HEAD)
    assert (record.features_derived, record.features_computed) == (0, 60)


def test_what_fills_half_of_the_disk_already_is_used_again(train, tmp_path, monkeypatch):
    kept = tmp_path / "features"
    assert train(tmp_path / "1", None, kept, phases=PHASES).features_computed == 60
    stored = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 1.2 * stored))
    monkeypatch.setattr(Images, "shuffled_batches", None)  # what trains on images asks for
    assert train(tmp_path / "2", None, kept, phases=PHASES).features_computed == 0


def test_views_of_one_training_do_not_push_each_other_out(tmp_path):
    views = [{"view": number} for number in range(4)]
    folder = FeatureFolder(tmp_path, None, most_bytes=2.5 * 10 * 4, code="")
    for view in views:
        folder.open((1,), view, 10).append(np.arange(10).astype(np.uint64), np.ones((10, 1)))
    folder.close()
    later = FeatureFolder(tmp_path, None, most_bytes=2.5 * 10 * 4, code="")
    assert [later.find((1,), view) is not None for view in views] == [True, True, False, False]
    later.close()


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


def test_trainings_of_one_process_share_features_that_are_not_kept(tmp_path):
    folder = FeatureFolder(root=None, scratch=tmp_path, most_bytes=0, code="")
    stores = [folder.open((3,), {"weights": name}, 10) for name in ("a", "a", "b")]
    assert stores[0] is stores[1]
    assert stores[0] is not stores[2]
    folder.close()
    assert not list(tmp_path.iterdir())


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
