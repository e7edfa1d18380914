"""What a user can set about the gateway: the section `gateway`.

Secrets never stand here, only the paths of files that hold them.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

_Path = Annotated[str, Meta(max_length=4096)]
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class JwtConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens (JWT) that are let in. The kind of key says which algorithm a token must have."""

    secret_file: Annotated[
        _Path, Meta(description="File with a secret of 32 bytes or more: tokens are HS256.")
    ] = ""
    public_key_file: Annotated[
        _Path, Meta(description="File with an RSA public key as PEM: tokens are RS256.")
    ] = ""
    jwks: Annotated[
        _Path,
        Meta(description="File or https address of a JSON Web Key Set: tokens are RS256."),
    ] = ""
    audience: Annotated[str, Meta(description="What a token's `aud` must name.")] = ""
    issuer: Annotated[str, Meta(description="What a token's `iss` must be; empty: anything.")] = ""
    leeway_seconds: Annotated[
        float, Meta(ge=0, le=300, description="How far clocks may be apart.")
    ] = 10.0

    @property
    def used(self) -> bool:
        """Whether tokens are looked at."""
        return bool(self.secret_file or self.public_key_file or self.jwks)

    def __post_init__(self) -> None:
        """Refuses several kinds of keys, and tokens for anyone.

        Raises:
            ValueError: with what does not go together.
        """
        kinds = [self.secret_file, self.public_key_file, self.jwks]
        if sum(map(bool, kinds)) > 1:
            raise ValueError("name one of secret_file, public_key_file and jwks")
        if self.used and not self.audience:
            raise ValueError("name the audience: a token for another service would be let in")
        if self.jwks.startswith("http:") and not self.jwks.startswith(
            tuple(f"http://{host}{end}" for host in _LOOPBACK for end in ":/")
        ):
            raise ValueError(f"jwks must come over https, not from {self.jwks}")


class SampleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests and answers that are kept as TFRecords, to see how the data changes."""

    percent: Annotated[
        float, Meta(ge=0, le=100, description="Share of the answered requests; 0: none.")
    ] = 0.0
    folder: Annotated[_Path, Meta(min_length=1, description="Where the files are.")] = "samples"
    file_bytes: Annotated[
        int, Meta(ge=1_000, description="Size after which the next file is begun.")
    ] = 64_000_000
    files: Annotated[
        int, Meta(ge=1, description="How many files are kept; the oldest goes first.")
    ] = 10


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP service for what faces a network, in front of the model server."""

    host: Annotated[str, Meta(description="Interface to listen on; empty: all.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535, description="TCP port.")] = 8080
    certificate: Annotated[
        _Path, Meta(description="PEM file of a certificate: the gateway speaks TLS.")
    ] = ""
    certificate_key: Annotated[_Path, Meta(description="PEM file of its key.")] = ""
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(description="Addresses or networks of proxies whose X-Forwarded-For is believed."),
    ] = ()
    server: Annotated[
        str,
        Meta(
            min_length=1,
            description="gRPC address of the model server; a name with several addresses is asked "
            "in turns.",
        ),
    ] = "127.0.0.1:8500"
    server_ca: Annotated[
        _Path,
        Meta(description="PEM file of the authority that signed the server's certificate: TLS."),
    ] = ""
    client_certificate: Annotated[
        _Path, Meta(description="PEM file of the gateway's own certificate, for mutual TLS.")
    ] = ""
    client_key: Annotated[_Path, Meta(description="PEM file of its key.")] = ""
    anonymous: Annotated[bool, Meta(description="Let in who names neither a key nor a token.")] = (
        False
    )
    api_keys: Annotated[
        _Path,
        Meta(description="File of API keys as hashes: a line `NAME SHA256` each."),
    ] = ""
    jwt: JwtConfig = JwtConfig()
    rate_limit: Annotated[
        str,
        Meta(
            pattern=r"^([1-9]\d{0,8}/(second|minute|hour|day))?$",
            description="Requests of one caller, such as 300/minute: so many at once, and as "
            "many more spread over each minute; empty: no limit.",
        ),
    ] = "300/minute"
    max_in_flight: Annotated[
        int, Meta(ge=1, description="Requests at work at once; beyond that the answer is 503.")
    ] = 64
    max_in_flight_per_caller: Annotated[
        int, Meta(ge=1, description="The same for one caller; beyond that the answer is 429.")
    ] = 32
    max_bytes: Annotated[
        int, Meta(ge=1, le=1_000_000_000, description="Larger images are refused.")
    ] = 10_000_000
    max_pixels: Annotated[
        int,
        Meta(
            ge=1,
            description="Images with more pixels, all frames of an animation together, are "
            "refused before decoding, which takes 3 to 9 bytes of memory for each pixel.",
        ),
    ] = 25_000_000
    min_side: Annotated[
        int, Meta(ge=1, description="Images with a shorter side, in pixels, are refused.")
    ] = 8
    max_aspect: Annotated[
        float,
        Meta(ge=1.0, description="Images whose sides differ by a larger factor are refused."),
    ] = 20.0
    read_seconds: Annotated[
        float,
        Meta(gt=0, description="In which a request's head, and then its body, must arrive."),
    ] = 10.0
    model_seconds: Annotated[
        float, Meta(gt=0, description="In which the model server must answer.")
    ] = 10.0
    grace_seconds: Annotated[
        float, Meta(ge=0, description="For begun requests when the gateway is stopped.")
    ] = 20.0
    audit_log: Annotated[
        _Path, Meta(description="File for a line of JSON per refusal; empty: standard error.")
    ] = ""
    sample: SampleConfig = SampleConfig()

    def __post_init__(self) -> None:
        """Refuses halves of pairs.

        Raises:
            ValueError: with what is missing.
        """
        if bool(self.certificate) != bool(self.certificate_key):
            raise ValueError("certificate and certificate_key go together")
        if bool(self.client_certificate) != bool(self.client_key):
            raise ValueError("client_certificate and client_key go together")
        if self.client_certificate and not self.server_ca:
            raise ValueError("client_certificate needs server_ca: without TLS it is not shown")

    @property
    def lets_in_anyone(self) -> bool:
        """Whether requests without a key or token are answered.

        On the loopback interface they are where no other way is configured: the first try on a
        laptop needs no key.
        """
        closed = self.api_keys or self.jwt.used
        return self.anonymous or (not closed and self.host in _LOOPBACK)
