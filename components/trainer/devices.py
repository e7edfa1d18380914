"""Where training runs: which devices, how many processes, at which precision."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras

from graftline.components.trainer.config import TrainerConfig
from graftline.serving.errors import UserError

# GPUs from this generation on compute faster in 16 bits (Volta, with its tensor cores).
_TENSOR_CORES = (7, 0)


@dataclass(frozen=True)
class Hardware:
    """What a training runs on.

    Attributes:
        strategy: how it is spread over devices.
        worker: which process of the cluster this is; the chief is 0.
        workers: how many there are.
        precision: what the network computes in: float32, float16 or bfloat16.
    """

    strategy: tf.distribute.Strategy
    worker: int
    workers: int
    precision: str

    @classmethod
    def find(cls, config: TrainerConfig) -> Hardware:
        """What the section `trainer` asks for.

        Raises:
            UserError: the devices or the cluster that it asks for are not there.
        """
        gpus = _take_gpus(config.devices)
        strategy = _make_strategy(config.strategy, len(gpus))
        several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        precision = _gainful(gpus) if config.precision == "auto" else config.precision
        if several:
            return cls(strategy, worker_number(), cluster_size(), precision)
        return cls(strategy, 0, 1, precision)

    @property
    def replicas(self) -> int:
        """How many devices train, each on a batch of its own."""
        return self.strategy.num_replicas_in_sync

    @property
    def is_accelerated(self) -> bool:
        """Whether it is more than processors."""
        is_tpu = isinstance(self.strategy, tf.distribute.TPUStrategy)
        return is_tpu or bool(tf.config.list_logical_devices("GPU"))

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Models that are made here train on this hardware, at this precision."""
        before = tf_keras.mixed_precision.global_policy()
        full = self.precision == "float32"
        tf_keras.mixed_precision.set_global_policy("float32" if full else f"mixed_{self.precision}")
        try:
            with self.strategy.scope():
                yield
        finally:
            tf_keras.mixed_precision.set_global_policy(before)


def _make_strategy(name: str, gpus: int) -> tf.distribute.Strategy:
    if name == "auto":
        name = _best(gpus)
    if name == "multi_worker":
        if cluster_size() < 2:
            raise UserError(
                "trainer.strategy is multi_worker, and the environment variable TF_CONFIG names no "
                "cluster of several workers. Set it on every machine, or set trainer.workers to "
                "start several on this one."
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        return _tpu()
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def cluster_size() -> int:
    """How many workers TF_CONFIG names; 1 without it.

    Raises:
        UserError: it is no JSON.
    """
    return sum(len(_cluster().get(job, ())) for job in ("chief", "worker")) or 1


def worker_number() -> int:
    """Which of the cluster's workers this process is; the chief is 0."""
    task = _tf_config().get("task", {})
    chiefs = len(_cluster().get("chief", ()))
    return int(task.get("index", 0)) + (chiefs if task.get("type") == "worker" else 0)


def _cluster() -> Mapping[str, Sequence[str]]:
    return _tf_config().get("cluster", {})


def _tf_config() -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads(os.environ.get("TF_CONFIG") or "{}")
        return found
    except json.JSONDecodeError as error:
        raise UserError(f"The environment variable TF_CONFIG is no JSON: {error}.") from error


def _best(gpus: int) -> str:
    if cluster_size() > 1:
        return "multi_worker"
    if os.environ.get("TPU_NAME"):
        return "tpu"
    return "mirrored" if gpus > 1 else "one_device"


def _take_gpus(wanted: Sequence[int] | None) -> list[tf.config.PhysicalDevice]:
    """The GPUs that are used; their memory grows as needed, for other processes may want some."""
    gpus = tf.config.list_physical_devices("GPU")
    if wanted is not None:
        missing = [number for number in wanted if number >= len(gpus)]
        if missing:
            raise UserError(
                f"trainer.devices asks for GPU {missing[0]}; this machine has {len(gpus)}, counted "
                "from 0."
            )
        gpus = [gpus[number] for number in wanted]
    # Too late, and refused, where an earlier node in this process has used one.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices(gpus, "GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    return gpus


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(
            os.environ.get("TPU_NAME", "")
        )
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, tf.errors.OpError, RuntimeError) as error:
        raise UserError(
            f"trainer.strategy is tpu, and no TPU answers ({error}). Name it in the environment "
            "variable TPU_NAME, or choose another strategy."
        ) from error


def _gainful(gpus: Sequence[tf.config.PhysicalDevice]) -> str:
    """The precision at which the hardware is fastest."""
    if os.environ.get("TPU_NAME"):
        return "bfloat16"
    capabilities = [
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        for gpu in gpus
    ]
    fast = bool(gpus) and all(capability >= _TENSOR_CORES for capability in capabilities)
    return "float16" if fast else "float32"
