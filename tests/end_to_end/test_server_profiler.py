"""A profile of the server, captured with what TensorBoard's button calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import pytest
import tensorflow as tf

from graftline.serving.server.text_protos import ProfileRequest
from model_servers import ModelServer, linear_model, serving

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("server")
    linear_model(folder / "default" / "1")
    with serving(folder, f"--model_base_path={folder / 'default'}") as made:
        yield made


def profile(server: ModelServer, **request: object) -> grpc.StatusCode:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary("/tensorflow.ProfilerService/Profile")
        try:
            call(ProfileRequest(**request).SerializeToString())
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_tensorboards_capture_writes_a_profile_of_the_requests(server, tmp_path):
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            server.predict(1)

    client = threading.Thread(target=ask)
    client.start()
    tf.profiler.experimental.client.trace(
        f"grpc://127.0.0.1:{server.grpc_port}", str(tmp_path), duration_ms=500
    )
    stop.set()
    client.join()
    (trace,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    # The model's own op, by its name in the trace.
    assert b"truediv" in trace.read_bytes()


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b"])
def test_a_name_that_is_a_path_is_refused(server, tmp_path, name):
    for fields in ({"session_id": name, "host_name": "h"}, {"session_id": "s", "host_name": name}):
        code = profile(server, duration_ms=1, repository_root=str(tmp_path), **fields)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(tmp_path.iterdir()) == []


def test_the_profiler_can_be_left_out(tmp_path):
    linear_model(tmp_path / "default" / "1")
    flags = (f"--model_base_path={tmp_path / 'default'}", "--enable_profiler=false")
    with serving(tmp_path, *flags, ports="grpc") as server:
        code = profile(server, duration_ms=1, session_id="s", host_name="h")
        assert code is grpc.StatusCode.UNIMPLEMENTED
