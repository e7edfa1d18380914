"""One training, from the images of both splits to an exported model.

By default every image goes once through the frozen backbone and the head trains on what came out;
then the head and the upper part of the backbone train together, on what the lower part made of
each image. The best epoch of all phases on the eval split is exported. The test split is never seen
here.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
import tf_keras

from graftline.components.progress import report
from graftline.components.trainer import boundary
from graftline.components.trainer.augmentation import Augmenter
from graftline.components.trainer.backbones import build, registry
from graftline.components.trainer.backbones.scaling import Scaling, unscale
from graftline.components.trainer.balance import Balance, class_weights
from graftline.components.trainer.board import write_embedding
from graftline.components.trainer.checkpoint import Checkpoints, State, set_weights
from graftline.components.trainer.config import AugmentationConfig, ImageConfig, TrainerConfig
from graftline.components.trainer.cuts import Cut, boundaries, cut_for_phases, still_valid
from graftline.components.trainer.devices import Hardware
from graftline.components.trainer.export import export
from graftline.components.trainer.feature_computer import FeatureComputer, Work
from graftline.components.trainer.features import FeatureFolder, Features
from graftline.components.trainer.inputs import Images
from graftline.components.trainer.network import join, make_head, pooled
from graftline.components.trainer.objective import to_train_on
from graftline.components.trainer.phases import Diverged, run_phase
from graftline.components.trainer.record import TrainingRecord
from graftline.components.trainer.warm_start import start_from
from graftline.serving.errors import UserError

# Backbone and head.
Networks = tuple[tf_keras.Model, tf_keras.Model]

_MOST_OF_FREE_DISK = 0.5
# Names of classes in one line.
_MOST_NAMES = 5
_THUMBNAIL = 48  # pixels


@dataclass(frozen=True)
class Training:
    """One training: what it is made from and how.

    Attributes:
        config: the section `trainer`.
        image: the section `image`.
        classes: class names in the order of the model's outputs.
        transform: what Transform wrote.
        train, evaluation: the images of both splits.
        logs: folder of the TensorBoard logs and of `training.json`.
        weights_cache: folder of downloaded weights.
        features: where features are kept.
        checkpoints: where the training leaves how far it is.
        last_good: folder of the model that a training leaves that diverges.
        hardware: what it runs on.
        start_from: a version whose weights it starts from; None: the pretrained ones.
    """

    config: TrainerConfig
    image: ImageConfig
    classes: tuple[str, ...]
    transform: tft.TFTransformOutput
    train: Images
    evaluation: Images
    logs: str
    weights_cache: Path
    features: FeatureFolder
    checkpoints: Checkpoints
    last_good: Path
    hardware: Hardware
    start_from: Path | None = None

    def fit(self, state: State) -> tuple[Networks, bool]:
        """Goes through all phases that are left.

        Args:
            state: where the training stands, kept up to date.

        Returns:
            backbone and head, and whether they started from a version.

        Raises:
            UserError: it cannot train on these images.
            Diverged: the loss is no number.
        """
        # Beside a global seed of 0 tf.data refuses seeds that are tensors, like an epoch's.
        tf_keras.utils.set_random_seed(1 + self.config.seed)
        self._check()
        with self.hardware.scope():
            backbone, head = self._network()
            version, models = self.start_from, (backbone, head)
            warm = version is not None and start_from(version, models, self.classes)
            cuts = cut_for_phases(
                backbone, head, self.config, self._most_bytes(), self._is_worth_storing
            )
            self._run_phases(backbone, head, cuts, state)
        return models, warm

    def run(self, destination: str) -> None:
        """Trains, writes the SavedModel to `destination` and the record to `logs`.

        Raises:
            UserError: it cannot train on these images, or the loss is no number.
        """
        config, started = self.config, time.monotonic()
        state = self.checkpoints.load()
        try:
            trained, warm = self.fit(state)
        except Diverged as error:
            if self.hardware.worker != 0:
                return  # all of them see the same loss, and the chief says it
            raise self._with_what_is_left(error, state) from error
        if self.hardware.worker != 0:
            return
        report("exporting the model")
        models = self._best_network(state, trained if self.hardware.is_plain else None)
        model = join(*models, pretrained=config.weights != "none")
        export(model, self.transform, self.classes, destination)
        if config.tensorboard.embedding and len(self.evaluation):
            self._write_embedding(models[0])
        assert state.best is not None
        TrainingRecord(
            backbone=config.backbone,
            weights=config.weights,
            alpha=config.alpha,
            image_size=self.image.size,
            seed=config.seed,
            classes=len(self.classes),
            parameters=model.count_params(),
            train_images=len(self.train),
            eval_images=len(self.evaluation),
            replicas=self.hardware.replicas,
            workers=self.hardware.workers,
            precision=self.hardware.precision,
            warm_start=warm,
            features_computed=state.features_computed,
            features_seconds=state.features_seconds,
            features_derived=state.features_derived,
            derived_seconds=state.derived_seconds,
            phases=tuple(state.phases),
            exported=state.best,
            seconds=time.monotonic() - started,
        ).write(self.logs)
        self.checkpoints.remove()

    def _network(self) -> Networks:
        """The backbone, which gives one vector per image, and a new head."""
        config = self.config
        report(f"loading {config.backbone}")
        whole = build.load(
            config.backbone,
            config.weights,
            config.alpha,
            self.image.size,
            self.weights_cache,
            report,
        )
        inner = build.without_top(whole, config.backbone, config.head.skip_blocks)
        backbone = pooled(inner, config.head.pooling)
        return backbone, make_head(config.head, backbone.output_shape[-1], len(self.classes))

    def _best_network(self, state: State, models: Networks | None = None) -> Networks:
        """Backbone and head of the best epoch, on one device and in float32.

        Args:
            state: where the training stands.
            models: such ones; None: they are made anew.
        """
        models = models or self._network()
        set_weights(models, state.best_weights)
        return models

    def _write_embedding(self, backbone: tf_keras.Model) -> None:
        """Writes features, classes and thumbnails of eval images for TensorBoard's projector."""
        # At random: side by side in a span are images of one class.
        order = np.random.default_rng(self.config.seed).permutation(len(self.evaluation))
        wanted = np.zeros(len(order), bool)
        wanted[order[: self.config.tensorboard.embedding]] = True
        features, thumbnails = [], []
        for images, _ in self.evaluation.batches(self.config.batch_size, wanted=wanted):
            features.append(backbone(images, training=False).numpy())
            small = tf.image.resize(
                unscale(images, self._scaling), (_THUMBNAIL, _THUMBNAIL), antialias=True
            )
            thumbnails.append(tf.cast(small, tf.uint8).numpy())
        labels = [self.classes[label] for label in self.evaluation.labels[wanted]]
        write_embedding(
            f"{self.logs}/embedding", np.concatenate(features), labels, np.concatenate(thumbnails)
        )

    def _with_what_is_left(self, error: Diverged, state: State) -> UserError:
        """Keeps the weights of the best epoch before a training diverged, and says where."""
        best = state.best
        if best is None:
            return error
        model = join(*self._best_network(state), pretrained=self.config.weights != "none")
        # Not among the logs: TFX removes whatever a node that fails has put out.
        shutil.rmtree(self.last_good, ignore_errors=True)
        export(model, self.transform, self.classes, str(self.last_good))
        return UserError(
            f"{error} The model of the best epoch before, {best.phase} {best.epoch}, is kept in "
            f"{self.last_good}."
        )

    def _check(self) -> None:
        """Refuses what cannot be trained on.

        Raises:
            UserError: a label is none of the classes, or there is no image.
        """
        for split, images in (("train", self.train), ("eval", self.evaluation)):
            unknown = int(np.sum(images.labels < 0))
            if unknown:
                raise UserError(
                    f"{unknown} images of the {split} split have a label that is none of the "
                    f"{len(self.classes)} classes of the schema. Add it to the schema, or drop "
                    "these images again with another label."
                )
        if not len(self.train):
            raise UserError(
                "There is no image to train on: the train split of every span of the window is "
                "empty. Drop more images."
            )
        if not len(self.evaluation):
            report("no image in the eval split: no early stopping, the last epoch is exported")
            return
        unwatched = np.setdiff1d(self.train.labels, self.evaluation.labels)
        if len(unwatched):
            names = ", ".join(self.classes[label] for label in unwatched[:_MOST_NAMES])
            more = (
                f" and {len(unwatched) - _MOST_NAMES} more" if unwatched[_MOST_NAMES:].size else ""
            )
            report(
                f"no image of {names}{more} in the eval split: "
                "early stopping does not see how these classes fare"
            )

    def _most_bytes(self) -> float:
        """How much the stored activations of one image may take."""
        free = shutil.disk_usage(self.features.scratch or tempfile.gettempdir()).free
        # What runs before this one have kept is used again, or makes room.
        free += self.features.bytes_kept()
        augmentation = self.config.augmentation
        views = augmentation.views if augmentation.varies else 1
        return free * _MOST_OF_FREE_DISK / (len(self.train) * views + len(self.evaluation))

    def _is_worth_storing(self, lower: tf_keras.Model) -> bool:
        """Whether reading the activations of a network is faster than making them."""
        if not self.hardware.is_accelerated or self.hardware.workers > 1:
            return True
        made, read = boundary.rates(
            lower, self._own, self._batch, self.hardware, self.features.scratch
        )
        report(f"activations: {made:.0f} images/s made, {read:.0f} read from disk")
        return read > made

    def _run_phases(
        self,
        backbone: tf_keras.Model,
        head: tf_keras.Model,
        cuts: Sequence[Cut],
        state: State,
    ) -> None:
        """Goes on from where the training stands to its end.

        Raises:
            Diverged: the loss is no number.
        """
        models, config = (backbone, head), self.config
        if state.weights:
            set_weights(models, state.weights)
        features: dict[str, tuple[Features, Features]] = {}
        trained = max((one.blocks for one in cuts[: len(state.phases)]), default=0)
        for number in range(len(state.phases), len(cuts)):
            one = cuts[number]
            if one.stored is not None and (trained > one.blocks or one.name not in features):
                started = time.monotonic()
                stored = still_valid(cuts[number:], trained) or {one.name: one.stored}
                deepest = max(cut.blocks for cut in cuts if cut.name in stored)
                features, work = self._features(backbone, stored, deepest)
                state.features_computed += work.images
                state.features_seconds += time.monotonic() - started - work.seconds
                state.features_derived += work.derived
                state.derived_seconds += work.seconds
            backbone.trainable = True
            if one.lower is not None:
                one.lower.trainable = False
            trained = max(trained, one.blocks)
            train, evaluation = self._examples(one, features.get(one.name), len(state.epochs))
            run_phase(
                config.phases[number],
                config,
                one.network,
                train,
                evaluation if len(self.evaluation) else None,
                state,
                models=models,
                images=len(self.train),
                evaluation_images=len(self.evaluation),
                hardware=self.hardware,
                logs=self.logs,
                save=lambda: self.checkpoints.save(state),
            )

    def _features(
        self, backbone: tf_keras.Model, stored: Mapping[str, Any], deepest: int
    ) -> tuple[dict[str, tuple[Features, Features]], Work]:
        """Features of the train and the eval split by name, and what had to be computed.

        Args:
            backbone: from images to features.
            stored: the tensors whose values are wanted.
            deepest: how many blocks lie above all of them.
        """
        config = self.config
        computer = FeatureComputer(
            self.features, self.hardware, self._batch, config.augmentation, self._scaling
        )
        made_by = {
            "backbone": config.backbone,
            "alpha": config.alpha,
            "image": msgspec.to_builtins(self.image),
            "pooling": config.head.pooling,
            "precision": self.hardware.precision,
        }
        kept = self.features.outputs()
        below = {
            name: tensor
            for name, tensor in boundaries(backbone, config.backbone, deepest).items()
            if name in kept
        }
        of_split = [
            computer.compute(backbone.input, stored, below, made_by, images, varied)
            for images, varied in ((self._own, True), (self.evaluation, False))
        ]
        (train, work), (evaluation, more) = of_split
        return {name: (train[name], evaluation[name]) for name in stored}, work + more

    def _examples(
        self, one: Cut, features: tuple[Features, Features] | None, epoch: int
    ) -> tuple[tf.data.Dataset, tf.data.Dataset]:
        """What a phase trains on, from an epoch on, and is watched by: features, or images."""
        config, classes = self.config, len(self.classes)
        batch = self._batch if self.hardware.workers == 1 else config.batch_size
        weights = class_weights(self.train.labels, classes)
        balance = Balance(weights[self._own.labels]) if config.imbalance == "resample" else None
        if one.stored is not None:
            assert features is not None
            train = features[0].batches(batch, (config.seed, epoch), balance)
            evaluation = features[1].batches(batch, None)
        else:
            varies = config.augmentation.varies
            augmenter = Augmenter(config.augmentation, self._scaling) if varies else None
            train = self._own.shuffled_batches(
                batch, config.seed, epoch, augmenter=augmenter, balance=balance
            )
            evaluation = self.evaluation.batches(batch)
        plain = msgspec.structs.replace(config, augmentation=AugmentationConfig())
        return (
            to_train_on(
                train, classes, config, weights if config.imbalance == "weights" else None, epoch
            ),
            to_train_on(evaluation, classes, plain, None),
        )

    @property
    def _batch(self) -> int:
        """Images per step, on all devices together."""
        return self.config.batch_size * self.hardware.replicas

    @functools.cached_property
    def _own(self) -> Images:
        """The training images that this worker sees."""
        return self.train.shard(self.hardware.worker, self.hardware.workers)

    @property
    def _scaling(self) -> Scaling:
        return registry.find(self.config.backbone).scaling
