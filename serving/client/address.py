"""Where a model server is, as people write it, and what its TLS wants."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from graftline.serving.errors import UserError

_GRPC_PORT = 8500
_FORMS = (
    "grpc://HOST:8500, grpcs://HOST:8500, http://HOST:8501, https://HOST:8501 or unix:///SOCKET"
)


class Address(msgspec.Struct, frozen=True):
    """A server.

    Attributes:
        url: as it was given.
        grpc: what gRPC connects to; empty where REST is spoken.
        rest: what stands before `/v1/models`; empty where gRPC is spoken.
        encrypted: whether it speaks TLS.
    """

    url: str
    grpc: str = ""
    rest: str = ""
    encrypted: bool = False


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """Files with PEM texts.

    Attributes:
        ca: whom to trust in place of the system's authorities.
        certificate: the client's own, for servers that verify their clients.
        key: its key.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """The contents of `ca`, `key` and `certificate`, in the order in which gRPC takes them.

        Raises:
            UserError: one cannot be read.
        """
        try:
            ca, key, certificate = (
                file.read_bytes() if file else None
                for file in (self.ca, self.key, self.certificate)
            )
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error
        return ca, key, certificate


def parse(url: str, tls: Tls) -> Address:
    """Reads a server's address.

    Args:
        url: `grpc://HOST[:PORT]`, `grpcs://…` with TLS, `http://HOST[:PORT][/PREFIX]`, `https://…`,
            or `unix:///PATH` for gRPC over a Unix socket.
        tls: files that are only of use with `grpcs` and `https`.

    Raises:
        UserError: it is no such address, or the files do not go with it.
    """
    address = _parse(url)
    if tls != Tls() and not address.encrypted:
        raise UserError(
            f"{url} is spoken to without encryption, so certificates are of no use: write grpcs:// "
            "or https://, or leave them out."
        )
    if (tls.certificate is None) != (tls.key is None):
        raise UserError("A client's certificate and its key belong together: name both or neither.")
    tls.read()
    return address


def _parse(url: str) -> Address:
    wrong = UserError(f"{url!r} is no address of a model server: write {_FORMS}.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong from None
    path = parts.path.rstrip("/")
    if parts.query or parts.fragment or parts.username is not None:
        raise wrong
    if parts.scheme == "unix" and not parts.netloc and path:
        return Address(url, grpc=f"unix:{path}")
    if not parts.hostname or any(character.isspace() for character in url):
        raise wrong
    if parts.scheme in ("grpc", "grpcs") and not path:
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        target = f"{host}:{port or _GRPC_PORT}"
        return Address(url, grpc=target, encrypted=parts.scheme == "grpcs")
    if parts.scheme in ("http", "https"):
        rest = f"{parts.scheme}://{parts.netloc}{path}"
        return Address(url, rest=rest, encrypted=parts.scheme == "https")
    raise wrong
