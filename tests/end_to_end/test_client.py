"""The client and real servers: over gRPC, REST, TLS and Unix sockets, and what goes wrong there."""

from __future__ import annotations

import contextlib
import http.server
import json
import signal
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from certificates import Authority, ssl_config
from commands import answer, graftline
from graftline.serving.base_path import BasePath
from graftline.serving.client.address import Tls
from graftline.serving.client.client import Client, ServerError
from graftline.serving.manifest import Manifest
from graftline.serving.server.status import Code
from model_servers import (
    ModelServer,
    colour_model,
    coloured_image,
    free_port,
    linear_model,
    serving,
)

pytestmark = pytest.mark.end_to_end

RED, GREEN = coloured_image((255, 0, 0)), coloured_image((0, 255, 0))
CONFIG = """
model_config_list {{
  config {{
    name: "colours" base_path: "{0}/colours" model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
    version_labels {{ key: "stable" value: 1 }}
    version_labels {{ key: "canary" value: 2 }}
  }}
  config {{ name: "lines" base_path: "{0}/lines" model_platform: "tensorflow" }}
}}
"""
PROTOCOLS = ("grpc", "http", "unix")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for version in "12":
        colour_model(folder / "colours" / version)
    linear_model(folder / "lines" / "1")
    (folder / "models.config").write_text(CONFIG.format(folder))
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[ModelServer]:
    flags = ("--allow_version_labels_for_unavailable_models", "--max_request_bytes=200000")
    config = f"--model_config_file={models / 'models.config'}"
    with serving(models, config, f"--grpc_socket_path={models}/socket", *flags) as server:
        yield server


@pytest.fixture(params=PROTOCOLS)
def url(request: pytest.FixtureRequest, server: ModelServer, models: Path) -> str:
    return address(server, request.param, models)


def address(server: ModelServer, protocol: str, models: Path) -> str:
    return {
        "grpc": f"grpc://127.0.0.1:{server.grpc_port}",
        "http": f"http://127.0.0.1:{server.rest_port}",
        "unix": f"unix://{models}/socket",
    }[protocol]


@contextlib.contextmanager
def http_server(
    handle: Callable[[http.server.BaseHTTPRequestHandler], None],
    context: ssl.SSLContext | None = None,
) -> Iterator[int]:
    """An HTTP server in this process, which handles every request in one way; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            handle(self)

        do_POST = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def send(handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def forward(handler: http.server.BaseHTTPRequestHandler, port: int) -> None:
    """Answers as a server behind it does."""
    body = handler.rfile.read(int(handler.headers.get("Content-Length", 0))) or None
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{handler.path}", body) as response:
        send(handler, response.status, response.read())


def failure(client: Client, images: list[bytes] | None = None) -> ServerError:
    with client, pytest.raises(ServerError) as error:
        client.predict(images or [RED])
    return error.value


def test_images_are_classified_and_the_version_that_answered_is_told(url):
    with Client(url, "colours") as client:
        red, green = client.predict([RED, GREEN])
    assert [name for name, _ in green.classes] == ["green", "red", "größtes Blau"]
    assert red.classes[0] == ("red", pytest.approx(0.576, abs=1e-3))
    assert sum(score for _, score in red.classes) == pytest.approx(1)
    assert (red.version, red.error) == (2, "")


def test_an_image_that_cannot_be_decoded_does_not_fail_the_others(url):
    images = [RED if number % 3 else GREEN for number in range(70)]
    images[7], images[40], images[69] = b"no image", b"", RED[:40]
    with Client(url, "colours") as client:
        predictions = client.predict(images)
    failed = {number for number, one in enumerate(predictions) if one.error}
    assert failed == {7, 40, 69}
    assert "cannot be read" not in predictions[7].error
    found = [one.classes[0][0] for one in predictions if not one.error]
    assert found == ["red" if n % 3 else "green" for n in range(70) if n not in failed]


def test_an_image_that_is_too_large_for_the_server_does_not_fail_the_others(url):
    import io

    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    with Client(url, "colours") as client:
        red, large, green = client.predict([RED, stream.getvalue(), GREEN])
    assert (red.classes[0][0], green.classes[0][0]) == ("red", "green")
    assert "is too large for the server" in large.error


@pytest.mark.parametrize(
    ("choice", "version"), [({"version": 1}, 1), ({"label": "stable"}, 1), ({"label": "canary"}, 2)]
)
def test_a_version_is_asked_by_number_or_by_label(url, choice, version):
    with Client(url, "colours", **choice) as client:
        assert client.describe().version == version
        assert client.predict([RED])[0].version == version


@pytest.mark.parametrize(
    ("model", "choice", "said"),
    [
        ("colours", {"label": "gold"}, "serves no version of colours that is labelled gold"),
        ("colours", {"version": 7}, "serves no version 7 of colours"),
        ("flowers", {}, "serves no model flowers"),
        ("lines", {}, "was not trained by Graftline"),
    ],
)
def test_what_the_server_does_not_have_is_said_and_not_tried_again(url, model, choice, said):
    retries: list[str] = []
    client = Client(url, model, on_retry=retries.append, **choice)
    assert said in str(failure(client))
    assert retries == []


def test_a_name_cannot_leave_its_place_in_an_address(server, models):
    client = Client(address(server, "http", models), "lines/../colours")
    assert failure(client).code is Code.NOT_FOUND


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_dies_and_comes_back_is_asked_again(models, tmp_path, protocol):
    base = ("--model_name=colours", f"--model_base_path={models}/colours")
    with serving(tmp_path, *base) as first, ThreadPoolExecutor() as pool:
        gone = threading.Event()
        client = Client(
            address(first, protocol, models),
            "colours",
            seconds=60,
            on_retry=lambda said: gone.set(),
        )
        assert client.predict([RED])[0].classes
        first.signal(signal.SIGKILL)
        first.process.join()
        asked = pool.submit(client.predict, [GREEN])
        assert gone.wait(20)
        with serving(tmp_path, *base, after=first):
            assert asked.result()[0].classes[0][0] == "green"
        client.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_is_not_there_is_tried_for_the_whole_time_or_once(protocol):
    retries: list[str] = []
    url = f"{protocol}://127.0.0.1:{free_port()}"
    error = failure(Client(url, "colours", seconds=1, on_retry=retries.append))
    assert error.code is Code.UNAVAILABLE
    assert "refused" in str(error)
    assert len(retries) > 1
    retries.clear()
    assert failure(Client(url, "colours", retry=False, on_retry=retries.append)).code is error.code
    assert retries == []


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_takes_a_connection_and_says_nothing_is_given_up_in_time(protocol):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{protocol}://127.0.0.1:{silent.getsockname()[1]}"
        error = failure(Client(url, "colours", seconds=0.5))
    assert error.code is Code.DEADLINE_EXCEEDED
    assert "did not answer within 0.5 s" in str(error)


def test_a_server_that_sends_a_byte_now_and_then_is_given_up_in_time():
    ended = threading.Event()

    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while not ended.wait(0.05):
                handler.wfile.write(b" ")

    with http_server(drip) as port:
        error = failure(Client(f"http://127.0.0.1:{port}", "colours", seconds=0.5))
        ended.set()
    assert error.code is Code.DEADLINE_EXCEEDED


def test_busy_answers_are_tried_again_until_one_is_given(server):
    asked: list[str] = []

    def busy(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        if len(asked) % 3:
            send(handler, 503, b"<html>no server</html>")
        else:
            forward(handler, server.rest_port)

    with http_server(busy) as port, Client(f"http://127.0.0.1:{port}", "colours") as client:
        assert client.predict([RED])[0].classes[0][0] == "red"
    assert len(asked) == 6  # three for the version, three for the classes


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (404, b"<html>nothing here</html>", Code.UNIMPLEMENTED),
        (200, b"<html>welcome</html>", Code.UNIMPLEMENTED),
        (200, b'{"metadata": 3}', Code.UNIMPLEMENTED),
        (200, b"[" * 100_000, Code.UNIMPLEMENTED),
        (302, b"", Code.UNIMPLEMENTED),
        (403, b'{"error": "Not for you"}', Code.PERMISSION_DENIED),
        (500, b'{"error": "Out of order"}', Code.INTERNAL),
    ],
)
def test_what_is_no_model_server_or_fails_is_said_after_one_request(status, body, code):
    asked: list[str] = []

    def odd(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        send(handler, status, body)

    with http_server(odd) as port:
        error = failure(Client(f"http://127.0.0.1:{port}", "colours"))
    assert error.code is code
    assert len(asked) == 1


def test_a_grpc_server_of_something_else_is_said():
    with ThreadPoolExecutor() as pool:
        other = grpc.server(pool)
        port = other.add_insecure_port("127.0.0.1:0")
        other.start()
        error = failure(Client(f"grpc://127.0.0.1:{port}", "colours"))
        other.stop(None).wait()
    assert "is no model server" in str(error)


def test_over_rest_the_version_that_took_anothers_place_meanwhile_answers(server):
    """Between the request for the version's number and that for the classes it was unloaded."""
    versions = iter([9, 2])

    def replaced(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith("/versions/9:predict"):
            send(handler, 404, b'{"error": "Servable not found for request: Specific(colours, 9)"}')
        elif handler.path.endswith("/metadata"):
            handler.path = handler.path.replace("colours/", "colours/versions/2/")
            document = metadata(server)
            document["model_spec"]["version"] = str(next(versions))
            send(handler, 200, json.dumps(document).encode())
        else:
            forward(handler, server.rest_port)

    with http_server(replaced) as port, Client(f"http://127.0.0.1:{port}", "colours") as client:
        assert client.predict([RED])[0].version == 2


def metadata(server: ModelServer) -> Any:
    status, document = server.get("colours/metadata")
    assert status == 200
    return document


def test_tls_and_mutual_tls_over_grpc(models, tmp_path):
    authority = Authority("tests")
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    (tmp_path / "other.pem").write_bytes(Authority("other").pem)
    for file, content in zip(("key.pem", "cert.pem"), authority.issue("client"), strict=True):
        (tmp_path / file).write_bytes(content)
    flags = ("--model_name=colours", f"--model_base_path={models}/colours")
    flags += (ssl_config(tmp_path, *authority.issue("server"), authority),)
    with serving(tmp_path, *flags) as server:
        url = f"grpcs://127.0.0.1:{server.grpc_port}"
        own = {"certificate": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
        with Client(url, "colours", tls=Tls(ca=tmp_path / "ca.pem", **own)) as client:
            assert client.predict([RED])[0].classes[0][0] == "red"
        for tls in (Tls(ca=tmp_path / "other.pem", **own), Tls(ca=tmp_path / "ca.pem")):
            error = failure(Client(url, "colours", tls=tls, seconds=1))
            assert error.code is Code.UNAVAILABLE


def test_tls_over_rest_to_a_proxy_in_front(server, tmp_path):
    authority = Authority("tests")
    key, certificate = authority.issue("proxy")
    (tmp_path / "pair.pem").write_bytes(key + certificate)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair.pem")
    with http_server(lambda handler: forward(handler, server.rest_port), context) as port:
        url = f"https://127.0.0.1:{port}"
        with Client(url, "colours", tls=Tls(ca=tmp_path / "ca.pem")) as client:
            assert client.predict([GREEN])[0].classes[0][0] == "green"
        error = failure(Client(url, "colours"))
    assert error.code is Code.UNAUTHENTICATED
    assert "certificate verify failed" in str(error)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "graftline.yaml").write_text("model: {name: colours}\n")
    base_path = BasePath(folder / "serving" / "colours")
    for model_id in "ab":
        base_path.publish(models / "colours" / "1", Manifest(model="colours", model_id=model_id))
    (folder / "red.png").write_bytes(RED)
    (folder / "torn.png").write_bytes(coloured_image((9, 9, 9), size=(50, 50))[:60])
    (folder / "text.png").write_text("no image")
    return folder


def test_the_command_says_the_same_with_and_without_a_server(project, url):
    files = ("red.png", "torn.png", "text.png", "missing.png")
    assert graftline(project, "predict", *files, "--server", url, expect=2) == graftline(
        project, "predict", *files, expect=2
    )
    asked = answer(project, "predict", *files, "--top", "3", "--server", url, expect=2)
    here = answer(project, "predict", *files, "--top", "3", expect=2)
    assert asked["version"] == here["version"] == 2
    for one, other in zip(asked["images"], here["images"], strict=True):
        assert one.keys() == other.keys()
        assert [name for name, _ in one.get("classes", [])] == [
            name for name, _ in other.get("classes", [])
        ]


def test_the_command_asks_for_a_label_and_says_what_is_wrong(project, url):
    said = graftline(project, "predict", "red.png", "--server", url, "--label", "stable")
    assert "classified by version 1." in said
    said = graftline(project, "predict", "red.png", "--server", url, "--label", "x", expect=2)
    assert "labelled x" in said
    assert "Traceback" not in said
    nowhere = f"grpc://127.0.0.1:{free_port()}"
    said = graftline(
        project, "predict", "red.png", "--server", nowhere, "--timeout", "0.3", expect=2
    )
    assert "cannot be reached" in said
