"""What the gateway adds: to the time of an answer, and to a machine's memory.

    python benchmarks/gateway.py [--model VERSION] [--image FILE] [--placements apart shared]
                                 [--clients 1 8 32] [--seconds 10] [--rounds 5] [--json FILE]

VERSION, FILE  as of serving.py; the model must answer `classes` and `scores`

Clients ask the embedded server directly, over gRPC and REST, and through the gateway with an API
key, by turns: the medians of the rounds. Twice:

apart   the server on one half of the cores, gateway and clients on the other, as where the model
        has a machine of its own: what is added is the gateway's
shared  all of them on all cores: what is added is also what the gateway takes away from the
        model, and the model, which leaves nothing in the caches, from the gateway
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from graftline.serving.gateway.api_keys import new_key
from serving import (
    Rate,
    Served,
    free_port,
    grpc_caller,
    make_image,
    make_model,
    rate,
    rest_caller,
    served,
)

_WAYS = ("grpc", "rest", "gateway")


class Gateway:
    """A gateway process in front of a server."""

    def __init__(self, folder: Path, server: Served):
        self.port = free_port()
        self.key, line = new_key("benchmark")
        (folder / "keys").write_text(line)
        command = [sys.executable, "-m", "graftline.serving.gateway", "--model_name=default"]
        settings = [
            f"port={self.port}",
            f"server=127.0.0.1:{server.grpc_port}",
            f"api_keys={folder / 'keys'}",
            "rate_limit=1000000/second",
            "max_in_flight_per_caller=64",
        ]
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, f"--model_base_path={folder / 'base'}", *settings],
            stdout=subprocess.DEVNULL,
        )
        while self._status() != 200:
            assert self.process.poll() is None, "the gateway ended"
            time.sleep(0.01)
        self.start_seconds = time.perf_counter() - began

    def _status(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", "/readyz")
            return connection.getresponse().status
        return 0

    @property
    def megabytes(self) -> float:
        """Resident memory."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6


@contextlib.contextmanager
def gateway(folder: Path, server: Served) -> Iterator[Gateway]:
    """A gateway that is ready."""
    made = Gateway(folder, server)
    try:
        yield made
    finally:
        made.process.terminate()
        made.process.wait()


def gateway_caller(port: int, key: str, image: bytes) -> Callable[[], Callable[[], None]]:
    """Makes callers of the gateway, each with a connection that stays open."""
    headers = {"X-API-Key": key, "Content-Type": "image/jpeg"}

    def make() -> Callable[[], None]:
        connection = http.client.HTTPConnection("127.0.0.1", port)

        def call() -> None:
            connection.request("POST", "/v1/classify", image, headers)
            response = connection.getresponse()
            content = response.read()
            assert response.status == 200, content

        return call

    return make


def measure(
    server: Served, door: Gateway, image: bytes, clients: int, seconds: float, rounds: int
) -> dict[str, Rate]:
    """The medians of every way."""
    makers = {
        "grpc": grpc_caller(server.grpc_port, image),
        "rest": rest_caller(server.rest_port, image),
        "gateway": gateway_caller(door.port, door.key, image),
    }
    found: dict[str, list[Rate]] = {way: [] for way in _WAYS}
    for _ in range(rounds):
        for way in _WAYS:
            found[way].append(rate(makers[way], clients, seconds))
    return {
        way: Rate(
            *(
                statistics.median(getattr(one, field) for one in several)
                for field in Rate.__struct_fields__
            )
        )
        for way, several in found.items()
    }


@contextlib.contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """Runs this process, and those that it starts meanwhile, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def compare(
    folder: Path, image: bytes, placement: str, counts: Sequence[int], seconds: float, rounds: int
) -> dict[str, Any]:
    """Measures all ways for every number of clients."""
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    theirs, ours = (set(cores),) * 2
    if placement == "apart":
        theirs, ours = set(cores[:half]), set(cores[half:]) or set(cores)
    results: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        with on(theirs):
            threads = ("--grpc_max_threads=64", "--rest_api_num_threads=64")
            server = stack.enter_context(served(folder / "base", *threads))
        stack.enter_context(on(ours))
        door = stack.enter_context(gateway(folder, server))
        results["start_seconds"], results["megabytes"] = door.start_seconds, door.megabytes
        for clients in counts:
            rates = measure(server, door, image, clients, seconds, rounds)
            for way, one in rates.items():
                print(
                    f"{placement:6} {clients:3} clients  {way:8} {one.images_per_second:8.1f} "
                    f"images/s  p50 {one.p50:7.2f} ms  p99 {one.p99:7.2f} ms",
                    flush=True,
                )
            added = {way: rates["gateway"].p50 - rates[way].p50 for way in ("grpc", "rest")}
            print(
                f"{placement:6} {clients:3} clients  the gateway adds {added['grpc']:.2f} ms to "
                f"gRPC, {added['rest']:.2f} ms to REST",
                flush=True,
            )
            results[str(clients)] = {"added_ms": added, **msgspec.to_builtins(rates)}
        results["megabytes_after"] = door.megabytes
    print(
        f"start {results['start_seconds']:.2f} s, {results['megabytes']:.0f} MB, "
        f"{results['megabytes_after']:.0f} MB after all requests"
    )
    return results


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--placements", nargs="+", default=["apart", "shared"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree(options.model or make_model(folder / "model"), folder / "base" / "1")
        image = options.image.read_bytes() if options.image else make_image()
        for placement in options.placements:
            results[placement] = compare(
                folder, image, placement, options.clients, options.seconds, options.rounds
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
