"""Computes what the part of the network that does not train makes of images, each once.

Where the activations of a lower block are stored, as they are after a training of the blocks above
it, features are computed from them in place of the image.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from graftline.components.progress import report
from graftline.components.trainer.augmentation import Augmenter
from graftline.components.trainer.backbones.scaling import Scaling
from graftline.components.trainer.config import AugmentationConfig
from graftline.components.trainer.devices import Hardware
from graftline.components.trainer.feature_store import FeatureStore
from graftline.components.trainer.features import FeatureFolder, Features
from graftline.components.trainer.inputs import Images

_PROGRESS_EVERY = 2.0  # seconds


@dataclass(frozen=True)
class Work:
    """What had to be computed.

    Attributes:
        images: how many went through the network from the image on, each view for itself.
        derived: how many from stored activations on.
        seconds: wall clock of the latter.
    """

    images: int = 0
    derived: int = 0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.images + other.images,
            self.derived + other.derived,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class FeatureComputer:
    """Finds features, or computes those that are not there.

    Attributes:
        folder: where they are kept.
        hardware: where they are computed; the networks were made in its scope.
        batch_size: images per batch.
        augmentation: how views of the training images are made.
        scaling: how the images are scaled for the backbone.
    """

    folder: FeatureFolder
    hardware: Hardware
    batch_size: int
    augmentation: AugmentationConfig
    scaling: Scaling

    def compute(
        self,
        image: Any,
        outputs: Mapping[str, Any],
        below: Mapping[str, Any],
        made_by: Mapping[str, Any],
        images: Images,
        varied: bool,
    ) -> tuple[dict[str, Features], Work]:
        """The features of some images.

        Args:
            image: the input of the network.
            outputs: its tensors that are wanted, by name.
            below: tensors from each of which all of those follow, by name, the uppermost first; may
                be one of them.
            made_by: what the network is, as plain data; its weights are added.
            images: the images.
            varied: whether each is seen in several views.

        Returns:
            Features by output, and what had to be computed.

        Raises:
            UserError: the disk is full.
        """
        views: list[int | None] = [None]
        if varied and self.augmentation.varies:
            views = list(range(self.augmentation.views))
        tensors = {**below, **outputs}
        shapes = {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
        made = {
            name: {**made_by, "output": name, "weights": weights_digest(tf_keras.Model(image, one))}
            for name, one in tensors.items()
        }
        stores: dict[str, list[FeatureStore]] = {name: [] for name in outputs}
        work = Work()
        for view in views:
            made_view = {name: {**one, "view": self._described(view)} for name, one in made.items()}
            of_view = {
                name: self.folder.open(shapes[name], made_view[name], len(images))
                for name in outputs
            }
            found = {name: self.folder.find(shapes[name], made_view[name]) for name in below}
            lower = {name: store for name, store in found.items() if store}
            work += self._complete(image, tensors, of_view, lower, images, view)
            for name, store in of_view.items():
                stores[name].append(store)
        features = {
            name: Features(
                of_output,
                np.stack([store.find(images.ids) for store in of_output]),
                images.labels,
            )
            for name, of_output in stores.items()
        }
        return features, work

    def _described(self, view: int | None) -> dict[str, Any] | None:
        """What makes a view, as plain data."""
        if view is None:
            return None
        kept = ("flip", "rotation", "shift", "zoom", "contrast", "policy", "magnitude")
        return {"number": view, **{name: getattr(self.augmentation, name) for name in kept}}

    def _complete(
        self,
        image: Any,
        tensors: Mapping[str, Any],
        stores: Mapping[str, FeatureStore],
        below: Mapping[str, FeatureStore],
        images: Images,
        view: int | None,
    ) -> Work:
        """Computes one view of the images that a store lacks."""
        lacking: dict[str, Any] = {}
        wanted = np.zeros(len(images), bool)
        for name, store in stores.items():
            _forget_damaged(store, images.ids)
            unknown = store.find(images.ids) < 0
            if unknown.any():
                lacking[name] = tensors[name]
                wanted |= unknown
        if not lacking:
            return Work()
        derived, started = 0, time.monotonic()
        show = progress("computing features", int(wanted.sum()))
        for name, store in _fullest(below, images.ids[wanted]).items():
            _forget_damaged(store, images.ids[wanted])
            positions = store.find(images.ids)
            known = wanted & (positions >= 0)
            above = {output: tensor for output, tensor in lacking.items() if output != name}
            rows = Features([store], positions[None, known], images.labels[known])
            batches = rows.batches(self.batch_size, None)
            self._append(tensors[name], above, stores, images.ids[known], batches, show)
            wanted &= ~known
            derived = int(known.sum())
        seconds = time.monotonic() - started
        if wanted.any():
            augmenter = None if view is None else Augmenter(self.augmentation, self.scaling)
            batches = images.batches(
                self.batch_size, wanted=wanted, augmenter=augmenter, view=view or 0
            )
            self._append(image, lacking, stores, images.ids[wanted], batches, show)
        return Work(int(wanted.sum()), derived, seconds)

    def _append(
        self,
        start: Any,
        outputs: Mapping[str, Any],
        stores: Mapping[str, FeatureStore],
        ids: np.ndarray,
        batches: tf.data.Dataset,
        show: Callable[[int], None],
    ) -> None:
        """Stores what follows from the values of a tensor, which come in the order of the ids."""
        done = 0
        for results in infer(tf_keras.Model(start, dict(outputs)), batches, self.hardware):
            count = len(next(iter(results.values())))
            for name, rows in results.items():
                stores[name].append(ids[done : done + count], rows)
            done += count
            show(count)


def _forget_damaged(store: FeatureStore, ids: np.ndarray) -> None:
    damaged = store.forget_damaged(ids)
    if damaged:
        report(f"{damaged} stored features were damaged and are computed anew")


def _fullest(stores: Mapping[str, FeatureStore], ids: np.ndarray) -> dict[str, FeatureStore]:
    """The one that has most of some images, the first of several; none where none has any."""
    counts = {name: int(np.sum(store.find(ids) >= 0)) for name, store in stores.items()}
    if not any(counts.values()):
        return {}
    name = max(counts, key=lambda one: counts[one])
    return {name: stores[name]}


def infer(
    network: tf_keras.Model, batches: tf.data.Dataset, hardware: Hardware
) -> Iterator[dict[str, np.ndarray]]:
    """What a network, at inference, makes of images, batch by batch.

    Args:
        network: from images to outputs by name.
        batches: of (image, label).
        hardware: where it runs; the network was made in its scope.
    """
    strategy = hardware.strategy
    images = batches.map(lambda x, _: x)
    # Workers have images of their own, and need not wait for each other.
    alone = hardware.workers > 1

    @tf.function
    def run(one: tf.Tensor) -> dict[str, tf.Tensor]:
        return strategy.run(lambda x: network(x, training=False), args=(one,))

    for batch in images if alone else strategy.experimental_distribute_dataset(images):
        results = {}
        for name, output in run(batch).items():
            parts = strategy.experimental_local_results(output)
            results[name] = np.concatenate([part.numpy() for part in parts[: 1 if alone else None]])
        yield results


def weights_digest(network: tf_keras.Model) -> str:
    """SHA-256 of all weights of a network, in hexadecimal."""
    digest = hashlib.sha256()
    for weight in network.get_weights():
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def progress(title: str, total: int) -> Callable[[int], None]:
    """A function that is told how many more images are done, and reports every few seconds."""
    started = shown = time.monotonic()
    done = 0

    def show(images: int) -> None:
        nonlocal shown, done
        done += images
        now = time.monotonic()
        if now - shown >= _PROGRESS_EVERY or done == total:
            shown = now
            report(f"{title} {done}/{total}  {done / (now - started):.0f} images/s")

    return show
