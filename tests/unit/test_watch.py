"""`graftline watch`: which drops are taken, in which order, and what becomes of those that fail.

A program stands in for `graftline drop` and `graftline run`, in processes of their own as they are;
tests/end_to_end/test_watch.py has the real ones.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest
from drops import folders, picture

from graftline.components.ingest.completeness import inspect
from graftline.pipeline.cli.main import main
from graftline.pipeline.config import Config
from graftline.pipeline.notify.config import NotifyConfig, WebhookConfig
from graftline.pipeline.project import Project
from graftline.pipeline.run_record import RunRecord
from graftline.pipeline.watch.commands import Commands
from graftline.pipeline.watch.config import WatchConfig
from graftline.pipeline.watch.ledger import Ledger
from graftline.pipeline.watch.watcher import Watcher
from graftline.serving.errors import UserError
from webhooks import webhook

# Answers as the file `answers` says, line by line: the exit code, then JSON. 0 where it is used up.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
arguments = sys.argv[1:]
root = Path(arguments[arguments.index("--project") + 1])
span = arguments[arguments.index("--span") + 1]
with (root / "calls").open("a") as calls:
    calls.write(" ".join(a for a in arguments[:arguments.index("--project")]) + "\\n")
answers = root / "answers"
lines = answers.read_text().splitlines() if answers.exists() else []
code, _, document = (lines[0] if lines else "0 {}").partition(" ")
answers.write_text("\\n".join(lines[1:]))
if code == "hang":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(130))
    (root / "hangs").touch()
    time.sleep(600)
if code == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if arguments[0] == "drop" and code in ("0", "0-then-kill"):
    folder = root / "spans" / f"span-{span}" / "version-1"
    folder.mkdir(parents=True)
    (folder / "drop.json").write_text(json.dumps({"source": arguments[1], "kind": "", "created": "",
        "graftline": "", "images": 1, "bytes": 1, "counts": {}, "quarantined": {}}))
print(document or "{}")
sys.exit(int(code.split("-")[0]))
"""

Say = list[tuple[str, str]]


class Watch:
    """A project that is watched, with the stand-in for its commands."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.root = root
        self.drops = root / "drops"
        self.drops.mkdir()
        notify = settings.pop("notify", NotifyConfig())
        pauses = {"interval_seconds": 0.05, "first_pause_seconds": 0.1, **settings}
        self.project = Project(root, Config(watch=WatchConfig(**pauses), notify=notify))
        (root / "program.py").write_text(PROGRAM)
        self.said: Say = []

    def answers(self, *lines: str) -> None:
        (self.root / "answers").write_text("\n".join(lines))

    @property
    def calls(self) -> list[str]:
        path = self.root / "calls"
        return path.read_text().replace(f"{self.drops}/", "").splitlines() if path.exists() else []

    def commands(self) -> Commands:
        return Commands(self.project, program=(sys.executable, str(self.root / "program.py")))

    def watcher(self, commands: Commands | None = None, *, submit: bool = False) -> Watcher:
        return Watcher(
            self.project,
            commands or self.commands(),
            Ledger(self.project.runs),
            lambda name, what: self.said.append((name, what)),
            submit=submit,
        )

    def states(self) -> dict[str, str]:
        return {entry.name: entry.state for entry in Ledger(self.project.runs).entries()}

    def until(self, condition: Callable[[], bool]) -> None:
        """Watches in the background until something holds."""
        commands = self.commands()
        thread = threading.Thread(target=self.watcher(commands).watch)
        thread.start()
        try:
            for _ in range(600):
                if condition():
                    return
                time.sleep(0.05)
            pytest.fail(f"not within 30 s: {self.said}")
        finally:
            commands.stop()
            thread.join()


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path)


def drop(folder: Path, seed: int = 0) -> Path:
    """A complete drop: two images and their list."""
    for number in range(2):
        picture(folder / f"{number}.png", seed + number)
    return listed(folder, 2)


def listed(folder: Path, count: int) -> Path:
    """Writes a list of so many images."""
    rows = "".join(f"{number}.png,{('daisy', 'rose')[number % 2]}\n" for number in range(count))
    (folder / "manifest.csv").write_text(f"file,label\n{rows}")
    return folder


def sums(folder: Path) -> Path:
    """Writes SHA256SUMS as the command does."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "SHA256SUMS")
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  ./{p.relative_to(folder)}\n" for p in files
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))
    return folder


def test_complete_drops_are_taken_and_trained_on_in_the_order_of_their_numbers(watch):
    for number in (10, 9, 1):
        drop(watch.drops / f"drop-{number}", seed=number * 10)
    assert watch.watcher().once() == 0
    assert watch.calls == [
        "drop drop-1 --span 1",
        "run --span 1",
        "drop drop-9 --span 2",
        "run --span 2",
        "drop drop-10 --span 3",
        "run --span 3",
    ]
    assert set(watch.states().values()) == {"published"}


def test_what_was_taken_is_not_taken_again_by_another_watcher(watch):
    drop(watch.drops / "a")
    assert watch.watcher().once() == 0
    calls = watch.calls
    assert watch.watcher().once() == 0
    assert watch.calls == calls


def test_a_folder_that_gets_another_manifest_is_another_drop(watch):
    drop(watch.drops / "a")
    watch.watcher().once()
    picture(watch.drops / "a" / "2.png", 77)
    listed(watch.drops / "a", 3)
    watch.watcher().once()
    assert watch.calls[2:] == ["drop a --span 2", "run --span 2"]


def test_a_drop_without_a_manifest_waits_until_it_is_there(watch):
    folders(watch.drops / "a", 2)
    drop(watch.drops / "b", seed=50)
    assert watch.watcher().once() == 0
    assert watch.calls == ["drop b --span 1", "run --span 1"]
    assert ("a", "waits: it has no manifest yet") in [(n, w.split(" (")[0]) for n, w in watch.said]
    sums(watch.drops / "a")
    assert watch.watcher().once() == 0
    assert watch.calls[2:] == ["drop a --span 2", "run --span 2"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: (a / "1.png").unlink(), "1.png is in its manifest manifest.csv and not there"),
        (lambda a: picture(a / "x.png", 9), "x.png is there and not in its manifest"),
        (lambda a: (a / "manifest.csv").write_text("file,label\n"), "it has no manifest yet"),
        (lambda a: (a / "manifest.csv").write_text("file,label\n0.png,a\n,b\n"), "line 3"),
        (lambda a: (a / "labels.csv").write_text("file,label\n0.png,a\n"), "several manifests"),
    ],
)
def test_a_manifest_that_does_not_match_its_files_holds_the_drop_back(watch, change, said):
    change(drop(watch.drops / "a"))
    code = watch.watcher().once()
    assert watch.calls == []
    assert said in dict(watch.said)["a"]
    assert code == (0 if "no manifest" in said or "several" in said else 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: (a / "rose" / "0.png").unlink(), "rose/0.png is in its manifest"),
        (lambda a: picture(a / "rose" / "9.png", 9), "rose/9.png is there and not in its"),
        (lambda a: (a / "rose" / "0.png").write_bytes(b"cut"), "rose/0.png is not as SHA256SUMS"),
        (lambda a: (a / "SHA256SUMS").write_text("nonsense\n"), "line 1 of its manifest"),
        (lambda a: (a / "SHA256SUMS").write_text(""), "line 1 of its manifest"),
    ],
)
def test_sums_that_do_not_match_hold_the_drop_back(tmp_path, change, said):
    folder = sums(folders(tmp_path / "a", 2))
    assert not inspect(folder).problem
    change(folder)
    assert said in inspect(folder).problem


def test_sums_of_the_command_are_read_also_for_odd_names(tmp_path):
    folder = folders(tmp_path / "a", 1)
    picture(folder / "rose" / "a\nb \\ c ü.png", 5)
    names = [str(p.relative_to(folder)) for p in folder.rglob("*.png")]
    with (folder / "SHA256SUMS").open("w") as stream:
        subprocess.run(["sha256sum", "--", *names], cwd=folder, stdout=stream, check=True)
    assert not inspect(folder).problem


def test_litter_and_a_readme_beside_a_list_are_no_mismatch(tmp_path):
    folder = drop(tmp_path / "a")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "README.txt").write_text("hello")
    assert not inspect(folder).problem


def test_a_drop_that_is_never_completed_is_told_of_once_and_taken_when_it_is(tmp_path):
    with webhook() as hook:
        notify = NotifyConfig(webhook=WebhookConfig(url=hook.url))
        watch = Watch(tmp_path, patience_seconds=0.2, notify=notify)
        (drop(watch.drops / "a") / "1.png").unlink()
        watch.until(lambda: bool(hook.received))
        watch.until(lambda: True)
        time.sleep(0.5)
        [told] = [request.notice for request in hook.received]
        assert told["event"] == "rejected"
        assert "1.png is in its manifest manifest.csv and not there" in told["text"]
        picture(watch.drops / "a" / "1.png", 1)
        watch.until(lambda: watch.states() == {"a": "published"})


def test_a_drop_that_is_rejected_is_not_tried_again_and_the_next_is_taken(watch):
    drop(watch.drops / "a")
    drop(watch.drops / "b", seed=10)
    watch.answers('2 {"error": "all broken", "rejected": true}')
    assert watch.watcher().once() == 2
    assert watch.states() == {"a": "rejected", "b": "published"}
    assert watch.calls == ["drop a --span 1", "drop b --span 1", "run --span 1"]


def test_what_a_gate_refuses_is_an_outcome_and_is_not_tried_again(watch):
    drop(watch.drops / "a")
    drop(watch.drops / "b", seed=10)
    watch.answers("0 {}", '3 {"refused": "accuracy is too low"}')
    assert watch.watcher().once() == 3
    assert watch.states() == {"a": "refused", "b": "published"}
    assert ("a", "refused: accuracy is too low") in watch.said
    assert watch.watcher().once() == 0


def test_a_failure_is_tried_again_and_what_comes_after_waits(watch):
    drop(watch.drops / "a")
    drop(watch.drops / "b", seed=10)
    watch.answers("0 {}", '1 {"crash": "boom"}', "kill", "0 {}")
    watch.until(lambda: watch.states() == {"a": "published", "b": "published"})
    assert watch.calls == [
        "drop a --span 1",
        *["run --span 1"] * 3,
        "drop b --span 2",
        "run --span 2",
    ]
    assert ("a", "failed (1 of 4 tries), again in 0 s: boom") in watch.said
    assert ("a", "failed (2 of 4 tries), again in 0 s: ended by signal 9") in watch.said


def test_after_so_many_failures_a_drop_is_given_up_and_people_are_told(tmp_path):
    with webhook() as hook:
        notify = NotifyConfig(webhook=WebhookConfig(url=hook.url))
        watch = Watch(tmp_path, tries=2, notify=notify)
        drop(watch.drops / "a")
        drop(watch.drops / "b", seed=10)
        watch.answers('2 {"error": "disk full"}', '2 {"error": "disk full"}')
        watch.until(lambda: watch.states() == {"a": "given up", "b": "published"})
        [told] = [request.notice for request in hook.received]
    assert told["title"] == "model: the drop a is given up"
    assert "disk full" in told["text"]
    assert "graftline watch --again a" in told["text"]


def test_failures_count_across_restarts(watch):
    drop(watch.drops / "a")
    for _ in range(4):
        assert "a" not in watch.states() or watch.states()["a"] == "dropping"
        watch.answers('1 {"crash": "boom"}')
        assert watch.watcher().once() == 1
    assert watch.states() == {"a": "given up"}


def test_a_drop_that_was_taken_in_before_the_watcher_was_killed_is_not_taken_in_again(watch):
    drop(watch.drops / "a")
    # Its child had made the span, and then neither of them could write that down.
    watch.answers("hang")
    commands = watch.commands()
    thread = threading.Thread(target=watch.watcher(commands).once)
    thread.start()
    while not (watch.root / "hangs").exists():
        time.sleep(0.01)
    commands.stop()
    thread.join()
    assert watch.states() == {"a": "dropping"}
    folder = watch.root / "spans" / "span-1" / "version-1"
    folder.mkdir(parents=True)
    summary = {"source": str(watch.drops / "a" / "manifest.csv"), "kind": "", "created": ""}
    counts = {"graftline": "", "images": 1, "bytes": 1, "counts": {}, "quarantined": {}}
    (folder / "drop.json").write_text(json.dumps(summary | counts))

    assert watch.watcher().once() == 0
    assert watch.calls == ["drop a --span 1", "run --span 1"]


@pytest.mark.parametrize(("state", "code"), [("published", 0), ("refused", 3)])
def test_a_span_whose_run_ended_after_the_watcher_was_killed_is_not_trained_on_again(
    watch, state, code
):
    drop(watch.drops / "a")
    watch.answers("0 {}", '1 {"crash": "as good as a kill"}')
    watch.watcher().once()
    (watch.project.runs / "run-0001").mkdir()
    record = RunRecord(run_id="run-0001", span=1, version=1, state=state, refused_by="model")
    record.write(watch.project.runs)
    assert watch.watcher().once() == code
    assert watch.states() == {"a": state}
    assert watch.calls == ["drop a --span 1", "run --span 1"]


def test_a_drop_waits_for_a_run_of_the_project_on_a_cluster(watch):
    drop(watch.drops / "a")
    folder = watch.project.runs / "run-0001"
    folder.mkdir(parents=True)
    record = RunRecord(run_id="run-0001", span=9, version=1, cluster="4f1c", lease_minutes=9)
    record.write(watch.project.runs)
    watch.until(lambda: ("", "waits: another run is under way") in watch.said)
    assert watch.calls == []
    record.state = "published"
    record.write(watch.project.runs)
    watch.until(lambda: watch.states() == {"a": "published"})


def test_a_span_that_someone_else_made_meanwhile_is_left_alone(watch):
    drop(watch.drops / "a")
    watch.answers('2 {"error": "span 1 is there already"}')
    watch.watcher().once()
    folder = watch.root / "spans" / "span-1" / "version-1"
    folder.mkdir(parents=True)
    summary = {"source": "/elsewhere", "kind": "", "created": "", "graftline": "", "images": 1}
    (folder / "drop.json").write_text(
        json.dumps(summary | {"bytes": 1, "counts": {}, "quarantined": {}})
    )
    assert watch.watcher().once() == 0
    assert watch.calls == ["drop a --span 1", "drop a --span 2", "run --span 2"]


@pytest.mark.parametrize("lock", ["runs/.lock", "spans/.graftline/drop.lock"])
def test_a_drop_that_arrives_during_somebodys_run_or_drop_waits_for_its_end(watch, lock):
    drop(watch.drops / "a")
    (watch.root / lock).parent.mkdir(parents=True)
    with filelock.FileLock(watch.root / lock):
        watch.until(lambda: any("is under way" in what for _, what in watch.said))
        assert watch.calls == []
    watch.until(lambda: watch.states() == {"a": "published"})
    assert Ledger(watch.project.runs).entries()[0].failures == 0


def test_clocks_that_jump_decide_nothing(watch, monkeypatch):
    drop(watch.drops / "a")
    for number, file in enumerate(sorted(drop(watch.drops / "b", seed=10).iterdir())):
        os.utime(file, (4e9, 4e9) if number % 2 else (1, 1))
    watch.answers("0 {}", '1 {"crash": "boom"}')
    times = iter([1e9, 4e9] * 10_000)
    monkeypatch.setattr(time, "time", lambda: next(times))
    watch.until(lambda: watch.states() == {"a": "published", "b": "published"})
    assert watch.calls == [
        "drop a --span 1",
        *["run --span 1"] * 2,
        "drop b --span 2",
        "run --span 2",
    ]


def test_on_a_cluster_the_drop_is_submitted_under_a_name_that_is_found_again(watch):
    drop(watch.drops / "a")
    assert watch.watcher(submit=True).once() == 0
    digest = hashlib.sha256((watch.drops / "a" / "manifest.csv").read_bytes()).hexdigest()
    name = f"a-{digest[:8]}-span-1"
    assert watch.calls[1] == f"kubeflow submit --newest --wait --name {name} --span 1"


def test_a_record_that_is_damaged_is_not_written_over(watch):
    watch.project.runs.mkdir()
    (watch.project.runs / "watch.json").write_text("{")
    with pytest.raises(UserError, match=r"watch\.json, cannot be read"):
        watch.watcher()


def test_a_record_that_cannot_be_written_ends_the_watching(tmp_path, disks):
    watch = Watch(tmp_path)
    drop(watch.drops / "a")
    disk = disks.mount("64k")
    watch.project = Project(
        tmp_path, Config(paths=type(watch.project.config.paths)(runs=str(disk / "runs")))
    )
    watch.project.runs.mkdir()
    disks.make_read_only(disk)
    with pytest.raises(UserError, match=r"watch\.json, cannot be written"):
        watch.watcher().once()
    assert watch.calls == []


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path / "p"), "--images", str(folders(tmp_path / "images", 1))])
    yield tmp_path / "p"


def start(project: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "graftline.pipeline.cli.main", "watch", *arguments],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_sigterm_ends_the_watcher_cleanly_and_a_second_one_is_turned_away(project):
    first = start(project)
    assert first.stdout
    assert "watching" in first.stdout.readline()
    second = start(project)
    assert second.wait(60) == 2
    assert second.stdout
    assert "Another `graftline watch`" in second.stdout.read()
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    assert "ended" in first.stdout.read()


def test_what_became_of_every_drop_is_listed_and_one_is_taken_again(project, capsys):
    ledger = Ledger(project / "runs")
    from graftline.pipeline.watch.ledger import Entry

    ledger.put("a 12", Entry(name="a", span=3, failures=4), "given up", "given up: disk full")
    with pytest.raises(SystemExit) as ended:
        main(["watch", "--list", "--project", str(project)])
    assert ended.value.code == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:5] == ["a", "3", "given", "up", "4"]
    with pytest.raises(SystemExit) as ended:
        main(["watch", "--once", "--again", "a", "--project", str(project)])
    assert ended.value.code == 0
    assert Ledger(project / "runs").entries() == []
    with pytest.raises(SystemExit) as ended:
        main(["watch", "--once", "--again", "a", "--project", str(project)])
    assert ended.value.code == 2
    assert "No drop called 'a'" in capsys.readouterr().err
