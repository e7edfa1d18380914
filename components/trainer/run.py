"""The trainer as TFX's Trainer calls it: from spans and Transform's graph to an exported model.

First every image goes once through the frozen backbone and the head trains on what came out; then
the head and the upper part of the backbone train together, on what the lower part made of each
image. The better of both on the eval split is exported. The test split is never seen here.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
import tf_keras

from graftline.components.progress import report
from graftline.components.trainer import backbones, inputs
from graftline.components.trainer.autograph import leave_keras_unconverted
from graftline.components.trainer.config import ImageConfig, TrainerConfig
from graftline.components.trainer.devices import make_strategy
from graftline.components.trainer.export import export
from graftline.components.trainer.features import Features, compute_features
from graftline.components.trainer.network import join, make_head
from graftline.components.trainer.phases import run_phase
from graftline.components.trainer.record import Best, Phase, TrainingRecord
from graftline.serving.errors import UserError

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs

_PROGRESS_EVERY = 2.0  # seconds
_MOST_OF_FREE_DISK = 0.5


def run_fn(fn_args: FnArgs) -> None:
    """Trains and exports.

    Args:
        fn_args: TFX's; `custom_config` holds the sections `trainer` and `image` and the list
            `classes` in the order of the model's outputs.

    Raises:
        UserError: there is nothing to train on, a label is none of the classes, the weights cannot
            be read, or the loss is no number.
    """
    leave_keras_unconverted()
    training = Training(
        config=msgspec.convert(fn_args.custom_config["trainer"], TrainerConfig),
        image=msgspec.convert(fn_args.custom_config["image"], ImageConfig),
        classes=tuple(fn_args.custom_config["classes"]),
        transform=tft.TFTransformOutput(fn_args.transform_output),
        files={"train": fn_args.train_files, "eval": fn_args.eval_files},
        logs=fn_args.model_run_dir,
    )
    training.run(fn_args.serving_model_dir)


@dataclass(frozen=True)
class Training:
    """One training: what it is made from and how.

    Attributes:
        config: the section `trainer`.
        image: the section `image`.
        classes: class names in the order of the model's outputs.
        transform: what Transform wrote.
        files: patterns of the TFRecords of `train` and `eval`.
        logs: folder of the TensorBoard logs and of `training.json`.
    """

    config: TrainerConfig
    image: ImageConfig
    classes: tuple[str, ...]
    transform: tft.TFTransformOutput
    files: Mapping[str, Sequence[str]]
    logs: str

    def run(self, destination: str) -> None:
        """Trains, writes the SavedModel to `destination` and the record to `logs`."""
        config, started = self.config, time.monotonic()
        tf_keras.utils.set_random_seed(config.seed)
        counts = self._count_images()
        strategy = make_strategy(config.strategy)
        with strategy.scope():
            report(f"loading {config.backbone}")
            backbone = backbones.load(
                config.backbone, config.weights, config.alpha, self.image.size
            )
            head = make_head(config.head, backbone.output_shape[-1], len(self.classes))
            lower, upper = backbones.split(backbone, config.backbone, config.fine_tune.fraction)
            if lower is not None:
                lower.trainable = False
            pretrained = config.weights != "none"
            networks = {"frozen": head, "fine_tune": join(upper, head, pretrained)}
            stored = {"frozen": backbone.output}
            if lower is not None and self._fits_on_disk(lower, sum(counts.values())):
                stored["fine_tune"] = lower.output
            else:
                networks["fine_tune"] = join(backbone, head, pretrained)
            stored = {name: x for name, x in stored.items() if getattr(config, name).epochs}
            computing = time.monotonic()
            features = self._compute_features(backbone.input, stored, counts, strategy)
            computed = time.monotonic() - computing
            phases, best = self._run_phases(networks, features, counts)
        report("exporting the model")
        model = join(backbone, head, pretrained)
        export(model, self.transform, self.classes, destination)
        TrainingRecord(
            backbone=config.backbone,
            weights=config.weights,
            alpha=config.alpha,
            image_size=self.image.size,
            seed=config.seed,
            classes=len(self.classes),
            parameters=model.count_params(),
            train_images=counts["train"],
            eval_images=counts["eval"],
            replicas=strategy.num_replicas_in_sync,
            features_seconds=computed,
            features_images_per_second=sum(counts.values()) / computed if stored else 0.0,
            phases=phases,
            exported=best,
            seconds=time.monotonic() - started,
        ).write(self.logs)

    def _count_images(self) -> dict[str, int]:
        counts = {}
        for split, patterns in self.files.items():
            labels = inputs.read_labels(patterns, self.transform)
            if np.any(labels < 0):
                raise UserError(
                    f"{np.sum(labels < 0)} images of the {split} split have a label that is none "
                    f"of the {len(self.classes)} classes of the schema. Add it to the schema, or "
                    "drop these images again with another label."
                )
            counts[split] = len(labels)
        if not counts["train"]:
            raise UserError(
                "There is no image to train on: the train split of every span of the window is "
                "empty. Drop more images."
            )
        if not counts["eval"]:
            report("no image in the eval split: no early stopping, the last epoch is exported")
        return counts

    def _fits_on_disk(self, lower: tf_keras.Model, images: int) -> bool:
        needed = int(np.prod(lower.output_shape[1:])) * 4 * images
        free = shutil.disk_usage(self._scratch() or tempfile.gettempdir()).free
        return needed <= free * _MOST_OF_FREE_DISK

    def _scratch(self) -> Path | None:
        """Where features go: beside the logs, unless those go to an object store."""
        if "://" in self.logs:
            return None
        folder = Path(self.logs)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _compute_features(
        self,
        image: Any,
        stored: Mapping[str, Any],
        counts: Mapping[str, int],
        strategy: tf.distribute.Strategy,
    ) -> dict[str, Features]:
        """Runs all images once through what does not train; features by split."""
        if not stored:
            return {}
        network = tf_keras.Model(image, dict(stored))
        show = _progress("computing features", sum(counts.values()))
        features = {}
        for split, patterns in self.files.items():
            images = inputs.read_batches(patterns, self.transform, self.config.batch_size)
            features[split] = compute_features(network, images, strategy, self._scratch(), show)
        return features

    def _run_phases(
        self,
        networks: Mapping[str, tf_keras.Model],
        features: Mapping[str, Features],
        counts: Mapping[str, int],
    ) -> tuple[tuple[Phase, ...], Best]:
        phases = []
        best = None
        for name, network in networks.items():
            settings = getattr(self.config, name)
            if not settings.epochs:
                continue
            phase, best = run_phase(
                name,
                network,
                self._examples("train", name, features, self.config.seed),
                self._examples("eval", name, features, None) if counts["eval"] else None,
                images=counts["train"],
                epochs=settings.epochs,
                batch_size=self.config.batch_size,
                rate=settings.rate,
                schedule=settings.schedule,
                patience=self.config.patience,
                best=best,
                logs=self.logs,
            )
            phases.append(phase)
        assert best is not None
        return tuple(phases), best

    def _examples(
        self, split: str, phase: str, features: Mapping[str, Features], shuffle_seed: int | None
    ) -> tf.data.Dataset:
        """Batches of what a phase trains on: stored features, else the images themselves."""
        batch_size = self.config.batch_size
        if split in features and phase in features[split].files:
            return features[split].batches(phase, batch_size, shuffle_seed)
        return inputs.read_batches(self.files[split], self.transform, batch_size, shuffle_seed)


def _progress(title: str, total: int) -> Callable[[int], None]:
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
