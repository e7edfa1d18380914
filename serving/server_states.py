"""What model servers say that they serve: versions, their states, and the labels they carry.

Over REST, as any TensorFlow Serving has it. A label's version is asked for by its metadata: the
status call ignores labels. A name with several addresses, as a Kubernetes service without an
address of its own has, stands for as many servers: each is asked.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from graftline.serving.errors import UserError

AVAILABLE = "AVAILABLE"
_TIMEOUT_SECONDS = 3.0
_PERIOD_SECONDS = 0.2


class ServerState(msgspec.Struct, frozen=True):
    """What one server said about a model.

    Attributes:
        address: of the server.
        versions: state by version, as `AVAILABLE`, with the error of one that cannot be loaded.
        labels: version by label, of those that were asked for and are there.
        failure: why it could not be asked; empty where it could.
    """

    address: str
    versions: Mapping[int, str] = {}
    labels: Mapping[str, int] = {}
    failure: str = ""

    @property
    def available(self) -> set[int]:
        """The versions that it answers with."""
        return {number for number, state in self.versions.items() if state == AVAILABLE}


class Servers:
    """The servers of one model."""

    def __init__(self, addresses: Iterable[str], model: str) -> None:
        """Takes REST addresses, `http://host:8501`."""
        self.addresses = tuple(address.rstrip("/") for address in addresses)
        self._model = model

    def ask(self, labels: Sequence[str] = ()) -> list[ServerState]:
        """What each of them says now."""
        if not self.addresses:
            return []
        import requests

        with requests.Session() as session:
            return [
                self._ask(session, server, labels)
                for address in self.addresses
                for server in servers_behind(address)
            ]

    def wait(
        self,
        wanted: Callable[[ServerState], bool],
        what: str,
        seconds: float,
        labels: Sequence[str] = (),
    ) -> None:
        """Waits until every server says what is wanted.

        Args:
            wanted: whether a server's state is the one waited for.
            what: the same in words.
            seconds: how long to wait at most.
            labels: labels to ask for.

        Raises:
            UserError: one of them never said it; with what it said last.
        """
        end = time.monotonic() + seconds
        while True:
            states = self.ask(labels)
            behind = [state for state in states if state.failure or not wanted(state)]
            if not behind:
                return
            if time.monotonic() > end:
                raise UserError(_never(behind, what, seconds))
            time.sleep(_PERIOD_SECONDS)

    def _ask(self, session: Any, address: str, labels: Sequence[str]) -> ServerState:
        import requests

        url = f"{address}/v1/models/{self._model}"
        try:
            status, answer = _get(session, url)
            if status == 404:
                return ServerState(address)  # it does not know the model, not yet perhaps
            if status != 200:
                return ServerState(address, failure=f"answered with status {status}")
            versions = {
                int(entry["version"]): _state(entry) for entry in answer["model_version_status"]
            }
            found = {}
            for label in labels:
                status, answer = _get(session, f"{url}/labels/{label}/metadata")
                if status == 200:
                    found[label] = int(answer["model_spec"]["version"])
        except requests.Timeout:
            return ServerState(address, failure=f"did not answer in {_TIMEOUT_SECONDS:.0f} s")
        except requests.RequestException as error:
            return ServerState(address, failure=f"cannot be reached ({type(error).__name__})")
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            return ServerState(address, failure="does not answer as a model server does")
        return ServerState(address, versions, found)


def servers_behind(address: str) -> list[str]:
    """The addresses of all servers that a name stands for now, as it is asked anew at every look.

    One server with an address of each family stays one server. So does whatever is asked over
    https, which no TensorFlow Serving speaks: a proxy's certificate is for its name.

    Args:
        address: `http://NAME:8501`.

    Returns:
        `http://10.0.0.7:8501` for each; the address itself where it stands for one, or for none.
    """
    parts = urlsplit(address)
    if parts.scheme != "http" or not parts.hostname:
        return [address]
    try:
        port = f":{parts.port}" if parts.port else ""
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return [address]
    families: dict[int, set[str]] = {}
    for family, _, _, _, where in found:
        families.setdefault(family, set()).add(str(where[0]))
    hosts = max(families.values(), key=len)
    if len(hosts) < 2:
        return [address]
    rest = port + parts.path
    return [f"http://{f'[{host}]' if ':' in host else host}{rest}" for host in sorted(hosts)]


def _get(session: Any, url: str) -> tuple[int, Any]:
    answer = session.get(url, timeout=_TIMEOUT_SECONDS, allow_redirects=False)
    decoded = msgspec.json.decode(answer.content) if answer.status_code == 200 else None
    return answer.status_code, decoded


def _state(entry: Mapping[str, Any]) -> str:
    error = entry.get("status", {}).get("error_message", "")
    state = str(entry["state"])
    return f"{state}: {error}" if error and state != AVAILABLE else state


def _never(behind: Sequence[ServerState], what: str, seconds: float) -> str:
    said = "; ".join(f"{state.address} {_said(state)}" for state in behind)
    dead = any(state.failure for state in behind)
    return (
        f"After {seconds:.0f} s not every server has {what}: {said}. A server follows when it was "
        "started with --model_config_file on this models.config, with "
        "--model_config_file_poll_wait_seconds above 0 and "
        "--allow_version_labels_for_unavailable_models=true, and can read the versions."
        + (" Where one is gone, name the others: serving.servers=[http://HOST:8501]." * dead)
    )


def _said(state: ServerState) -> str:
    if state.failure:
        return state.failure
    versions = ", ".join(f"{number} {name}" for number, name in state.versions.items()) or "none"
    labels = ", ".join(f"{label} on {number}" for label, number in state.labels.items())
    return f"has versions {versions}" + (f", labels {labels}" if labels else "")
