"""`graftline-beam-worker`: starts a worker of Beam on a machine of a cluster.

Whoever runs a Beam stage on Flink, Spark or another portable runner needs Python processes that do
the work. Three ways lead here, by the flags of Beam's container contract:

* process (`beam.workers.start: process`): a machine of the cluster runs this for each worker;
* docker: it is the entrypoint of the image;
* external: `graftline-beam-worker --worker_pool` stands beside the machine's own process, a
  sidecar, and starts the workers that it is asked for. One pool belongs to one TaskManager: all
  call their workers by the same ids, so that of a pool for two one stops the other's.

The code comes from the installed package; nothing is staged, and no main session is unpickled.
Where to connect and with which options is asked of the provision service, as Beam's own boot
program does (https://s.apache.org/beam-fn-api-container-contract).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_POOL_PORT = 50000
_ANSWER_WITHIN = 60.0  # seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a worker, or a pool of them, until it is told to stop."""
    parser = argparse.ArgumentParser(prog="graftline-beam-worker", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--worker_pool", action="store_true", help="stand by as a pool of workers")
    parser.add_argument("--service_port", type=int, default=_POOL_PORT, help="of the pool")
    parser.add_argument("--id", help="what the runner calls this worker")
    parser.add_argument("--provision_endpoint", help="where the runner tells all the rest")
    # The rest of the contract: what the provision service says, too, in later versions of Beam.
    for name in ("logging", "control", "artifact"):
        parser.add_argument(f"--{name}_endpoint")
    given, _ = parser.parse_known_args(arguments)
    if given.worker_pool:
        _stand_by(given.service_port)
    elif given.id and given.provision_endpoint:
        os.environ.update(
            _surroundings(
                given.id, given.provision_endpoint, given.control_endpoint, given.logging_endpoint
            )
        )
        _work()
    else:
        parser.error("give --id and --provision_endpoint, as a runner does, or --worker_pool")


def _stand_by(port: int) -> None:
    from apache_beam.runners.worker import worker_pool_main

    own = shutil.which(sys.argv[0]) or str(Path(sys.argv[0]).resolve())
    worker_pool_main.main([f"--service_port={port}", f"--container_executable={own}"])


def _work() -> None:
    # Before anything imports TensorFlow: which Keras there is.
    from apache_beam.runners.worker import sdk_worker_main

    import graftline.components  # noqa: F401

    sdk_worker_main.main(sys.argv)


def _surroundings(
    worker: str, provision: str, control: str | None, logging: str | None
) -> dict[str, str]:
    """What Beam's worker reads from its environment.

    Args:
        worker: id of the worker.
        provision: address of the provision service.
        control: address of the control service, where the provision service does not tell.
        logging: the same of the logging service.

    Raises:
        grpc.RpcError: the provision service does not answer.
    """
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2 as api
    from apache_beam.portability.api import beam_provision_api_pb2_grpc as services
    from google.protobuf import json_format, text_format

    with grpc.insecure_channel(provision) as channel:
        info = (
            services.ProvisionServiceStub(channel)
            .GetProvisionInfo(
                api.GetProvisionInfoRequest(),
                metadata=[("worker_id", worker)],
                timeout=_ANSWER_WITHIN,
                wait_for_ready=True,
            )
            .info
        )
    if control and not info.control_endpoint.url:
        info.control_endpoint.url = control
    if logging and not info.logging_endpoint.url:
        info.logging_endpoint.url = logging
    # In a file: a variable of the environment may not be longer than 128 KiB. In memory: nobody
    # clears up after a worker that its runner kills.
    number = os.memfd_create("pipeline_options")
    with open(number, "w", closefd=False) as options:
        json.dump(json_format.MessageToDict(info.pipeline_options), options)
    found = {
        "WORKER_ID": worker,
        "PIPELINE_OPTIONS_FILE": f"/proc/self/fd/{number}",
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.control_endpoint),
        "LOGGING_API_SERVICE_DESCRIPTOR": text_format.MessageToString(info.logging_endpoint),
    }
    if info.status_endpoint.url:
        found["STATUS_API_SERVICE_DESCRIPTOR"] = text_format.MessageToString(info.status_endpoint)
    return found


if __name__ == "__main__":
    main()
