"""What a client should not send: too much, too slowly, half of it, and names that are paths."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from model_servers import ModelServer, linear_model, predict_request, serving, until

pytestmark = pytest.mark.end_to_end

LIMIT = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server with small limits."""
    folder = tmp_path_factory.mktemp("server")
    linear_model(folder / "default" / "1", add=1)
    flags = (
        f"--model_base_path={folder / 'default'}",
        f"--max_request_bytes={LIMIT}",
        "--request_read_timeout_seconds=1",
        "--grpc_channel_arguments=grpc.max_connection_idle_ms=1000",
    )
    with serving(folder, *flags) as made:
        yield made


@pytest.fixture(autouse=True)
def still_serves(server: ModelServer) -> Iterator[None]:
    """Whatever was sent: the next one gets an answer."""
    yield
    assert server.predict(0) == [1]
    assert server.process.is_alive()


def sent(server: ModelServer, *parts: bytes) -> bytes:
    """Sends bytes as they are; returns all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=60) as connection:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while received := connection.recv(65536):
                answer += received
        return answer


HEAD = b"POST /v1/models/default:predict HTTP/1.1\r\nHost: x\r\n"


def test_a_body_that_says_it_is_too_long_is_not_read(server):
    answer = sent(server, HEAD + b"Content-Length: 99999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"error": "Request body is longer than 1048576 bytes"' in answer


def test_a_body_that_turns_out_too_long_is_read_no_further(server):
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    answer = sent(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 64)
    assert answer.startswith(b"HTTP/1.1 413 ") or answer == b""


def test_more_bodies_at_once_than_there_is_room_for_are_refused(server):
    address = ("127.0.0.1", server.rest_port)
    announced = HEAD + b"Content-Length: %d\r\n\r\n" % LIMIT
    with contextlib.ExitStack() as stack:
        answers = []
        for _ in range(9):
            connection = stack.enter_context(socket.create_connection(address, timeout=60))
            connection.sendall(announced)
            answers.append(connection)
        codes = sorted(connection.recv(12)[-3:] for connection in answers)
    # Eight are waited for, in vain; for the ninth there is no room.
    assert codes == [b"408"] * 8 + [b"503"]


def test_a_packed_body_that_grows_without_end_is_refused(server):
    import gzip

    bomb = gzip.compress(b" " * (64 << 20))
    status, body = server.raw("POST", "/v1/models/default:predict", bomb, Content_Encoding="gzip")
    assert (status, b"longer than" in body) == (400, True)


def test_a_body_of_the_longest_length_is_taken(server):
    body = b'{"instances": [2]}'
    body += b" " * (LIMIT - len(body))
    assert server.raw("POST", "/v1/models/default:predict", body)[0] == 200


def test_a_body_that_does_not_come_is_waited_for_only_so_long(server):
    answer = sent(server, HEAD + b"Content-Length: 100\r\n\r\n", b'{"instances"')
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_an_answer_that_is_not_taken_is_not_kept(server):
    # Ten megabytes: more than the system keeps for a connection.
    body = b'{"signature_name": "wide", "instances": [' + b"1," * 2_000 + b"1]}"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.rest_port))
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        port = client.getsockname()[1]
        process = psutil.Process(server.process.pid)

        def connected() -> bool:
            return port in [c.raddr.port for c in process.net_connections("tcp") if c.raddr]

        until(connected, "the connection")
        until(lambda: not connected(), "its end")
    status, _ = server.raw("POST", "/v1/models/default:predict", b'{"instances": [2]}')
    assert status == 200


@pytest.mark.parametrize("begun", [b"", b"POST", HEAD, HEAD + b"X: y"])
def test_a_half_open_connection_is_closed(server, begun):
    assert b"200" not in sent(server, begun)


def test_many_half_open_connections_keep_nobody_from_an_answer_and_end(server):
    begun = [b"", b"POST", HEAD, HEAD + b"Content-Length: 100\r\n\r\n{"]
    with contextlib.ExitStack() as stack:
        connections = []
        for part in begun * 50:
            connection = socket.create_connection(("127.0.0.1", server.rest_port), timeout=60)
            connections.append(stack.enter_context(connection))
            connection.sendall(part)
        assert server.predict(0) == [1]
        for connection in connections:
            answer = b""
            while received := connection.recv(65536):
                answer += received
            assert answer == b"" or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 408 "))


def test_a_head_without_end_is_cut_off(server):
    assert sent(server, HEAD + b"X: ", *[b"y" * 65536] * 32) == b""


@pytest.mark.parametrize(
    "request_line",
    [b"\x00\x01\x02", b"GET", b"GET /v1/models HTTP/9.9", b"NONSENSE / HTTP/1.1", b"\x16\x03\x01"],
)
def test_what_is_no_http_is_refused(server, request_line):
    answer = sent(server, request_line + b"\r\nHost: x\r\n\r\n")
    assert b" 200 " not in answer


@pytest.mark.parametrize(
    "name",
    [
        "..%2F..%2Fetc",
        "%2e%2e",
        "../../etc/passwd",
        "default/../default",
        "default%00",
        "%ff%fe",
        "default/versions/../1",
        "default/versions/-1",
        "default/versions/1e3",
        "a" * 10_000,
    ],
)
def test_a_name_is_a_name_and_never_a_path(server, name):
    for method, path in (
        ("GET", name),
        ("POST", f"{name}:predict"),
        ("POST", f"default/labels/{name}:predict"),
    ):
        status, _ = server.raw(method, f"/v1/models/{path}", b'{"instances": [0]}')
        assert status in (400, 404)


def test_a_page_of_another_origin_may_not_read_answers(server):
    origin = "https://elsewhere.example"
    path = "/v1/models/default:predict"
    asked = [
        server.ask("OPTIONS", path, Origin=origin, Access_Control_Request_Method="POST"),
        server.ask("POST", path, b'{"instances": [0]}', Origin=origin),
        server.ask("GET", "/v1/models/default", Origin=origin),
    ]
    assert [status for status, _, _ in asked] == [200, 200, 200]  # as the real server
    for _, headers, _ in asked:
        assert not [name for name in headers if name.lower().startswith("access-control")]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, 4.1)."""
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", stream) + payload


HEADERS, DATA, SETTINGS = 1, 0, 4
END_OF_HEADERS = 4
RESET = frame(3, 0, 0, b"CODE")[:4]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)
CALL = {
    ":method": "POST",
    ":scheme": "http",
    ":authority": "x",
    ":path": "/tensorflow.serving.PredictionService/Predict",
    "content-type": "application/grpc",
    "te": "trailers",
}


def half_of_a_call(stream: int) -> bytes:
    """A gRPC call that announces a hundred bytes and sends three."""
    head = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in CALL.items()
    )
    message = b"\0" + struct.pack(">I", 100) + b"abc"
    return frame(HEADERS, END_OF_HEADERS, stream, head) + frame(DATA, 0, stream, message)


def test_more_halves_of_grpc_requests_than_threads_keep_nobody_from_an_answer_and_end(server):
    address = ("127.0.0.1", server.grpc_port)
    halves = b"".join(half_of_a_call(stream) for stream in range(1, 200, 2))
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(3):
            connection = stack.enter_context(socket.create_connection(address, timeout=60))
            connection.sendall(PREFACE + halves)
            connections.append(connection)
        stub = prediction_service_pb2_grpc.PredictionServiceStub(
            grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        )
        assert list(stub.Predict(predict_request(0)).outputs["y"].float_val) == [1]
        for connection in connections:
            received = b""
            while received.count(RESET) < 100:
                received += connection.recv(65536)


@pytest.mark.parametrize("begun", [b"", PREFACE[:10], PREFACE], ids=["none", "half", "whole"])
def test_silent_grpc_connections_keep_nobody_from_an_answer_and_end(server, begun):
    address = ("127.0.0.1", server.grpc_port)
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(100):
            connection = stack.enter_context(socket.create_connection(address, timeout=60))
            connection.sendall(begun)
            connections.append(connection)
        stub = prediction_service_pb2_grpc.PredictionServiceStub(
            grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        )
        assert list(stub.Predict(predict_request(0)).outputs["y"].float_val) == [1]
        for connection in connections:
            with contextlib.suppress(ConnectionError):
                while connection.recv(65536):
                    pass


def test_a_grpc_request_that_is_too_long_is_refused(server):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
    )
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "default"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.zeros(LIMIT, np.float32)))
    with pytest.raises(grpc.RpcError) as error:
        stub.Predict(request)
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_few_bytes_do_not_become_gigabytes(server):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
    )
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "default"
    request.inputs["x"].dtype = 1
    request.inputs["x"].float_val.append(0)
    request.inputs["x"].tensor_shape.dim.add(size=1 << 40)
    before = psutil.Process(server.process.pid).memory_info().rss
    with pytest.raises(grpc.RpcError) as error:
        stub.Predict(request)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert psutil.Process(server.process.pid).memory_info().rss < before + (64 << 20)


def test_bytes_that_are_no_message_are_refused(server):
    channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
    for method in ("PredictionService/Predict", "ModelService/GetModelStatus"):
        call = channel.unary_unary(f"/tensorflow.serving.{method}")
        with pytest.raises(grpc.RpcError) as error:
            call(b"\xff\xff\xff\xff no message")
        assert error.value.code() is grpc.StatusCode.INTERNAL
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/tensorflow.serving.SessionService/SessionRun")(b"")
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


@settings(max_examples=150, deadline=None)
@given(body=st.binary(max_size=200), verb=st.sampled_from(["predict", "classify", "regress"]))
def test_any_body_gets_an_answer_that_is_not_the_servers_fault(server: ModelServer, body, verb):
    status, _ = server.raw("POST", f"/v1/models/default:{verb}", body)
    assert status in (200, 400, 404)


@settings(max_examples=150, deadline=None)
@given(path=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40))
def test_any_path_gets_an_answer_that_is_not_the_servers_fault(server: ModelServer, path):
    for method in ("GET", "POST"):
        assert server.raw(method, f"/v1/{path}", b"{}")[0] in (200, 400, 404)


def test_memory_stays_where_it_was(server, tmp_path: Path):
    process = psutil.Process(server.process.pid)
    for _ in range(300):
        server.predict(*range(100))
    before = process.memory_info().rss
    for _ in range(1000):
        server.predict(*range(100))
    assert process.memory_info().rss < before + (16 << 20)
