"""A server that speaks the API of Kubeflow Pipelines, and checks requests against its definition.

A request that the definition does not know is answered 400 and remembered; answers are held to the
same definition.
"""

from __future__ import annotations

import contextlib
import datetime
import email
import email.policy
import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import yaml

from graftline.pipeline.cli.main import main
from kubeflow_api import Operation, operations, problems

Message = dict[str, Any]
TOKEN = "the right token"
# Steps of the package below: names of their tasks, and what people call them.
# How the API gives a package back that has a part for the platform.
PARTS = ("pipeline_spec", "platform_spec")
STEPS = {"begin": "begin", "trainer": "Trainer", "pusher": "Pusher", "refused-2": "refused"}


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class Backend:
    """What Kubeflow Pipelines does, as far as it is asked here.

    Attributes:
        url: where it listens.
        misunderstood: requests that the definition does not allow.
        requests: name of each request that came.
        fails: codes to answer the next requests with, in place of what they ask.
        tokens: tokens that are let in; empty: everybody is.
        login: lead who is not let in to a page, as a gateway with a login does.
        pins: keep a schedule at the version of its making, as backends before 2.5 do.
        copies: the same, by a copy of the version's package in place of a reference.
        course: per look at a run, its state and the states of its steps; the last one stays.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.misunderstood: list[str] = []
        self.requests: list[str] = []
        self.fails: list[int] = []
        self.tokens: set[str] = set()
        self.login = False
        self.pins = self.copies = False
        self.course: list[tuple[str, dict[str, str]]] = [("SUCCEEDED", {})]
        self.pipelines: dict[str, Message] = {}
        self.versions: list[Message] = []
        self.experiments: dict[str, Message] = {}
        self.runs: dict[str, Message] = {}
        self.schedules: dict[str, Message] = {}
        self.packages: list[bytes] = []
        self._looks: dict[str, int] = {}
        self._count = 0

    def _id(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self._count}"

    def _time(self) -> str:
        began = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
        return (began + datetime.timedelta(minutes=self._count)).isoformat()

    def act(self, name: str, ids: list[str], query: dict[str, str], body: Any) -> Message:
        """Does what an operation of the definition asks."""
        act: Callable[..., Message] | None = getattr(self, f"do_{name}", None)
        if act is None:
            raise Refusal(501, f"this server does not do {name}")
        return act(ids, query, body)

    def do_pipeline_service_get_pipeline_by_name(self, ids, query, body):
        for pipeline in self.pipelines.values():
            if pipeline["display_name"] == ids[0]:
                return pipeline
        raise Refusal(404, f"pipeline {ids[0]} not found")

    def do_pipeline_service_create_pipeline(self, ids, query, body):
        if any(one["display_name"] == body["display_name"] for one in self.pipelines.values()):
            raise Refusal(409, "already exists")
        made = {**body, "pipeline_id": self._id("pipeline")}
        self.pipelines[made["pipeline_id"]] = made
        return made

    def do_pipeline_service_list_pipeline_versions(self, ids, query, body):
        found = [
            {name: value for name, value in one.items() if name != "pipeline_spec"}
            for one in self.versions
            if one["pipeline_id"] == ids[0]
        ]
        return self._page("pipeline_versions", found, query)

    def do_pipeline_service_get_pipeline_version(self, ids, query, body):
        for one in self.versions:
            if [one["pipeline_id"], one["pipeline_version_id"]] == ids:
                return one
        raise Refusal(404, "no such version")

    def do_upload_pipeline_version(self, ids, query, body):
        if query["pipelineid"] not in self.pipelines:
            raise Refusal(400, "Failed to create a pipeline version")
        there = [one for one in self.versions if one["pipeline_id"] == query["pipelineid"]]
        if any(one["display_name"] == query["name"] for one in there):
            raise Refusal(409, "Failed to create a pipeline version")
        self.packages.append(body)
        made = {
            "pipeline_id": query["pipelineid"],
            "pipeline_version_id": self._id("version"),
            "display_name": query["name"],
            "created_at": self._time(),
            "pipeline_spec": dict(zip(PARTS, yaml.safe_load_all(body), strict=True)),
        }
        self.versions.append(made)
        return made

    def do_experiment_service_list_experiments(self, ids, query, body):
        return self._page("experiments", list(self.experiments.values()), query)

    def do_experiment_service_create_experiment(self, ids, query, body):
        made = {**body, "experiment_id": self._id("experiment")}
        self.experiments[made["experiment_id"]] = made
        return made

    def do_run_service_create_run(self, ids, query, body):
        reference = body["pipeline_version_reference"]
        if reference["pipeline_version_id"] not in [
            one["pipeline_version_id"] for one in self.versions
        ]:
            raise Refusal(400, "no such version")
        made = {**body, "run_id": self._id("run"), "state": "PENDING", "created_at": self._time()}
        self.runs[made["run_id"]] = made
        return made

    def do_run_service_get_run(self, ids, query, body):
        if ids[0] not in self.runs:
            raise Refusal(404, "run not found")
        run = self.runs[ids[0]]
        look = self._looks.get(ids[0], 0)
        self._looks[ids[0]] = look + 1
        state, steps = self.course[min(look, len(self.course) - 1)]
        details = [{"display_name": "root", "state": state, "child_tasks": [{"task_id": "1"}]}]
        for number, (step, end) in enumerate(steps.items()):
            start = f"2026-01-01T00:00:{number:02d}Z"
            # A task is a branch of its own, with a driver and the pod that does the work.
            shown = [(f"{step}-driver", "SUCCEEDED", []), (step, end, [{"pod_name": "1"}])]
            shown += [("executor", end, []), ("condition-2", "SKIPPED", [{"pod_name": "2"}])]
            details += [
                {"display_name": name, "state": one, "start_time": start, "child_tasks": children}
                for name, one, children in shown
            ]
        run.update(state=state, run_details={"task_details": details})
        return run

    def do_run_service_list_runs(self, ids, query, body):
        found = [
            one for one in self.runs.values() if one["experiment_id"] == query["experiment_id"]
        ]
        return self._page("runs", found, query)

    def do_recurring_run_service_create_recurring_run(self, ids, query, body):
        reference = dict(body["pipeline_version_reference"])
        if (self.pins or self.copies) and "pipeline_version_id" not in reference:
            newest = [
                one for one in self.versions if one["pipeline_id"] == reference["pipeline_id"]
            ][-1]
            if self.copies:
                body["pipeline_spec"] = newest["pipeline_spec"]
            else:
                reference["pipeline_version_id"] = newest["pipeline_version_id"]
        made = {
            **body,
            "pipeline_version_reference": reference,
            "recurring_run_id": self._id("schedule"),
            "status": "DISABLED" if body.get("mode") == "DISABLE" else "ENABLED",
        }
        self.schedules[made["recurring_run_id"]] = made
        return made

    def do_recurring_run_service_get_recurring_run(self, ids, query, body):
        return self._schedule(ids[0])

    def do_recurring_run_service_list_recurring_runs(self, ids, query, body):
        found = [
            one for one in self.schedules.values() if one["experiment_id"] == query["experiment_id"]
        ]
        return self._page("recurringRuns", found, query)

    def do_recurring_run_service_enable_recurring_run(self, ids, query, body):
        self._schedule(ids[0])["status"] = "ENABLED"
        return {}

    def do_recurring_run_service_disable_recurring_run(self, ids, query, body):
        self._schedule(ids[0])["status"] = "DISABLED"
        return {}

    def do_recurring_run_service_delete_recurring_run(self, ids, query, body):
        del self.schedules[self._schedule(ids[0])["recurring_run_id"]]
        return {}

    def _schedule(self, schedule_id: str) -> Message:
        if schedule_id not in self.schedules:
            raise Refusal(404, "recurring run not found")
        return self.schedules[schedule_id]

    def _page(self, key: str, found: list[Message], query: dict[str, str]) -> Message:
        """Filtered, sorted, two at a time: a client that reads one page only does not see all."""
        if query.get("filter"):
            document = json.loads(query["filter"])
            wrong = list(problems("V2beta1Filter", document, "filter"))
            if wrong:
                raise Refusal(400, "; ".join(wrong))
            for one in document["predicates"]:
                assert one["operation"] == "EQUALS"
                found = [item for item in found if item.get(one["key"]) == one["string_value"]]
        if query.get("sort_by") == "created_at desc":
            found = sorted(found, key=lambda item: item["created_at"], reverse=True)
        start = int(query.get("page_token", 0))
        more = {"next_page_token": str(start + 2)} if len(found) > start + 2 else {}
        return {key: found[start : start + 2], "total_size": len(found), **more}


def package(path: Path, **changes: object) -> Path:
    """Writes what of a compiled package is looked at when it is submitted."""
    kinds = {"span": "NUMBER_INTEGER", "window": "NUMBER_INTEGER", "force": "BOOLEAN"}
    kinds |= {"overrides": "STRING", "reason": "STRING"}
    declared = {name: {"parameterType": kind} for name, kind in kinds.items()}
    tasks = {
        key: {"componentRef": {"name": f"comp-{key}"}, "taskInfo": {"name": name}}
        for key, name in STEPS.items()
    }
    branch = {"componentRef": {"name": "comp-branch"}, "taskInfo": {"name": "ModelGate-refused"}}
    components = {f"comp-{key}": {"executorLabel": f"exec-{key}"} for key in STEPS}
    components["comp-branch"] = {"dag": {"tasks": {"refused-2": tasks.pop("refused-2")}}}
    document = {
        "schemaVersion": "2.1.0",
        "root": {
            "inputDefinitions": {"parameters": declared},
            "dag": {"tasks": {**tasks, "condition-2": branch}},
        },
        "components": components,
        **changes,
    }
    path.write_text(f"{yaml.safe_dump(document)}---\nplatforms: {{}}\n")
    return path


def kubeflow(project: Path, *arguments: str) -> int:
    """Runs `graftline kubeflow` on a project, in this process; returns the exit code."""
    try:
        main(["kubeflow", *arguments, "--project", str(project)])
    except SystemExit as ended:
        return int(ended.code or 0)


@contextlib.contextmanager
def kubeflow_server(certificate: Path | None = None) -> Iterator[Backend]:
    """A server of its own, until the block ends.

    Args:
        certificate: PEM file of a key and its certificate: the server speaks TLS.
    """
    known = operations()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if backend.tokens and self.token() not in backend.tokens:
                if backend.login:
                    self.reply(302, {}, location="https://login.example/dex/auth?state=1")
                else:
                    self.reply(401, {"error": "Unauthenticated", "code": 16, "message": "no"})
                return
            if backend.fails:
                self.reply(backend.fails.pop(0), {"error": "unavailable", "message": "not now"})
                return
            try:
                self.reply(200, self.understood(content))
            except Refusal as refusal:
                message = {"error": str(refusal), "code": 1, "message": str(refusal)}
                self.reply(refusal.code, message)

        def token(self) -> str:
            return self.headers.get("Authorization", "").removeprefix("Bearer ")

        def understood(self, content: bytes) -> Message:
            url = urlsplit(self.path)
            query = dict(parse_qsl(url.query))
            for operation in known:
                match = operation.path.fullmatch(url.path)
                if match and operation.verb == self.command:
                    backend.requests.append(operation.name)
                    body = self.body(operation, content, query)
                    ids = [unquote(one) for one in match.groups()]
                    done = backend.act(operation.name, ids, query, body)
                    wrong = list(problems(operation.answer, done, "answer"))
                    assert not wrong, wrong
                    return done
            raise self.misunderstood(f"{self.command} {url.path} is not in the definition")

        def body(self, operation: Operation, content: bytes, query: dict[str, str]) -> Any:
            wrong = [f"{key}: no such parameter" for key in query.keys() - operation.query]
            found: Any = None
            if operation.body:
                found = json.loads(content or b"null")
                wrong += problems(operation.body, found, operation.body)
            elif operation.files:
                head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                form = email.message_from_bytes(head + content, policy=email.policy.HTTP)
                parts = {
                    part.get_param("name", header="content-disposition"): part
                    for part in form.iter_parts()
                }
                if parts.keys() != operation.files:
                    wrong.append(f"the form has {sorted(map(str, parts))}")
                else:
                    [part] = parts.values()
                    found = part.get_payload(decode=True)
                    if not str(part.get_filename()).endswith((".yaml", ".yml", ".zip", ".gz")):
                        wrong.append(f"{part.get_filename()} is no name of a package")
            elif content:
                wrong.append("a body where there is none")
            if wrong:
                raise self.misunderstood(f"{operation.name}: {'; '.join(wrong)}")
            return found

        def misunderstood(self, what: str) -> Refusal:
            backend.misunderstood.append(what)
            return Refusal(400, what)

        def reply(self, code: int, message: Message, location: str = "") -> None:
            content = json.dumps(message).encode()
            self.send_response(code)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "https" if certificate else "http"
    backend = Backend(f"{scheme}://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield backend
    finally:
        server.shutdown()
        server.server_close()
