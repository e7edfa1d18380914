"""Where Flink cannot be had, `make test-flink` fails with the reason, and `make test` skips."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flink_cluster import flink_cluster

PROGRAM = Path(__file__).parents[1] / "flink_software.py"
CACHE = "graftline/flink/gradle/wrapper/apache-flink-libraries-1.19.3"
FETCHES = 'for last; do :; done; /bin/mkdir "${last#-DoutputDirectory=}"'


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder of programs, the only one on the PATH, beside a cache with Flink in it."""
    (tmp_path / CACHE).mkdir(parents=True)
    tools = tmp_path / "tools"
    tools.mkdir()
    return tools


def install(tools: Path, name: str, script: str) -> None:
    (tools / name).write_text(f"#!/bin/sh\n{script}\n")
    (tools / name).chmod(0o755)


def fetched(tools: Path) -> subprocess.CompletedProcess[str]:
    surroundings = {**os.environ, "PATH": str(tools), "XDG_CACHE_HOME": str(tools.parent)}
    command = [sys.executable, str(PROGRAM)]
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)


def test_with_java_and_maven_it_is_fetched(tools, tmp_path):
    install(tools, "java", "exit 0")
    install(tools, "mvn", FETCHES)
    done = fetched(tools)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("job-server-*"))


def test_a_program_that_is_missing_is_named(tools):
    install(tools, "java", "exit 0")
    done = fetched(tools)
    assert done.returncode == 1
    assert "The tests on Flink cannot run: mvn is not installed" in done.stderr


def test_what_cannot_be_fetched_is_told_with_the_reason(tools, tmp_path):
    install(tools, "java", "exit 0")
    install(tools, "mvn", "echo '[ERROR] Could not transfer artifact'; exit 1")
    done = fetched(tools)
    assert done.returncode == 1
    assert "mvn cannot fetch job-server-" in done.stderr
    assert "Could not transfer artifact" in done.stderr
    assert not list(tmp_path.rglob("job-server-*"))


def test_among_all_other_tests_those_on_flink_are_skipped(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tools))
    with (
        pytest.raises(pytest.skip.Exception, match="java is not installed"),
        flink_cluster(tmp_path / "cluster"),
    ):
        pass
