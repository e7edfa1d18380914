"""Several workers on this machine: what comes of it, and what happens when one dies or errs."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from commands import PRETRAINED, Command, answer, graftline, there
from graftline.components import progress
from graftline.components.trainer.record import TrainingRecord
from graftline.components.trainer.workers import free_ports, train_as_chief, train_in_workers
from graftline.serving.errors import UserError

pytestmark = pytest.mark.end_to_end

FUNCTIONS = """
import json, os, pathlib, sys, time
from graftline.components.progress import report
from graftline.serving.errors import UserError

def number():
    return json.loads(os.environ["TF_CONFIG"])["task"]["index"]

def work(given):
    report(f"worker {number()} at work")
    gpus = os.environ["CUDA_VISIBLE_DEVICES"]
    pathlib.Path(given["folder"], f"done-{number()}").write_text(gpus)

def err(given):
    if number() == 1:
        raise UserError("the second one errs")
    time.sleep(600)

def die(given):
    if number() == 1:
        print("out of something", flush=True)
        os._exit(7)
    time.sleep(600)

def wait(given):
    pathlib.Path(given["folder"], f"pid-{os.getpid()}").touch()
    time.sleep(600)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that workers can import."""
    (tmp_path / "some_work.py").write_text(FUNCTIONS)
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    return "some_work"


def test_all_work_and_the_first_one_tells_how_far_it_is(functions, tmp_path):
    lines: list[str] = []
    progress.listen(lines.append)
    train_in_workers(f"{functions}:work", {"folder": str(tmp_path)}, 2, gpus=[])
    progress.listen(None)
    assert {path.name for path in tmp_path.glob("done-*")} == {"done-0", "done-1"}
    assert lines == ["worker 0 at work"]


def test_each_gets_as_many_gpus_as_the_others(functions, tmp_path):
    train_in_workers(f"{functions}:work", {"folder": str(tmp_path)}, 2, gpus=["3", "4", "7"])
    assert [(tmp_path / f"done-{n}").read_text() for n in (0, 1)] == ["3", "4"]


def test_more_workers_than_gpus_are_refused():
    with pytest.raises(UserError, match=r"trainer.workers is 2, and there are 1 GPUs"):
        train_in_workers("nothing:at_all", {}, 2, gpus=["3"])


def test_what_a_worker_says_to_the_user_is_said(functions):
    with pytest.raises(UserError, match=r"^the second one errs$"):
        train_in_workers(f"{functions}:err", {}, 2, gpus=[])


def test_a_worker_that_dies_ends_the_training_with_its_last_lines(functions):
    with pytest.raises(RuntimeError, match=r"out of something\nWorker 1 .* ended with exit code 7"):
        train_in_workers(f"{functions}:die", {}, 2, gpus=[])


def test_more_workers_than_processors_are_refused():
    with pytest.raises(UserError, match=r"trainer.workers is 999, and there are \d+ processors"):
        train_in_workers("nothing:at_all", {}, 999, gpus=[])


def record_of(project: Path) -> TrainingRecord:
    [folder] = (project / "tfx" / "Trainer" / "model_run").iterdir()
    return TrainingRecord.read(str(folder))


@pytest.mark.parametrize("trainer", [PRETRAINED])
def test_two_workers_train_one_model_as_well_as_one(project):
    graftline(project, "run", "trainer.workers=2")
    record = record_of(project)
    assert (record.workers, record.replicas) == (2, 2)
    assert record.exported.eval_accuracy == 1.0
    assert graftline(project, "predict", str(next((project / "..").glob("images/*/red/*.png"))))


def test_workers_whose_training_diverges_keep_the_model_of_their_best_epoch(project):
    one, odd = "name: one, epochs: 2, rate: 1e-3", "name: odd, epochs: 2, rate: 1e37"
    phases = f"[{{{one}, fraction: 1.0}}, {{{odd}, fraction: 1.0}}]"
    said = graftline(project, "run", "trainer.workers=2", f"trainer.phases={phases}", expect=2)
    assert "The model of the best epoch before, one" in said
    assert list(project.glob("tfx/last_good/saved_model.pb"))


def two_machines() -> list[dict[str, str]]:
    """The environments of two machines of one cluster, the chief's first."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    tasks = [{"cluster": cluster, "task": {"type": "worker", "index": n}} for n in range(2)]
    return [{"TF_CONFIG": json.dumps(task)} for task in tasks]


def test_a_cluster_of_machines_trains_one_model(project):
    chief, other = two_machines()
    refused = Command(project, "run", environment=other)
    assert refused.wait() == 2
    assert "Run `graftline work` here" in refused.output

    working = Command(project, "work", "--once", environment=other)
    running = Command(project, "run", environment=chief)
    assert running.wait() == 0, running.output
    assert working.wait() == 0, working.output
    assert working.stdout.splitlines() == ["waiting for the chief to train", "training", "trained"]
    record = record_of(project)
    assert (record.workers, record.replicas) == (2, 2)
    assert not list(project.glob("tfx/cluster/*"))


def test_a_chief_says_whom_it_waits_for_and_why_the_worker_of_another_machine_died(project):
    chief, other = two_machines()
    long = ("trainer.phases.all.epochs=5000", "trainer.patience=5000")
    running = Command(project, "run", *long, environment=chief)
    log = project / "runs" / "run-0001" / "run.log"
    while not log.exists() or "waiting for worker 1 of the cluster" not in log.read_text():
        assert running.process.is_alive(), running.output
        time.sleep(0.1)
    working = Command(project, "work", "--once", environment=other)
    while not there(project, "tfx/checkpoints/*/state.npz"):
        assert running.process.is_alive(), running.output
        time.sleep(0.1)
    [worker] = workers_of(working.process.pid)
    os.kill(worker, signal.SIGKILL)

    assert running.wait() == 1
    assert "Worker 1 of the training was killed by signal 9" in running.output
    assert working.wait() == 1
    assert not workers_of(running.process.pid)
    assert not list(project.glob("tfx/cluster/*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_chief_says_that_the_worker_of_another_machine_was_interrupted(
    functions, project, tmp_path, monkeypatch, number
):
    chief, other = two_machines()
    working = Command(
        project, "work", environment={**other, "PYTHONPATH": os.environ["PYTHONPATH"]}
    )
    monkeypatch.setenv("TF_CONFIG", chief["TF_CONFIG"])

    def interrupt() -> None:
        while len(there(tmp_path, "pid-*")) < 2:
            time.sleep(0.1)
        os.kill(working.process.pid, number)

    with ThreadPoolExecutor(1) as meanwhile:
        interrupted = meanwhile.submit(interrupt)
        with pytest.raises(RuntimeError, match=r"Worker 1 .* was interrupted on its machine"):
            train_as_chief(
                f"{functions}:wait", {"folder": str(tmp_path)}, project / "tfx" / "cluster"
            )
        interrupted.result()
    assert working.wait() == 130, working.output
    assert not workers_of(working.process.pid)


def test_where_there_is_no_cluster_there_is_no_part_to_take(project):
    assert "no part to take" in graftline(project, "work", expect=2)


def test_a_run_whose_worker_is_killed_ends_with_the_reason_and_is_resumed(project):
    long = ("trainer.workers=2", "trainer.phases.all.epochs=5000", "trainer.patience=5000")
    running = Command(project, "run", *long)
    while not there(project, "tfx/checkpoints/*/state.npz"):
        assert running.process.is_alive(), running.output
        time.sleep(0.1)
    second = max(workers_of(running.process.pid))
    os.kill(second, signal.SIGKILL)

    assert running.wait() == 1
    assert "Worker 1 of the training was killed by signal 9" in running.output
    assert not workers_of(running.process.pid)
    # Both have trained on whole batches of 16, which are as many fewer steps.
    [span] = answer(project, "drops")
    assert steps_per_epoch(project) == math.ceil(sum(span["counts"]["train"].values()) / (2 * 16))
    resumed = Command(project, "resume")
    log = project / "runs" / "run-0001" / "run.log"
    while "goes on after epoch" not in log.read_text():
        assert resumed.process.is_alive(), resumed.output
        time.sleep(0.1)
    os.kill(resumed.process.pid, signal.SIGKILL)


def steps_per_epoch(project: Path) -> float:
    """How many the optimiser has taken, by what the training has left."""
    [path] = project.glob("tfx/checkpoints/*/state.npz")
    with np.load(path) as stored:
        epochs = json.loads(bytes(stored["told"]))["epochs"]
        return int(stored["optimizer_0"]) / len(epochs)


def workers_of(parent: int) -> list[int]:
    """Process ids of the workers that a process has started, in the order of their start."""
    asked = ["pgrep", "--parent", str(parent), "--full", "trainer.workers"]
    return [int(line) for line in subprocess.run(asked, stdout=subprocess.PIPE).stdout.split()]


def test_when_whoever_started_them_is_killed_the_workers_end_too(functions, tmp_path):
    code = f"""
        from graftline.components.trainer.workers import train_in_workers
        train_in_workers("{functions}:wait", {{"folder": {str(tmp_path)!r}}}, 2, gpus=[])
    """
    starter = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    while len(found := list(tmp_path.glob("pid-*"))) < 2:
        assert starter.poll() is None
        time.sleep(0.1)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    pids = [int(path.name.removeprefix("pid-")) for path in found]
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.1)
