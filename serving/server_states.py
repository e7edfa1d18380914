"""What model servers say that they serve: versions, their states, and the labels they carry.

Over REST, as any TensorFlow Serving has it. A label's version is asked for by its metadata: the
status call ignores labels. A name with several addresses, as a Kubernetes service without an
address of its own has, stands for as many servers: each is asked.
"""

from __future__ import annotations

import functools
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
        address: of the server, as it was named.
        host: which of the name's addresses answered; empty where it has but one.
        versions: state by version, as `AVAILABLE`, with the error of one that cannot be loaded.
        labels: version by label, of those that were asked for and are there.
        failure: why it could not be asked; empty where it could.
    """

    address: str
    versions: Mapping[int, str] = {}
    labels: Mapping[str, int] = {}
    failure: str = ""
    host: str = ""

    @property
    def server(self) -> str:
        """The server in words."""
        return f"{self.address} ({self.host})" if self.host else self.address

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
                self._ask(session, address, host, labels)
                for address in self.addresses
                for host in hosts_behind(address) or [""]
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

    def _ask(self, session: Any, address: str, host: str, labels: Sequence[str]) -> ServerState:
        import requests

        said = functools.partial(ServerState, address, host=host)
        model = f"/v1/models/{self._model}"
        try:
            status, answer = _get(session, address, host, model)
            if status == 404:
                return said()  # it does not know the model, not yet perhaps
            if status != 200:
                return said(failure=f"answered with status {status}")
            versions = {
                int(entry["version"]): _state(entry) for entry in answer["model_version_status"]
            }
            found = {}
            for label in labels:
                status, answer = _get(session, address, host, f"{model}/labels/{label}/metadata")
                if status == 200:
                    found[label] = int(answer["model_spec"]["version"])
        except requests.Timeout:
            return said(failure=f"did not answer in {_TIMEOUT_SECONDS:.0f} s")
        except requests.RequestException as error:
            return said(failure=f"cannot be reached ({type(error).__name__})")
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            return said(failure="does not answer as a model server does")
        return said(versions, found)


def hosts_behind(address: str) -> list[str]:
    """The addresses of all servers that a name stands for now, as it is asked anew at every look.

    One server with an address of each family stays one server. So does whatever is asked over
    https, which no TensorFlow Serving speaks: a proxy's certificate is for its name.

    Args:
        address: `http://NAME:8501`.

    Returns:
        `10.0.0.7` for each; none where the name stands for one server, or for nothing.
    """
    parts = urlsplit(address)
    if parts.scheme != "http" or not parts.hostname:
        return []
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return []
    families: dict[int, set[str]] = {}
    for family, _, _, _, where in found:
        families.setdefault(family, set()).add(str(where[0]))
    hosts = max(families.values(), key=len)
    return sorted(hosts) if len(hosts) > 1 else []


def _get(session: Any, address: str, host: str, path: str) -> tuple[int, Any]:
    """Asks a server; where its host is named, that one, as if it were asked by its name."""
    by_name: dict[str, Any] = {}
    if host:
        address, by_name = _at(address, host)
    answer = session.get(address + path, timeout=_TIMEOUT_SECONDS, allow_redirects=False, **by_name)
    decoded = msgspec.json.decode(answer.content) if answer.status_code == 200 else None
    return answer.status_code, decoded


def _at(address: str, host: str) -> tuple[str, dict[str, Any]]:
    """The address of one host behind a name, and what keeps the request one to the name."""
    import requests

    parts = urlsplit(address)
    user, at, name = parts.netloc.rpartition("@")
    port = f":{parts.port}" if parts.port else ""
    place = f"[{host}]" if ":" in host else host
    by_name: dict[str, Any] = {"headers": {"Host": name}}
    if requests.utils.should_bypass_proxies(address, no_proxy=None):
        # Whom no_proxy names is asked directly, though it does not name the address.
        by_name["proxies"] = {"http": None, "all": None}
    return parts._replace(netloc=f"{user}{at}{place}{port}").geturl(), by_name


def _state(entry: Mapping[str, Any]) -> str:
    error = entry.get("status", {}).get("error_message", "")
    state = str(entry["state"])
    return f"{state}: {error}" if error and state != AVAILABLE else state


def _never(behind: Sequence[ServerState], what: str, seconds: float) -> str:
    said = "; ".join(f"{state.server} {_said(state)}" for state in behind)
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
