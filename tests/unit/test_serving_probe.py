"""The serving probe on servers that are sound or odd: processes that must be gone afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import odd_model_server
from graftline.components.serving_probe import checks, guard, server_process
from graftline.components.serving_probe.config import ProbeConfig
from graftline.components.verdict import Check, Verdict

IMAGES = [b"one", b"two", b"three"]


def reference(requests):
    return [[{"a": 0.25, "b": 0.75} for _ in images] for images in requests]


class Probe:
    """The probe of a candidate that is never looked at: the odd server answers for it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / "runs" / "serving_probe.log"
        (folder / "model").mkdir()

    def __call__(self, *command: str, **config: float) -> list[Check]:
        settings = ProbeConfig(command=command, **config)
        model, scratch = self.folder / "model", self.folder / "scratch"
        found = checks.probe(model, IMAGES, reference, settings, scratch, self.log)
        assert not self.running
        return found

    def odd(self, how: str, **config: float) -> list[Check]:
        program = str(Path(odd_model_server.__file__))
        return self(sys.executable, program, how, str(self.folder), **config)

    @property
    def running(self) -> list[int]:
        """Process ids of servers that it has started and that are there still."""
        pids = [int(file.stem) for file in self.folder.glob("*.pid")]
        return [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    return Probe(tmp_path)


def failed(found: list[Check]) -> str:
    """What the only check that failed says."""
    [check] = [check for check in found if not check.passed]
    return check.note


def test_a_server_that_answers_as_it_should_passes_over_both_protocols(probe):
    found = probe.odd("sound")
    assert [(check.metric, check.slice) for check in found] == [
        ("start (s)", "overall"),
        ("difference", "gRPC"),
        ("latency (ms)", "gRPC"),
        ("difference", "REST"),
        ("latency (ms)", "REST"),
    ]
    assert all(check.passed for check in found)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("wrong-grpc", "6 of 6 answers over gRPC are not those of the same model"),
        ("wrong-rest", "differs by up to 0.0001 (at most 1e-05 allowed"),
        ("dies", "over gRPC: the server ended with code 7: out of luck"),
    ],
)
def test_wrong_answers_and_a_death_are_said(probe, how, said):
    assert said in failed(probe.odd(how))


def test_a_difference_within_the_bound_passes(probe):
    assert all(check.passed for check in probe.odd("wrong-rest", max_difference=1e-3))


@pytest.mark.parametrize("how", ["renamed", "nan"])
def test_other_classes_and_what_is_no_number_differ_whatever_the_bound(probe, how):
    grpc_answers, rest_answers = (c for c in probe.odd(how, max_difference=0.9) if not c.passed)
    assert "6 of 6 answers over gRPC" in grpc_answers.note
    assert "6 of 6 answers over REST" in rest_answers.note


def test_an_image_that_only_the_server_cannot_decode_is_said(probe):
    assert "an image is no image that the model can decode" in failed(probe.odd("choosy"))


def test_slow_answers_are_refused_with_time_and_bound(probe):
    bound = odd_model_server.SLOW * 1e3 / 2
    late = [check for check in probe.odd("slow", max_latency_ms=bound) if not check.passed]
    assert [check.slice for check in late] == ["gRPC", "REST"]
    assert all(check.candidate > check.threshold == bound for check in late)
    assert f"at most {bound:g} allowed: probe.max_latency_ms" in late[0].note


def test_a_server_that_never_serves_is_given_up(probe):
    said = failed(probe.odd("silent", timeout_seconds=2))
    assert "the candidate is not served within 2 s (probe.timeout_seconds)" in said
    assert "refused" in said


def test_a_server_that_hangs_with_a_request_is_given_up(probe):
    assert "did not answer within" in failed(probe.odd("hangs", timeout_seconds=4))


def test_a_program_that_is_not_there_or_fails_is_said_with_its_last_line(probe):
    assert "/no/server cannot be started: No such file" in failed(probe("/no/server"))
    assert "ended with code 3: no licence" in failed(probe("sh", "-c", "echo no licence; exit 3"))
    assert "was killed by signal 9" in failed(probe("sh", "-c", "kill -9 $$"))


def test_a_port_that_is_taken_is_said(probe, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("", 0)) as other:
        ports = [taken.getsockname()[1], other.getsockname()[1]]
        monkeypatch.setattr(server_process, "free_ports", lambda count: ports)
        assert "ended with code 1" in failed(probe.odd("sound", timeout_seconds=20))
    assert "Address already in use" in probe.log.read_text()


def test_without_images_nothing_is_blessed(tmp_path):
    [check] = checks.probe(tmp_path, [], reference, ProbeConfig(), tmp_path, tmp_path / "log")
    assert (check.passed, "holds no image" in check.note) == (False, True)


def test_the_verdict_goes_by_its_own_name(probe):
    found = tuple(probe("sh", "-c", "exit 3"))
    verdict = Verdict(gate="probe", passed=False, checks=found)
    assert verdict.in_words().startswith("The serving probe: refused, 1 of 1 checks failed.")


def start_guard(*command: str) -> subprocess.Popen[bytes]:
    impatient = f"import sys, {guard.__name__} as g; g.GRACE = 0.2; sys.exit(g.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", impatient, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_the_guard_ends_what_it_runs_and_its_children_when_its_parent_is_killed():
    # The parent of the guard is a process of its own here, and is killed.
    family = f"""
import subprocess, sys, time
guard = [sys.executable, "-m", "{guard.__name__}"]
subprocess.Popen([*guard, "sh", "-c", "sleep 600 & echo $$ $!; wait"], stdin=subprocess.PIPE)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", family], stdout=subprocess.PIPE) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert all(psutil.pid_exists(pid) for pid in pids)
        os.kill(parent.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(
            [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20
        )
    assert alive == []


def test_the_guard_does_not_wait_for_a_command_that_takes_no_hint():
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    process = start_guard("sh", "-c", stubborn)
    process.stdout.readline()
    process.stdin.close()
    assert process.wait(60) == 128 + signal.SIGKILL
    process.stdout.close()


def test_the_guard_passes_the_exit_code_on():
    with start_guard("sh", "-c", "exit 42") as process:
        assert process.wait(60) == 42
