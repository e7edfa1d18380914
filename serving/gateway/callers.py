"""Who calls: an API key, a token, or, where that is let in, an address."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers

from graftline.serving.gateway.api_keys import HEADER, ApiKeys
from graftline.serving.gateway.config import GatewayConfig
from graftline.serving.gateway.refusals import Refusal
from graftline.serving.gateway.tokens import Tokens


class Callers:
    """Tells callers apart. Names of different origin never meet: `key:`, `token:`, `address:`."""

    def __init__(self, config: GatewayConfig) -> None:
        """Reads keys.

        Raises:
            UserError: a file is not as it should be.
        """
        self._keys = ApiKeys(Path(config.api_keys)) if config.api_keys else None
        self._tokens = Tokens(config.jwt) if config.jwt.used else None
        self._anyone = config.lets_in_anyone
        ways = ["Bearer"] * bool(self._tokens) + ["ApiKey"] * bool(self._keys)
        self._challenge = {
            "WWW-Authenticate": ", ".join(f'{way} realm="graftline"' for way in ways)
        }

    def look(self) -> None:
        """Takes over keys that have changed. It may wait: call it in a thread."""
        for source in (self._keys, self._tokens):
            if source is not None:
                source.look()

    @property
    def ready(self) -> bool:
        """Whether everyone who may come in can be recognised."""
        return self._tokens is None or self._tokens.ready

    async def identify(self, headers: Headers, address: str) -> str:
        """The caller's name, for limits, the split and the log.

        Args:
            headers: of the request.
            address: from which it came.

        Raises:
            Refusal: the caller may not come in.
        """
        try:
            return await self._identify(headers, address)
        except Refusal as refusal:
            if refusal.status == 401:
                refusal.headers.update(self._challenge)
            raise

    async def _identify(self, headers: Headers, address: str) -> str:
        keys = headers.getlist(HEADER) if self._keys else []
        tokens = headers.getlist("Authorization") if self._tokens else []
        if len(keys) + len(tokens) > 1:
            raise Refusal(401, "bad-request", "Name one key or one token, once.")
        if keys and self._keys:
            return f"key:{self._keys.caller(keys[0])}"
        if tokens and self._tokens:
            return f"token:{await self._tokens.caller(_bearer(tokens))}"
        if not self._anyone:
            raise Refusal(401, "no-credentials", "Name an API key or a token.")
        return f"address:{_network(address)}"


def _bearer(headers: Sequence[str]) -> str:
    scheme, _, token = headers[0].partition(" ")
    if scheme.lower() != "bearer":
        raise Refusal(401, "bad-token", "The header Authorization must be `Bearer TOKEN`.")
    return token.strip()


def _network(address: str) -> str:
    """An IPv6 caller owns 2^64 addresses: all of them are one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
