"""Flink and Beam's job server on this machine, for the tests on a real cluster.

Flink comes with a package of PyPI, the job server from Maven Central (tests/flink/pom.xml); both
are fetched once, into the user's cache. `python tests/flink_software.py` fetches them, or ends with
what is missing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import filelock

_FLINK = "apache-flink-libraries==1.19.3"
_POM = Path(__file__).parent / "flink" / "pom.xml"
# The job server gives every jar of its class path to each job, half a minute for what the cluster
# has on its own, but for those in a folder of this name.
_NOT_STAGED = "gradle/wrapper"
_FETCH_WITHIN = 900.0


class Unavailable(Exception):
    """Why it cannot be had."""


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
    """Flink and the job server, fetched where they are not here yet.

    Raises:
        Unavailable: a program is not installed, or something cannot be fetched.
    """
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed (Debian's package maven brings both).")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = caches / "graftline" / "flink" / _NOT_STAGED
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / "lock"):
        flink = _fetched(
            cache / _FLINK.replace("==", "-"),
            [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet"],
            ["--python", sys.executable, "--no-deps", _FLINK, "--target"],
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
    try:
        done = subprocess.run(
            [*command, *rest[:-1], *target],
            capture_output=True,
            text=True,
            timeout=_FETCH_WITHIN,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{folder.name} is not here after {_FETCH_WITHIN:g} s.") from error
    if done.returncode != 0:
        told = (done.stderr or done.stdout).strip().splitlines()
        why = told[-1] if told else "no reason"
        raise Unavailable(f"{Path(command[0]).name} cannot fetch {folder.name}: {why}")
    staged.rename(folder)
    return folder


if __name__ == "__main__":
    try:
        fetch()
    except Unavailable as reason:
        sys.exit(f"The tests on Flink cannot run: {reason}")
