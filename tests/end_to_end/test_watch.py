"""`graftline watch` with the real commands: drops that come, watchers that end, people told."""

import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import FROM_SCRATCH, Command, answer, draw, graftline, last_run, there
from graftline.pipeline import run_record
from webhooks import HANG, webhook

pytestmark = pytest.mark.end_to_end

SECONDS = 300
# Small and quick.
OTHERS = """
image: {size: 32}
drop: {eval_share: 0.15, test_share: 0.25}
model_gate: {min_test_images: 5, resamples: 1000}
probe: {enabled: false}
"""


def until(condition: Callable[[], bool], command: Command) -> None:
    for _ in range(SECONDS * 20):
        if condition():
            return
        assert command.process.is_alive(), command.output
        time.sleep(0.05)
    pytest.fail(f"not within {SECONDS} s: {command.output}")


def make_project(folder: Path, hook: str) -> Path:
    images = draw(folder / "images", 1, seed=9)
    graftline(folder, "init", "project", "--images", str(images), "--name", "blobs")
    notify = f"notify: {{webhook: {{url: '{hook}'}}, deadline_seconds: 2}}\n"
    (folder / "project" / "graftline.yaml").write_text(
        f"model: {{name: blobs}}\ntrainer:{FROM_SCRATCH}{OTHERS}{notify}"
    )
    return folder / "project"


def complete(folder: Path) -> Path:
    """Writes the manifest, last."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder)}" for p in files]
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    return folder


def states(project: Path) -> dict[str, str]:
    return {entry["name"]: entry["state"] for entry in answer(project, "watch", "--list")}


def test_drops_are_trained_on_over_a_kill_and_every_end_is_told(tmp_path):
    # The endpoint hangs at first, which is nothing to the run that it is told of.
    with webhook(HANG) as hook:
        project = make_project(tmp_path, hook.url)
        complete(draw(project / "drops" / "drop-9", 40, seed=1))
        draw(project / "drops" / "drop-12", 5, seed=4)
        watcher = Command(project, "watch")
        until(lambda: run_record.is_locked(project / "runs"), watcher)
        # While the run is under way two more arrive: of a class that nobody knows, and broken.
        complete(draw(project / "drops" / "drop-10", 8, seed=2, purple=(150, 40, 160)))
        for number in range(4):
            broken = project / "drops" / "drop-11" / "red" / f"{number}.png"
            broken.parent.mkdir(parents=True, exist_ok=True)
            broken.write_bytes(b"no image")
        complete(project / "drops" / "drop-11")
        os.kill(watcher.process.pid or 0, signal.SIGKILL)
        watcher.wait()

        again = Command(project, "watch", "--once")
        assert again.wait() == 2, again.output
        told = [request.notice for request in hook.received]

    assert states(project) == {"drop-9": "published", "drop-10": "refused", "drop-11": "rejected"}
    assert [span["span"] for span in answer(project, "drops")] == [1, 2]
    assert [one["version"] for one in answer(project, "versions")["versions"]] == [1]
    assert "waits: another run is under way" in again.output
    assert "drop-12 waits: it has no manifest yet" in again.output
    assert [(notice["event"], notice["run"]) for notice in told] == [
        ("published", "run-0001"),
        ("refused", "run-0002"),
        ("rejected", ""),
    ]
    published, refused, rejected = told
    assert published["version"] == 1
    assert "accuracy" in published["text"]
    assert any(not verdict["passed"] for verdict in refused["verdicts"])
    assert "purple" in refused["text"]
    assert "not-an-image" in rejected["text"]
    run = last_run(project)
    assert run
    assert run.state == run_record.REFUSED


def test_sigterm_while_a_drop_is_taken_in_leaves_nothing_and_counts_as_no_failure(tmp_path):
    with webhook() as hook:
        project = make_project(tmp_path, hook.url)
        complete(draw(project / "drops" / "drop-1", 60, seed=1))
        watcher = Command(project, "watch")
        building = project / "spans" / ".graftline" / "building"
        until(lambda: bool(there(building, "*/worksheet.sqlite")), watcher)
        os.kill(watcher.process.pid or 0, signal.SIGTERM)
        assert watcher.wait() == 0
        assert "Traceback" not in watcher.output
        [entry] = answer(project, "watch", "--list")
        assert (entry["state"], entry["failures"]) == ("dropping", 0)
        assert not hook.received
    # What the drop had begun does not stand in the way of the next one.
    taken = graftline(project, "drop", str(project / "drops" / "drop-1"))
    assert "Span 1 version 1: 180 images taken in" in taken
