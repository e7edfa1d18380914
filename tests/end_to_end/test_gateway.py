"""The gateway in front of a real server: images in, classes out, and what happens around that."""

from __future__ import annotations

import base64
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateways import GatewayProcess, gateway, image, image_model
from graftline.serving import traffic
from graftline.serving.gateway.api_keys import new_key
from graftline.serving.traffic import Traffic
from model_servers import ModelServer, free_port, publish, serving, until

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a model."""
    folder = tmp_path_factory.mktemp("models")
    image_model(folder / "1")
    publish(folder, folder / "again", 1)
    (folder / "again" / "1").rename(folder / "2")
    return folder


@pytest.fixture(scope="module")
def base(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<base>/<model>` with version 1."""
    folder = tmp_path_factory.mktemp("base") / "default"
    publish(models, folder, 1)
    return folder


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server on the base path."""
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, f"--model_base_path={base}", ports="grpc") as made:
        yield made


@pytest.fixture(scope="module")
def door(
    base: Path, server: ModelServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway that lets in anyone, without a rate."""
    folder = tmp_path_factory.mktemp("door")
    with gateway(folder, base, server.grpc_port, rate_limit="") as made:
        yield made


def form(content: bytes, name: str = "image", file: str = "a.png") -> tuple[bytes, str]:
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'
    return head.encode() + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"


def test_an_image_is_classified_however_it_is_sent(door):
    red = image((200, 20, 20))
    body, content_type = form(red)
    encoded = json.dumps({"image": base64.b64encode(red).decode()}).encode()
    answers = [
        door.classify(red, Content_Type="image/png"),
        door.ask("POST", "/v1/classify", red),
        door.classify(body, Content_Type=content_type),
        door.classify(encoded, Content_Type="application/json"),
        door.ask("POST", "/v1/classify", iter([red[:50], red[50:]])),  # chunked
    ]
    assert [answer.status for answer in answers] == [200] * 5
    assert len({json.dumps(answer.data["predictions"]) for answer in answers}) == 1
    answer = answers[0].data
    assert [one["class"] for one in answer["predictions"]] == ["red", "blue", "green"]
    assert sum(one["score"] for one in answer["predictions"]) == pytest.approx(1)
    assert (answer["model"], answer["version"], answer["label"]) == ("default", 1, None)
    assert answers[0].headers["X-Request-ID"] == answer["request_id"]


def test_as_many_classes_as_are_asked_for(door):
    assert len(door.classify(image(), "?top=2").data["predictions"]) == 2
    for wrong in ("0", "-1", "1001", "many", "1e9", "9" * 5000, "%00"):
        assert door.classify(image(), f"?top={wrong}").status == 400


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_the_content_tells_the_format_and_not_the_name(door, kind):
    body, content_type = form(image(kind=kind), file="notes.txt")
    assert door.classify(body, Content_Type=content_type).status == 200
    assert door.classify(image(kind=kind), Content_Type="image/webp").status == 200
    refusal = door.classify(b"just text", Content_Type="image/jpeg")
    assert (refusal.status, refusal.data["reason"]) == (415, "not-an-image")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/dev/null", "a%00.png", "C:\\\\a", "x" * 999]
)
def test_names_that_are_paths_mean_nothing(door, name):
    body, content_type = form(image(), file=name)
    assert door.classify(body, Content_Type=content_type).status == 200
    body, content_type = form(image(), name=name)
    assert door.classify(body, Content_Type=content_type).status == 400


@pytest.mark.parametrize(
    "path",
    ["/../page.html", "/page.css/../../config.py", "/..%2fconfig.py", "/%2e%2e/", "//v1/classify",
     "/v1/classify/", "/config.py", "/v1/classify%00", "/V1/CLASSIFY"],
)  # fmt: skip
def test_paths_that_are_tricks_lead_nowhere(door, path):
    assert door.get(path).status == 404


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{"),
        ("application/json", b"[" * 100_000),
        ("application/json", b'{"image": "not base64!"}'),
        ("application/json", b'{"image": 7}'),
        ("application/json", b'{"image": "", "model": "other"}'),
        ("application/json", b"\xff"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"no form"),
        ("multipart/form-data; boundary=" + "x" * 1000, b""),
        ("multipart/mixed; boundary=x", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", form(b"a")[0][:-6]),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"a: b\r\n" * 10_000),
        ("multipart/form-data; boundary=x", form(b"a")[0][:-4] + b"\r\n" + form(b"b")[0]),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nno file\r\n--x--\r\n',
        ),
    ],
)
def test_a_body_that_is_malformed_is_refused(door, content_type, body):
    refusal = door.classify(body, Content_Type=content_type)
    assert (refusal.status, refusal.data["reason"]) == (400, "bad-request")
    assert refusal.headers["Content-Type"] == "application/problem+json"


def test_a_type_that_is_no_image_is_refused(door):
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert door.classify(image(), Content_Type=kind).status == 415


def test_the_model_is_asked_only_for_what_it_may_decode(door):
    refusals = [
        door.classify(b""),
        door.classify(image(size=(4, 4))),
        door.classify(image(size=(4000, 10))),
        door.classify(image(kind="JPEG")[:200]),
        door.classify(image(kind="JPEG", size=(300, 300))[:-40]),
    ]
    assert [refusal.data["reason"] for refusal in refusals[:3]] == [
        "empty-file",
        "too-small",
        "too-elongated",
    ]
    assert [refusal.status for refusal in refusals] == [422] * 5


def test_refusals_are_logged_without_what_was_sent(base, server, tmp_path):
    log = tmp_path / "logs" / "audit.jsonl"
    key, line = new_key("shop")
    (tmp_path / "keys").write_text(line)
    settings = {"api_keys": str(tmp_path / "keys"), "audit_log": str(log)}
    with gateway(tmp_path, base, server.grpc_port, **settings) as door:
        assert door.classify(image(), X_API_Key=key).status == 200
        assert door.classify(b"my secret text", X_API_Key=key).status == 415
        refused = door.classify(image(), "?key=hidden", X_API_Key="gk_wrong-key")
        assert (refused.status, refused.headers["WWW-Authenticate"]) == (
            401,
            'ApiKey realm="graftline"',
        )
        assert door.get("/nowhere").status == 404
        text = log.read_text()
        entries = [json.loads(entry) for entry in text.splitlines()]
        assert [(e["status"], e["reason"], e["caller"]) for e in entries] == [
            (415, "not-an-image", "key:shop"),
            (401, "bad-key", None),
            (404, "not-found", None),
        ]
        assert entries[1]["request_id"] == refused.data["request_id"]
        assert entries[0]["address"] == "127.0.0.1"
        for hidden in (key, "wrong-key", "hidden", "secret"):
            assert hidden not in text
            assert hidden not in door.output
        assert door.metric('graftline_gateway_refusals_total{reason="bad-key"}') == 1
        assert door.metric('graftline_gateway_requests_total{code="401",label="none"}') == 1
        assert door.metric('graftline_gateway_requests_total{code="200",label="latest"}') == 1
        assert door.metric('graftline_gateway_request_seconds_count{label="latest"}') == 1
        assert door.metric("graftline_gateway_in_flight") == 0


def test_a_rate_is_held(base, server, tmp_path):
    with gateway(tmp_path, base, server.grpc_port, rate_limit="3/hour") as door:
        replies = [door.classify(image()) for _ in range(5)]
    assert [reply.status for reply in replies] == [200] * 3 + [429] * 2
    assert int(replies[-1].headers["Retry-After"]) > 0


CONFIG = """
model_config_list {{ config {{
  name: "default" base_path: "{base}" model_platform: "tensorflow"
  model_version_policy {{ all {{}} }}
  {labels}
}} }}
"""


def test_callers_are_split_between_stable_and_canary(models, tmp_path):
    base = tmp_path / "default"
    publish(models, base, 1, 2)
    config = tmp_path / "models.config"
    labels = ("stable", 1), ("canary", 2)
    text = " ".join(f'version_labels {{ key: "{name}" value: {v} }}' for name, v in labels)
    config.write_text(CONFIG.format(base=base, labels=text))
    traffic.replace(base, Traffic(stable=1, canary=2, canary_percent=50))
    keys = dict(new_key(f"caller-{number}") for number in range(30))
    (tmp_path / "keys").write_text("\n".join(keys.values()))
    flags = (
        f"--model_config_file={config}",
        "--model_config_file_poll_wait_seconds=1",
        "--allow_version_labels_for_unavailable_models=true",
    )
    with (
        serving(tmp_path, *flags) as server,
        gateway(tmp_path, base, server.grpc_port, api_keys=str(tmp_path / "keys")) as door,
    ):
        server.until_states({1: "AVAILABLE", 2: "AVAILABLE"})

        def answers() -> list[tuple[str, int]]:
            replies = [door.classify(image(), X_API_Key=key).data for key in keys]
            return [(reply["label"], reply["version"]) for reply in replies]

        first = answers()
        assert set(first) == {("stable", 1), ("canary", 2)}
        assert answers() == first
        # No more canary, then no labels at all: first here, then on the server.
        traffic.replace(base, Traffic(stable=1))
        until(lambda: set(answers()) == {("stable", 1)}, "only stable")
        traffic.replace(base, Traffic())
        config.write_text(CONFIG.format(base=base, labels=""))
        until(lambda: set(answers()) == {(None, 2)}, "no label")
        assert door.metric('graftline_gateway_requests_total{code="503",label="stable"}') == 0


def test_a_label_that_has_just_been_taken_away_costs_no_answer(base, server, tmp_path):
    # The server knows no label: as long as the file names one, there is no answer.
    root = tmp_path / "default"
    root.mkdir()
    with gateway(tmp_path, root, server.grpc_port) as door:
        traffic.replace(root, Traffic(stable=1))
        until(lambda: door.classify(image()).status == 503, "the label")
        assert door.refusals[-1]["reason"] == "no-model"
        traffic.replace(root, Traffic())
        assert door.classify(image()).status == 200


def test_a_server_that_is_gone_is_said_at_once_and_found_again(base, tmp_path):
    with serving(tmp_path, f"--model_base_path={base}", ports="grpc") as server:
        door = GatewayProcess(tmp_path, base, server.grpc_port).wait_ready()
        try:
            assert door.classify(image()).status == 200
            with ThreadPoolExecutor() as callers:
                server.signal(signal.SIGSTOP)  # so that the kill meets a request
                under_way = callers.submit(door.classify, image())
                until(lambda: door.metric("graftline_gateway_in_flight") == 1, "the request")
                server.signal(signal.SIGKILL)
                server.process.join()
                refusals = [under_way.result(), door.classify(image())]
            for refusal in refusals:
                assert (refusal.status, refusal.data["reason"]) == (503, "no-server")
                assert refusal.headers["Retry-After"] == "1"
            until(lambda: door.get("/readyz").status == 503, "unreadiness")
            assert door.get("/healthz").status == 200
            flags = (f"--port={server.grpc_port}", f"--model_base_path={base}")
            with serving(tmp_path, *flags, ports="rest"):
                door.wait_ready()
                assert door.classify(image()).status == 200
        finally:
            door.process.kill()
            door.process.wait()


def test_a_server_that_does_not_answer_is_not_waited_for(base, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        door = GatewayProcess(tmp_path, base, port, model_seconds=0.5).wait_listening()
        try:
            refusal = door.classify(image())
            assert (refusal.status, refusal.data["reason"]) == (504, "timeout")
            assert door.get("/readyz").status == 503
        finally:
            door.process.kill()
            door.process.wait()


def test_begun_requests_are_finished_at_the_end(base, server, tmp_path):
    with gateway(tmp_path, base, server.grpc_port) as door:
        content = image()
        head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content)
        with socket.create_connection(("127.0.0.1", door.port)) as client:
            client.sendall(head + content[:50])
            until(lambda: door.metric("graftline_gateway_in_flight") == 1, "the request")
            stopped = threading.Thread(target=door.stop)
            stopped.start()
            until(lambda: not door.listens(), "its end")
            client.sendall(content[50:])
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        stopped.join()
        assert door.process.returncode == 0


def test_requests_are_kept_as_tfrecords_and_old_files_go(base, server, tmp_path):
    import tensorflow as tf

    sample = {"percent": 100, "folder": str(tmp_path / "kept"), "file_bytes": 1000, "files": 2}
    red = image((200, 20, 20), size=(64, 64), kind="BMP")
    with gateway(tmp_path, base, server.grpc_port, sample=sample) as door:
        for _ in range(3):
            assert door.classify(red).status == 200
        assert door.classify(b"no image").status == 415
        assert door.stop() == 0
    files = sorted(map(str, (tmp_path / "kept").iterdir()))
    assert len(files) == 2
    records = [record.numpy() for record in tf.data.TFRecordDataset(files)]
    assert len(records) == 2
    features = tf.train.Example.FromString(records[0]).features.feature
    assert features["image"].bytes_list.value[:] == [red]
    scores = dict(
        zip(features["classes"].bytes_list.value, features["scores"].float_list.value, strict=True)
    )
    assert max(scores, key=scores.get) == b"red"
    assert features["version"].int64_list.value[:] == [1]
    assert not {"caller", "address"} & set(features)


def test_a_full_disk_of_samples_fails_no_request(base, server, tmp_path, disks):
    sample = {"percent": 100, "folder": str(disks.mount("16k"))}
    with gateway(tmp_path, base, server.grpc_port, sample=sample) as door:
        large = image(kind="BMP", size=(64, 64))
        assert [door.classify(large).status for _ in range(4)] == [200] * 4
        failed = 'graftline_gateway_samples_total{outcome="failed"}'
        until(lambda: door.metric(failed) >= 1, "the failure")
        assert door.metric('graftline_gateway_samples_total{outcome="written"}') >= 1
        assert door.stop() == 0
    assert sample["folder"] in door.output


def test_the_page_loads_nothing_from_elsewhere(door):
    page = door.get("/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for path in ("/", "/page.css", "/page.js"):
        reply = door.get(path)
        assert reply.status == 200
        assert not re.search(rb"https?:|//[a-z]|@import|url\(", reply.body)
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
    used = re.findall(r'(?:href|src)="([^"]+)"', page.body.decode())
    assert sorted(used) == ["data:,", "page.css", "page.js"]
    assert not re.search(rb"<style|<script>| style=| on[a-z]+=", page.body)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "graftline.pipeline.cli.main", "gateway", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="the printed line calls curl")
def test_the_command_prints_a_line_that_gets_an_answer(base, server, tmp_path):
    (tmp_path / "graftline.yaml").write_text("model: {name: default}\n")
    made = start(tmp_path, "--new-key", "shop", "--json")
    printed = json.loads(made.communicate()[0])
    (tmp_path / "keys").write_text(printed["line"])
    port = free_port()
    command = start(
        tmp_path,
        f"gateway.port={port}",
        f"gateway.server=127.0.0.1:{server.grpc_port}",
        "gateway.api_keys=keys",
    )
    lines = []
    for line in command.stdout:
        lines.append(line)
        if line.startswith("Stop:"):
            break
    try:
        assert lines[0] == f"Page  http://127.0.0.1:{port}/\n"
        tried = next(line for line in lines if line.startswith("Try:")).removeprefix("Try:")
        (tmp_path / "IMAGE").write_bytes(image())
        line = tried.replace("KEY", printed["key"])
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True)
        assert json.loads(done.stdout)["predictions"][0]["class"] == "red"
    finally:
        command.send_signal(signal.SIGINT)
    _, errors = command.communicate()
    assert command.returncode == 0, errors


def test_a_gateway_that_lets_nobody_in_or_cannot_listen_says_so(tmp_path):
    (tmp_path / "graftline.yaml").write_text("model: {name: default}\n")
    command = start(tmp_path, "gateway.host=0.0.0.0")
    _, errors = command.communicate()
    assert (command.returncode, "let nobody in" in errors) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = start(tmp_path, f"gateway.port={taken.getsockname()[1]}")
        _, errors = command.communicate()
    assert (command.returncode, "cannot listen" in errors) == (2, True)
    assert "Traceback" not in errors
