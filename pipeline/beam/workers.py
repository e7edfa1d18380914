"""Worker processes of this machine: forked from one that has loaded what they use.

A worker that begins as a process of its own loads TensorFlow before anything else, at every stage.
Here one process, the nursery, loads it once, while the command itself does, and every worker is a
copy of it. The nursery does nothing else: there is no thread, no lock that a copy would miss.

    python -m graftline.pipeline.beam.workers MODULE ...     is the nursery; asked on standard input
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Collection, Mapping, Sequence

from graftline.pipeline.beam.config import BeamConfig, Stage

# What a stage's workers use; those that are not here are nodes of the pipeline.
_USED = {
    "drop": "graftline.components.ingest.drop",
    "predict_batch": "graftline.components.batch_prediction.predict",
}
_USED_BY_NODES = "graftline.pipeline.create_pipeline"
_HARNESS = "apache_beam.runners.worker.sdk_worker_main"
_LONGEST = 1 << 16  # bytes of a request

_nursery: _Nursery | None = None


def preload(config: BeamConfig, stages: Sequence[Stage]) -> None:
    """Begins to load what the workers of these stages use; returns at once.

    Args:
        config: the section `beam`; nothing is loaded for stages on a cluster or in this process.
        stages: those that are to run.
    """
    divided = [stage for stage in stages if config.processes_of(stage) > 1]
    if divided:
        _the_nursery({_USED.get(stage, _USED_BY_NODES) for stage in divided})


def start(environment: Mapping[str, str]) -> socket.socket:
    """Starts a worker.

    Args:
        environment: where its harness finds the runner; see `sdk_worker_main.create_harness`.

    Returns:
        what ties the worker to this process: at its end it is closed from the other side, and the
        worker ends when it is shut down from this one.

    Raises:
        RuntimeError: the nursery has ended.
    """
    return _the_nursery().fork(environment)


def _the_nursery(modules: Collection[str] = ()) -> _Nursery:
    global _nursery
    if _nursery is None:
        _nursery = _Nursery([_HARNESS, *sorted(modules)])
    return _nursery


class _Nursery:
    """The nursery, as the command sees it."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._requests, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with asked:
            # In a session of its own: Ctrl-C is for the command, which ends the others.
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, *modules],
                stdin=asked.fileno(),
                start_new_session=True,
            )
        # It may be loading still.
        atexit.register(self._process.kill)

    def fork(self, environment: Mapping[str, str]) -> socket.socket:
        """See `start`."""
        ours, workers = socket.socketpair()
        request = json.dumps(dict(environment)).encode()
        with workers:
            try:
                socket.send_fds(self._requests, [request], [workers.fileno()])
            except OSError as error:
                ours.close()
                raise RuntimeError(
                    "The process from which Beam's workers are forked has ended."
                ) from error
        return ours


def _serve(modules: Sequence[str]) -> None:
    """Loads the modules, then forks a worker at every request, until the command is gone."""
    for module in modules:
        importlib.import_module(module)
    reaping = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=sys.stdin.fileno()) as requests:
        while True:
            request, [*lines], _, _ = socket.recv_fds(requests, _LONGEST, 1)
            if not request:
                return
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, reaping)
                requests.close()
                _work(json.loads(request), socket.socket(fileno=lines[0]))
            os.close(lines[0])


def _work(environment: Mapping[str, str], command: socket.socket) -> None:
    """Serves one stage; does not return."""
    try:
        os.environ.update(environment)
        threading.Thread(target=_end_with, args=[command], daemon=True).start()
        from apache_beam.runners.worker import sdk_worker_main

        sdk_worker_main.main([])
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _end_with(command: socket.socket) -> None:
    try:
        command.recv(1)
    finally:
        os._exit(1)


if __name__ == "__main__":
    _serve(sys.argv[1:])
