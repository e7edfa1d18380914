"""Beam's runner on this machine, with workers that are forked; see `workers`."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from typing import Any

from apache_beam.portability import python_urns
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    GrpcWorkerHandler,
    WorkerHandler,
)
from google.protobuf import json_format, text_format

from graftline.pipeline.beam import workers

_FORKED = "graftline:environment:forked:v1"
_ENDED = (
    "A worker process of Beam ended in the middle of its work. The system ends processes like that "
    "when memory runs out: lower beam.parallelism."
)
_ABORT_EVERY = 0.1  # seconds


class ProcessesRunner(FnApiRunner):
    """Runs the stages of a pipeline in `direct_num_workers` processes."""

    def run_via_runner_api(self, pipeline_proto: Any, options: Any) -> Any:
        """Forks workers where Beam would start processes of its own."""
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == python_urns.SUBPROCESS_SDK:
                environment.urn = _FORKED
        return super().run_via_runner_api(pipeline_proto, options)


@WorkerHandler.register_environment(_FORKED, bytes)
class _ForkedWorker(GrpcWorkerHandler):
    """One worker, as the runner sees it."""

    def __init__(self, command: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)

    def start_worker(self) -> None:
        """Forks it."""
        options = self.provision_info.provision_info.pipeline_options
        self._closing = threading.Event()
        self._line = workers.start(
            {
                "WORKER_ID": self.worker_id,
                "PIPELINE_OPTIONS": json_format.MessageToJson(options),
                "CONTROL_API_SERVICE_DESCRIPTOR": _text(self.control_api_service_descriptor()),
                "LOGGING_API_SERVICE_DESCRIPTOR": _text(self.logging_api_service_descriptor()),
            }
        )
        self._watch = threading.Thread(target=self._wait, daemon=True)
        self._watch.start()

    def _wait(self) -> None:
        """Waits for its end; while the runner still counts on it, nobody waits for an answer."""
        with contextlib.suppress(OSError):
            self._line.recv(1)
        while not self._closing.wait(_ABORT_EVERY):
            with contextlib.suppress(RuntimeError):  # one more is asked just now
                self.control_conn.abort(RuntimeError(_ENDED))

    def close(self) -> None:
        """Lets it end, or ends it where the stage has failed or is interrupted."""
        self._closing.set()
        if sys.exc_info()[0]:
            with contextlib.suppress(OSError):
                self._line.shutdown(socket.SHUT_RDWR)
        super().close()

    def stop_worker(self) -> None:
        """Waits for its end."""
        self._watch.join()
        self._line.close()


def _text(descriptor: Any) -> str:
    return text_format.MessageToString(descriptor)
