"""What the part of the network that does not train makes of each image, computed once.

A frozen backbone gives the same features for the same image in every epoch, and so does the lower
part of one whose upper part trains; where images are augmented, it gives them for each of so many
views. They go to a store on disk, in which the next run finds those of all images that it has seen.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from graftline.components.progress import report
from graftline.components.trainer.augmentation import Augmenter
from graftline.components.trainer.backbones.scaling import Scaling
from graftline.components.trainer.balance import Balance
from graftline.components.trainer.config import AugmentationConfig
from graftline.components.trainer.devices import Hardware
from graftline.components.trainer.feature_store import (
    FeatureStore,
    describe,
    keep_within,
    outputs_in,
)
from graftline.components.trainer.inputs import Images

_PROGRESS_EVERY = 2.0  # seconds


@dataclass(frozen=True)
class Features:
    """The features of some images.

    Attributes:
        stores: one per view.
        positions: int64 (views, N): where the features of each image are in the store of each view.
        labels: int64 (N,), indices of the classes.
    """

    stores: Sequence[FeatureStore]
    positions: np.ndarray
    labels: np.ndarray

    def batches(
        self,
        batch_size: int,
        shuffle: tuple[int, int] | None,
        balance: Balance | None = None,
    ) -> tf.data.Dataset:
        """A dataset of (features, label), in each epoch another view of each image.

        Args:
            batch_size: images per batch; the last one may be smaller.
            shuffle: a seed and the first epoch, for another order in each; None: as they stand.
            balance: how often each image comes in an epoch; None: once.
        """
        epochs = itertools.count(shuffle[1] if shuffle else 0)
        shape = self.stores[0].shape

        def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            order = np.arange(len(self.labels))
            views = np.zeros(len(order), np.int64)
            if shuffle is not None:
                random = np.random.default_rng((shuffle[0], next(epochs)))
                if balance is not None:
                    order = np.repeat(order, balance.times(random))
                order = random.permutation(order)
                views = random.integers(len(self.stores), size=len(order))
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                yield self._rows(chosen, views[start : start + batch_size]), self.labels[chosen]

        signature = (
            tf.TensorSpec((None, *shape), tf.float32),
            tf.TensorSpec((None,), tf.int64),
        )
        return tf.data.Dataset.from_generator(read, output_signature=signature).prefetch(2)

    def _rows(self, images: np.ndarray, views: np.ndarray) -> np.ndarray:
        rows = np.empty((len(images), *self.stores[0].shape), np.float32)
        for view in np.unique(views):
            of_view = views == view
            rows[of_view] = self.stores[view].read(self.positions[view, images[of_view]])
        return rows


@dataclass(frozen=True)
class FeatureFolder:
    """Where features are kept from run to run.

    Attributes:
        root: the folder; None: they vanish with the process.
        scratch: where files without a name go; None: the system's folder for temporary files.
        most_bytes: how much all that is kept may take.
        code: digest of preprocessing and networks: what it was that made them.
        writer: number of this process among those that train together.
    """

    root: Path | None
    scratch: Path | None
    most_bytes: float
    code: str
    writer: int = 0
    # Those of this process, by what made them: a file has one writer, and what is not kept for the
    # next run is still there for the next training of this one, such as a trial of the tuner.
    _opened: dict[str, FeatureStore] = field(default_factory=dict)

    def open(self, shape: tuple[int, ...], made_by: Mapping[str, Any], most: int) -> FeatureStore:
        """The store of what was made in a certain way.

        Args:
            shape: of the features of one image.
            made_by: plain data that says how.
            most: how many images it may have to hold.
        """
        wanted = int(np.prod(shape)) * 4 * most
        made = {**made_by, "code": self.code}
        name = _name(made)
        folder = None if self.root is None or wanted > self.most_bytes else self.root / name
        if name not in self._opened:
            self._opened[name] = FeatureStore(folder, shape, self.scratch, self.writer)
            if folder is not None:
                describe(folder, made)
        if folder is not None:
            keep_within(folder.parent, self.most_bytes - wanted, folder)
        return self._opened[name]

    def find(self, shape: tuple[int, ...], made_by: Mapping[str, Any]) -> FeatureStore | None:
        """The store of what was made in a certain way, if there is one already; as `open`."""
        name = _name({**made_by, "code": self.code})
        if name not in self._opened:
            if self.root is None or not (self.root / name).is_dir():
                return None
            self._opened[name] = FeatureStore(self.root / name, shape, self.scratch, self.writer)
        return self._opened[name]

    def outputs(self) -> set[str]:
        """What is stored of any network, by name."""
        return outputs_in(self.root) if self.root else set()

    def close(self) -> None:
        """Closes all that were opened; those that are not kept vanish."""
        for store in self._opened.values():
            store.close()


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


def _name(made_by: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class FeatureComputer:
    """Finds features, or computes those that are not there.

    Where the activations of a lower block are stored, as they are after a training of the blocks
    above it, features are computed from them in place of the image.

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
        made = {
            name: {**made_by, "output": name, "weights": weights_digest(tf_keras.Model(image, one))}
            for name, one in {**below, **outputs}.items()
        }
        stores: dict[str, list[FeatureStore]] = {
            name: [
                self.folder.open(
                    tuple(tensor.shape[1:]),
                    {**made[name], "view": self._described(view)},
                    len(images),
                )
                for view in views
            ]
            for name, tensor in outputs.items()
        }
        work = Work()
        for number, view in enumerate(views):
            of_view = {name: stores[name][number] for name in outputs}
            lower = {
                name: store
                for name, tensor in below.items()
                if (
                    store := self.folder.find(
                        tuple(tensor.shape[1:]), {**made[name], "view": self._described(view)}
                    )
                )
            }
            work += self._complete(image, {**below, **outputs}, of_view, lower, images, view)
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
