"""Weights from elsewhere: downloads, the folder they are kept in, TensorFlow Hub."""

from __future__ import annotations

import hashlib
import http.server
import io
import re
import socket
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from graftline.components.trainer.backbones import build, registry
from graftline.components.trainer.backbones.weights import find_or_fetch
from graftline.serving.errors import UserError

V2_FILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5"


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
