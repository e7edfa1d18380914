"""Beam's portable runner, which asks for its job's end when the command that waits is stopped."""

from __future__ import annotations

import contextlib
from typing import Any

import grpc
from apache_beam.runners.portability.portable_runner import PortableRunner


class ClusterRunner(PortableRunner):
    """Runs a stage through a job server.

    Beam's own leaves the job to itself: it would go on writing when the next one has begun.
    """

    def run_portable_pipeline(self, pipeline: Any, options: Any) -> Any:
        """Begins the job; its end is asked for where waiting for its result is interrupted."""
        result = super().run_portable_pipeline(pipeline, options)
        wait = result.wait_until_finish

        def wait_until_finish(duration: int | None = None) -> Any:
            try:
                return wait(duration)
            except (KeyboardInterrupt, SystemExit):
                with contextlib.suppress(grpc.RpcError):
                    result.cancel()
                raise

        result.wait_until_finish = wait_until_finish
        return result
