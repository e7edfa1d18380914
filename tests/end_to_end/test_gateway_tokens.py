"""A running gateway and tokens whose keys come from an identity provider, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from gateways import GatewayProcess, gateway, image, image_model
from identity_provider import IdentityProvider, by_hand, claims, identity_provider, jwk, pem
from model_servers import serving, until

pytestmark = pytest.mark.end_to_end

_OLD, _NEW, _OTHERS = (
    rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(3)
)


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    """An identity provider with one key, `old`."""
    with identity_provider() as made:
        made.keys = [jwk(_OLD, "old", alg="RS256", use="sig")]
        yield made


@pytest.fixture(scope="module")
def door(
    provider: IdentityProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway that asks it for keys, in front of a server of the tiny model."""
    folder = tmp_path_factory.mktemp("door")
    base = folder / "default"
    image_model(base / "1")
    settings = {"jwt": {"jwks": provider.address, "audience": "flowers"}, "rate_limit": ""}
    with (
        serving(folder, f"--model_base_path={base}", ports="grpc") as server,
        gateway(folder, base, server.grpc_port, **settings) as made,
    ):
        yield made


def signed(key: Any, name: str, **others: Any) -> str:
    return jwt.encode(claims(**others), key, "RS256", headers={"kid": name})


def asked(door: GatewayProcess, token: str) -> tuple[int, str]:
    """The status, and the reason of a refusal."""
    reply = door.classify(image(), Authorization=f"Bearer {token}")
    return reply.status, reply.data.get("reason", "")


def test_a_token_signed_with_a_key_of_the_set_is_let_in(door):
    assert asked(door, signed(_OLD, "old")) == (200, "")
    assert asked(door, signed(_OLD, "old", exp=1)) == (401, "expired-token")
    assert asked(door, signed(_OLD, "old", aud="other")) == (401, "bad-token")
    assert asked(door, signed(_OTHERS, "old")) == (401, "bad-token")


@pytest.mark.parametrize("name", ["made-up", "../keys", "http://127.0.0.1/keys", ""])
def test_a_key_that_nobody_knows_is_refused(door, name):
    assert asked(door, signed(_OTHERS, name)) == (401, "bad-token")


def test_the_public_key_is_no_secret_to_sign_with(door, provider):
    # Whoever has the public key signs HS256 with it, as PEM or as the provider hands it out.
    published = jwt.algorithms.RSAAlgorithm.to_jwk(_OLD.public_key()).encode()
    for secret in (pem(_OLD), pem(_OLD).strip(), published):
        for name in ("old", "made-up"):
            forged = by_hand({"alg": "HS256", "kid": name}, claims(), secret)
            assert asked(door, forged) == (401, "bad-token")
    assert asked(door, by_hand({"alg": "none", "kid": "old"}, claims(), None)) == (401, "bad-token")


def test_made_up_keys_do_not_become_requests_to_the_provider(door, provider):
    before = provider.asked
    for number in range(30):
        assert asked(door, signed(_OTHERS, f"made-up-{number}")) == (401, "bad-token")
    assert provider.asked <= before + 1


def test_keys_are_rotated_without_a_restart(door, provider):
    new = signed(_NEW, "new")
    assert asked(door, signed(_OLD, "old")) == (200, "")
    assert asked(door, new) == (401, "bad-token")
    provider.keys = [jwk(_NEW, "new")]
    until(lambda: asked(door, new) == (200, ""), "the new key")
    assert asked(door, signed(_OLD, "old")) == (401, "bad-token")
