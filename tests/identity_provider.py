"""Tokens, good and forged, and a server that hands out the keys to check them with."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization


def pem(key: Any) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def jwk(key: Any, name: str, **members: str) -> dict[str, Any]:
    algorithm = jwt.algorithms.RSAAlgorithm
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": name, **members}


def claims(**others: Any) -> dict[str, Any]:
    made = {"sub": "shop", "aud": "flowers", "exp": time.time() + 60, **others}
    return {name: value for name, value in made.items() if value is not None}


def by_hand(head: dict[str, Any], body: dict[str, Any], secret: bytes | None) -> str:
    """A token that no library would make."""

    def encoded(part: bytes) -> bytes:
        return base64.urlsafe_b64encode(part).rstrip(b"=")

    text = b".".join(encoded(json.dumps(part).encode()) for part in (head, body))
    mac = b"" if secret is None else hmac.digest(secret, text, hashlib.sha256)
    return (text + b"." + encoded(mac)).decode()


class IdentityProvider(http.server.ThreadingHTTPServer):
    """Hands out a key set.

    Attributes:
        keys: of the set, as JSON Web Keys.
        redirect: an address to which it sends whoever asks, instead.
        asked: how often it was.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.keys: list[dict[str, Any]] = []
        self.redirect = ""
        self.asked = 0

    @property
    def address(self) -> str:
        """Where the set is."""
        return f"http://127.0.0.1:{self.server_port}/keys"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: IdentityProvider

    def do_GET(self) -> None:
        self.server.asked += 1
        self.send_response(302 if self.server.redirect else 200)
        if self.server.redirect:
            self.send_header("Location", self.server.redirect)
        self.end_headers()
        self.wfile.write(json.dumps({"keys": self.server.keys}).encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def identity_provider() -> Iterator[IdentityProvider]:
    """An identity provider on 127.0.0.1, until the end."""
    with IdentityProvider() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        try:
            yield made
        finally:
            made.shutdown()
