"""Publishing, canary, promotion and rollback under load: who answers, and is anyone let down.

    python benchmarks/switching.py [--model VERSION] [--image FILE] [--rounds 20] [--clients 8]

VERSION  folder of a SavedModel that takes encoded images as `image_bytes`; by default MobileNetV2
         0.35 at 224 px with random weights is made
FILE     the image that every request sends; by default a JPEG of noise, 227x227

Every round publishes a version, makes it the canary, promotes it and goes back, while the clients
ask for the label `stable` over gRPC without pause. The answer names its version: one that was
neither stable before the request nor after it counts as wrong. Prints requests, failures, wrong
answers, and the seconds that each command took.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from graftline.serving.base_path import BasePath
from graftline.serving.config import ServingConfig
from graftline.serving.manifest import Manifest
from graftline.serving.server_states import Servers
from graftline.serving.switching import Switchboard
from serving import free_port, make_image, make_model

_MODEL = "model"


class Load:
    """Clients that ask for the stable version without pause.

    Args:
        port: of the server, gRPC.
        image: what every request sends.
        clients: how many ask at once.
    """

    def __init__(self, port: int, image: bytes, clients: int) -> None:
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        self.meant: frozenset[int] = frozenset()
        self.requests = 0
        self.failures: list[str] = []
        self.wrong: list[tuple[frozenset[int], int]] = []
        self._request = predict_pb2.PredictRequest()
        self._request.model_spec.name = _MODEL
        self._request.model_spec.version_label = "stable"
        self._request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([image]))
        self._failure = grpc.RpcError
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        while not self._ended.is_set():
            before = self.meant
            try:
                answered = self._stub.Predict(self._request).model_spec.version.value
            except self._failure as error:
                with self._lock:
                    self.failures.append(str(error))
                continue
            with self._lock:
                self.requests += 1
                if answered not in before | self.meant:
                    self.wrong.append((before | self.meant, answered))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Asks meanwhile."""
        for thread in self._threads:
            thread.start()
        yield
        self._ended.set()
        for thread in self._threads:
            thread.join()


def main() -> None:
    """Switches, and prints what the clients saw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    image = options.image.read_bytes() if options.image else make_image()
    with tempfile.TemporaryDirectory(prefix="graftline-switching-") as name:
        folder = Path(name)
        model = options.model or make_model(folder / "made")
        base_path = BasePath(folder / "serving" / _MODEL)
        seconds: dict[str, list[float]] = defaultdict(list)

        def timed(what: str, change: Callable[..., object], *arguments: object) -> None:
            started = time.monotonic()
            change(*arguments)
            seconds[what].append(time.monotonic() - started)

        def publish(number: int) -> None:
            base_path.publish(model, Manifest(model=_MODEL, model_id=str(number)))

        publish(1)
        grpc_port, rest_port = free_port(), free_port()
        servers = (f"http://127.0.0.1:{rest_port}",)
        Switchboard(base_path, ServingConfig()).write()
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "graftline.serving.server", "--bind_address=127.0.0.1"),
                *(f"--port={grpc_port}", f"--rest_api_port={rest_port}"),
                f"--model_config_file={base_path.root.parent}/models.config",
                "--model_config_file_poll_wait_seconds=1",
                "--allow_version_labels_for_unavailable_models=true",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            Servers(servers, _MODEL).wait(lambda state: 1 in state.available, "version 1", 120)
            board = Switchboard(base_path, ServingConfig(servers=servers))
            board.promote(1)
            load = Load(grpc_port, image, options.clients)
            load.meant = frozenset({1})
            with load.running():
                for number in range(2, options.rounds + 2):
                    timed("publish", publish, number)
                    timed("canary", board.canary, number, 10)
                    load.meant |= {number}
                    timed("promote", board.promote, number)
                    load.meant = frozenset({number})
                    load.meant |= {1}
                    timed("rollback", board.rollback, 1)
                    load.meant = frozenset({1})
        finally:
            server.terminate()
            server.wait()
    for what, of in seconds.items():
        print(f"{what:<10}{len(of):4} times  median {statistics.median(of):6.2f} s")
    print(
        f"{load.requests} requests answered, {len(load.failures)} failed, "
        f"{len(load.wrong)} answered by a version that was not meant to"
    )
    for failure in load.failures[:3]:
        print(failure)


if __name__ == "__main__":
    main()
