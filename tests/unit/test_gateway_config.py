"""The gateway's settings: what goes together, and where they come from."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from graftline.serving.errors import UserError
from graftline.serving.gateway.__main__ import read_config
from graftline.serving.gateway.config import GatewayConfig, JwtConfig


def refused(**settings: object) -> str:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(settings, GatewayConfig)
    return str(caught.value)


def test_one_kind_of_key_decides_how_tokens_are_signed():
    both = {"secret_file": "s", "public_key_file": "p", "audience": "a"}
    assert "name one of secret_file, public_key_file and jwks" in refused(jwt=both)


def test_tokens_are_for_someone():
    assert "name the audience" in refused(jwt={"secret_file": "s"})


@pytest.mark.parametrize("address", ["http://idp.example/keys", "http://localhost.example/keys"])
def test_keys_do_not_come_over_the_network_in_clear(address: str):
    assert "over https" in refused(jwt={"jwks": address, "audience": "a"})


def test_keys_may_come_from_the_same_machine_in_clear():
    assert JwtConfig(jwks="http://127.0.0.1:80/keys", audience="a").used


@pytest.mark.parametrize(
    "halves",
    [{"certificate": "c"}, {"client_key": "k"}, {"client_certificate": "c", "client_key": "k"}],
)
def test_certificates_have_keys_and_someone_to_show_them_to(halves: dict[str, str]):
    assert "go together" in refused(**halves) or "needs server_ca" in refused(**halves)


@pytest.mark.parametrize("rate", ["fast", "0/minute", "10/fortnight", "10"])
def test_a_rate_is_a_number_and_a_time(rate: str):
    assert "$.rate_limit" in refused(rate_limit=rate)


def test_only_a_laptop_lets_in_anyone_without_being_told():
    assert GatewayConfig().lets_in_anyone
    assert not GatewayConfig(host="").lets_in_anyone
    assert not GatewayConfig(host="0.0.0.0").lets_in_anyone
    assert not GatewayConfig(api_keys="keys").lets_in_anyone
    assert GatewayConfig(host="", anonymous=True).lets_in_anyone


def test_an_override_goes_before_the_file(tmp_path: Path):
    file = tmp_path / "gateway.yaml"
    file.write_text("port: 9000\nsample: {percent: 5}\n")
    config = read_config(file, ["sample.folder=kept", "port=9001"])
    assert (config.port, config.sample.percent, config.sample.folder) == (9001, 5, "kept")


@pytest.mark.parametrize(
    ("text", "said"),
    [("prot: 1", "prot"), ("- a", "object"), ("a: [", "YAML"), ("port: many", "$.port")],
)
def test_a_file_that_is_wrong_is_refused_in_words(tmp_path: Path, text: str, said: str):
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=said.replace("$", r"\$")):
        read_config(file, [])


def test_a_missing_file_and_an_impossible_override_are_refused_in_words(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        read_config(tmp_path / "none", [])
    with pytest.raises(UserError, match="settings of the gateway"):
        read_config(None, ["port=1", "port.deep=1"])
