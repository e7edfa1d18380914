"""The gateway from start to end: the port, then a signal, then what has begun."""

from __future__ import annotations

import logging
import signal
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graftline.serving.errors import UserError
from graftline.serving.gateway.application import Gateway
from graftline.serving.gateway.config import GatewayConfig
from graftline.serving.server.http_server import HttpServer, raise_file_limit
from graftline.serving.server.status import Failure

# Longer than load balancers keep a connection that is not used, so that it is they who close it.
_KEEP_ALIVE_SECONDS = 75
MOST_CONNECTIONS = 4096

_log = logging.getLogger(__name__)


def run(
    config: GatewayConfig, model: str, root: Path, ready: Callable[[], None] = lambda: None
) -> int:
    """Serves until SIGTERM or SIGINT; a second signal ends the process at once.

    Args:
        config: the settings.
        model: its name on the model server.
        root: `<base>/<model>`, where the split of requests stands.
        ready: called once the port is open.

    Returns:
        The exit code, 0.

    Raises:
        UserError: nobody could come in, a file is not as it should be, or the port is taken.
    """
    if not (config.lets_in_anyone or config.api_keys or config.jwt.used):
        raise UserError(
            f"The gateway would let nobody in at {config.host or 'all interfaces'}: name "
            "gateway.api_keys or gateway.jwt, or say gateway.anonymous=true. Only on the loopback "
            "interface is everyone let in without being asked."
        )
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        stream=sys.stderr,
        force=True,
    )
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    raise_file_limit()
    gateway = Gateway(config, model, root)
    server = HttpServer(
        gateway.application(),
        read_seconds=config.read_seconds,
        grace_seconds=config.grace_seconds,
        refused=gateway.refused_unseen,
        lifespan="on",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        **_proxies(config),
        **_tls(config),
    )
    stopping = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        gateway.stopping = True
        stopping.set()

    try:
        server.start(config.host, config.port)
    except Failure as failure:
        raise UserError(
            f"The gateway cannot listen at {config.host or '*'}:{config.port}: {failure}. Choose "
            "another with gateway.port."
        ) from failure
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    ready()
    while not stopping.wait(1):
        if not server.running:
            raise RuntimeError("the HTTP server ended by itself; the log says why")
    _log.info("Stopping: finishing what has begun")
    server.stop()
    return 0


def _proxies(config: GatewayConfig) -> dict[str, Any]:
    if not config.trusted_proxies:
        return {}
    return {"proxy_headers": True, "forwarded_allow_ips": list(config.trusted_proxies)}


def _tls(config: GatewayConfig) -> dict[str, Any]:
    if not config.certificate:
        return {}
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            config.certificate, config.certificate_key
        )
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"{config.certificate} and {config.certificate_key} are no certificate with its key: "
            f"{error}."
        ) from error
    return {"ssl_certfile": config.certificate, "ssl_keyfile": config.certificate_key}
