"""Peak memory: of this process and of those below it, stage by stage."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from graftline.components import memory
from model_servers import until

MEGABYTES = 200
HOLDS = f"held = b'0' * ({MEGABYTES} << 20); print(flush=True); input()"
BELOW = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDS!r}])"


@contextlib.contextmanager
def process(program: str) -> Iterator[None]:
    """A process that has come to where it waits."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe) as begun:
        assert begun.stdout
        begun.stdout.readline()
        yield
        begun.communicate(b"\n")


@pytest.mark.parametrize("program", [HOLDS, BELOW], ids=["child", "its child"])
def test_what_the_processes_below_hold_counts_until_the_next_stage_begins(program):
    memory.begin()
    idle = memory.peak_mb()
    with process(program):
        until(lambda: memory.peak_mb() >= idle + MEGABYTES)
    assert memory.peak_mb() >= idle + MEGABYTES
    memory.begin()
    assert memory.peak_mb() < idle + MEGABYTES


def test_what_this_process_holds_for_a_while_counts():
    memory.begin()
    idle = memory.peak_mb()
    held = b"0" * (MEGABYTES << 20)
    del held
    assert memory.peak_mb() >= idle + 0.9 * MEGABYTES
