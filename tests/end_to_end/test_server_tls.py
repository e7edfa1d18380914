"""TLS and mutual TLS of the gRPC port, with certificates made here."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
import pytest
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from certificates import Authority, ssl_config
from model_servers import ModelServer, linear_model, serving

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("tests")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("models")
    linear_model(base / "1")
    return base


def ask(server: ModelServer, credentials: grpc.ChannelCredentials | None, address: str = "") -> int:
    """How many versions the server has, or an RpcError."""
    # Over a socket, too, the certificate is for an address.
    options = [("grpc.ssl_target_name_override", "127.0.0.1")]
    address = address or f"127.0.0.1:{server.grpc_port}"
    channel = (
        grpc.secure_channel(address, credentials, options)
        if credentials
        else grpc.insecure_channel(address)
    )
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "default"
    with channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        return len(stub.GetModelStatus(request, timeout=20).model_version_status)


def test_with_tls_only_clients_that_trust_the_certificate_are_answered(authority, base, tmp_path):
    flag = ssl_config(tmp_path, *authority.issue("server"))
    with serving(tmp_path, f"--model_base_path={base}", flag) as server:
        assert ask(server, grpc.ssl_channel_credentials(authority.pem)) == 1
        for stranger in (None, grpc.ssl_channel_credentials(Authority("other").pem)):
            with pytest.raises(grpc.RpcError) as error:
                ask(server, stranger)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        # The REST port has none, as the real server's.
        assert server.predict(2) == [3]


def test_with_mutual_tls_only_clients_with_a_certificate_are_answered(authority, base, tmp_path):
    flag = ssl_config(tmp_path, *authority.issue("server"), authority)
    with serving(tmp_path, f"--model_base_path={base}", flag) as server:
        key, certificate = authority.issue("client")
        known = grpc.ssl_channel_credentials(authority.pem, key, certificate)
        assert ask(server, known) == 1
        forged = grpc.ssl_channel_credentials(authority.pem, *Authority("tests").issue("client"))
        for stranger in (grpc.ssl_channel_credentials(authority.pem), forged):
            with pytest.raises(grpc.RpcError) as error:
                ask(server, stranger)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_socket_speaks_tls_as_the_port_does(authority, base, tmp_path):
    flag = ssl_config(tmp_path, *authority.issue("server"), authority)
    socket = tmp_path / "socket"
    flags = (f"--model_base_path={base}", flag, f"--grpc_socket_path={socket}")
    with serving(tmp_path, *flags) as server:
        key, certificate = authority.issue("client")
        known = grpc.ssl_channel_credentials(authority.pem, key, certificate)
        assert ask(server, known, f"unix:{socket}") == 1
        for stranger in (None, grpc.ssl_channel_credentials(authority.pem)):
            with pytest.raises(grpc.RpcError) as error:
                ask(server, stranger, f"unix:{socket}")
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE


def test_old_versions_of_tls_are_refused(authority, base, tmp_path):
    import socket

    flag = ssl_config(tmp_path, *authority.issue("server"))
    with serving(tmp_path, f"--model_base_path={base}", flag) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection(("127.0.0.1", server.grpc_port)) as connection,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(connection)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('server_key: "k" server_cert: "c"', "are no PEM key and its certificate"),
        ("server_keys", "Error parsing text-format tensorflow.serving.SSLConfig"),
        ("OTHERS KEY", "are no PEM key and its certificate"),
        ("NO CA", "client_verify without custom_ca"),
    ],
)
def test_credentials_that_do_not_work_end_the_start(authority, base, tmp_path, text, said):
    key, certificate = authority.issue("server")
    if text == "OTHERS KEY":
        flag = ssl_config(tmp_path, authority.issue("other")[0], certificate)
    elif text == "NO CA":
        flag = ssl_config(tmp_path, key, certificate)
        with (tmp_path / "ssl.config").open("a") as file:
            file.write("\nclient_verify: true")
    else:
        (tmp_path / "ssl.config").write_text(text)
        flag = f"--ssl_config_file={tmp_path / 'ssl.config'}"
    server = ModelServer(tmp_path, f"--model_base_path={base}", flag)
    assert server.exit_code() == 255
    assert said in server.output
    assert "PRIVATE KEY" not in server.output
