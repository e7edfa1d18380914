"""A model server in a process of its own, with one candidate and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from graftline.components.serving_probe import guard
from graftline.components.trainer.workers import free_ports
from graftline.serving.file_system import link_or_copy

VERSION = 1
_EMBEDDED = (sys.executable, "-m", "graftline.serving.server")
# Nobody but the probe is to reach it, and nobody at all its profiler. The real server cannot be
# told where to listen.
_OWN_FLAGS = ("--bind_address=127.0.0.1", "--noenable_profiler")
_LONGEST_LINE = 500


class ServerProcess:
    """The server, from entering to leaving the context; neither end of this process outlasts it.

    Attributes:
        model: the candidate's name there; random, so that no other server's answer can be taken
            for one of this one.
        addresses: URL by protocol, `gRPC` and `REST`.
    """

    def __init__(self, saved_model: Path, command: Sequence[str], scratch: Path, log: Path) -> None:
        """Starts nothing yet.

        Args:
            saved_model: the candidate's folder.
            command: program and arguments of a server that takes TensorFlow Serving's flags; empty:
                the embedded one.
            scratch: a folder for its base path.
            log: the file that receives its output, replaced.
        """
        grpc_port, rest_port = free_ports(2)
        self.model = f"candidate-{uuid.uuid4().hex[:8]}"
        self.addresses = {
            "gRPC": f"grpc://127.0.0.1:{grpc_port}",
            "REST": f"http://127.0.0.1:{rest_port}",
        }
        self._saved_model = saved_model
        self._base_path = scratch / self.model
        self._log = log
        self._command = [
            *(command or _EMBEDDED),
            f"--port={grpc_port}",
            f"--rest_api_port={rest_port}",
            f"--model_name={self.model}",
            f"--model_base_path={self._base_path}",
            "--max_num_load_retries=0",
            *(() if command else _OWN_FLAGS),
        ]

    def __enter__(self) -> ServerProcess:
        staged = self._base_path / str(VERSION)
        shutil.copytree(self._saved_model, staged, copy_function=link_or_copy)
        # A GPU stays with the training process; a cluster is none of the server's business.
        environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
        environment["CUDA_VISIBLE_DEVICES"] = ""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", guard.__name__, *self._command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the server
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def how_it_ended(self, patience: float = 0.0) -> str | None:
        """In words, with the last line that it printed; None where it runs on.

        Args:
            patience: how long it may take to end, in seconds: connections break before.
        """
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        how = (
            f"was killed by signal {code - 128}" if 128 < code < 192 else f"ended with code {code}"
        )
        lines = self._log.read_text(errors="replace").strip().splitlines()
        last = f": {lines[-1].strip()[:_LONGEST_LINE]}" if lines else ""
        return f"the server {how}{last}"
