"""Beam's portable runner, which takes its job back when the command that waits is stopped."""

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
        """Begins the job; waiting for its result ends it, where the waiting is interrupted."""
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
