"""What a step asks of the API of Kubernetes: objects of its namespace, logs of pods."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from graftline.serving.errors import UserError

# Another address than a pod is told of, e.g. that of `kubectl proxy`.
ADDRESS_VARIABLE = "GRAFTLINE_KUBERNETES_API"

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Also the longest silence of a log that is followed: a connection may be dead without a word.
_CONNECT, _READ = 10, 60  # seconds


class NotThere(Exception):
    """There is no such object."""


class Unanswered(UserError):
    """The API gave no answer: it restarts, a load balancer is in between, too much is asked."""


@dataclass(frozen=True)
class KubernetesApi:
    """One namespace, as this pod's service account may see it.

    Attributes:
        address: of the API.
        account: folder of the service account: `token`, which is renewed now and then, `ca.crt`
            and `namespace`.
    """

    address: str
    account: Path

    @staticmethod
    def of_this_pod(account: Path = _ACCOUNT) -> KubernetesApi:
        """The API of the cluster that this pod is in.

        Raises:
            UserError: this is no pod.
        """
        address = os.environ.get(ADDRESS_VARIABLE, "")
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}") for name in ("HOST", "PORT"))
        if not address and host:
            address = f"https://{f'[{host}]' if ':' in host else host}:{port or 443}"
        if not address:
            raise UserError(
                "This is no pod of a cluster: KUBERNETES_SERVICE_HOST is not set. Several pods "
                "train together on a cluster only; elsewhere set trainer.workers."
            )
        return KubernetesApi(address.rstrip("/"), account)

    @property
    def namespace(self) -> str:
        """The pod's own."""
        return self._read("namespace") or "default"

    def create(self, path: str, manifest: dict[str, Any]) -> dict[str, Any]:
        """Creates an object."""
        return self._call("POST", path, json=manifest).json()

    def get(self, path: str) -> dict[str, Any]:
        """Reads an object.

        Raises:
            NotThere: there is none.
        """
        return self._call("GET", path).json()

    def delete(self, path: str) -> None:
        """Deletes an object, if it is there, once all that belongs to it has ended."""
        try:
            self._call("DELETE", path, params={"propagationPolicy": "Foreground"})
        except NotThere:
            return

    def log(self, pod: str, container: str) -> Iterator[str]:
        """The lines of a container's log, as they come, to its end.

        Raises:
            NotThere: the pod has not started yet.
            Unanswered: the connection broke, or brought nothing for a while.
        """
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log"
        asked = {"container": container, "follow": "true"}
        with self._call("GET", path, params=asked, stream=True) as answer:
            answer.encoding = "utf-8"
            try:
                yield from answer.iter_lines(decode_unicode=True)
            except requests.RequestException as error:
                raise self._unanswered(_cause(error)) from error

    def _call(self, method: str, path: str, **options: Any) -> requests.Response:
        token, authority = self._read("token"), self.account / "ca.crt"
        following = options.get("stream")
        try:
            answer = requests.request(
                method,
                f"{self.address}{path}",
                headers={"Authorization": f"Bearer {token}"} if token else {},
                verify=str(authority) if authority.exists() else True,
                timeout=(_CONNECT, _READ),
                **options,
            )
        except requests.RequestException as error:
            raise self._unanswered(_cause(error)) from error
        if answer.status_code == 429 or answer.status_code >= 500:
            raise self._unanswered(f"{answer.status_code} {_said(answer)}")
        # A container that has not started has no log yet: 400.
        if answer.status_code == 404 or (following and answer.status_code == 400):
            raise NotThere(path)
        if answer.status_code in (401, 403):
            raise UserError(
                f"The API of Kubernetes does not let this service account {method} {path} "
                f"({answer.status_code}: {_said(answer)}). Its role needs tfjobs.kubeflow.org "
                "(create, get, delete) and pods/log (get)."
            )
        if not answer.ok:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {_said(answer)}")
        return answer

    def _unanswered(self, why: str) -> Unanswered:
        return Unanswered(f"The API of Kubernetes at {self.address} does not answer: {why}.")

    def _read(self, name: str) -> str:
        path = self.account / name
        return path.read_text("utf-8").strip() if path.exists() else ""


def _said(answer: requests.Response) -> str:
    try:
        return str(answer.json().get("message", ""))
    except ValueError:
        return answer.text[:300]


def _cause(error: BaseException) -> str:
    return str(error.__context__ or error)
