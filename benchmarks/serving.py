"""The embedded server beside direct calls of the same SavedModel in one process.

    python benchmarks/serving.py [--model VERSION] [--image FILE] [--parts throughput start memory]
                                 [--clients 1 2 4 8 16 32] [--seconds 10] [--rounds 3]
                                 [--requests 100000] [--json FILE]

VERSION  folder of a SavedModel that takes encoded images as `image_bytes`; by default MobileNetV2
         0.35 at 224 px with random weights is made, which costs the same to compute
FILE     the image that every request sends; by default a JPEG of noise, 227x227

throughput  images per second, p50 and p99 in milliseconds, for so many clients: direct calls from
            as many threads; gRPC and REST, with and without batching. By turns, the median of the
            rounds. Clients are threads of one process beside the server's, with requests that are
            serialized once: what a client costs is not the server's. All of them share the cores.
start       seconds from the process's start to its first answer.
memory      of a process that serves 1, 2 and 3 versions; and over so many requests.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

_INPUT = "image_bytes"
_BATCHING = """
max_batch_size { value: 32 }
batch_timeout_micros { value: 0 }
max_enqueued_batches { value: 1000 }
"""


class Rate(msgspec.Struct):
    """What clients together got, and how long single requests took, in milliseconds."""

    images_per_second: float
    p50: float
    p99: float


def make_model(folder: Path) -> Path:
    """Writes MobileNetV2 0.35 at 224 px, random weights, behind JPEG decoding."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    import tensorflow as tf
    import tf_keras

    network = tf_keras.applications.MobileNetV2(alpha=0.35, weights=None, classes=5)

    def decode(content: Any) -> Any:
        pixels = tf.io.decode_image(content, channels=3, expand_animations=False)
        resized = tf.image.resize(pixels, (224, 224))
        return tf.ensure_shape(resized, (224, 224, 3)) / 127.5 - 1

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=_INPUT)])
    def serve(image_bytes: Any) -> Any:
        images = tf.map_fn(decode, image_bytes, fn_output_signature=tf.float32)
        names = tf.constant([[f"class-{number}" for number in range(5)]])
        classes = tf.tile(names, [tf.shape(image_bytes)[0], 1])
        return {"classes": classes, "scores": network(images, training=False)}

    tf.saved_model.save(network, str(folder), {"serving_default": serve})
    return folder


def make_image() -> bytes:
    """A JPEG of 227x227 pixels of smooth noise, some 20 kB."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (57, 57, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize((227, 227)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Served:
    """A server process on a base path."""

    def __init__(self, base: Path, *flags: str):
        self.grpc_port, self.rest_port = free_port(), free_port()
        command = [sys.executable, "-m", "graftline.serving.server", f"--model_base_path={base}"]
        ports = [f"--port={self.grpc_port}", f"--rest_api_port={self.rest_port}"]
        self.process = subprocess.Popen(
            [*command, *ports, "--bind_address=127.0.0.1", *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self) -> None:
        """Waits for the first status answer."""
        while True:
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", self.rest_port)
                connection.request("GET", "/v1/models/default")
                assert connection.getresponse().status == 200
                return
            assert self.process.poll() is None, "the server ended"
            time.sleep(0.01)

    def available(self) -> int:
        """How many versions serve."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_port)
        connection.request("GET", "/v1/models/default")
        return connection.getresponse().read().count(b'"AVAILABLE"')

    @property
    def megabytes(self) -> float:
        """Resident memory."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def stop(self) -> None:
        """Ends it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


@contextlib.contextmanager
def served(base: Path, *flags: str) -> Iterator[Served]:
    """A server that is ready."""
    server = Served(base, *flags)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def direct_caller(model: Path, image: bytes) -> Callable[[], Callable[[], None]]:
    """Makes callers of the SavedModel in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np
    import tensorflow as tf

    from graftline.serving.server.servable import SavedModel

    loaded = SavedModel(model, ["serve"], tf.compat.v1.ConfigProto())
    signature = loaded.signatures["serving_default"]
    feeds = {signature.inputs[_INPUT].name: np.array([image], object)}
    fetches = [output.name for output in signature.outputs.values()]
    return lambda: lambda: loaded.run(feeds, fetches) and None


def grpc_caller(port: int, image: bytes) -> Callable[[], Callable[[], None]]:
    """Makes gRPC callers, each with a channel of its own."""
    import grpc
    from tensorflow.core.framework import types_pb2
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "default"
    request.inputs[_INPUT].dtype = types_pb2.DT_STRING
    request.inputs[_INPUT].string_val.append(image)
    request.inputs[_INPUT].tensor_shape.dim.add(size=1)
    serialized = request.SerializeToString()

    def make() -> Callable[[], None]:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        return lambda: call(serialized) and None

    return make


def rest_caller(port: int, image: bytes, version: str = "") -> Callable[[], Callable[[], None]]:
    """Makes REST callers, each with a connection that stays open."""
    import base64

    body = json.dumps({"instances": [{"b64": base64.b64encode(image).decode()}]}).encode()

    def make() -> Callable[[], None]:
        connection = http.client.HTTPConnection("127.0.0.1", port)

        def call() -> None:
            connection.request("POST", f"/v1/models/default{version}:predict", body)
            response = connection.getresponse()
            content = response.read()
            assert response.status == 200, content

        return call

    return make


def rate(make: Callable[[], Callable[[], None]], clients: int, seconds: float) -> Rate:
    """Lets so many clients ask one after the other, for so long."""
    calls = [make() for _ in range(clients)]
    times: list[float] = []
    begin = threading.Barrier(clients + 1)
    ends = float("inf")

    def ask(call: Callable[[], None]) -> None:
        for _ in range(3):
            call()
        begin.wait()
        while (began := time.perf_counter()) < ends:
            call()
            times.append(time.perf_counter() - began)

    threads = [threading.Thread(target=ask, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    begin.wait()
    began = time.perf_counter()
    ends = began + seconds
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    ordered = sorted(times)
    return Rate(
        len(times) / elapsed,
        1e3 * statistics.median(ordered),
        1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
    )


def measure_way(
    way: str, port: int, model: Path, image: Path, clients: int, seconds: float
) -> Rate:
    """One measurement in a client process of its own, so that none inherits another's threads."""
    command = [sys.executable, __file__, "--client", way, str(port), str(clients), str(seconds)]
    done = subprocess.run(
        [*command, "--model", str(model), "--image", str(image)],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return msgspec.json.decode(done.stdout, type=Rate)


def client(way: str, port: int, clients: int, seconds: float, model: Path, image: bytes) -> None:
    """What a client process does: measures and prints."""
    make = {
        "direct": lambda: direct_caller(model, image),
        "grpc": lambda: grpc_caller(port, image),
        "rest": lambda: rest_caller(port, image),
    }[way]()
    print(msgspec.json.encode(rate(make, clients, seconds)).decode())


def throughput(
    model: Path, image: Path, folder: Path, counts: Sequence[int], seconds: float, rounds: int
) -> dict[str, Any]:
    """Rates of every way for every number of clients."""
    (folder / "batching").write_text(_BATCHING)
    batching = (
        "--enable_batching",
        f"--batching_parameters_file={folder / 'batching'}",
        # A request keeps its thread while it waits for its batch.
        "--grpc_max_threads=64",
        "--rest_api_num_threads=64",
        # As many batches as cores are run at once: TensorFlow need not divide each of them again.
        "--tensorflow_intra_op_parallelism=1",
    )
    results: dict[str, Any] = {}
    for count in counts:
        found: dict[str, list[Rate]] = {}
        for _ in range(rounds):
            for name, flags in (("", ()), (" batched", batching)):
                if not name:
                    direct = measure_way("direct", 0, model, image, count, seconds)
                    found.setdefault("direct", []).append(direct)
                with served(folder / "base", *flags) as server:
                    for way, port in (("grpc", server.grpc_port), ("rest", server.rest_port)):
                        one = measure_way(way, port, model, image, count, seconds)
                        found.setdefault(way + name, []).append(one)
        base = statistics.median(r.images_per_second for r in found["direct"])
        for name, several in found.items():
            median = Rate(
                *(
                    statistics.median(getattr(r, field) for r in several)
                    for field in ("images_per_second", "p50", "p99")
                )
            )
            share = median.images_per_second / base
            results.setdefault(name, {})[count] = {**msgspec.to_builtins(median), "share": share}
            print(
                f"{count:3} clients  {name:13} {median.images_per_second:8.1f} images/s"
                f"  {share:5.2f} of direct  p50 {median.p50:7.1f} ms  p99 {median.p99:7.1f} ms",
                flush=True,
            )
    return results


def start(folder: Path, image: bytes, rounds: int) -> dict[str, float]:
    """Seconds from a process's start to its first prediction."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        server = Served(folder / "base")
        server.wait()
        rest_caller(server.rest_port, image)()()
        times.append(time.perf_counter() - began)
        server.stop()
    print(f"start to first answer: {statistics.median(times):.1f} s")
    return {"seconds": statistics.median(times)}


def memory(model: Path, folder: Path, image: bytes, requests: int) -> dict[str, Any]:
    """Resident megabytes by loaded versions, and over many requests."""
    by_versions = []
    for count in (1, 2, 3):
        base = folder / f"of-{count}"
        for number in range(1, count + 1):
            shutil.copytree(model, base / str(number))
        config = folder / "models.config"
        config.write_text(
            f'model_config_list {{ config {{ name: "default" base_path: "{base}" '
            'model_platform: "tensorflow" model_version_policy { all {} } } }'
        )
        with served(base, f"--model_config_file={config}") as server:
            # It listens as soon as one of them is loaded.
            while server.available() < count:
                time.sleep(0.1)
            for number in range(1, count + 1):
                rest_caller(server.rest_port, image, f"/versions/{number}")()()
            by_versions.append(server.megabytes)
    print("MB with 1, 2, 3 versions:", ", ".join(f"{mb:.0f}" for mb in by_versions))
    over: dict[int, float] = {}
    with served(folder / "base") as server:
        call = grpc_caller(server.grpc_port, image)()
        step = max(1, requests // 10)
        for done in range(requests + 1):
            if done % step == 0 and done:
                over[done] = server.megabytes
                print(f"{done} requests: {over[done]:.0f} MB", flush=True)
            call()
    return {"by_versions": by_versions, "over_requests": over}


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--parts", nargs="+", default=["throughput", "start", "memory"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--client", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        way, port, clients, seconds = options.client
        image = options.image.read_bytes()
        client(way, int(port), int(clients), float(seconds), options.model, image)
        return
    results: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = options.model or make_model(folder / "model")
        shutil.copytree(model, folder / "base" / "1")
        image = options.image or folder / "image.jpg"
        if not options.image:
            image.write_bytes(make_image())
        content = image.read_bytes()
        if "throughput" in options.parts:
            results["throughput"] = throughput(
                model, image, folder, options.clients, options.seconds, options.rounds
            )
        if "start" in options.parts:
            results["start"] = start(folder, content, options.rounds)
        if "memory" in options.parts:
            results["memory"] = memory(model, folder, content, options.requests)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
