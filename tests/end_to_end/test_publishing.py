"""Publishing from real processes: at once, killed in the middle, and watched meanwhile."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graftline.serving.base_path import BasePath
from graftline.serving.manifest import Manifest

pytestmark = pytest.mark.end_to_end

PUBLISH = """
import sys
from pathlib import Path
from graftline.serving.base_path import BasePath
from graftline.serving.manifest import Manifest

root, model, *model_ids = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for model_id in model_ids:
    print(BasePath(Path(root)).publish(Path(model), Manifest(model="m", model_id=model_id)))
"""

CHANGE = """
import sys
from pathlib import Path
from graftline.serving.base_path import BasePath

base_path = BasePath(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    base_path.rollback(1)
    base_path.rollback(3)
"""


def start(code: str, *arguments: object) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def finish(process: subprocess.Popen) -> str:
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


def go(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def saved_model(folder: Path, files: int = 3) -> Path:
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "variables.index").write_bytes(b"index")
    for shard in range(files):
        name = f"variables.data-{shard:05}-of-{files:05}"
        (folder / "variables" / name).write_bytes(random.randbytes(50_000))
    return folder


def test_publishers_at_once_get_consecutive_numbers(tmp_path):
    base_path = BasePath(tmp_path / "base" / "m")
    model = saved_model(tmp_path / "trained")
    publishers = [
        start(PUBLISH, base_path.root, model, *(f"{name}{i}" for i in range(30))) for name in "abc"
    ]
    for publisher in publishers:
        go(publisher)
    numbers = [[int(line) for line in finish(publisher).split()] for publisher in publishers]
    assert sorted(number for own in numbers for number in own) == list(range(1, 91))
    assert all(own == sorted(own) for own in numbers)
    assert [event.version for event in base_path.history()] == list(range(1, 91))
    assert not any(base_path.verify().values())


def test_publishers_of_one_model_at_once_publish_it_once(tmp_path):
    base_path = BasePath(tmp_path / "base" / "m")
    model = saved_model(tmp_path / "trained")
    publishers = [start(PUBLISH, base_path.root, model, "the same") for _ in range(3)]
    for publisher in publishers:
        go(publisher)
    assert [finish(publisher) for publisher in publishers] == ["1\n"] * 3
    assert [version.number for version in base_path.versions()] == [1]


def test_a_publisher_killed_at_any_moment_leaves_whole_versions_only(tmp_path):
    base_path = BasePath(tmp_path / "base" / "m")
    model = saved_model(tmp_path / "trained", files=100)
    killed = 0
    for attempt in range(12):
        publisher = start(PUBLISH, base_path.root, model, *(f"{attempt}.{i}" for i in range(50)))
        go(publisher)
        time.sleep(random.uniform(0.1, 0.6))
        publisher.send_signal(signal.SIGKILL)
        killed += publisher.wait() == -signal.SIGKILL
        publisher.stdout.close(), publisher.stdin.close(), publisher.stderr.close()
        assert all(v.state in ("present", "in service") for v in base_path.versions())
        assert not any(base_path.verify().values())
    assert killed > 0
    before = [version.number for version in base_path.versions()]
    assert before == list(range(1, len(before) + 1))
    number = base_path.publish(model, Manifest(model="m", model_id="after the kills"))
    assert number == len(before) + 1
    assert not list(base_path.root.glob(".graftline/version-*"))


def test_publishing_again_after_a_kill_publishes_nothing_twice(tmp_path):
    base_path = BasePath(tmp_path / "base" / "m")
    model = saved_model(tmp_path / "trained", files=30)
    for _ in range(8):
        publisher = start(PUBLISH, base_path.root, model, "one")
        go(publisher)
        time.sleep(random.uniform(0.05, 0.5))
        publisher.kill()
        publisher.communicate()
    assert base_path.publish(model, Manifest(model="m", model_id="one")) == 1
    assert [version.number for version in base_path.versions()] == [1]
    assert [event.version for event in base_path.history()] == [1]


def test_whoever_looks_during_rollbacks_finds_the_one_version_or_the_other(tmp_path):
    base_path = BasePath(tmp_path / "base" / "m")
    model = saved_model(tmp_path / "trained")
    for model_id in "abc":
        base_path.publish(model, Manifest(model="m", model_id=model_id))
    changing = start(CHANGE, base_path.root, 100)
    go(changing)
    seen = []
    while changing.poll() is None:
        seen.append(max(int(p.name) for p in base_path.root.iterdir() if p.name.isdigit()))
    finish(changing)
    assert set(seen) == {1, 3}
    assert [event.in_service for event in base_path.history()[3:]] == [1, 3] * 100


def test_publishing_and_going_back_at_once_leave_a_base_path_in_order(tmp_path):
    base_path = BasePath(tmp_path / "base" / "m")
    model = saved_model(tmp_path / "trained")
    for model_id in "abc":
        base_path.publish(model, Manifest(model="m", model_id=model_id))
    changing = start(CHANGE, base_path.root, 30)
    publisher = start(PUBLISH, base_path.root, model, *map(str, range(30)))
    go(changing)
    go(publisher)
    assert [int(line) for line in finish(publisher).split()] == list(range(4, 34))
    finish(changing)
    assert [version.number for version in base_path.versions()] == list(range(1, 34))
    assert base_path.in_service() is not None
    assert not any(base_path.verify().values())
