"""A real Flink cluster for the tests: one JobManager, TaskManagers and Beam's job server.

Each is a Java process of its own on the loopback interface. Flink comes with a package of PyPI, the
job server from Maven Central (tests/flink/pom.xml); both are fetched once, into the user's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import pytest

from model_servers import free_port

FLINK = "apache-flink-libraries==1.19.3"
_HERE = Path(__file__).parent / "flink"
_POM = _HERE / "pom.xml"
# The job server gives every jar of its class path to each job, half a minute for what the cluster
# has on its own, but for those in a folder of this name.
_NOT_STAGED = "gradle/wrapper"
_FETCH_WITHIN = 900.0
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


class Software:
    """Flink and Beam's job server on this machine.

    Attributes:
        classes: the class path of every process: Beam's jars are on that of the cluster, too.
    """

    def __init__(self, flink: Path, job_server: Path):
        lib = flink / "pyflink" / "lib"
        own = [*lib.glob("flink-dist-*.jar"), *lib.glob("log4j-*.jar")]
        self.classes = ":".join([*map(str, own), f"{job_server}/*"])


def fetch() -> Software:
    """Flink and the job server, fetched where they are not here yet; skips where they cannot be."""
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian's package maven brings both)")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = caches / "graftline" / "flink" / _NOT_STAGED
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / "lock"):
        flink = _fetched(
            cache / FLINK.replace("==", "-"),
            [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet"],
            ["--python", sys.executable, "--no-deps", FLINK, "--target"],
        )
        jars = _fetched(
            cache / f"job-server-{hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]}",
            ["mvn", "--quiet", "--batch-mode", f"--file={_POM}", "dependency:copy-dependencies"],
            ["-DincludeScope=runtime", "-DoutputDirectory="],
        )
    return Software(flink, jars)


def _fetched(folder: Path, command: list[str], rest: list[str]) -> Path:
    """A folder that a command fills, its name the command's last argument."""
    if folder.is_dir():
        return folder
    staged = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    target = [f"{rest[-1]}{staged}"] if rest[-1].endswith("=") else [rest[-1], str(staged)]
    done = subprocess.run(
        [*command, *rest[:-1], *target],
        capture_output=True,
        text=True,
        timeout=_FETCH_WITHIN,
        check=False,
    )
    if done.returncode != 0:
        told = (done.stderr or done.stdout).strip().splitlines()
        pytest.skip(f"{command[0]} cannot fetch {folder.name}: {told[-1] if told else 'no reason'}")
    staged.rename(folder)
    return folder


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
    with FlinkCluster(fetch(), folder) as cluster:
        yield cluster
