"""What comes from a network to a gateway: bombs, forged tokens, bodies without end, or half."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import hmac
import json
import re
import resource
import socket
import struct
import subprocess
import sys
import time
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateways import GatewayProcess, gateway, image, image_model
from graftline.serving.gateway.service import MOST_CONNECTIONS
from graftline.serving.server.http_server import raise_file_limit
from model_servers import PATIENCE, ModelServer, serving, until

pytestmark = pytest.mark.end_to_end

LIMIT = 1 << 20
SECRET = "a secret for the tests of thirty-two bytes"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server of the tiny model."""
    folder = tmp_path_factory.mktemp("server")
    image_model(folder / "default" / "1")
    with serving(folder, f"--model_base_path={folder / 'default'}", ports="grpc") as made:
        yield made


@pytest.fixture(scope="module")
def door(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with small limits."""
    folder = tmp_path_factory.mktemp("door")
    settings = {"max_bytes": LIMIT, "read_seconds": 1, "rate_limit": "", "max_in_flight": 8}
    with gateway(folder, folder, server.grpc_port, **settings) as made:
        yield made


@pytest.fixture(autouse=True)
def still_answers(door: GatewayProcess, server: ModelServer) -> Iterator[None]:
    """Whatever was sent: it left nothing behind, and the next one gets an answer."""
    yield
    until(lambda: door.metric("graftline_gateway_in_flight") == 0, "the end of all requests")
    assert door.classify(image()).status == 200
    assert server.process.is_alive()
    assert not [line for line in door.output.splitlines() if "Traceback" in line]


HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\n"


def peak(process: int) -> int:
    """The most memory that a process has had, in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


def peak_from_now_on(process: int) -> int:
    """Forgets the peak so far; returns what is in use."""
    Path(f"/proc/{process}/clear_refs").write_text("5")  # proc_pid_clear_refs(5)
    return peak(process)


def test_every_bad_image_gets_an_answer_and_takes_no_memory(door, server, shared_data):
    folder = shared_data / "bad_images"
    with (folder / "manifest.csv").open() as stream:
        files = [row["file"] for row in csv.DictReader(stream)]
    processes = [door.process.pid, server.process.pid]
    before = [peak_from_now_on(process) for process in processes]
    answers = {file: door.classify((folder / file).read_bytes()).status for file in files}
    assert len(files) == 42
    assert {file for file, status in answers.items() if status >= 500} == set()
    assert {answers[file] for file in files if file.startswith(("bombs/", "not_"))} == {415, 422}
    assert answers["broken/half.jpg"] == 422
    assert answers["odd_valid/hopper.gif"] == 200
    # Not what is left: what was taken at any moment.
    after = [peak(process) for process in processes]
    assert max(late - early for late, early in zip(after, before, strict=True)) < 150e6


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size, grey, with no pixel in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_a_bomb_is_refused_by_its_header(door):
    reply = door.classify(png(30_000, 30_000))
    assert (reply.status, reply.data["reason"]) == (422, "too-many-pixels")
    assert "900,000,000" in reply.data["detail"]


def test_a_body_that_says_it_is_too_long_is_not_waited_for(door):
    answer = door.raw(HEAD + b"Content-Length: 99999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer


def test_a_body_that_turns_out_too_long_is_read_no_further(door):
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    answer = door.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 400)
    assert answer.startswith(b"HTTP/1.1 413 ") or answer == b""


def test_a_body_that_is_a_little_too_long_gets_to_hear_why(door):
    reply = door.classify(b"x" * (LIMIT + 20_000))
    assert (reply.status, reply.data["reason"]) == (413, "body-too-large")
    reply = door.classify(b"x" * (LIMIT + 1))
    assert (reply.status, reply.data["reason"]) == (413, "too-many-bytes")


def test_a_body_that_does_not_come_is_waited_for_only_so_long(door):
    answer = door.raw(HEAD + b"Content-Length: 100\r\n\r\n", b"\xff\xd8\xff")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert door.refusals[-1]["reason"] == "slow-body"


def test_a_body_that_comes_in_drops_is_waited_for_only_so_long(door):
    with socket.create_connection(("127.0.0.1", door.port), timeout=PATIENCE) as client:
        client.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begun < PATIENCE:
                client.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - begun < PATIENCE


def test_a_head_that_does_not_end_is_cut_off(door):
    assert door.raw(b"POST /v1/classify HTTP/1.1\r\nHost") == b""
    assert door.raw(HEAD, *[b"X-Header: " + b"x" * 60_000 + b"\r\n"] * 20) == b""


def test_a_body_that_goes_on_after_the_answer_is_cut_off(door):
    # Neither path takes a body, and this one has no end.
    for head in (b"GET /healthz", b"POST /nowhere"):
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        start = head + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = door.raw(start, *[chunk] * 2000)
        assert answer == b"" or b"connection: close" in answer


def test_half_open_connections_hold_nothing(door):
    address = ("127.0.0.1", door.port)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(address)) for _ in range(200)]
        assert door.classify(image()).status == 200
        for connection in silent:
            connection.settimeout(PATIENCE)
            assert connection.recv(1) == b""


def test_clients_that_go_away_leave_nothing_behind(door):
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", door.port)) as client:
            client.sendall(HEAD + b"Content-Length: 1000\r\n\r\nabc")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: door.metric("graftline_gateway_in_flight") == 0, "the end of all requests")
    assert door.classify(image()).status == 200


def test_more_requests_at_once_than_there_is_room_for_are_refused_at_once(door):
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", door.port)
        for _ in range(8):
            client = stack.enter_context(socket.create_connection(address))
            client.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        until(lambda: door.metric("graftline_gateway_in_flight") == 8, "eight requests")
        reply = door.classify(image())
        assert (reply.status, reply.data["reason"]) == (503, "overload")
        assert reply.headers["Retry-After"] == "1"
        assert door.get("/healthz").status == 200


def test_a_page_of_another_origin_may_not_ask(door):
    origin = {"Origin": "https://elsewhere.example"}
    wish = {**origin, "Access_Control_Request_Method": "POST"}
    preflight = door.ask("OPTIONS", "/v1/classify", **wish)
    assert preflight.status == 405
    for reply in (preflight, door.classify(image(), **origin), door.get("/", **origin)):
        assert not [name for name in reply.headers if name.lower().startswith("access-control")]
        assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET http://elsewhere/config.py HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"POST /v1/classify HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST /v1/classify HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n",
        b"\0" * 1000,
    ],
)
def test_what_is_no_http_is_refused(door, sent):
    status = door.raw(sent, b"\r\n" if sent.endswith(b"!") else b"")[9:12]
    assert status in (b"", b"400", b"404")


def test_what_is_no_http_is_logged_and_counted(door):
    refused = 'graftline_gateway_refusals_total{reason="not-http"}'
    before = door.metric(refused)
    assert door.raw(b"NO HTTP AT ALL\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    until(lambda: door.metric(refused) == before + 1, "the count")
    line = [line for line in door.refusals if line["reason"] == "not-http"][-1]
    assert (line["status"], line["address"]) == (400, "127.0.0.1")


def test_who_comes_while_too_many_connections_are_open_is_turned_away_and_logged(door):
    raise_file_limit()
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * MOST_CONNECTIONS:
        pytest.skip("this system lets a process open too few connections")
    with contextlib.ExitStack() as stack:
        for _ in range(MOST_CONNECTIONS):
            connection = socket.create_connection(("127.0.0.1", door.port), timeout=30)
            stack.enter_context(connection)
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(4096)
        assert door.classify(image()).status == 503
    line = [line for line in door.refusals if line["reason"] == "too-many-connections"][-1]
    assert (line["status"], line["method"], line["path"]) == (503, "POST", "/v1/classify")


def token(head: dict[str, object], secret: bytes | None = SECRET.encode(), **others: object) -> str:
    claims = {"sub": "shop", "aud": "flowers", "exp": time.time() + 600, **others}
    parts = [urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (head, claims)]
    text = b".".join(parts)
    mac = hmac.digest(secret, text, hashlib.sha256) if secret else b""
    return (text + b"." + urlsafe_b64encode(mac).rstrip(b"=")).decode()


def test_only_good_tokens_are_let_in(server, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    jwt = {"secret_file": str(tmp_path / "secret"), "audience": "flowers"}
    with gateway(tmp_path, tmp_path, server.grpc_port, jwt=jwt) as door:

        def status(made: str) -> int:
            return door.classify(image(), Authorization=f"Bearer {made}").status

        hs256 = {"alg": "HS256", "typ": "JWT"}
        assert status(token(hs256)) == 200
        bad = [
            token({"alg": "none"}, None),
            token(hs256, None),
            token(hs256, b"guessed"),
            token(hs256, exp=time.time() - 600),
            token(hs256, aud="other"),
            token({"alg": "RS256"}),
            token({"alg": "HS512"}),
            "x",
            "..",
            "\xff\xfe",
        ]
        assert {status(made) for made in bad} == {401}
        assert door.classify(image()).status == 401
        assert [entry["reason"] for entry in door.refusals].count("expired-token") == 1
        for made in bad[:7]:
            assert made not in door.output


def test_the_page_the_metrics_and_the_probes_need_no_token(server, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    jwt = {"secret_file": str(tmp_path / "secret"), "audience": "flowers"}
    with gateway(tmp_path, tmp_path, server.grpc_port, jwt=jwt) as door:
        for path in ("/", "/metrics", "/healthz", "/readyz", "/openapi.json"):
            assert door.get(path).status == 200


def test_an_address_in_a_header_is_believed_only_of_a_proxy(server, tmp_path):
    for proxies, seen in (([], "127.0.0.1"), (["127.0.0.1"], "192.0.2.7")):
        settings = {"trusted_proxies": proxies}
        with gateway(tmp_path, tmp_path, server.grpc_port, **settings) as door:
            door.classify(b"x", X_Forwarded_For="10.0.0.1, 192.0.2.7")
            assert door.refusals[-1]["address"] == seen


def test_the_documented_interface_withstands_a_fuzzer(door: GatewayProcess, tmp_path: Path):
    pytest.importorskip("schemathesis")
    checks = (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "unsupported_method",
        "missing_required_header",
        "negative_data_rejection",
    )
    answered = 'graftline_gateway_requests_total{code="200",label="latest"}'
    refused = 'graftline_gateway_requests_total{code="400",label="none"}'
    before = door.metric(answered), door.metric(refused)
    address = f"http://127.0.0.1:{door.port}/openapi.json"
    command = [sys.executable, "-m", "schemathesis.cli", "run", address, "--no-color"]
    bounds = [
        "--max-examples=60",
        "--generation-deterministic",
        "--phases=examples,coverage,fuzzing",
    ]
    fuzzed = subprocess.run(
        [*command, *bounds, f"--checks={','.join(checks)}"],
        cwd=tmp_path,
        capture_output=True,
        timeout=600,
        text=True,
        check=False,
    )
    assert fuzzed.returncode == 0, fuzzed.stdout + fuzzed.stderr
    # It got through to the model, and it was refused.
    assert door.metric(answered) > before[0]
    assert door.metric(refused) > before[1]
