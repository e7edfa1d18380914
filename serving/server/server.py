"""One server from start to end: models first, then the ports, then a signal, then what has begun.

The order is that of `tensorflow_serving/model_servers/server.cc`: a port is open only once every
configured model serves a version, so whoever can connect gets an answer.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import tensorflow as tf
from grpc_health.v1 import health
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from graftline.serving.server import flags as command_line
from graftline.serving.server.core import Core
from graftline.serving.server.flags import INT32_MAX, Flags
from graftline.serving.server.grpc_reading import WAITING_THREADS, Reading
from graftline.serving.server.grpc_services import ModelService, PredictionService, add_health
from graftline.serving.server.http_server import HttpServer, raise_file_limit
from graftline.serving.server.metrics import DEFAULT_PATH, Metrics
from graftline.serving.server.profiler import Profiler
from graftline.serving.server.requests import Requests
from graftline.serving.server.rest import RestApplication
from graftline.serving.server.status import Code, Failure, invalid
from graftline.serving.server.text_protos import MonitoringConfig, read_text
from graftline.serving.server.tls import server_credentials

CANNOT_SERVE = 255
# For unloading, after the grace in which requests may finish.
_LAST_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Server:
    """The models, and the ports on which they are asked."""

    def __init__(self, flags: Flags) -> None:
        """Reads what the flags name; loads nothing and opens nothing yet.

        Raises:
            Failure: a file is not as it should be.
        """
        self._flags = flags
        self._metrics = Metrics()
        self._stopping = threading.Event()
        self._credentials = (
            server_credentials(flags.ssl_config_file) if flags.ssl_config_file else None
        )
        self._metrics_path = self._read_metrics_path()
        self._channel_arguments = _channel_arguments(flags)
        self.core = Core(flags, self._metrics)
        self._grpc: grpc.Server | None = None
        self._reading: Reading | None = None
        self._health: health.HealthServicer | None = None
        self._http: HttpServer | None = None
        self._rest: RestApplication | None = None

    def start(self) -> None:
        """Loads the models, then opens the ports; returns when both is done.

        Raises:
            Failure: a model cannot be served, or a port not opened.
        """
        self.core.start()
        if self._stopping.is_set():
            return
        if self._flags.port or self._flags.grpc_socket_path:
            self._start_grpc()
        if self._flags.rest_api_port:
            self._start_rest()

    def interrupt(self) -> None:
        """Ends `start`, where it still waits for models, and `wait`. Safe in a signal handler."""
        self._stopping.set()
        self.core.stop()

    def wait(self) -> None:
        """Returns when `interrupt` was called."""
        # In turns: a wait without end would keep Python from running signal handlers.
        while not self._stopping.wait(3600):
            pass

    def stop(self) -> bool:
        """Closes the ports, lets begun requests finish within the grace, unloads all models.

        Returns:
            Whether nothing runs any more.
        """
        self.interrupt()
        if self._health is not None:
            self._health.enter_graceful_shutdown()
        finished = self._grpc.stop(self._flags.shutdown_grace_seconds) if self._grpc else None
        if self._http is not None:
            self._http.stop()
        if finished is not None:
            finished.wait()
        if self._reading is not None:
            self._reading.close()
        if self._rest is not None:
            self._rest.close()
        return self.core.close(_LAST_SECONDS)

    def _start_grpc(self) -> None:
        flags = self._flags
        read_seconds = flags.request_read_timeout_seconds
        self._reading = Reading(read_seconds, flags.grpc_max_threads)
        server = grpc.server(
            ThreadPoolExecutor(flags.grpc_max_threads + WAITING_THREADS, "grpc"),
            interceptors=[self._reading],
            options=[
                # Two servers on one port would share its connections without a word.
                ("grpc.so_reuseport", 0),
                ("grpc.server_handshake_timeout_ms", min(round(1e3 * read_seconds), INT32_MAX)),
                ("grpc.max_receive_message_length", flags.max_request_bytes),
                ("grpc.max_send_message_length", INT32_MAX),
                *self._channel_arguments,
            ],
        )
        requests = Requests(self.core, self._metrics, flags, "GRPC")
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(requests), server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(self.core, self._metrics), server
        )
        if flags.enable_grpc_healthcheck_service:
            self._health = add_health(server)
        if flags.enable_profiler:
            server.add_generic_rpc_handlers((Profiler(self._stopping).handler(),))
        if flags.port:
            address = flags.bind_address or "0.0.0.0"
            host = f"[{address}]" if ":" in address else address
            self._listen(server, f"{host}:{flags.port}")
        if flags.grpc_socket_path:
            self._listen(server, f"unix:{flags.grpc_socket_path}")
        server.start()
        self._grpc = server

    def _listen(self, server: grpc.Server, address: str) -> None:
        try:
            if self._credentials is not None:
                bound = server.add_secure_port(address, self._credentials)
            else:
                bound = server.add_insecure_port(address)
        except RuntimeError:
            bound = 0
        if not bound:
            raise Failure(
                Code.UNAVAILABLE,
                "Failed to BuildAndStart gRPC server: cannot listen at "
                f"{address}; is another server running there?",
            )
        _log.info("Running gRPC ModelServer at %s ...", address)

    def _start_rest(self) -> None:
        flags = self._flags
        self._rest = RestApplication(self.core, self._metrics, flags, self._metrics_path)
        self._http = HttpServer(
            self._rest,
            read_seconds=flags.request_read_timeout_seconds,
            grace_seconds=flags.shutdown_grace_seconds,
        )
        self._http.start(flags.bind_address, flags.rest_api_port)
        where = f"{flags.bind_address or 'localhost'}:{flags.rest_api_port}"
        _log.info("Exporting HTTP/REST API at:%s ...", where)

    def _read_metrics_path(self) -> str:
        if not self._flags.monitoring_config_file:
            return ""
        config = read_text(self._flags.monitoring_config_file, MonitoringConfig())
        if not config.prometheus_config.enable:
            return ""
        return config.prometheus_config.path or DEFAULT_PATH


def run(flags: Flags, ready: Callable[[], None] = lambda: None) -> int:
    """Runs a server until SIGTERM or SIGINT ends it; a second signal ends it at once.

    Args:
        flags: how to start it.
        ready: called once it answers.

    Returns:
        The exit code: 0, or 255 where it cannot serve.
    """
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        stream=sys.stderr,
        force=True,  # a library that logged while it was imported has set it up already
    )
    tf.get_logger().setLevel(logging.ERROR)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    raise_file_limit()
    for name in command_line.unused(flags):
        _log.warning("--%s has no effect on the embedded server", name)
    server: Server | None = None
    try:
        server = Server(flags)
        _interrupt_on_signals(server)
        server.start()
        ready()
    except Failure as failure:
        print(f"Failed to start server. Error: {failure}", flush=True)
        if server is not None and not server.stop():
            _end_at_once(CANNOT_SERVE)
        return CANNOT_SERVE
    server.wait()
    _log.info("Stopping: finishing what has begun")
    if not server.stop():
        _log.warning("Something did not finish within the grace and is given up")
        _end_at_once(0)
    return 0


def _end_at_once(code: int) -> None:
    """Ends the process although threads still compute, which Python would wait for."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _interrupt_on_signals(server: Server) -> None:
    def handle(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        server.interrupt()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def _channel_arguments(flags: Flags) -> list[tuple[str, int | str]]:
    """The gRPC server's arguments, `key=value,key=value`; what looks like a number is one.

    Raises:
        Failure: a key has no value.
    """
    arguments: list[tuple[str, int | str]] = []
    for pair in filter(None, flags.grpc_channel_arguments.split(",")):
        key, separator, value = pair.partition("=")
        if not separator:
            raise invalid(f"--grpc_channel_arguments: {pair!r} is no key=value")
        try:
            arguments.append((key, int(value)))
        except ValueError:
            arguments.append((key, value))
    return arguments
