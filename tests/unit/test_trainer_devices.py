"""Which hardware is chosen, and what is said where it is not there."""

import json

import pytest
import tensorflow as tf
import tf_keras

from graftline.components.trainer.cluster import cluster_size, worker_number
from graftline.components.trainer.config import PhaseConfig, TrainerConfig
from graftline.components.trainer.devices import Hardware, gpus_by_name
from graftline.components.trainer.objective import make_optimizer
from graftline.serving.errors import UserError

CLUSTER = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}


def test_without_gpu_or_cluster_it_is_one_device_in_float32():
    hardware = Hardware.find(TrainerConfig())
    assert (hardware.replicas, hardware.worker, hardware.workers) == (1, 0, 1)
    assert hardware.precision == "float32"


@pytest.mark.parametrize(("kind", "index", "number"), [("chief", 0, 0), ("worker", 1, 2)])
def test_the_cluster_and_this_process_in_it_are_read_from_tf_config(
    monkeypatch, kind, index, number
):
    task = {"type": kind, "index": index}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": CLUSTER, "task": task}))
    assert (cluster_size(), worker_number()) == (3, number)


@pytest.mark.parametrize("strategy", ["auto", "multi_worker"])
def test_who_works_alone_waits_for_no_cluster(monkeypatch, strategy):
    task = {"type": "chief", "index": 0}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": CLUSTER, "task": task}))
    hardware = Hardware.find(TrainerConfig(strategy=strategy), alone=True)
    assert (hardware.worker, hardware.workers) == (0, 1)


def test_the_name_of_a_tpu_says_nothing_about_a_processor(monkeypatch):
    monkeypatch.setenv("TPU_NAME", "local")
    assert Hardware.find(TrainerConfig(strategy="one_device")).precision == "float32"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"strategy": "multi_worker"}, "TF_CONFIG names no cluster"),
        ({"strategy": "tpu"}, "No TPU answers"),
        ({"devices": (0,)}, "asks for GPU 0; this machine has 0"),
    ],
)
def test_hardware_that_is_not_there_is_named_with_what_to_do(settings, said):
    with pytest.raises(UserError, match=said):
        Hardware.find(TrainerConfig(**settings))


@pytest.mark.parametrize("text", ["{cluster", "[]", "3"])
def test_a_tf_config_that_is_no_json_object_is_named(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="TF_CONFIG is no JSON object"):
        Hardware.find(TrainerConfig())


@pytest.mark.parametrize(
    ("visible", "wanted", "names"),
    [
        (None, None, ["0", "1", "2"]),
        (None, [2, 0], ["2", "0"]),
        ("4,5,7", None, ["4", "5", "7"]),
        ("4,5,7", [1], ["5"]),
        (None, [], []),
    ],
)
def test_processes_of_their_own_get_gpus_by_the_names_that_this_one_sees(
    monkeypatch, visible, wanted, names
):
    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{n}", "GPU") for n in range(3)]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus_by_name(wanted) == names


class Machine:
    """What TensorFlow is told of GPUs in place of a driver, and what it is asked for in turn."""

    def __init__(self, patch: pytest.MonkeyPatch, *capabilities: tuple[int, int]):
        self.gpus = [
            tf.config.PhysicalDevice(f"/physical_device:GPU:{number}", "GPU")
            for number in range(len(capabilities))
        ]
        self.visible, self.growing = list(self.gpus), []
        self.strategies: list[str] = []
        details = dict(zip(self.gpus, capabilities, strict=True))
        patch.setattr(tf.config, "list_physical_devices", lambda kind: self.gpus)
        patch.setattr(tf.config, "get_visible_devices", lambda kind: self.visible)
        patch.setattr(tf.config, "set_visible_devices", self._show)
        experimental = tf.config.experimental
        patch.setattr(experimental, "get_memory_growth", lambda gpu: gpu in self.growing)
        patch.setattr(experimental, "set_memory_growth", lambda gpu, on: self.growing.append(gpu))
        patch.setattr(
            experimental, "get_device_details", lambda gpu: {"compute_capability": details[gpu]}
        )
        patch.setattr(tf.distribute, "MirroredStrategy", self._mirror)

    def _show(self, gpus: list[tf.config.PhysicalDevice], kind: str) -> None:
        self.visible = gpus

    def _mirror(self) -> tf.distribute.Strategy:
        self.strategies.append("mirrored")
        return tf.distribute.get_strategy()


@pytest.mark.parametrize(
    ("capabilities", "wanted", "mirrored", "precision"),
    [
        ([(8, 0)], None, False, "float16"),
        ([(6, 1)], None, False, "float32"),
        ([(9, 0), (9, 0)], None, True, "float16"),
        ([(9, 0), (6, 1)], None, True, "float32"),
        ([(9, 0), (6, 1)], (0,), False, "float16"),
    ],
)
def test_several_gpus_are_mirrored_and_those_with_tensor_cores_compute_in_16_bits(
    monkeypatch, capabilities, wanted, mirrored, precision
):
    machine = Machine(monkeypatch, *capabilities)
    hardware = Hardware.find(TrainerConfig(devices=wanted))
    assert machine.strategies == ["mirrored"] * mirrored
    assert hardware.precision == precision


def test_gpus_that_are_chosen_are_all_that_is_seen_and_their_memory_grows(monkeypatch):
    machine = Machine(monkeypatch, (8, 0), (8, 0), (8, 0))
    Hardware.find(TrainerConfig(devices=(2, 0)))
    assert machine.visible == machine.growing == [machine.gpus[2], machine.gpus[0]]


def test_a_precision_that_is_configured_is_taken_whatever_there_is(monkeypatch):
    Machine(monkeypatch, (9, 0))
    assert Hardware.find(TrainerConfig(precision="float32")).precision == "float32"


def test_models_are_made_at_the_precision_and_the_process_goes_on_as_before():
    hardware = Hardware(tf.distribute.get_strategy(), 0, 1, "bfloat16")
    with hardware.scope():
        layer = tf_keras.layers.Dense(2)
        assert layer(tf.zeros((1, 2))).dtype == tf.bfloat16
        assert layer.kernel.dtype == tf.float32
    assert tf_keras.layers.Dense(2)(tf.zeros((1, 2))).dtype == tf.float32


@pytest.mark.parametrize(("scaling", "rate"), [("linear", 0.4), ("sqrt", 0.2), ("none", 0.1)])
def test_the_rate_grows_with_the_devices_as_configured(scaling, rate):
    phase, trainer = PhaseConfig(name="a", epochs=1, rate=0.1), TrainerConfig(rate_scaling=scaling)
    optimizer = make_optimizer(phase, trainer, steps_per_epoch=1, replicas=4)
    assert float(optimizer.learning_rate) == pytest.approx(rate)
