"""The trainer as TFX's Trainer calls it: from spans and Transform's graph to an exported model.

By default every image goes once through the frozen backbone and the head trains on what came out;
then the head and the upper part of the backbone train together, on what the lower part made of
each image. The best epoch of all phases on the eval split is exported. The test split is never seen
here.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
import tf_keras

from graftline.components.progress import report
from graftline.components.trainer.augmentation import Augmenter
from graftline.components.trainer.autograph import leave_keras_unconverted
from graftline.components.trainer.backbones import build, registry
from graftline.components.trainer.backbones.scaling import Scaling
from graftline.components.trainer.balance import Balance, class_weights
from graftline.components.trainer.config import AugmentationConfig, ImageConfig, TrainerConfig
from graftline.components.trainer.cuts import Cut, cut_for_phases, still_valid
from graftline.components.trainer.devices import make_strategy
from graftline.components.trainer.export import export
from graftline.components.trainer.features import FeatureComputer, FeatureFolder, Features
from graftline.components.trainer.inputs import Images
from graftline.components.trainer.network import join, make_head, pooled
from graftline.components.trainer.objective import to_train_on
from graftline.components.trainer.phases import run_phase
from graftline.components.trainer.record import Best, Phase, TrainingRecord
from graftline.serving.errors import UserError

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs

_MOST_OF_FREE_DISK = 0.5


def run_fn(fn_args: FnArgs) -> None:
    """Trains and exports.

    Args:
        fn_args: TFX's; `custom_config` holds the sections `trainer` and `image`, the list
            `classes` in the order of the model's outputs, the folder `weights_cache`, and
            `features`: `folder`, where they are kept, and `code`, a digest of what makes them.

    Raises:
        UserError: there is nothing to train on, a label is none of the classes, the weights cannot
            be read, or the loss is no number.
    """
    leave_keras_unconverted()
    settings = fn_args.custom_config
    config = msgspec.convert(settings["trainer"], TrainerConfig)
    transform = tft.TFTransformOutput(fn_args.transform_output)
    kept, logs = settings["features"], fn_args.model_run_dir
    training = Training(
        config=config,
        image=msgspec.convert(settings["image"], ImageConfig),
        classes=tuple(settings["classes"]),
        transform=transform,
        train=Images.find(fn_args.train_files, transform),
        evaluation=Images.find(fn_args.eval_files, transform),
        logs=logs,
        weights_cache=Path(settings["weights_cache"]),
        features=FeatureFolder(
            root=Path(kept["folder"]) if config.feature_store_gb else None,
            scratch=_local(logs),
            most_bytes=config.feature_store_gb * 1e9,
            code=kept["code"],
        ),
    )
    try:
        training.run(fn_args.serving_model_dir)
    finally:
        training.features.close()


def _local(folder: str) -> Path | None:
    """The folder, made; None where it is on an object store."""
    if "://" in folder:
        return None
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path


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

    def run(self, destination: str) -> None:
        """Trains, writes the SavedModel to `destination` and the record to `logs`."""
        config, started = self.config, time.monotonic()
        tf_keras.utils.set_random_seed(config.seed)
        self._check()
        strategy = make_strategy(config.strategy)
        with strategy.scope():
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
            head = make_head(config.head, backbone.output_shape[-1], len(self.classes))
            cuts = cut_for_phases(backbone, head, config, self._most_bytes())
            trained = self._run_phases(backbone, cuts, strategy)
        best = trained.best
        assert best is not None
        report("exporting the model")
        model = join(backbone, head, pretrained=config.weights != "none")
        export(model, self.transform, self.classes, destination)
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
            replicas=strategy.num_replicas_in_sync,
            features_computed=trained.computed,
            features_seconds=trained.seconds,
            phases=tuple(trained.phases),
            exported=best,
            seconds=time.monotonic() - started,
        ).write(self.logs)

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

    def _most_bytes(self) -> float:
        """How much the stored activations of one image may take."""
        free = shutil.disk_usage(self.features.scratch or tempfile.gettempdir()).free
        augmentation = self.config.augmentation
        views = augmentation.views if augmentation.varies else 1
        return free * _MOST_OF_FREE_DISK / (len(self.train) * views + len(self.evaluation))

    def _run_phases(
        self, backbone: tf_keras.Model, cuts: Sequence[Cut], strategy: tf.distribute.Strategy
    ) -> _Trained:
        config = self.config
        outcome = _Trained()
        features: dict[str, tuple[Features, Features]] = {}
        trained = 0
        for number, (settings, one) in enumerate(zip(config.phases, cuts, strict=True)):
            if one.stored is not None and (trained > one.blocks or one.name not in features):
                started = time.monotonic()
                stored = still_valid(cuts[number:], trained) or {one.name: one.stored}
                features, computed = self._features(backbone, stored, strategy)
                outcome.computed += computed
                outcome.seconds += time.monotonic() - started
            backbone.trainable = True
            if one.lower is not None:
                one.lower.trainable = False
            trained = max(trained, one.blocks)
            train, evaluation = self._examples(one, features.get(one.name))
            phase, outcome.best = run_phase(
                settings,
                config,
                one.network,
                train,
                evaluation if len(self.evaluation) else None,
                images=len(self.train),
                best=outcome.best,
                logs=self.logs,
            )
            outcome.phases.append(phase)
        return outcome

    def _features(
        self, backbone: tf_keras.Model, stored: Mapping[str, Any], strategy: tf.distribute.Strategy
    ) -> tuple[dict[str, tuple[Features, Features]], int]:
        """Features of the train and the eval split by name, and how many had to be computed."""
        config = self.config
        computer = FeatureComputer(
            self.features, strategy, config.batch_size, config.augmentation, self._scaling
        )
        made_by = {
            "backbone": config.backbone,
            "alpha": config.alpha,
            "image": msgspec.to_builtins(self.image),
            "pooling": config.head.pooling,
        }
        of_split = [
            computer.compute(backbone.input, stored, made_by, images, varied)
            for images, varied in ((self.train, True), (self.evaluation, False))
        ]
        (train, computed), (evaluation, more) = of_split
        return {name: (train[name], evaluation[name]) for name in stored}, computed + more

    def _examples(
        self, one: Cut, features: tuple[Features, Features] | None
    ) -> tuple[tf.data.Dataset, tf.data.Dataset]:
        """What a phase trains on and is watched by: stored features, else the images themselves."""
        config, classes = self.config, len(self.classes)
        size, seed, labels = config.batch_size, config.seed, self.train.labels
        balance = Balance.of(labels, classes) if config.imbalance == "resample" else None
        if one.stored is not None:
            assert features is not None
            train = features[0].batches(size, seed, balance)
            evaluation = features[1].batches(size, None)
        else:
            varies = config.augmentation.varies
            augmenter = Augmenter(config.augmentation, self._scaling) if varies else None
            train = self.train.shuffled_batches(size, seed, augmenter=augmenter, balance=balance)
            evaluation = self.evaluation.batches(size)
        weights = class_weights(labels, classes) if config.imbalance == "weights" else None
        plain = msgspec.structs.replace(config, augmentation=AugmentationConfig())
        return (
            to_train_on(train, classes, config, weights),
            to_train_on(evaluation, classes, plain, None),
        )

    @property
    def _scaling(self) -> Scaling:
        return registry.find(self.config.backbone).scaling


class _Trained:
    """What came of the phases.

    Attributes:
        phases: what happened.
        best: the best epoch of all.
        computed: how many images went through what does not train, each view for itself.
        seconds: wall clock of that.
    """

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        self.best: Best | None = None
        self.computed = 0
        self.seconds = 0.0
