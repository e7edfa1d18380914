"""A gateway that speaks TLS, and asks its model server with mutual TLS."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path

import pytest

from certificates import Authority, ssl_config
from gateways import GatewayProcess, image, image_model
from model_servers import serving, until

pytestmark = pytest.mark.end_to_end


def test_both_sides_are_encrypted_and_strangers_get_no_answer(tmp_path: Path):
    authority = Authority("tests")
    image_model(tmp_path / "default" / "1")
    flag = ssl_config(tmp_path, *authority.issue("server"), authority)
    files = {"ca": authority.pem}
    files["key"], files["certificate"] = authority.issue("gateway")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    paths = {name: str(tmp_path / name) for name in files}
    encrypted = {
        "certificate": paths["certificate"],
        "certificate_key": paths["key"],
        "server_ca": paths["ca"],
        "client_certificate": paths["certificate"],
        "client_key": paths["key"],
    }
    base = tmp_path / "default"
    with serving(tmp_path, f"--model_base_path={base}", flag, ports="grpc") as server:
        door = GatewayProcess(tmp_path, base, server.grpc_port, **encrypted)
        in_clear = GatewayProcess(tmp_path, base, server.grpc_port, model_seconds=5)
        try:
            context = ssl.create_default_context(cafile=paths["ca"])
            # Python 3.13 wants more of an authority than a test's has.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            door.wait_listening()
            connection = http.client.HTTPSConnection("127.0.0.1", door.port, context=context)
            connection.request("POST", "/v1/classify", image())
            answer = json.loads(connection.getresponse().read())
            assert answer["predictions"][0]["class"] == "red"
            in_clear.wait_listening()
            assert in_clear.classify(image()).status in (503, 504)
        finally:
            for process in (door.process, in_clear.process):
                process.kill()
                process.wait()


@pytest.mark.parametrize("missing", ["server_ca", "certificate"])
def test_files_that_are_not_there_are_named_at_the_start(tmp_path: Path, missing: str):
    settings = {"server_ca": {"server_ca": "none.pem"}}
    settings["certificate"] = {"certificate": "none.pem", "certificate_key": "none.pem"}
    door = GatewayProcess(tmp_path, tmp_path, 1, **settings[missing])
    until(lambda: door.process.poll() is not None, "the end")
    assert (door.process.returncode, "none.pem" in door.output) == (2, True)
    assert "Traceback" not in door.output
