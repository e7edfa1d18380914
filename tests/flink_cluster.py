"""A real Flink cluster for the tests: one JobManager, TaskManagers and Beam's job server.

Each is a Java process of its own on the loopback interface.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from flink_software import Software, Unavailable, fetch
from model_servers import free_port

_HERE = Path(__file__).parent / "flink"
_START_WITHIN = 90.0
# Flink's own list for Java 17.
_OPENS = tuple(
    f"--add-{kind}={module}=ALL-UNNAMED"
    for kind, module in (
        ("exports", "java.base/sun.net.util"),
        ("exports", "java.rmi/sun.rmi.registry"),
        ("exports", "java.security.jgss/sun.security.krb5"),
        ("opens", "java.base/java.lang"),
        ("opens", "java.base/java.net"),
        ("opens", "java.base/java.io"),
        ("opens", "java.base/java.nio"),
        ("opens", "java.base/sun.nio.ch"),
        ("opens", "java.base/java.lang.reflect"),
        ("opens", "java.base/java.text"),
        ("opens", "java.base/java.time"),
        ("opens", "java.base/java.util"),
        ("opens", "java.base/java.util.concurrent"),
        ("opens", "java.base/java.util.concurrent.atomic"),
        ("opens", "java.base/java.util.concurrent.locks"),
    )
)


class FlinkCluster:
    """The processes, started together, stopped together.

    Attributes:
        job_server: address of Beam's job server, for `beam.job_server`.
    """

    def __init__(self, software: Software, folder: Path) -> None:
        """Starts nothing yet.

        Args:
            software: where the jars are.
            folder: for configurations, logs and temporary files.
        """
        self._software = software
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ids: dict[int, str] = {}
        self._rpc, self._rest, blob = free_port(), free_port(), free_port()
        self._shared = {
            "jobmanager.rpc.address": "127.0.0.1",
            "jobmanager.rpc.port": self._rpc,
            "jobmanager.bind-host": "127.0.0.1",
            "jobmanager.memory.jvm-metaspace.size": "128m",
            "rest.address": "127.0.0.1",
            "rest.bind-address": "127.0.0.1",
            "rest.port": self._rest,
            "blob.server.port": blob,
            "io.tmp.dirs": str(folder / "tmp"),
            "env.log.dir": str(folder),
            # A TaskManager that is gone is noticed, and given up, within seconds.
            "heartbeat.interval": "1000",
            "heartbeat.timeout": "10000",
            "slot.request.timeout": "8000",
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": 3,
            "restart-strategy.fixed-delay.delay": "1 s",
            "taskmanager.network.sort-shuffle.min-buffers": 64,
            # Many small buffers: a graph of hundreds of tasks wants a number, not bytes.
            "taskmanager.memory.segment-size": "8kb",
        }
        job_port, artifact_port = free_port(), free_port()
        self.job_server = f"127.0.0.1:{job_port}"
        self._job_ports = (job_port, artifact_port)

    def __enter__(self) -> FlinkCluster:
        (self._folder / "tmp").mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            stack.callback(self._stop_all)
            self._java(
                "job-manager",
                "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint",
                self._shared,
                heap=256,
            )
            for number in (1, 2):
                self.start_task_manager(number)
            self._start_job_server()
            self.wait_for_task_managers()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_all()

    def start_task_manager(self, number: int, network: str = "128m") -> None:
        """Starts a TaskManager, or starts it again.

        Args:
            number: which, from 1.
            network: its memory for what flows between tasks.
        """
        self._ids[number] = f"task-manager-{number}-{time.monotonic_ns()}"
        sizes = {
            "taskmanager.memory.framework.heap.size": "128m",
            "taskmanager.memory.framework.off-heap.size": "64m",
            "taskmanager.memory.task.heap.size": "192m",
            "taskmanager.memory.task.off-heap.size": "64m",
            "taskmanager.memory.managed.size": "64m",
            "taskmanager.memory.network.min": network,
            "taskmanager.memory.network.max": network,
            "taskmanager.memory.jvm-metaspace.size": "160m",
            "taskmanager.memory.jvm-overhead.min": "64m",
            "taskmanager.memory.jvm-overhead.max": "64m",
        }
        self._java(
            f"task-manager-{number}",
            "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
            {
                **self._shared,
                **sizes,
                "taskmanager.host": "127.0.0.1",
                "taskmanager.bind-host": "127.0.0.1",
                "taskmanager.resource-id": self._ids[number],
                "taskmanager.cpu.cores": 1.0,
                "taskmanager.numberOfTaskSlots": 1,
            },
            heap=320,
            direct="320m",
        )

    def start_missing_task_managers(self) -> None:
        """Starts those that were killed, and waits until both are registered."""
        for number in {1, 2} - set(self._ids):
            self.start_task_manager(number)
        self.wait_for_task_managers()

    def kill_task_manager(self, number: int) -> None:
        """Kills one and the workers that it started, as when its machine is gone."""
        process = self._processes[f"task-manager-{number}"]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        del self._ids[number]

    def wait_for_task_managers(self) -> None:
        """Waits until those that run, and no others, are registered and the job server listens."""
        end = time.monotonic() + _START_WITHIN
        while time.monotonic() < end:
            for name, process in self._processes.items():
                gone = process.poll() is not None and "task-manager" not in name
                assert not gone, f"{name} ended:\n{self.log(name)}"
            with contextlib.suppress(OSError, ValueError):
                known = {one["id"] for one in self.ask("/taskmanagers")["taskmanagers"]}
                if known == set(self._ids.values()) and self._job_server_listens():
                    return
            time.sleep(0.2)
        raise AssertionError(f"the TaskManagers never came:\n{self.log('task-manager-1')}")

    def ask(self, path: str) -> Any:
        """What Flink's REST API answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._rest}{path}", timeout=10) as answer:
            return json.load(answer)

    def tasks(self, job: str) -> list[dict[str, Any]]:
        """The tasks of a job as Flink tells them: status, TaskManager, number of the attempt."""
        vertices = self.ask(f"/jobs/{job}")["vertices"]
        paths = (f"/jobs/{job}/vertices/{vertex['id']}" for vertex in vertices)
        return [task for path in paths for task in self.ask(path)["subtasks"]]

    def works_at(self, number: int, job: str) -> bool:
        """Whether a task of a job is running on a TaskManager."""
        return any(
            (task["status"], task["taskmanager-id"]) == ("RUNNING", self._ids[number])
            for task in self.tasks(job)
        )

    def losses(self, job: str) -> list[str]:
        """What made tasks of a job fail so far, in Flink's words."""
        history = self.ask(f"/jobs/{job}/exceptions")["exceptionHistory"]["entries"]
        return [entry["stacktrace"] for entry in history]

    def workers(self) -> set[int]:
        """The process ids of the workers that TaskManagers have started and that live."""
        found: set[int] = set()
        for process in self._processes.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= {child.pid for child in psutil.Process(process.pid).children()}
        return found

    def log(self, name: str) -> str:
        """The end of what a process has written."""
        path = self._folder / f"{name}.log"
        return path.read_text(errors="replace")[-20_000:] if path.exists() else ""

    def _start_job_server(self) -> None:
        job_port, artifact_port = self._job_ports
        self._java(
            "job-server",
            "org.apache.beam.runners.flink.FlinkJobServerDriver",
            {},
            heap=384,
            arguments=(
                f"--flink-master=127.0.0.1:{self._rest}",
                "--job-host=127.0.0.1",
                f"--job-port={job_port}",
                f"--artifact-port={artifact_port}",
                "--expansion-port=0",
                f"--artifacts-dir={self._folder / 'artifacts'}",
            ),
        )

    def _job_server_listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._job_ports[0])) == 0

    def _java(
        self,
        name: str,
        main: str,
        settings: Mapping[str, object],
        *,
        heap: int,
        direct: str = "128m",
        arguments: tuple[str, ...] = (),
    ) -> None:
        configuration = self._folder / name
        configuration.mkdir(exist_ok=True)
        if settings:
            lines = [f"{key}: {value}" for key, value in settings.items()]
            (configuration / "flink-conf.yaml").write_text("\n".join(lines) + "\n")
            arguments = ("--configDir", str(configuration))
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [
                    "java",
                    *_OPENS,
                    f"-Xmx{heap}m",
                    f"-XX:MaxDirectMemorySize={direct}",
                    "-XX:+UseSerialGC",
                    "-XX:TieredStopAtLevel=1",
                    f"-Dlog4j.configurationFile={_HERE / 'log4j2.properties'}",
                    f"-Djava.io.tmpdir={self._folder / 'tmp'}",
                    "-cp",
                    self._software.classes,
                    main,
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
                start_new_session=True,
            )

    def _stop_all(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def flink_cluster(folder: Path) -> Iterator[FlinkCluster]:
    """A running cluster; skips where there is none to be had."""
    try:
        software = fetch()
    except Unavailable as reason:
        pytest.skip(str(reason))
    with FlinkCluster(software, folder) as cluster:
        yield cluster
