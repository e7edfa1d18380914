"""The registry of backbones, their weights, and where they are cut."""

from __future__ import annotations

import csv
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from graftline.components.trainer.backbones import build, efficientnet_lite, registry
from graftline.components.trainer.backbones.scaling import PLAIN
from graftline.components.trainer.backbones.torch_tensors import read_tensors
from graftline.components.trainer.config import ImageConfig
from graftline.pipeline.preprocessing import read_images
from graftline.serving.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C


@pytest.fixture(scope="module")
def lite0():
    return load("efficientnet_lite0", "bundled", 1.0, 96)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a registered backbone that is made quickly; alpha sets its width."""

    def make(size: int, alpha: float) -> tf_keras.Model:
        layers = tf_keras.layers
        image = tf_keras.Input((size, size, 3))
        x = layers.Conv2D(int(8 * alpha), 3, name="first_conv")(image)
        x = layers.BatchNormalization(name="first_bn")(x)
        x = layers.Conv2D(4, 1, name="second_conv")(x)
        return tf_keras.Model(image, x)

    entry = registry.Backbone("small", make, PLAIN, r"(first|second)_", alphas=(0.5, 1.0))
    monkeypatch.setitem(registry.BACKBONES, "small", entry)
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


def load(name: str, weights: str, alpha: float, size: int) -> tf_keras.Model:
    return build.load(name, weights, alpha, size, cache=Path("/nowhere"))


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
        registry.find("mobilnet_v3_smal")


@pytest.mark.parametrize(("fraction", "channels"), [(0.01, 320), (0.5, 80)])
def test_both_parts_of_a_cut_backbone_make_the_whole(lite0, fraction, channels):
    blocks = build.upper_blocks(lite0, "efficientnet_lite0", fraction, 0)
    lower, upper = build.split(lite0, "efficientnet_lite0", blocks)
    assert lower is not None
    assert lower.output_shape[-1] == channels
    image = np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype(np.float32)
    features = lite0(image, training=False)
    np.testing.assert_array_equal(upper(lower(image, training=False), training=False), features)


def test_all_of_a_backbone_has_no_lower_part(small):
    whole = load(small, "none", 1.0, 32)
    blocks = build.upper_blocks(whole, small, 1.0, 0)
    assert build.split(whole, small, blocks) == (None, whole)


@pytest.mark.parametrize("variant", efficientnet_lite.VARIANTS, ids=lambda v: v.name)
def test_a_lite_network_has_the_parameters_of_the_published_one(variant):
    classifier = (1280 + 1) * 1000
    model = efficientnet_lite.build(variant, 64)
    trained = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert trained + classifier == (4_652_008, 5_416_680, 6_092_072)[variant.number]


DAISY = 985  # of ImageNet's thousand classes; none of the other flowers is among them


@pytest.mark.end_to_end
@pytest.mark.parametrize("variant", efficientnet_lite.VARIANTS, ids=lambda v: v.name)
def test_a_lite_network_with_its_published_classifier_knows_a_daisy(variant, shared_data):
    folder = shared_data / "flowers_ccby"
    with (folder / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    daisies = [row for row in rows if row["class"] == "daisy"][::12]
    others = [row for row in rows if row["class"] != "daisy"][::50]
    size = registry.BACKBONES[variant.name].size
    model = build.load(variant.name, "bundled", 1.0, size, Path("/nowhere"))
    tensors = read_tensors(variant.packaged)

    paths, named = [folder / row["file"] for row in daisies + others], []
    for start in range(0, len(paths), 16):
        encoded = tf.constant([path.read_bytes() for path in paths[start : start + 16]])
        images = (read_images(encoded, ImageConfig(size=size)) - 127) / 128
        features = model(images, training=False).numpy().mean(axis=(1, 2))
        named += list(np.argmax(features @ tensors["_fc.weight"].T + tensors["_fc.bias"], axis=1))

    right = np.array(named) == DAISY
    assert right[: len(daisies)].mean() > 0.8
    # ImageNet knows hardly another flower, so that some of them go for one.
    assert right[len(daisies) :].mean() < 0.4


def test_a_changed_byte_in_the_bundled_weights_is_refused(lite0, tmp_path):
    variant = efficientnet_lite.VARIANTS[0]
    damaged = bytearray(variant.packaged.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path = tmp_path / "lite0.pth"
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="SHA-256") as refused:
        efficientnet_lite.set_weights(lite0, path, variant)
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
    saved = load(small, "none", 1.0, 32)
    saved.save_weights(str(tmp_path / "w.h5"))
    read = load(small, str(tmp_path / "w.h5"), 1.0, 64)
    for one, other in zip(saved.get_weights(), read.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_of_another_network_are_refused_by_name(small, lite0, tmp_path):
    lite0.save_weights(str(tmp_path / "w.h5"))
    with pytest.raises(UserError, match=r"w\.h5 does not fit small"):
        load(small, str(tmp_path / "w.h5"), 1.0, 32)


def test_weights_of_another_width_are_refused_by_name(small, tmp_path):
    load(small, "none", 0.5, 32).save_weights(str(tmp_path / "w.h5"))
    with pytest.raises(UserError, match=r"w\.h5 does not fit small"):
        load(small, str(tmp_path / "w.h5"), 1.0, 32)


def test_a_torn_weight_file_is_refused_by_name(small, tmp_path):
    path = tmp_path / "w.h5"
    load(small, "none", 1.0, 32).save_weights(str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"w\.h5 is not a whole HDF5 file"):
        load(small, str(path), 1.0, 32)


def test_a_missing_weight_file_is_refused_by_name(small, tmp_path):
    with pytest.raises(UserError, match=r"no weight file .*w\.h5"):
        load(small, str(tmp_path / "w.h5"), 1.0, 32)


@pytest.mark.parametrize(
    ("name", "smallest", "features"),
    [("lenet5", 20, 84), ("residual", 16, 64), ("residual_cbam", 16, 64)],
)
def test_a_small_network_can_be_cut_between_its_blocks(name, smallest, features):
    whole = build.load(name, "none", 1.0, smallest, Path())
    assert whole.output_shape[-1] == features
    lower, upper = build.split(whole, name, 2)
    image = np.random.default_rng(0).normal(size=(2, smallest, smallest, 3)).astype(np.float32)
    np.testing.assert_allclose(upper(lower(image)), whole(image), rtol=1e-4, atol=1e-6)


def test_without_its_uppermost_blocks_a_backbone_gives_the_features_below(lite0):
    inner = build.without_top(lite0, "efficientnet_lite0", 1)
    assert inner.output_shape == (None, 3, 3, 320)
    with pytest.raises(UserError, match="leaves nothing"):
        build.without_top(lite0, "efficientnet_lite0", 99)


def test_more_blocks_than_a_backbone_has_cannot_train(lite0):
    with pytest.raises(UserError, match="has 18 blocks, of which 19 cannot train"):
        build.upper_blocks(lite0, "efficientnet_lite0", 0.0, 19)


def test_a_network_whose_blocks_cannot_be_told_apart_trains_as_a_whole():
    whole = build.load("nasnet_mobile", "none", 1.0, 32, Path())
    assert build.split(whole, "nasnet_mobile", 1) == (None, whole)
