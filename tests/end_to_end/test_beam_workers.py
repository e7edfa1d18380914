"""The way to a cluster's workers, on the job server that is a part of Beam's own Python package.

Its workers come from a pool, as beside a TaskManager of Flink, and see what a test lets them see.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from drops import examples, folders, take_in

from graftline.pipeline.beam.check import check_beam
from graftline.pipeline.beam.config import BeamConfig, WorkersConfig
from graftline.pipeline.beam.options import beam_options
from graftline.serving.errors import UserError
from model_servers import free_port, until

pytestmark = pytest.mark.end_to_end

POOL = [str(Path(sys.executable).with_name("graftline-beam-worker")), "--worker_pool"]
# What a machine is to its workers that has Beam and nothing of ours.
WITHOUT_GRAFTLINE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "graftline":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


@contextlib.contextmanager
def process(log: Path, *command: str, **environment: str) -> Iterator[None]:
    with log.open("wb") as stream:
        started = subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                **environment,
            },
        )
    try:
        yield
    finally:
        started.terminate()
        started.wait()


@pytest.fixture(scope="module")
def job_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a job server."""
    folder = tmp_path_factory.mktemp("job-server")
    service = "apache_beam.runners.portability.local_job_service_main"
    port = folder / "port"
    with process(
        folder / "log", sys.executable, "-W", "ignore", "-m", service, f"--port_file={port}"
    ):
        until(port.exists, "the job server")
        yield f"127.0.0.1:{port.read_text()}"


@contextlib.contextmanager
def workers(
    folder: Path, job_server: str, command: Sequence[str] = POOL, **environment: str
) -> Iterator[BeamConfig]:
    """A pool of workers; the section `beam` that leads there."""
    port, log = free_port(), folder / "pool.log"
    with process(log, *command, f"--service_port={port}", **environment):
        until(lambda: "Listening for workers" in log.read_text() or _listens(port), "the pool")
        yield BeamConfig(
            runner="portable",
            job_server=job_server,
            workers=WorkersConfig(start="external", pool=f"127.0.0.1:{port}"),
        )


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def refusal(config: BeamConfig, folder: Path, **given: object) -> str:
    with pytest.raises(UserError) as refused:
        check_beam(config, [folder], **given)
    assert not list(folder.glob(".graftline*"))
    return str(refused.value)


def test_workers_that_have_this_code_and_see_the_folder_pass(job_server, tmp_path):
    with workers(tmp_path, job_server) as config:
        check_beam(config, [tmp_path / "spans"], sources=[tmp_path])
    assert list((tmp_path / "spans").iterdir()) == []


def test_workers_without_the_package_are_named(job_server, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_GRAFTLINE)
    pool = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
    with workers(tmp_path, job_server, pool, PYTHONPATH=str(tmp_path)) as config:
        said = refusal(config, tmp_path)
    assert "the workers' Python has no package graftline" in said
    assert "beam.workers.pool" in said


def test_workers_that_never_start_are_waited_for_no_longer_than_is_set(job_server, tmp_path):
    pool = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
    pool += ["--container_executable", "/bin/false"]
    with workers(tmp_path, job_server, pool) as config:
        said = refusal(msgspec.structs.replace(config, probe_seconds=2), tmp_path)
    assert "has waited there for 2 s (beam.probe_seconds)" in said
    assert "for a place to run or for its worker" in said


def test_workers_with_other_code_are_named_with_both(job_server, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import platform\nplatform.python_version_tuple = lambda: ('3', '9', '1')\n"
    )
    with workers(tmp_path, job_server, PYTHONPATH=str(tmp_path)) as config:
        said = refusal(config, tmp_path)
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"have Python 3.9, and here it is {own}" in said


def test_a_root_that_workers_do_not_see_is_named(job_server, tmp_path):
    """The pool has a disk of its own where the project's folder is."""
    root = tmp_path / "project"
    root.mkdir()
    hidden = f'mount -t tmpfs none {root} && exec {" ".join(POOL)} "$@"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", hidden, "pool"]
    _skip_without_namespaces(root)
    with workers(tmp_path, job_server, command) as config:
        said = refusal(config, root)
    assert f"do not see {root} as this machine does: No such file or directory" in said
    assert "under the same path" in said


def test_a_source_that_workers_do_not_see_is_named(job_server, tmp_path):
    source, shared = tmp_path / "images", tmp_path / "shared"
    source.mkdir()
    shared.mkdir()
    os.utime(source, (1, 1))
    hidden = f'mount -t tmpfs none {source} && exec {" ".join(POOL)} "$@"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", hidden, "pool"]
    _skip_without_namespaces(source)
    with workers(tmp_path, job_server, command) as config:
        said = refusal(config, shared, sources=[source])
    assert f"do not see {source} as this machine does: another one of this name" in said


def _skip_without_namespaces(folder: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to give the workers a disk of their own")
    mount = ["unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"the workers cannot have a disk of their own: {done.stderr.strip()}")


def test_a_drop_by_workers_of_a_pool_is_that_of_this_machine(job_server, tmp_path):
    source, left = folders(tmp_path / "images"), tmp_path / "left"
    left.mkdir()
    here = take_in(source, tmp_path / "here")
    with workers(tmp_path, job_server, TMPDIR=str(left)) as config:
        there = take_in(source, tmp_path / "there", beam_options=beam_options(config, "drop"))
    assert there.summary.shards == here.summary.shards
    assert examples(there) == examples(here)
    assert (tmp_path / "pool.log").read_text().count("Starting worker") == 2
    assert not list(left.iterdir())
