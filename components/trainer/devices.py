"""Where training runs: which devices, how many processes, at which precision."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import tensorflow as tf
import tf_keras

from graftline.components.trainer.cluster import cluster_size, worker_number
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
    def find(cls, config: TrainerConfig, alone: bool = False) -> Hardware:
        """What the section `trainer` asks for.

        Args:
            config: the section.
            alone: of a cluster, use this machine only.

        Raises:
            UserError: the devices or the cluster that it asks for are not there.
        """
        gpus = take_gpus(config.devices)
        strategy = _make_strategy(config.strategy, len(gpus), alone)
        several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        precision: str = config.precision
        if precision == "auto":
            is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
            precision = "bfloat16" if is_tpu else _gainful(gpus)
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

    @property
    def is_plain(self) -> bool:
        """Whether what trains on it is an ordinary network of one device in float32."""
        return self.strategy is tf.distribute.get_strategy() and self.precision == "float32"

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


def _make_strategy(name: str, gpus: int, alone: bool) -> tf.distribute.Strategy:
    if name == "auto" or (alone and name == "multi_worker"):
        name = _best(gpus, alone)
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


def _best(gpus: int, alone: bool) -> str:
    if cluster_size() > 1 and not alone:
        return "multi_worker"
    if os.environ.get("TPU_NAME"):
        return "tpu"
    return "mirrored" if gpus > 1 else "one_device"


def take_gpus(wanted: Sequence[int] | None) -> list[tf.config.PhysicalDevice]:
    """Chooses the GPUs that this process uses; their memory grows as needed.

    TensorFlow takes such settings only before it has used a device, so that a process calls this
    before it does anything else with it; later calls with the same wish change nothing.

    Args:
        wanted: their numbers, from 0; None: all.

    Returns:
        those GPUs.

    Raises:
        UserError: one of them is not there.
        RuntimeError: TensorFlow has used other ones already.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if wanted is not None:
        gpus = [gpus[number] for number in _existing(wanted, len(gpus))]
    if tf.config.get_visible_devices("GPU") != gpus:
        tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        if not tf.config.experimental.get_memory_growth(gpu):
            tf.config.experimental.set_memory_growth(gpu, True)
    return gpus


def gpus_by_name(wanted: Sequence[int] | None) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that are to be used, for processes of their own.

    Args:
        wanted: as for `take_gpus`.

    Raises:
        UserError: one of them is not there.
    """
    count = len(tf.config.list_physical_devices("GPU"))
    numbers = range(count) if wanted is None else _existing(wanted, count)
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(number) for number in range(count)]
    return [names[number].strip() for number in numbers]


def _existing(wanted: Sequence[int], count: int) -> Sequence[int]:
    missing = [number for number in wanted if number >= count]
    if missing:
        raise UserError(
            f"trainer.devices asks for GPU {missing[0]}; this machine has {count}, counted from 0."
        )
    return wanted


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(
            os.environ.get("TPU_NAME", "")
        )
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, tf.errors.OpError, RuntimeError) as error:
        raise UserError(
            f"No TPU answers ({error}). Name it in the environment variable TPU_NAME, or set "
            "trainer.strategy to another than tpu; auto takes a TPU where TPU_NAME is set."
        ) from error


def _gainful(gpus: Sequence[tf.config.PhysicalDevice]) -> str:
    """The precision at which GPUs are fastest; on processors that is float32."""
    capabilities = [
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        for gpu in gpus
    ]
    fast = bool(gpus) and all(capability >= _TENSOR_CORES for capability in capabilities)
    return "float16" if fast else "float32"
