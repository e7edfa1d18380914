"""The registry of backbones, their weights, and where they are cut."""

import csv
import os
import pickle
import sys
from collections import OrderedDict
from importlib import resources
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from graftline.components.trainer import backbones, efficientnet_lite
from graftline.components.trainer.config import ImageConfig
from graftline.components.trainer.torch_tensors import read_tensors
from graftline.pipeline.preprocessing import read_images
from graftline.serving.errors import UserError

PACKAGED = Path(str(resources.files(efficientnet_lite.PACKAGE))) / efficientnet_lite.WEIGHT_FILE
MAGIC = 0x1950A86A20F9469CFC6C


@pytest.fixture(scope="module")
def lite0():
    return backbones.load("efficientnet_lite0", "bundled", 1.0, 96)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a registered backbone that is made quickly; alpha sets its width."""

    def make(size: int, alpha: float, weights: str | None) -> tf_keras.Model:
        layers = tf_keras.layers
        image = tf_keras.Input((size, size, 3))
        x = layers.Conv2D(int(8 * alpha), 3, name="first_conv")(image)
        x = layers.BatchNormalization(name="first_bn")(x)
        x = layers.Conv2D(4, 1, name="second_conv")(x)
        return tf_keras.Model(image, layers.GlobalAveragePooling2D()(x))

    scaling = backbones.BACKBONES["mobilenet_v2"].scaling
    entry = backbones.Backbone("small", make, scaling, r"(first|second)_", has_alpha=True)
    monkeypatch.setitem(backbones.BACKBONES, "small", entry)
    return "small"


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The names that a PyTorch file refers to, so that one can be written without PyTorch."""
    modules = {name: ModuleType(name) for name in ("torch", "torch._utils")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for module, name in (("torch", "FloatStorage"), ("torch._utils", "_rebuild_tensor_v2")):
        made = type(name, (), {"__module__": module})
        setattr(modules[module], name, made)
    return modules["torch"]


class Stored:
    """Pickles as PyTorch pickles a tensor: values elsewhere, offset, shape and strides here."""

    def __init__(self, key: str, offset: int, shape: tuple, strides: tuple) -> None:
        self.arguments = (key, offset, shape, strides)

    def __reduce__(self):
        key, offset, shape, strides = self.arguments
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (Storage(key), offset, shape, strides, False, OrderedDict())


class Storage:
    def __init__(self, key: str) -> None:
        self.key = key


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            return "storage", sys.modules["torch"].FloatStorage, value.key, "cpu", 0, None
        return None


def write_torch_file(path: Path, tensors: object, values: dict[str, np.ndarray]) -> Path:
    with path.open("wb") as file:
        for part in (MAGIC, 1001, {"little_endian": True}, tensors, list(values)):
            Pickler(file, protocol=2).dump(part)
        for array in values.values():
            file.write(len(array).to_bytes(8, "little") + array.astype("<f4").tobytes())
    return path


def test_an_unknown_backbone_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="Did you mean mobilenet_v3_small"):
        backbones.find("mobilnet_v3_smal")


@pytest.mark.parametrize(("fraction", "channels"), [(0.01, 320), (0.5, 80)])
def test_both_parts_of_a_cut_backbone_make_the_whole(lite0, fraction, channels):
    lower, upper = backbones.split(lite0, "efficientnet_lite0", fraction)
    assert lower is not None
    assert lower.output_shape[-1] == channels
    image = np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype(np.float32)
    features = lite0(image, training=False)
    np.testing.assert_array_equal(upper(lower(image, training=False), training=False), features)


def test_all_of_a_backbone_has_no_lower_part(small):
    whole = backbones.load(small, "none", 1.0, 32)
    assert backbones.split(whole, small, 1.0) == (None, whole)


def test_lite0_has_the_parameters_of_the_published_network(lite0):
    classifier = (1280 + 1) * 1000
    assert lite0.count_params() + classifier == 4_694_024


def test_lite0_tells_real_photographs_apart(lite0, shared_data):
    folder = shared_data / "flowers_ccby"
    with (folder / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))[::12]
    encoded = [(folder / row["file"]).read_bytes() for row in rows]
    images = (read_images(tf.constant(encoded), ImageConfig(size=96)) - 127) / 128
    features = lite0.predict(images, batch_size=32, verbose=0)
    labels = np.array([row["class"] for row in rows])
    known, asked = np.arange(len(rows)) % 2 == 0, np.arange(len(rows)) % 2 == 1
    names = sorted(set(labels))
    centres = np.stack([features[known & (labels == name)].mean(axis=0) for name in names])
    distances = np.linalg.norm(features[asked][:, None] - centres, axis=2)
    right = np.array(names)[distances.argmin(axis=1)] == labels[asked]
    assert right.mean() > 0.6, "chance is 0.2"


def test_a_changed_byte_in_the_bundled_weights_is_refused(lite0, tmp_path):
    damaged = bytearray(PACKAGED.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path = tmp_path / "lite0.pth"
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="SHA-256") as refused:
        efficientnet_lite.set_weights(lite0, path, efficientnet_lite.SHA256)
    assert str(path) in str(refused.value)


def test_tensors_are_laid_out_by_their_strides(torch, tmp_path):
    values = np.arange(12, dtype=np.float32)
    tensors = OrderedDict(
        rows=Stored("0", 0, (3, 4), (4, 1)),
        columns=Stored("0", 0, (4, 3), (1, 4)),
        part=Stored("0", 5, (2,), (2,)),
        number=Stored("0", 7, (), ()),
    )
    read = read_tensors(write_torch_file(tmp_path / "t.pth", tensors, {"0": values}))
    np.testing.assert_array_equal(read["rows"], values.reshape(3, 4))
    np.testing.assert_array_equal(read["columns"], values.reshape(3, 4).T)
    np.testing.assert_array_equal(read["part"], [5, 7])
    assert read["number"] == 7


class Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def test_a_pickle_that_calls_anything_is_refused_and_not_run(torch, tmp_path):
    victim = tmp_path / "made by the pickle"
    path = write_torch_file(tmp_path / "t.pth", {"weight": Malicious(victim)}, {})
    with pytest.raises(UserError, match=r"mkdir, which is no part of a tensor"):
        read_tensors(path)
    assert not victim.exists()


def test_a_tensor_file_that_is_torn_is_refused_by_name(torch, tmp_path):
    tensors = OrderedDict(rows=Stored("0", 0, (3, 4), (4, 1)))
    path = write_torch_file(tmp_path / "t.pth", tensors, {"0": np.zeros(12)})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"t\.pth"):
        read_tensors(path)


def test_weights_come_from_a_file_of_the_same_network(small, tmp_path):
    saved = backbones.load(small, "none", 1.0, 32)
    saved.save_weights(str(tmp_path / "w.h5"))
    read = backbones.load(small, str(tmp_path / "w.h5"), 1.0, 64)
    for one, other in zip(saved.get_weights(), read.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_of_another_network_are_refused_by_name(small, lite0, tmp_path):
    lite0.save_weights(str(tmp_path / "w.h5"))
    with pytest.raises(UserError, match=r"w\.h5 does not fit small"):
        backbones.load(small, str(tmp_path / "w.h5"), 1.0, 32)


def test_weights_of_another_width_are_refused_by_name(small, tmp_path):
    backbones.load(small, "none", 0.5, 32).save_weights(str(tmp_path / "w.h5"))
    with pytest.raises(UserError, match=r"w\.h5 does not fit small"):
        backbones.load(small, str(tmp_path / "w.h5"), 1.0, 32)


def test_a_torn_weight_file_is_refused_by_name(small, tmp_path):
    path = tmp_path / "w.h5"
    backbones.load(small, "none", 1.0, 32).save_weights(str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"w\.h5 is not a whole HDF5 file"):
        backbones.load(small, str(path), 1.0, 32)


def test_a_missing_weight_file_is_refused_by_name(small, tmp_path):
    with pytest.raises(UserError, match=r"no weight file .*w\.h5"):
        backbones.load(small, str(tmp_path / "w.h5"), 1.0, 32)


def test_imagenet_without_network_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="could not be downloaded") as refused:
        backbones.load("mobilenet_v2", "imagenet", 0.35, 96)
    name = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5"
    file = tmp_path / ".keras" / "models" / name
    assert str(file) in str(refused.value)
    assert f"storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/{name}" in str(
        refused.value
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\x89HDF\r\n\x1a\n, the rest of which is missing")
    with pytest.raises(UserError, match=r"could not be read from .*\.keras/models"):
        backbones.load("mobilenet_v2", "imagenet", 0.35, 96)
