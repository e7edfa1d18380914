"""The registry of backbones, their weights, and where they are cut."""

from __future__ import annotations

import csv
import hashlib
import http.server
import io
import os
import pickle
import re
import socket
import sys
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from graftline.components.trainer.backbones import build, efficientnet_lite, registry
from graftline.components.trainer.backbones.scaling import PLAIN
from graftline.components.trainer.backbones.torch_tensors import read_tensors
from graftline.components.trainer.backbones.weights import find_or_fetch
from graftline.components.trainer.config import ImageConfig
from graftline.pipeline.preprocessing import read_images
from graftline.serving.errors import UserError

V2_FILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5"
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


class Shelf:
    """A folder behind a real web server on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.cut_short = False
        folder.mkdir(parents=True)
        shelf = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                shelf.asked.append(self.path)
                content = shelf.content(self.path.partition("?")[0])
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if shelf.cut_short else content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"

    def content(self, path: str) -> bytes:
        """A file, or a folder as TensorFlow Hub packs it."""
        found = self.folder / path.strip("/")
        if found.is_file():
            return found.read_bytes()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.add(found, ".")
        return packed.getvalue()

    def __enter__(self) -> Shelf:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def write_hub_module(folder: Path) -> None:
    """A feature vector of three numbers, as TensorFlow Hub serves it."""

    class Means(tf.train.Checkpoint):
        def __init__(self) -> None:
            super().__init__()
            self.factor = tf.Variable(2.0)
            self.variables = self.trainable_variables = [self.factor]
            self.regularization_losses = []

        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3))])
        def __call__(self, images: tf.Tensor) -> tf.Tensor:
            return self.factor * tf.reduce_mean(images, (1, 2))

    tf.saved_model.save(Means(), str(folder))


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

    named = []
    for row in daisies + others:
        encoded = tf.constant([(folder / row["file"]).read_bytes()])
        image = (read_images(encoded, ImageConfig(size=size)) - 127) / 128
        features = model(image, training=False).numpy().mean(axis=(1, 2))[0]
        named.append(int(np.argmax(tensors["_fc.weight"] @ features + tensors["_fc.bias"])))

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


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Iterator[Shelf]:
    """A web server of weight files, to which Keras's addresses lead."""
    served = Shelf(tmp_path / "served")
    with served:
        monkeypatch.setattr(
            "tf_keras.src.applications.mobilenet_v2.BASE_WEIGHT_PATH", served.address
        )
        yield served


def imagenet(cache: Path) -> tf_keras.Model:
    return build.load("mobilenet_v2", "imagenet", 0.35, 96, cache)


def test_imagenet_weights_are_downloaded_once_and_kept(shelf, tmp_path):
    made = build.load("mobilenet_v2", "none", 0.35, 96, tmp_path)
    made.save_weights(str(shelf.folder / V2_FILE))

    for _ in range(2):
        read = imagenet(tmp_path / "cache")
        np.testing.assert_array_equal(read.get_weights()[0], made.get_weights()[0])

    assert shelf.asked == [f"/{V2_FILE}"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [V2_FILE]


def test_a_download_that_breaks_off_leaves_nothing_behind(shelf, tmp_path):
    (shelf.folder / V2_FILE).write_bytes(b"x" * 3_000_000)
    shelf.cut_short = True
    with pytest.raises(UserError, match="the connection broke after"):
        imagenet(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_server_that_hangs_up_is_not_taken_for_a_disk_that_is_full(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/w.h5"
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(UserError, match=re.escape(f"Fetch {address} where there is a net")):
            find_or_fetch(tmp_path, print, "w.h5", address, None)
        thread.join()


def test_a_download_with_another_hash_is_refused_and_not_kept(shelf, tmp_path):
    (shelf.folder / "w.h5").write_bytes(b"something else")
    with pytest.raises(UserError, match="its hash is"):
        find_or_fetch(tmp_path, print, "w.h5", f"{shelf.address}w.h5", "0" * 32)
    assert not (tmp_path / "w.h5").exists()


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_torn_file_in_the_cache_is_found_by_its_hash(tmp_path, algorithm):
    (tmp_path / "w.h5").write_bytes(b"whole")
    expected = hashlib.new(algorithm, b"whole").hexdigest()
    assert find_or_fetch(tmp_path, print, "w.h5", "http://nowhere", expected).exists()
    (tmp_path / "w.h5").write_bytes(b"who")
    with pytest.raises(UserError, match=r"w\.h5 is torn or another one"):
        find_or_fetch(tmp_path, print, "w.h5", "http://nowhere", expected)


def test_imagenet_without_network_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="could not be downloaded") as refused:
        imagenet(tmp_path)
    assert str(tmp_path / V2_FILE) in str(refused.value)
    assert (
        f"https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/{V2_FILE}"
        in (str(refused.value))
    )


def test_a_file_put_into_the_cache_by_hand_is_used_and_a_torn_one_is_named(shared_data, tmp_path):
    whole = (shared_data / "weights" / "mobilenet_v2_0.35_224_no_top.h5").read_bytes()
    (tmp_path / V2_FILE.replace("_96_", "_224_")).write_bytes(whole)
    build.load("mobilenet_v2", "imagenet", 0.35, 224, tmp_path)
    (tmp_path / V2_FILE).write_bytes(whole[:-1000])
    with pytest.raises(UserError, match=rf"{V2_FILE} (is not a whole HDF5 file|does not fit)"):
        imagenet(tmp_path)


def test_the_file_of_a_whole_model_gives_the_weights_below_its_top(shared_data, tmp_path):
    path = shared_data / "weights" / "mobilenet_v1_0.25_224.h5"
    backbone = build.load("mobilenet", str(path), 0.25, 224, tmp_path)
    whole = tf_keras.applications.MobileNet(alpha=0.25, weights=None)
    whole.load_weights(str(path))
    image = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    below = tf_keras.Model(whole.input, whole.get_layer("conv_pw_13_relu").output)
    np.testing.assert_allclose(backbone(image), below(image), atol=1e-5)


def test_the_file_of_another_network_does_not_become_fit_by_leaving_layers_out(
    shared_data, tmp_path
):
    path = shared_data / "weights" / "mobilenet_v1_0.25_224.h5"
    for name, alpha in (("mobilenet", 0.5), ("mobilenet_v2", 0.35)):
        with pytest.raises(UserError, match="does not fit"):
            build.load(name, str(path), alpha, 224, tmp_path)


@pytest.mark.parametrize(
    ("name", "alpha"), [("mobilenet", 0.25), ("mobilenet_v3_large", 0.75), ("nasnet_mobile", 1.0)]
)
def test_keras_asks_for_the_file_that_the_registry_names(tmp_path, name, alpha):
    backbone = registry.find(name)

    class Asked(Exception):
        pass

    def source(file: str, address: str, expected: str | None) -> str:
        assert file == backbone.application.file(alpha, 224)
        raise Asked

    with pytest.raises(Asked):
        backbone.application.make(224, alpha, source)


def test_a_hub_handle_without_a_version_is_refused():
    with pytest.raises(UserError, match="names no version"):
        registry.find("https://tfhub.dev/google/imagenet/mobilenet_v2_035_224/feature_vector")


@pytest.fixture
def no_hub_folder(monkeypatch):
    """Nothing names a folder for TensorFlow Hub; what is set meanwhile is undone."""
    monkeypatch.setenv("TFHUB_CACHE_DIR", "")
    monkeypatch.delenv("TFHUB_CACHE_DIR")


@pytest.mark.usefixtures("no_hub_folder")
def test_a_hub_feature_vector_is_fetched_by_its_handle(tmp_path):
    with Shelf(tmp_path / "served") as shelf:
        write_hub_module(shelf.folder / "vector" / "1")
        handle = f"{shelf.address}vector/1"
        model = build.load(handle, "hub", 1.0, 32, tmp_path)
    assert model.output_shape == (None, 3)
    assert registry.find(handle).scaling.deviation == (255.0, 255.0, 255.0)


@pytest.mark.usefixtures("no_hub_folder")
def test_a_hub_handle_without_network_says_what_to_fetch_and_where_to_put_it(tmp_path):
    handle = "http://127.0.0.1:9/vector/1"
    with pytest.raises(UserError, match=re.escape(f"{handle}?tf-hub-format=compressed")) as said:
        build.load(handle, "hub", 1.0, 32, tmp_path)
    place = Path(str(said.value).rsplit("unpack it into ", 1)[1].rstrip("."))
    assert tmp_path in place.parents
    write_hub_module(place)
    assert build.load(handle, "hub", 1.0, 32, tmp_path).output_shape == (None, 3)


@pytest.mark.usefixtures("no_hub_folder")
def test_a_hub_network_is_fed_float32_where_the_others_compute_in_16_bits(tmp_path):
    with Shelf(tmp_path / "served") as shelf:
        write_hub_module(shelf.folder / "vector" / "1")
        tf_keras.mixed_precision.set_global_policy("mixed_float16")
        try:
            model = build.load(f"{shelf.address}vector/1", "hub", 1.0, 32, tmp_path)
            features = model(np.zeros((2, 32, 32, 3), np.float32))
        finally:
            tf_keras.mixed_precision.set_global_policy("float32")
    assert features.dtype == tf.float32


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


@pytest.mark.usefixtures("no_hub_folder")
@pytest.mark.parametrize("harm", ["torn", "missing"])
def test_a_hub_folder_with_a_torn_or_missing_file_is_named(tmp_path, harm):
    handle = "http://127.0.0.1:9/vector/1"
    with pytest.raises(UserError) as said:
        build.load(handle, "hub", 1.0, 32, tmp_path)
    place = Path(str(said.value).rsplit("unpack it into ", 1)[1].rstrip("."))
    write_hub_module(place)
    [shard] = place.glob("variables/*.data-*")
    shard.write_bytes(shard.read_bytes()[:3]) if harm == "torn" else shard.unlink()
    with pytest.raises(UserError, match=f"{re.escape(str(place))} cannot be read .*Delete that"):
        build.load(handle, "hub", 1.0, 32, tmp_path)
