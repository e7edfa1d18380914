"""The trainer as TFX's Trainer calls it: here, or in several workers on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import tensorflow as tf
import tensorflow_transform as tft

from graftline.components.trainer.autograph import leave_keras_unconverted
from graftline.components.trainer.checkpoint import Checkpoints
from graftline.components.trainer.config import ImageConfig, TrainerConfig
from graftline.components.trainer.devices import Hardware, cluster_size
from graftline.components.trainer.features import FeatureFolder
from graftline.components.trainer.inputs import Images
from graftline.components.trainer.training import Training
from graftline.components.trainer.workers import train_as_worker, train_in_workers
from graftline.serving.errors import UserError

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs


def run_fn(fn_args: FnArgs) -> None:
    """Trains and exports.

    Args:
        fn_args: TFX's; `custom_config` holds the sections `trainer` and `image`, the list
            `classes` in the order of the model's outputs, the folder `weights_cache`,
            `features`: `folder`, where they are kept, and `code`, a digest of what makes them; and
            the folder `checkpoints`; `start_from` is the folder of a version, or empty.

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
    workers = fn_args.custom_config["trainer"].get("workers", 1)
    if workers > 1:
        gpus = len(tf.config.list_physical_devices("GPU"))
        train_in_workers(f"{__name__}:train", arguments, workers, gpus)
    elif cluster_size() > 1:
        train_as_worker(f"{__name__}:train", arguments)
    else:
        train(arguments)


def train(arguments: Mapping[str, Any]) -> None:
    """One training, or one worker's part in it.

    Args:
        arguments: what `run_fn` passes on, plain data.

    Raises:
        UserError: as `run_fn`.
    """
    leave_keras_unconverted()
    training = make_training(arguments)
    try:
        training.run(arguments["model"])
    except tf.errors.ResourceExhaustedError as error:
        raise UserError(
            f"The memory of the device is used up ({str(error).splitlines()[0]}). Lower "
            f"trainer.batch_size ({training.config.batch_size}) or image.size "
            f"({training.image.size}), train fewer blocks in trainer.phases, or take a smaller "
            "backbone; then resume."
        ) from error
    finally:
        training.features.close()


def make_training(arguments: Mapping[str, Any]) -> Training:
    """A training as this process takes part in it.

    Args:
        arguments: what `run_fn` passes on, plain data.
    """
    settings = arguments["settings"]
    config = msgspec.convert(settings["trainer"], TrainerConfig)
    # First of all: TensorFlow joins a cluster only before it has done anything else.
    hardware = Hardware.find(config)
    transform = tft.TFTransformOutput(arguments["transform"])
    images = {
        split: Images.find(patterns, transform) for split, patterns in arguments["files"].items()
    }
    follows_from = {
        **{name: settings[name] for name in ("trainer", "image", "classes", "start_from")},
        "code": settings["features"]["code"],
        "images": [images[split].digest for split in ("train", "eval")],
    }
    is_chief = hardware.worker == 0
    # The chief alone writes logs and checkpoints; all read where it stands.
    logs = arguments["logs"] if is_chief else tempfile.mkdtemp(prefix="graftline-worker-")
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
        checkpoints=Checkpoints(Path(settings["checkpoints"]), follows_from, is_chief),
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
