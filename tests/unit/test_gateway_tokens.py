"""Who is let in with a token, and the ways in which tokens are forged."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from graftline.serving.errors import UserError
from graftline.serving.gateway import tokens as module
from graftline.serving.gateway.config import JwtConfig
from graftline.serving.gateway.refusals import Refusal
from graftline.serving.gateway.tokens import Tokens
from identity_provider import IdentityProvider, by_hand, claims, identity_provider, jwk, pem

SECRET = "an example of a secret, 32 bytes or more"
_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
_OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def signed(key: Any = SECRET, algorithm: str = "HS256", **others: Any) -> str:
    return jwt.encode(claims(**others), key, algorithm)


def caller(tokens: Tokens, token: str) -> str:
    return asyncio.run(tokens.caller(token))


def refused(tokens: Tokens, token: str) -> str:
    with pytest.raises(Refusal) as caught:
        caller(tokens, token)
    assert caught.value.status == 401
    return caught.value.reason


@pytest.fixture
def secret(tmp_path: Path) -> Tokens:
    """HS256."""
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    return Tokens(JwtConfig(secret_file=str(tmp_path / "secret"), audience="flowers"))


@pytest.fixture
def public(tmp_path: Path) -> Tokens:
    """RS256 with one key."""
    (tmp_path / "key.pem").write_bytes(pem(_RSA))
    return Tokens(JwtConfig(public_key_file=str(tmp_path / "key.pem"), audience="flowers"))


@pytest.fixture
def key_set(tmp_path: Path) -> Tokens:
    """RS256 with a set of two keys."""
    keys = [jwk(_RSA, "a"), jwk(_OTHER, "b", alg="RS256", use="sig")]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": keys}))
    return Tokens(JwtConfig(jwks=str(tmp_path / "keys.json"), audience="flowers"))


def test_a_good_token_names_its_caller(secret: Tokens, public: Tokens, key_set: Tokens):
    assert caller(secret, signed()) == "shop"
    assert caller(public, signed(_RSA, "RS256", sub="depot")) == "depot"
    token = jwt.encode(claims(), _OTHER, "RS256", headers={"kid": "b"})
    assert caller(key_set, token) == "shop"


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"exp": time.time() - 60}, "expired-token"),
        ({"exp": None}, "bad-token"),
        ({"exp": "soon"}, "bad-token"),
        ({"exp": float("inf")}, "bad-token"),
        ({"aud": "other"}, "bad-token"),
        ({"aud": None}, "bad-token"),
        ({"sub": None}, "bad-token"),
        ({"sub": ""}, "bad-token"),
        ({"sub": 7}, "bad-token"),
        ({"sub": "x" * 1000}, "bad-token"),
        ({"nbf": time.time() + 600}, "bad-token"),
    ],
)
def test_a_token_that_is_expired_or_for_another_is_refused(
    secret: Tokens, others: dict[str, Any], reason: str
):
    token = by_hand({"alg": "HS256", "typ": "JWT"}, claims(**others), SECRET.encode())
    assert refused(secret, token) == reason


def test_an_issuer_that_is_asked_for_must_be_there(tmp_path: Path):
    (tmp_path / "secret").write_text(SECRET)
    file = str(tmp_path / "secret")
    tokens = Tokens(JwtConfig(secret_file=file, audience="flowers", issuer="https://idp"))
    assert caller(tokens, signed(iss="https://idp")) == "shop"
    assert refused(tokens, signed(iss="https://evil")) == "bad-token"
    assert refused(tokens, signed()) == "bad-token"


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, 7, ["HS256"]])
def test_an_unsigned_token_is_refused(secret: Tokens, public: Tokens, algorithm: Any):
    token = by_hand({"alg": algorithm}, claims(), None)
    assert refused(secret, token) == "bad-token"
    assert refused(public, token) == "bad-token"


def test_a_forged_token_is_refused(secret: Tokens, public: Tokens):
    assert refused(secret, signed("another secret of thirty-two bytes")) == "bad-token"
    assert refused(public, signed(_OTHER, "RS256")) == "bad-token"
    head, body, signature = signed().split(".")
    other = by_hand({"alg": "HS256"}, claims(sub="admin"), b"").split(".")[1]
    assert refused(secret, f"{head}.{other}.{signature}") == "bad-token"
    assert refused(secret, f"{head}.{body}.") == "bad-token"


def test_a_public_key_is_no_secret(public: Tokens, key_set: Tokens):
    # Whoever has the public key signs HS256 with it.
    for text in (
        pem(_RSA),
        pem(_RSA).strip(),
        jwt.algorithms.RSAAlgorithm.to_jwk(_RSA.public_key()).encode(),
    ):
        assert refused(public, by_hand({"alg": "HS256"}, claims(), text)) == "bad-token"
        forged = by_hand({"alg": "HS256", "kid": "a"}, claims(), text)
        assert refused(key_set, forged) == "bad-token"


def test_another_algorithm_of_the_same_key_is_refused(secret: Tokens, public: Tokens):
    assert refused(secret, signed(SECRET * 2, "HS512")) == "bad-token"
    assert refused(public, signed(_RSA, "RS512")) == "bad-token"
    assert refused(public, signed(_RSA, "PS256")) == "bad-token"


@pytest.mark.parametrize("name", ["c", "../../dev/null", "a' OR '1'='1", None, 7])
def test_a_key_that_is_not_in_the_set_is_refused(key_set: Tokens, name: Any):
    head = {"alg": "RS256", "kid": name}
    assert refused(key_set, by_hand(head, claims(), b"")) == "bad-token"


def test_keys_that_a_token_brings_along_are_not_believed(public: Tokens, key_set: Tokens):
    for name in ("a", "mine"):
        headers = {"kid": name, "jwk": jwk(_OTHER, name), "jku": "http://127.0.0.1:9/keys"}
        token = jwt.encode(claims(), _OTHER, "RS256", headers=headers)
        assert refused(public, token) == "bad-token"
        assert refused(key_set, token) == "bad-token"


@given(token=st.text() | st.binary().map(lambda b: base64.urlsafe_b64encode(b).decode() + ".e30."))
def test_whatever_is_sent_as_a_token_is_refused(token: str):
    tokens = Tokens.__new__(Tokens)
    tokens._config = JwtConfig(secret_file="s", audience="flowers")
    tokens._algorithm = "HS256"
    tokens._keys = type("_Keys", (), {"value": {"": SECRET.encode()}})()
    assert refused(tokens, token) == "bad-token"


def test_a_token_nested_without_end_or_longer_than_any_is_refused(secret: Tokens):
    deep = base64.urlsafe_b64encode(b'{"alg":' + b"[" * 3000).decode()
    assert refused(secret, f"{deep}.e30.") == "bad-token"
    assert refused(secret, signed(extra="x" * 10_000)) == "bad-token"


@pytest.mark.parametrize("content", [b"short", b"", b"-----BEGIN PUBLIC KEY-----\n" + b"x" * 40])
def test_what_is_no_secret_is_refused_at_the_start(tmp_path: Path, content: bytes):
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(UserError, match="no secret for HS256"):
        Tokens(JwtConfig(secret_file=str(tmp_path / "secret"), audience="a"))


def test_what_is_no_rsa_key_is_refused_at_the_start(tmp_path: Path):
    file = tmp_path / "key.pem"
    config = JwtConfig(public_key_file=str(file), audience="a")
    with pytest.raises(UserError, match="cannot be read"):
        Tokens(config)
    file.write_text("no key")
    with pytest.raises(UserError, match="no public key"):
        Tokens(config)
    file.write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(UserError, match="no RSA key"):
        Tokens(config)
    file.write_bytes(pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)))
    with pytest.raises(UserError, match="no RSA key of 2048 bits"):
        Tokens(config)


def test_keys_for_something_else_are_not_taken_from_a_set(tmp_path: Path):
    file = tmp_path / "keys.json"
    oct_key = {"kty": "oct", "kid": "o", "k": "c2VjcmV0", "alg": "HS256"}
    file.write_text(json.dumps({"keys": [oct_key, jwk(_RSA, "e", use="enc")]}))
    with pytest.raises(UserError, match="holds no RSA key"):
        Tokens(JwtConfig(jwks=str(file), audience="a"))
    file.write_text("[]")
    with pytest.raises(UserError, match="no JSON Web Key Set"):
        Tokens(JwtConfig(jwks=str(file), audience="a"))


def test_a_secret_is_changed_without_a_restart_and_a_broken_file_changes_nothing(
    secret: Tokens, tmp_path: Path
):
    later = "another secret, which is long enough as well"
    (tmp_path / "secret").write_text(later)
    secret.look()
    assert caller(secret, signed(later)) == "shop"
    assert refused(secret, signed()) == "bad-token"
    (tmp_path / "secret").write_text("oops")
    secret.look()
    assert caller(secret, signed(later)) == "shop"


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with identity_provider() as made:
        yield made


def test_a_key_that_is_new_at_the_identity_provider_is_fetched(provider, monkeypatch):
    provider.keys = [jwk(_RSA, "old")]
    tokens = Tokens(JwtConfig(jwks=provider.address, audience="flowers"))
    provider.keys = [jwk(_OTHER, "new")]
    token = jwt.encode(claims(), _OTHER, "RS256", headers={"kid": "new"})
    # Not at once: made-up names of keys must not become requests to the provider.
    assert [refused(tokens, token) for _ in range(3)] == ["bad-token"] * 3
    assert provider.asked == 1
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0)
    assert caller(tokens, token) == "shop"


def test_keys_stay_in_force_while_the_identity_provider_is_gone(provider, monkeypatch):
    provider.keys = [jwk(_RSA, "a")]
    tokens = Tokens(JwtConfig(jwks=provider.address, audience="flowers"))
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0)
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0)
    provider.redirect = f"{provider.address}?elsewhere"
    tokens.look()
    assert provider.asked == 2
    assert caller(tokens, jwt.encode(claims(), _RSA, "RS256", headers={"kid": "a"})) == "shop"
    stranger = jwt.encode(claims(), _OTHER, "RS256", headers={"kid": "b"})
    assert refused(tokens, stranger) == "bad-token"


def test_without_keys_tokens_are_not_judged(provider, monkeypatch):
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0)
    provider.redirect = f"{provider.address}?elsewhere"
    tokens = Tokens(JwtConfig(jwks=provider.address, audience="flowers"))
    assert provider.asked == 1  # not followed
    with pytest.raises(Refusal) as caught:
        caller(tokens, "x")
    assert (caught.value.status, caught.value.reason) == (503, "no-keys")
    provider.redirect, provider.keys = "", [jwk(_RSA, "a")]
    tokens.look()
    assert caller(tokens, jwt.encode(claims(), _RSA, "RS256")) == "shop"
