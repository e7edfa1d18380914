"""Tiny models, and real servers on them: processes to be asked, signalled and killed."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

_context = multiprocessing.get_context("forkserver")
if "commands" not in sys.modules:  # its list holds this, and there is only one
    _context.set_forkserver_preload(["graftline.serving.server.server"])

PATIENCE = 60.0


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], Any], what: str = "it", patience: float = PATIENCE) -> Any:
    """Waits until a condition holds and returns its value; fails when it never does."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} never came")


def linear_model(folder: Path, add: float = 2.0) -> Path:
    """Writes a SavedModel: y = x / 2 + add, and the same on tf.Examples with a feature `x`.

    Signatures: `serving_default` (x -> y), `two` (a, b -> sum, label_bytes), `classify` (inputs ->
    classes, scores), `regress` (inputs -> outputs), `check` (x -> y, fails below zero), `strings`
    (text -> same), `wide` (x -> a thousand times y), `slow` (x -> y, x[0] thousand steps, some
    seconds for 10).

    Args:
        folder: of the version, made here.
        add: what is added.
    """
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], "x")
        y = tf.identity(x / 2 + add, "y")
        a, b = v1.placeholder(tf.float32, [None, 2], "a"), v1.placeholder(tf.int64, [None], "b")
        total = tf.reduce_sum(a, 1) + tf.cast(b, tf.float32)
        with tf.control_dependencies([v1.assert_non_negative(x, message="below zero")]):
            checked = tf.identity(y)
        _, matrix = tf.while_loop(
            lambda step, _: step < tf.cast(x[0] * 1000, tf.int32),
            lambda step, matrix: (step + 1, tf.matmul(matrix, matrix)),
            [tf.constant(0), tf.zeros([64, 64])],
        )
        slow = y + matrix[0, 0]
        text = v1.placeholder(tf.string, [None], "text")
        examples = v1.placeholder(tf.string, [None], "examples")
        feature = v1.parse_example(examples, {"x": v1.FixedLenFeature([], tf.float32)})["x"]
        scores = tf.stack([feature, feature / 2 + add], 1)
        classes = tf.tile(tf.constant([["low", "high"]]), [tf.shape(feature)[0], 1])

        def signature(inputs: dict[str, Any], outputs: dict[str, Any], method: str) -> Any:
            return v1.saved_model.build_signature_def(
                {name: v1.saved_model.build_tensor_info(t) for name, t in inputs.items()},
                {name: v1.saved_model.build_tensor_info(t) for name, t in outputs.items()},
                f"tensorflow/serving/{method}",
            )

        builder = v1.saved_model.builder.SavedModelBuilder(str(folder))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": signature({"x": x}, {"y": y}, "predict"),
                "two": signature(
                    {"a": a, "b": b},
                    {"sum": total, "label_bytes": tf.as_string(b)},
                    "predict",
                ),
                "check": signature({"x": x}, {"y": checked}, "predict"),
                "wide": signature({"x": x}, {"y": tf.tile(y[:, None], [1, 1000])}, "predict"),
                "slow": signature({"x": x}, {"y": slow}, "predict"),
                "strings": signature({"text": text}, {"same": text + ""}, "predict"),
                "classify": signature(
                    {"inputs": examples}, {"classes": classes, "scores": scores}, "classify"
                ),
                "regress": signature(
                    {"inputs": examples}, {"outputs": feature / 2 + add}, "regress"
                ),
            },
        )
        builder.save()
    return folder


class _Reddest(tf.Module):
    """Names the strongest colour of an image, with the signature of every exported model.

    It may have memory for so many images at once only, none of them wider than 100 pixels.
    """

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self._most = most

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        def shares(encoded: tf.Tensor) -> tf.Tensor:
            image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
            if self._most is not None:
                _hold(tf.shape(image)[1], 100)
            return tf.nn.softmax(tf.reduce_mean(tf.cast(image, tf.float32), [0, 1]) / 255)

        if self._most is not None:
            _hold(tf.shape(image_bytes)[0], self._most)
        scores = tf.map_fn(shares, image_bytes, fn_output_signature=tf.TensorSpec([3], tf.float32))
        classes = tf.tile([["red", "green", "größtes Blau"]], [tf.shape(scores)[0], 1])
        return {"classes": classes, "scores": scores}


def _hold(amount: tf.Tensor, most: int) -> None:
    """Takes memory and gives it back; more than there is is refused as every device does it."""
    area = {"memory_limit": 4 * most + 1, "shared_name": f"at_most_{most}"}
    tf.raw_ops.Stage(values=[tf.zeros([amount])], **area)
    tf.raw_ops.Unstage(dtypes=[tf.float32], **area)


def colour_model(folder: Path, most: int | None = None) -> Path:
    """Writes a SavedModel that names the strongest colour of an image.

    Args:
        folder: of the version, made here.
        most: for how many images at once it has memory, of 100 pixels in width at most; None:
            for any.
    """
    module = _Reddest(most)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    return folder


def coloured_image(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def _serve(arguments: list[str], output: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    from graftline.serving.server.__main__ import main

    sys.exit(main(arguments))


class ModelServer:
    """A server process; asked on 127.0.0.1.

    Args:
        folder: where its output goes.
        flags: what follows the ports on the command line.
        ports: which of `grpc` and `rest` to open.
        after: a server that is gone, whose ports it takes.
    """

    def __init__(
        self,
        folder: Path,
        *flags: str,
        ports: str = "grpc rest",
        after: ModelServer | None = None,
    ):
        self.grpc_port = free_port() if "grpc" in ports else 0
        self.rest_port = free_port() if "rest" in ports else 0
        if after:
            self.grpc_port, self.rest_port = after.grpc_port, after.rest_port
        self._output = folder / f"server-{time.monotonic_ns()}.log"
        arguments = [
            f"--port={self.grpc_port}",
            f"--rest_api_port={self.rest_port}",
            "--bind_address=127.0.0.1",
            "--load_retry_interval_micros=100000",
            "--max_num_load_retries=1",
            *flags,
        ]
        self.process = _context.Process(target=_serve, args=(arguments, self._output))
        self.process.start()

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self._output.read_text() if self._output.exists() else ""

    def wait_ready(self) -> ModelServer:
        """Waits until it listens."""
        until(lambda: self.listens() or not self.process.is_alive(), "the server")
        assert self.process.is_alive(), self.output
        return self

    def listens(self) -> bool:
        """Whether a connection is taken."""
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.rest_port or self.grpc_port), 1).close()
            return True
        return False

    def exit_code(self) -> int:
        """Waits for its end."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, self.output
        return self.process.exitcode

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.process.pid or 0, number)

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Sends one HTTP request; returns status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=PATIENCE)
        with contextlib.closing(connection):
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def raw(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes]:
        """Sends one HTTP request; returns status and body."""
        status, _, answer = self.ask(method, path, body, **headers)
        return status, answer

    def get(self, path: str) -> tuple[int, Any]:
        """A GET below `/v1/models/`; the body as data."""
        status, body = self.raw("GET", f"/v1/models/{path}")
        return status, json.loads(body)

    def post(self, path: str, request: Any) -> tuple[int, Any]:
        """A POST below `/v1/models/`; the body as data."""
        status, body = self.raw("POST", f"/v1/models/{path}", json.dumps(request).encode())
        return status, json.loads(body)

    def predict(self, *instances: float, path: str = "default") -> Any:
        """The predictions for some x, or the error."""
        _, answer = self.post(f"{path}:predict", {"instances": list(instances)})
        return answer.get("predictions", answer)

    def states(self, model: str = "default") -> dict[int, str]:
        """What the server says of a model's versions."""
        status, answer = self.get(model)
        if status != 200:
            return {}
        return {int(v["version"]): v["state"] for v in answer["model_version_status"]}

    def until_states(self, states: dict[int, str], model: str = "default") -> None:
        """Waits until the server says just that of a model's versions."""
        until(lambda: self.states(model) == states, f"{states} (last: {self.states(model)})")


@contextlib.contextmanager
def serving(
    folder: Path, *flags: str, ports: str = "grpc rest", after: ModelServer | None = None
) -> Iterator[ModelServer]:
    """A server that is ready, and killed in the end."""
    server = ModelServer(folder, *flags, ports=ports, after=after)
    try:
        yield server.wait_ready()
    finally:
        server.process.kill()
        server.process.join()


def publish(models: Path, base: Path, *numbers: int) -> None:
    """Copies versions into a base path, each by one rename."""
    base.mkdir(exist_ok=True)
    for number in numbers:
        shutil.copytree(models / str(number), base / f"{number}.tmp")
        (base / f"{number}.tmp").rename(base / str(number))


def prediction(server: ModelServer, address: str = "") -> Any:
    """A client of its PredictionService."""
    return prediction_service_pb2_grpc.PredictionServiceStub(
        grpc.insecure_channel(address or f"127.0.0.1:{server.grpc_port}")
    )


def predict_request(*x: float, signature: str = "", **spec: object) -> predict_pb2.PredictRequest:
    """A request for some x; `spec`: name, version, label."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = str(spec.pop("name", "default"))
    request.model_spec.signature_name = signature
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32(x)))
    return request


def refused(call: Any, request: object) -> tuple[grpc.StatusCode, str]:
    """The code and the words with which a call is refused."""
    try:
        call(request)
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError("not refused")
