"""Drops in real processes: hostile files in bounded memory; killed and interrupted midway."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from drops import assert_nothing_left, assert_nothing_or_whole, folders, quarantine_list

from commands import Command, graftline, there

pytestmark = pytest.mark.end_to_end

# The one bound on memory: beyond what the process has after its imports, in MB.
MEMORY = 300

SCRIPT = """
import json, sys
from pathlib import Path
from graftline.components.ingest.config import DropConfig
from graftline.components.ingest.drop import drop
from graftline.pipeline.beam.config import BeamConfig
from graftline.pipeline.beam.options import beam_options

def memory(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) / 1024

idle = memory("VmRSS")
source, project = map(Path, sys.argv[1:])
span = drop(source, project / "spans", project / "quarantine", DropConfig(max_quarantined=1.0),
            ["broken", "odd_valid"], beam_options=beam_options(BeamConfig(), "drop"))
print(json.dumps({"above": memory("VmHWM") - idle, "images": span.summary.images,
                  "ignored": span.summary.ignored}))
"""


def test_hostile_files_are_all_named_in_bounded_memory(shared_data, tmp_path):
    source = shared_data / "bad_images"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(source), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["above"] < MEMORY

    with (source / "manifest.csv").open() as stream:
        files = {row["file"] for row in csv.DictReader(stream)}
    rows = quarantine_list(tmp_path / "quarantine")
    assert all(row["reason"] and row["detail"] for row in rows)
    set_aside = {row["file"] for row in rows}
    assert {name for name in files if name.startswith("bombs/")} <= set_aside < files
    # What is neither is .DS_Store; it is ignored, and so is what lies beside the folders.
    assert told["images"] + len(set_aside) == len(files) - 1
    assert told["ignored"] == 1 + sum(path.is_file() for path in source.iterdir())


BUILDING = "spans/.graftline/building/*"
LISTING = f"{BUILDING}/worksheet.sqlite"
EXAMINING = f"{BUILDING}/outcomes"
PLANNING = f"{BUILDING}/listings/train-*"
WRITING = f"{BUILDING}/span/version/train/*.gz"
FINISHING = f"{BUILDING}/span/version/drop.json"
PUBLISHING = "quarantine/span-1"


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    """A project without a span; beside it images, one of them broken."""
    source = folders(tmp_path / "images", 40)
    (source / "rose" / "broken.png").write_bytes(b"no image")
    graftline(tmp_path, "init", "project", "--images", str(source))
    return tmp_path / "project"


def drop_ended(project: Path, number: int, moment: str) -> int:
    """Drops the images, sends a signal as soon as a file is there; returns the exit code."""
    command = Command(project, "drop", str(project.parent / "images"))
    while command.process.is_alive():
        if there(project, moment):
            os.kill(command.process.pid, number)
            break
    code = command.wait()
    assert "Traceback" not in command.output
    assert number == signal.SIGKILL or "Interrupted" in command.output or code == 0
    return code


def test_killed_at_any_moment_a_drop_leaves_nothing_that_a_later_one_trips_over(blank):
    for moment in (LISTING, EXAMINING, PLANNING, WRITING, FINISHING, PUBLISHING):
        code = drop_ended(blank, signal.SIGKILL, moment)
        if assert_nothing_or_whole(blank):
            assert moment in (FINISHING, PUBLISHING)
            return
        assert code == -signal.SIGKILL, moment

    output = graftline(blank, "drop", str(blank.parent / "images"))

    assert "Span 1 version 1: 80 images taken in" in output
    assert assert_nothing_or_whole(blank)
    rows = quarantine_list(blank / "quarantine" / "span-1" / "version-1")
    assert [row["file"] for row in rows] == ["rose/broken.png"]


def test_interrupted_at_any_moment_a_drop_clears_up_and_says_that_it_was(blank):
    for moment in (LISTING, EXAMINING, WRITING):
        assert drop_ended(blank, signal.SIGINT, moment) == 130, moment
        assert_nothing_left(blank)
