"""A tiny model that takes images, and real gateways in front of its server."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from model_servers import PATIENCE, free_port, until

CLASSES = ("blue", "green", "red")


def image_model(folder: Path) -> Path:
    """Writes a SavedModel that tells red from green from blue, by the mean of the pixels.

    Signature `serving_default`: image_bytes -> classes, scores, as the trainer exports it.

    Args:
        folder: of the version, made here.
    """
    import tensorflow as tf

    def colour(content: Any) -> Any:
        pixels = tf.io.decode_image(content, channels=3, expand_animations=False)
        mean = tf.reduce_mean(tf.cast(pixels, tf.float32), axis=[0, 1])
        return tf.ensure_shape(tf.nn.softmax(mean[::-1] / 32), [len(CLASSES)])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(image_bytes: Any) -> Any:
        scores = tf.map_fn(colour, image_bytes, fn_output_signature=tf.float32)
        classes = tf.tile(tf.constant([CLASSES]), [tf.shape(scores)[0], 1])
        return {"classes": classes, "scores": scores}

    module = tf.Module()
    module.serve = serve
    tf.saved_model.save(module, str(folder), {"serving_default": serve})
    return folder


def image(
    colour: tuple[int, int, int] = (200, 20, 20),
    kind: str = "PNG",
    size: tuple[int, int] = (32, 32),
) -> bytes:
    """An encoded image of one colour."""
    stream = io.BytesIO()
    Image.fromarray(np.full((*size[::-1], 3), colour, np.uint8)).save(stream, kind)
    return stream.getvalue()


class Reply(NamedTuple):
    """An answer over HTTP."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def data(self) -> Any:
        """The body as data."""
        return json.loads(self.body)


class GatewayProcess:
    """A gateway in a process of its own; asked on 127.0.0.1.

    Args:
        folder: for its settings and its output.
        base: `<base>/<model>`; the model is called `default` on the server.
        server: port of the model server.
        settings: of the section `gateway`.
    """

    def __init__(self, folder: Path, base: Path, server: int, **settings: Any):
        self.port = free_port()
        self._output = folder / f"gateway-{time.monotonic_ns()}.log"
        config = self._output.with_suffix(".yaml")
        config.write_text(
            yaml.safe_dump({"server": f"127.0.0.1:{server}", "port": self.port, **settings})
        )
        command = [sys.executable, "-m", "graftline.serving.gateway", "--model_name=default"]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, f"--model_base_path={base}", f"--config={config}"],
                stdout=output,
                stderr=output,
            )

    @property
    def output(self) -> str:
        """What it printed so far, refusals among it."""
        return self._output.read_text()

    @property
    def refusals(self) -> list[dict[str, Any]]:
        """The audit log on its standard error."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    def wait_listening(self) -> GatewayProcess:
        """Waits until it takes connections."""
        until(lambda: self.listens() or self.process.poll() is not None, "the gateway")
        assert self.process.poll() is None, self.output
        return self

    def wait_ready(self) -> GatewayProcess:
        """Waits until it says that it is ready."""
        self.wait_listening()
        until(lambda: self.get("/readyz").status == 200, f"readiness: {self.output}")
        return self

    def listens(self) -> bool:
        """Whether a connection is taken."""
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """Sends a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())

    def get(self, path: str, **headers: str) -> Reply:
        """Sends a GET."""
        return self.ask("GET", path, **headers)

    def classify(self, content: bytes, query: str = "", **headers: str) -> Reply:
        """Asks for the classes of an image, sent as it is."""
        headers = {"Content_Type": "application/octet-stream", **headers}
        return self.ask("POST", f"/v1/classify{query}", content, **headers)

    def raw(self, *parts: bytes) -> bytes:
        """Sends bytes as they are; returns all that comes back until the gateway closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            answer = b""
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    connection.sendall(part)
            with contextlib.suppress(ConnectionError):
                while received := connection.recv(65536):
                    answer += received
            return answer

    def metric(self, line: str) -> float:
        """The value of a metric, 0 where it has none yet."""
        for found in self.get("/metrics").body.decode().splitlines():
            if found.startswith(f"{line} "):
                return float(found.rpartition(" ")[2])
        return 0.0

    def stop(self) -> int:
        """Ends it as an operator does; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextlib.contextmanager
def gateway(folder: Path, base: Path, server: int, **settings: Any) -> Iterator[GatewayProcess]:
    """A gateway that is ready, and killed in the end."""
    made = GatewayProcess(folder, base, server, **settings)
    try:
        yield made.wait_ready()
    finally:
        made.process.kill()
        made.process.wait()
