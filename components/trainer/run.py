"""The trainer as TFX's Trainer calls it: here, or in several workers on this machine."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import tensorflow as tf
import tensorflow_transform as tft

from graftline.components.trainer.autograph import leave_libraries_unconverted
from graftline.components.trainer.checkpoint import Checkpoints
from graftline.components.trainer.cluster import cluster_size
from graftline.components.trainer.config import ImageConfig, TrainerConfig
from graftline.components.trainer.devices import Hardware, gpus_by_name
from graftline.components.trainer.features import FeatureFolder
from graftline.components.trainer.inputs import Images
from graftline.components.trainer.training import Training
from graftline.components.trainer.workers import train_as_chief, train_in_workers
from graftline.serving.errors import UserError

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs


# What a training follows from, of its settings, beside the images.
FOLLOWS_FROM = ("trainer", "image", "classes", "start_from", "weights_digest", "code")


def run_fn(fn_args: FnArgs) -> None:
    """Trains and exports.

    Args:
        fn_args: TFX's; `custom_config` holds the sections `trainer` and `image`, the list
            `classes` in the order of the model's outputs, the folder `weights_cache`,
            `features`: `folder`, where they are kept, and `code`, a digest of what makes them; the
            folders `checkpoints`, `cluster` and `last_good`; `start_from`, the folder of a version
            or empty; `weights_digest` and `code`, digests of the weight file and of all code.

    Raises:
        UserError: there is nothing to train on, a label is none of the classes, the weights cannot
            be read, the loss is no number, or memory or disk are used up.
        RuntimeError: a worker died.
    """
    arguments = {
        "settings": dict(fn_args.custom_config),
        "transform": fn_args.transform_output,
        "files": {"train": list(fn_args.train_files), "eval": list(fn_args.eval_files)},
        "logs": fn_args.model_run_dir,
        "model": fn_args.serving_model_dir,
    }
    config = msgspec.convert(fn_args.custom_config["trainer"], TrainerConfig)
    if config.workers > 1:
        gpus = gpus_by_name(config.devices)
        # Each sees its own ones only.
        arguments["settings"]["trainer"] = {**fn_args.custom_config["trainer"], "devices": None}
        train_in_workers(f"{__name__}:train", arguments, config.workers, gpus)
    elif cluster_size() > 1:
        train_as_chief(f"{__name__}:train", arguments, Path(fn_args.custom_config["cluster"]))
    else:
        train(arguments)


def train(arguments: Mapping[str, Any]) -> None:
    """One training, or one worker's part in it.

    Args:
        arguments: what `run_fn` passes on, plain data.

    Raises:
        UserError: as `run_fn`.
    """
    config = msgspec.convert(arguments["settings"]["trainer"], TrainerConfig)
    # First of all: TensorFlow joins a cluster only before it has done anything else.
    hardware = Hardware.find(config)
    with contextlib.ExitStack() as stack:
        if hardware.worker:
            # The chief alone writes logs; what the others leave is of no use later.
            folder = tempfile.TemporaryDirectory(prefix="worker-", dir=_local(arguments["logs"]))
            arguments = {**arguments, "logs": stack.enter_context(folder)}
        training = make_training(arguments, hardware)
        stack.callback(training.features.close)
        try:
            training.run(arguments["model"])
        except tf.errors.ResourceExhaustedError as error:
            raise memory_used_up(error, training) from error


def memory_used_up(error: tf.errors.ResourceExhaustedError, training: Training) -> UserError:
    """What to say when a device has not memory enough for a training: which settings to lower."""
    return UserError(
        f"The memory of the device is used up ({str(error).splitlines()[0]}). Lower "
        f"trainer.batch_size ({training.config.batch_size}) or image.size ({training.image.size}), "
        "train fewer blocks in trainer.phases, or take a smaller backbone; then start "
        "anew with `graftline run`."
    )


def make_training(arguments: Mapping[str, Any], hardware: Hardware) -> Training:
    """A training as this process takes part in it.

    Args:
        arguments: what `run_fn` passes on, plain data.
        hardware: what it runs on.
    """
    leave_libraries_unconverted()
    settings, logs = arguments["settings"], arguments["logs"]
    config = msgspec.convert(settings["trainer"], TrainerConfig)
    transform = tft.TFTransformOutput(arguments["transform"])
    images = {
        split: Images.find(patterns, transform) for split, patterns in arguments["files"].items()
    }
    follows_from = {
        **{name: settings[name] for name in FOLLOWS_FROM},
        "images": [images[split].digest for split in ("train", "eval")],
    }
    kept = settings["features"]
    return Training(
        config=config,
        image=msgspec.convert(settings["image"], ImageConfig),
        classes=tuple(settings["classes"]),
        transform=transform,
        train=images["train"],
        evaluation=images["eval"],
        logs=logs,
        weights_cache=Path(settings["weights_cache"]),
        features=FeatureFolder(
            root=Path(kept["folder"]) if config.feature_store_gb else None,
            scratch=_local(logs),
            most_bytes=config.feature_store_gb * 1e9,
            code=kept["code"],
            writer=hardware.worker,
        ),
        # The chief alone writes them; all read where it stands.
        checkpoints=Checkpoints(
            Path(settings["checkpoints"]), follows_from, writes=hardware.worker == 0
        ),
        last_good=Path(settings["last_good"]),
        hardware=hardware,
        start_from=Path(settings["start_from"]) if settings["start_from"] else None,
    )


def _local(folder: str) -> Path | None:
    """The folder, made; None where it is on an object store."""
    if "://" in folder:
        return None
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path
