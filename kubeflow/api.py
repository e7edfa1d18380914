"""The API of Kubeflow Pipelines, v2beta1, over REST: what submitting and scheduling ask of it.

Plain HTTP rather than the SDK, which cannot be installed beside TFX, returns normally from runs
that failed, and does not let a schedule follow the newest version. Answers are the API's own
messages as plain data.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests
import tenacity

from graftline.pipeline.kubeflow_config import TOKEN_VARIABLE, ApiConfig
from graftline.serving.errors import UserError

ADDRESS_VARIABLE = "KF_PIPELINES_ENDPOINT"
# Where Kubeflow mounts the token of a pod that may ask the API, unless a variable says otherwise.
_TOKEN_PATH_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
_TOKEN_PATH = Path("/var/run/secrets/kubeflow/pipelines/token")
_PREFIX = "/apis/v2beta1"
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 60.0
_PAGE = 100
_LONGEST_SAID = 500

Message = dict[str, Any]


class NotThereError(Exception):
    """What was asked for does not exist."""


class ThereAlreadyError(Exception):
    """What was to be made exists."""


class Unanswered(UserError):
    """The API did not answer, or not now; asking again may help."""


class Api:
    """Kubeflow Pipelines at one address.

    Every method raises `UserError` where the API cannot be reached, does not accept the token or
    refuses the request, with what it said.
    """

    def __init__(self, config: ApiConfig, root: Path) -> None:
        """Takes where it is.

        Args:
            config: the section `kubeflow.api`.
            root: what relative paths in it are relative to.

        Raises:
            UserError: no address is configured, or a file is not there.
        """
        address = config.address or os.environ.get(ADDRESS_VARIABLE, "")
        if not address:
            raise UserError(
                "No address of Kubeflow Pipelines is known. Set kubeflow.api.address in "
                f"graftline.yaml, or the environment variable {ADDRESS_VARIABLE}."
            )
        if "://" not in address:
            address = f"https://{address}"
        self.address = address.rstrip("/")
        self._page = config.page.rstrip("/") or self.address
        self.namespace = config.namespace
        self._token_file = (
            root / Path(config.token_file).expanduser() if config.token_file else None
        )
        self._session = requests.Session()
        self._session.auth = self._authorize
        # Given with every request: a session's own yields to the variable REQUESTS_CA_BUNDLE.
        self._verify: bool | str = True
        if config.ca_file:
            authority = root / Path(config.ca_file).expanduser()
            if not authority.is_file():
                raise UserError(f"There is no file {authority} (kubeflow.api.ca_file).")
            self._verify = str(authority)

    def run_page(self, run_id: str) -> str:
        """Address of a run's page for people."""
        return f"{self._page}/#/runs/details/{run_id}"

    def find_pipeline(self, name: str) -> Message | None:
        """The pipeline of a name."""
        try:
            return self._get(f"/pipelines/names/{quote(name, safe='')}", namespace=self.namespace)
        except NotThereError:
            return None

    def create_pipeline(self, name: str, description: str) -> Message:
        """Makes a pipeline without a version.

        Raises:
            ThereAlreadyError: someone else has just made it.
        """
        body = {"display_name": name, "description": description, "namespace": self.namespace}
        return self._send("POST", "/pipelines", body=_without_empty(body))

    def versions(self, pipeline_id: str) -> Iterator[Message]:
        """The versions of a pipeline, the newest first."""
        path = f"/pipelines/{quote(pipeline_id, safe='')}/versions"
        return self._list(path, "pipeline_versions", sort_by="created_at desc")

    def version(self, pipeline_id: str, version_id: str) -> Message:
        """One version, with its package.

        Raises:
            NotThereError: there is none.
        """
        path = f"/pipelines/{quote(pipeline_id, safe='')}/versions/{quote(version_id, safe='')}"
        return self._get(path)

    def upload_version(self, pipeline_id: str, name: str, package: Path) -> Message:
        """Uploads a package as a new version.

        Raises:
            ThereAlreadyError: there is a version of this name.
        """
        with package.open("rb") as stream:
            return self._send(
                "POST",
                "/pipelines/upload_version",
                files={"uploadfile": (package.name, stream)},
                name=name,
                pipelineid=pipeline_id,
            )

    def find_experiment(self, name: str) -> str | None:
        """The id of the experiment of a name."""
        query = {"filter": _named(name), "namespace": self.namespace}
        found = next(self._list("/experiments", "experiments", **query), None)
        return str(found["experiment_id"]) if found else None

    def create_experiment(self, name: str) -> str:
        """Makes an experiment, and returns its id.

        Raises:
            ThereAlreadyError: someone else has just made it, or it is archived.
        """
        body = {"display_name": name, "namespace": self.namespace}
        return str(self._send("POST", "/experiments", body=_without_empty(body))["experiment_id"])

    def create_run(self, run: Message) -> Message:
        """Starts a run."""
        return self._send("POST", "/runs", body=_without_empty(run))

    def run(self, run_id: str) -> Message:
        """A run.

        Raises:
            NotThereError: there is none.
        """
        return self._get(f"/runs/{quote(run_id, safe='')}")

    def runs(self, experiment_id: str, name: str = "") -> Iterator[Message]:
        """The runs of an experiment, the newest first; those of a name, where one is given."""
        query = {"filter": _named(name)} if name else {}
        return self._list(
            "/runs", "runs", experiment_id=experiment_id, sort_by="created_at desc", **query
        )

    def create_schedule(self, schedule: Message) -> Message:
        """Makes a recurring run."""
        return self._send("POST", "/recurringruns", body=_without_empty(schedule))

    def schedule(self, schedule_id: str) -> Message:
        """A recurring run.

        Raises:
            NotThereError: there is none.
        """
        return self._get(f"/recurringruns/{quote(schedule_id, safe='')}")

    def schedules(self, experiment_id: str) -> Iterator[Message]:
        """The recurring runs of an experiment."""
        return self._list("/recurringruns", "recurringRuns", experiment_id=experiment_id)

    def enable_schedule(self, schedule_id: str) -> None:
        """Lets a recurring run start runs."""
        self._send("POST", f"/recurringruns/{quote(schedule_id, safe='')}:enable")

    def disable_schedule(self, schedule_id: str) -> None:
        """Lets a recurring run start no run until it is enabled."""
        self._send("POST", f"/recurringruns/{quote(schedule_id, safe='')}:disable")

    def delete_schedule(self, schedule_id: str) -> None:
        """Deletes a recurring run; its runs stay."""
        with contextlib.suppress(NotThereError):
            self._send("DELETE", f"/recurringruns/{quote(schedule_id, safe='')}")

    def _list(self, path: str, key: str, **query: str) -> Iterator[Message]:
        """All items, page by page."""
        token = ""
        while True:
            page = self._get(path, page_size=str(_PAGE), page_token=token, **query)
            yield from page.get(key, [])
            token = page.get("next_page_token", "")
            if not token:
                return

    def _get(self, path: str, **query: str) -> Message:
        """Reads, again where the API does not answer for a moment."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Unanswered),
            wait=tenacity.wait_exponential_jitter(0.5, 8.0),
            stop=tenacity.stop_after_attempt(4),
            reraise=True,
        )
        return retrying(self._ask, "GET", path, query=query)

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: Message | None = None,
        files: Mapping[str, Any] | None = None,
        **query: str,
    ) -> Message:
        """Changes something, once: whether a request that was not answered did, nobody knows."""
        return self._ask(method, path, query=query, body=body, files=files)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        body: Message | None = None,
        files: Mapping[str, Any] | None = None,
    ) -> Message:
        try:
            answer = self._session.request(
                method,
                f"{self.address}{_PREFIX}{path}",
                params={name: value for name, value in query.items() if value},
                json=body,
                files=files,
                verify=self._verify,
                timeout=(_CONNECT_SECONDS, _READ_SECONDS),
                # Whoever is not logged in is led to a page that answers everything with 200.
                allow_redirects=False,
            )
        except requests.exceptions.SSLError as error:
            raise UserError(
                f"The certificate of {self.address} is not accepted: {_cause(error)}. Name its "
                "authority in kubeflow.api.ca_file."
            ) from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise Unanswered(
                f"Kubeflow Pipelines does not answer at {self.address}: {_cause(error)}. Check "
                "kubeflow.api.address, and whether this machine reaches it (kubectl port-forward "
                "for one)."
            ) from error
        except requests.RequestException as error:
            raise UserError(f"{self.address} cannot be asked: {_cause(error)}.") from error
        return self._understand(answer, f"{method} {path}")

    def _understand(self, answer: requests.Response, request: str) -> Message:
        code = answer.status_code
        if 300 <= code < 400 or code in (401, 403):
            raise UserError(self._not_let_in(answer))
        said = _said(answer)
        if code == 404:
            raise NotThereError(said)
        if code == 409:
            raise ThereAlreadyError(said)
        if code in (429, 502, 503, 504):
            raise Unanswered(f"{self.address} answered {code} to {request}: {said}")
        if code >= 400:
            raise UserError(f"Kubeflow Pipelines refuses {request} ({code}): {said}")
        try:
            found = answer.json() if answer.content else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(
                f"What answers at {self.address} is not the API of Kubeflow Pipelines: {said}. "
                "Check the path in kubeflow.api.address, and the token."
            )
        return found

    def _not_let_in(self, answer: requests.Response) -> str:
        remedy = (
            f"Renew it in {self._token_file}"
            if self._token_file
            else f"Put a valid one into {TOKEN_VARIABLE}, or name a file in "
            "kubeflow.api.token_file, which is read anew at every request"
        )
        if answer.status_code == 403:
            where = f" in the namespace {self.namespace}" if self.namespace else ""
            return (
                f"Kubeflow Pipelines does not permit this{where} (403): {_said(answer)}. The token "
                "may have expired or belong to somebody without the right, or "
                f"kubeflow.api.namespace be another's. {remedy}."
            )
        if answer.status_code == 401:
            return (
                f"Kubeflow Pipelines does not accept the token (401): {_said(answer)}. It is wrong "
                f"or has expired. {remedy}."
            )
        there = urlsplit(answer.headers.get("Location", ""))
        return (
            f"{self.address} wants a login ({there.netloc}{there.path}): there is no token, or it "
            f"is wrong or has expired. {remedy}."
        )

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Adds the token, as it is now: those of a pod are renewed under way."""
        token = self._token()
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        return request

    def _token(self) -> str:
        if self._token_file is None and TOKEN_VARIABLE in os.environ:
            return os.environ[TOKEN_VARIABLE].strip()
        mounted = Path(os.environ.get(_TOKEN_PATH_VARIABLE, _TOKEN_PATH))
        path = self._token_file or mounted
        try:
            return path.read_text("ascii").strip()
        except FileNotFoundError:
            if self._token_file is None:
                return ""  # an API without users asks for none
            raise UserError(f"There is no token in {path} (kubeflow.api.token_file).") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The token in {path} cannot be read: {error}.") from error


def _named(name: str) -> str:
    """The filter that lets one name pass."""
    predicate = {"operation": "EQUALS", "key": "display_name", "string_value": name}
    return json.dumps({"predicates": [predicate]})


def _without_empty(message: Message) -> Message:
    return {name: value for name, value in message.items() if value not in ("", None)}


def _said(answer: requests.Response) -> str:
    """What the API said of a failure, in a line."""
    try:
        document = answer.json()
    except ValueError:
        document = answer.text
    if isinstance(document, dict):
        names = ("error_message", "message", "error")
        document = next((document[name] for name in names if document.get(name)), document)
    return " ".join(str(document).split())[:_LONGEST_SAID] or "it said nothing"


def _cause(error: Exception) -> str:
    """The innermost reason of an error of `requests`, whose own text wraps it several times."""
    while True:
        inner = error.__cause__ or error.__context__ or getattr(error, "reason", None)
        if not isinstance(inner, Exception):
            return str(error) or type(error).__name__
        error = inner
