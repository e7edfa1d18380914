"""Tokens: JSON Web Tokens (RFC 7519), checked with PyJWT after RFC 8725, its best practices.

The algorithm follows from the kind of key that is configured and never from the token: a secret
checks HS256, an RSA key RS256. What a token's head names beside the key's id (`jku`, `jwk`, `x5u`)
is not followed. `exp`, `aud` and `sub` must be there.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import math
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from graftline.serving.errors import UserError
from graftline.serving.gateway.config import JwtConfig
from graftline.serving.gateway.refusals import Refusal
from graftline.serving.gateway.watched_file import WatchedFile

_LONGEST = 8192
_LONGEST_SUBJECT = 200
_SHORTEST_SECRET = 32  # bytes, RFC 7518, 3.2
_SHORTEST_RSA = 2048  # bits, RFC 7518, 3.3
# A key set at an address: how often it is fetched anew, and how often for an unknown key's sake.
_REFRESH_SECONDS = 300.0
_RETRY_SECONDS = 10.0
_FETCH_SECONDS = 5.0
_LONGEST_SET = 1 << 20

# Keys by their id; the empty one is that of a lone key.
_Keys = Mapping[str, Any]
_REASONS: tuple[tuple[type[Exception], str, str], ...] = (
    (jwt.ExpiredSignatureError, "expired-token", "The token has expired."),
    (jwt.InvalidAlgorithmError, "bad-token", "The token is signed in a way that is not taken."),
    (jwt.InvalidAudienceError, "bad-token", "The token is for another service."),
    (jwt.InvalidIssuerError, "bad-token", "The token comes from somewhere else."),
    (jwt.ImmatureSignatureError, "bad-token", "The token is not valid yet."),
    (jwt.MissingRequiredClaimError, "bad-token", "The token lacks one of exp, aud and sub."),
)

_log = logging.getLogger(__name__)


class Tokens:
    """Checks tokens with the keys of one source."""

    def __init__(self, config: JwtConfig) -> None:
        """Reads the keys.

        Raises:
            UserError: a file cannot be read or holds something else. A key set at an address that
                does not answer is only logged: it is tried again.
        """
        self._config = config
        self._algorithm = "HS256" if config.secret_file else "RS256"
        self._keys: WatchedFile[_Keys] | _FetchedSet
        if config.jwks.startswith(("https://", "http://")):
            self._keys = _FetchedSet(config.jwks)
        elif config.jwks:
            self._keys = WatchedFile(Path(config.jwks), _read_set)
        elif config.secret_file:
            self._keys = WatchedFile(Path(config.secret_file), _read_secret)
        else:
            self._keys = WatchedFile(Path(config.public_key_file), _read_public_key)

    def look(self) -> None:
        """Takes over keys that have changed. It may wait: call it in a thread."""
        self._keys.look()

    @property
    def ready(self) -> bool:
        """Whether there are keys to check with."""
        return bool(self._keys.value)

    async def caller(self, token: str) -> str:
        """Whom a token names.

        Raises:
            Refusal: the token is not valid, 401; or there are no keys to check it with, 503.
        """
        try:
            return self._check(token)
        except _UnknownKey:
            # Keys have changed, perhaps.
            await asyncio.to_thread(self._keys.look, True)
        try:
            return self._check(token)
        except _UnknownKey:
            raise Refusal(401, "bad-token", "The token is signed with an unknown key.") from None

    def _check(self, token: str) -> str:
        if not self.ready:
            raise Refusal(503, "no-keys", "Tokens cannot be checked now.", {"Retry-After": "10"})
        try:
            if len(token) > _LONGEST:
                raise jwt.InvalidTokenError
            claims = jwt.decode(
                token,
                self._key(token),
                algorithms=[self._algorithm],
                audience=self._config.audience,
                issuer=self._config.issuer or None,
                leeway=self._config.leeway_seconds,
                options={"require": ["exp", "aud", "sub"]},
            )
        # The parser of a head made to do harm raises whatever it meets.
        except (
            jwt.PyJWTError,
            ValueError,
            TypeError,
            KeyError,
            ArithmeticError,
            RecursionError,
        ) as e:
            raise _refusal(e) from None
        subject = claims["sub"]
        if not subject or len(subject) > _LONGEST_SUBJECT:
            raise Refusal(401, "bad-token", "The token's sub is empty or too long.")
        return subject

    def _key(self, token: str) -> Any:
        name: str | None = jwt.get_unverified_header(token).get("kid")
        keys = self._keys.value
        if not self._config.jwks:
            return keys[""]
        if name is None and len(keys) == 1:
            return next(iter(keys.values()))
        if name is None or name not in keys:
            raise _UnknownKey
        return keys[name]


def _refusal(error: Exception) -> Refusal:
    for kind, reason, detail in _REASONS:
        if isinstance(error, kind):
            return Refusal(401, reason, detail)
    return Refusal(401, "bad-token", "The token is not valid.")


class _UnknownKey(Exception):
    """The token names a key that is not there."""


class _FetchedSet:
    """A key set at an address, fetched from time to time and when a token names an unknown key."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.value: _Keys = {}
        self._tried = -math.inf
        self.look()

    def look(self, missed: bool = False) -> None:
        """Fetches the set if it is due.

        Args:
            missed: a key was not there. Made-up names do not lead to fetches without end.
        """
        now = time.monotonic()
        often = missed or not self.value
        if now < self._tried + (_RETRY_SECONDS if often else _REFRESH_SECONDS):
            return
        self._tried = now
        try:
            self.value = _parse_set(_fetch(self._address), self._address)
        except (OSError, http.client.HTTPException, UserError) as error:
            _log.error("The key set at %s cannot be had, known keys stay: %s", self._address, error)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys come from where the configuration says, and from nowhere else."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any
    ) -> None:
        return None


def _fetch(address: str) -> bytes:
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(address, timeout=_FETCH_SECONDS) as answer:
        content: bytes = answer.read(_LONGEST_SET + 1)
    if len(content) > _LONGEST_SET:
        raise UserError(f"the answer is longer than {_LONGEST_SET} bytes")
    return content


def _read_secret(path: Path) -> _Keys:
    secret = path.read_bytes().strip()
    if len(secret) < _SHORTEST_SECRET or secret.startswith(b"-----BEGIN"):
        raise UserError(
            f"{path} is no secret for HS256: it must hold {_SHORTEST_SECRET} random bytes or more "
            "(`openssl rand -hex 32`). A public key goes into gateway.jwt.public_key_file."
        )
    return {"": secret}


def _read_public_key(path: Path) -> _Keys:
    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path} holds no public key as PEM: {error}.") from error
    if not _usable(key):
        raise UserError(f"{path} holds no RSA key of {_SHORTEST_RSA} bits or more.")
    return {"": key}


def _read_set(path: Path) -> _Keys:
    return _parse_set(path.read_bytes(), str(path))


def _parse_set(content: bytes, origin: str) -> _Keys:
    """The RSA keys for signatures in a JSON Web Key Set (RFC 7517); others are passed over."""
    try:
        found = jwt.PyJWKSet.from_json(content.decode()).keys
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{origin} is no JSON Web Key Set: {error}.") from error
    keys = {
        key.key_id or "": key.key
        for key in found
        if key.algorithm_name == "RS256"
        and key.public_key_use in (None, "sig")
        and _usable(key.key)
    }
    if not keys:
        raise UserError(f"{origin} holds no RSA key of {_SHORTEST_RSA} bits or more for RS256.")
    return keys


def _usable(key: Any) -> bool:
    return isinstance(key, RSAPublicKey) and key.key_size >= _SHORTEST_RSA
