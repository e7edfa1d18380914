"""What the part of the network that does not train has made of each image, as a phase reads it.

A frozen backbone gives the same features for the same image in every epoch, and so does the lower
part of one whose upper part trains; where images are augmented, it gives them for each of so many
views. They go to a store on disk, in which the next run finds those of all images that it has seen.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from graftline.components.trainer.balance import Balance
from graftline.components.trainer.feature_store import (
    FeatureStore,
    bytes_in,
    describe,
    keep_within,
    outputs_in,
)


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
    # How many bytes those may come to that are kept.
    _kept: dict[str, int] = field(default_factory=dict)

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
        # Those of one training do not make room for each other: the next one wants them all.
        others = sum(size for kept, size in self._kept.items() if kept != name)
        folder = None
        if self.root is not None and others + wanted <= self.most_bytes:
            folder = self.root / name
        if name not in self._opened:
            self._opened[name] = FeatureStore(folder, shape, self.scratch, self.writer)
            if folder is not None:
                describe(folder, made)
        if folder is not None:
            self._kept[name] = wanted
            keep_within(folder.parent, self.most_bytes - others - wanted, self._kept)
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

    def bytes_kept(self) -> int:
        """How much all that is kept takes."""
        return bytes_in(self.root) if self.root else 0

    def close(self) -> None:
        """Closes all that were opened; those that are not kept vanish."""
        for store in self._opened.values():
            store.close()


def _name(made_by: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:32]
