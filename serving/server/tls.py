"""TLS for gRPC from an SSLConfig file, as `tensorflow_serving/model_servers/server.cc` reads it.

REST has none, here or in the real server: a proxy in front of it ends TLS.
"""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path

import grpc

from graftline.serving.server.status import invalid
from graftline.serving.server.text_protos import SSLConfig, read_text


def server_credentials(path: str) -> grpc.ServerCredentials:
    """The credentials that a file describes: key and certificates are in it, as PEM.

    Raises:
        Failure: it does not parse, key and certificate are none or do not belong together, or
            clients are to be verified without a certificate authority to verify them by.
    """
    config = read_text(path, SSLConfig())
    _check_pair(path, config.server_key, config.server_cert)
    if config.client_verify and not config.custom_ca:
        raise invalid(f"{path} has client_verify without custom_ca: clients verified by whom?")
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )


def _check_pair(path: str, key: str, certificate: str) -> None:
    """gRPC itself would only log it, and fail every handshake."""
    with tempfile.TemporaryDirectory() as folder:
        key_file, certificate_file = Path(folder) / "key", Path(folder) / "certificate"
        key_file.write_text(key)
        certificate_file.write_text(certificate)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate_file, key_file)
        except (ssl.SSLError, OSError) as error:
            raise invalid(
                f"server_key and server_cert in {path} are no PEM key and its certificate: {error}"
            ) from None
