"""The client before it asks: addresses, certificates, pieces that one request can hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from graftline.serving.client.address import Tls, parse
from graftline.serving.client.client import Client, _batches
from graftline.serving.errors import UserError


@pytest.mark.parametrize(
    ("url", "grpc", "rest", "encrypted"),
    [
        ("grpc://models", "models:8500", "", False),
        ("grpcs://models:9000/", "models:9000", "", True),
        ("grpc://[::1]:8500", "[::1]:8500", "", False),
        ("unix:///run/models.sock", "unix:/run/models.sock", "", False),
        ("http://models:8501", "", "http://models:8501", False),
        ("https://models/behind/a/proxy/", "", "https://models/behind/a/proxy", True),
    ],
)
def test_an_address_names_protocol_place_and_encryption(url, grpc, rest, encrypted):
    found = parse(url, Tls())
    assert (found.grpc, found.rest, found.encrypted) == (grpc, rest, encrypted)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "models:8500",
        "ftp://models",
        "grpc://",
        "grpc://models/path",
        "http://models:port",
        "http://user@models",
        "http://models?x=1",
        "unix://host/socket",
        "grpc://mo dels",
        "http://[",
    ],
)
def test_what_is_no_address_is_refused_with_the_forms_there_are(url):
    with pytest.raises(UserError, match=r"is no address of a model server: write grpc://HOST"):
        parse(url, Tls())


def test_certificates_are_refused_where_they_are_of_no_use_or_not_there(tmp_path):
    file = tmp_path / "ca.pem"
    file.touch()
    with pytest.raises(UserError, match="without encryption"):
        parse("http://models", Tls(ca=file))
    with pytest.raises(UserError, match="belong together"):
        parse("grpcs://models", Tls(certificate=file))
    with pytest.raises(UserError, match=r"missing\.pem cannot be read: No such file"):
        parse("https://models", Tls(ca=tmp_path / "missing.pem"))


def test_a_version_is_named_in_one_way():
    with pytest.raises(UserError, match="not by both"):
        Client("grpc://models", "flowers", version=3, label="stable")


def test_images_are_asked_for_in_pieces_of_so_many_and_so_many_bytes():
    large, small = b"x" * (20 << 20), b"x"
    assert [len(piece) for piece in _batches([small] * 70)] == [32, 32, 6]
    assert [len(piece) for piece in _batches([large, large, small, large])] == [1, 2, 1]
    assert [len(piece) for piece in _batches([small, large * 3, small])] == [1, 1, 1]
    assert list(_batches([])) == []


def test_the_client_loads_no_tensorflow():
    modules = "client.grpc_transport, client.rest_transport, client.client"
    code = "import sys\nfor name in '{}'.split(', '): __import__('graftline.serving.' + name)\n"
    code = code.format(modules) + "print('tensorflow' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def test_options_of_a_server_are_refused_without_one(tmp_path: Path, capsys):
    from graftline.pipeline.cli.main import main

    (tmp_path / "graftline.yaml").write_text("model: {name: colours}\n")
    with pytest.raises(SystemExit) as end:
        main(["predict", "image.png", "--label", "stable", "--project", str(tmp_path)])
    assert end.value.code == 2
    assert "belong to --server" in capsys.readouterr().err
