"""`graftline serve`: the embedded server on a project's versions, with a line to try it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from graftline.serving.base_path import BasePath
from graftline.serving.manifest import Manifest
from model_servers import free_port, linear_model

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose first version adds 1."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "graftline.yaml").write_text("model: {name: lines}\npaths: {serving: serving}\n")
    publish(folder, 1)
    return folder


def publish(folder: Path, number: int) -> None:
    model = linear_model(folder.parent / f"trained-{number}", add=number)
    base_path = BasePath(folder / "serving" / "lines")
    assert base_path.publish(model, Manifest(model="lines", model_id=str(number))) == number


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "graftline.pipeline.cli.main", "serve", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_printed_line_gets_an_answer_and_ctrl_c_ends_the_server(project):
    grpc_port, rest_port = free_port(), free_port()
    server = start(project, "--port", str(grpc_port), "--rest-port", str(rest_port))
    printed = []
    for line in server.stdout:
        printed.append(line)
        if line.startswith("Stop:"):
            break
    try:
        rest = f"http://127.0.0.1:{rest_port}/v1/models/lines"
        assert printed[0] == f"GRPC 127.0.0.1:{grpc_port}\n"
        assert printed[1] == f"REST {rest}\n"
        command = printed[2].removeprefix("Try:").strip()
        assert command.endswith(f"| curl -s -d @- {rest}:predict")
        (project / "IMAGE").write_bytes(b"an image")
        tried = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True)
        assert "is not of expected type: float" in json.loads(tried.stdout)["error"]
    finally:
        server.send_signal(signal.SIGINT)
    _, errors = server.communicate()
    assert server.returncode == 0, errors


def test_flags_of_the_server_follow_two_dashes(project):
    arguments = ("--port", "0", "--rest-port", str(free_port()), "--json")
    server = start(project, *arguments, "--", "--enable_batching")
    document = json.loads(server.stdout.readline())
    assert document["grpc"] == ""
    assert document["rest"].endswith("/v1/models/lines")
    server.send_signal(signal.SIGTERM)
    server.communicate()
    assert server.returncode == 0


def test_what_cannot_be_served_is_said_in_words(project):
    server = start(project, "--port", "0", "--rest-port", "0")
    _, errors = server.communicate()
    assert (server.returncode, "listen nowhere" in errors) == (2, True)
    BasePath(project / "serving" / "lines").root.rename(project / "elsewhere")
    server = start(project)
    _, errors = server.communicate()
    assert (server.returncode, "Nothing is published" in errors) == (2, True)
    assert "Traceback" not in errors
