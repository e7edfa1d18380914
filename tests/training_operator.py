"""Stands for the API of Kubernetes with the training operator: TFJobs whose pods are processes.

It keeps to what both document: paths, status codes, the token of a service account, TF_CONFIG as
the operator writes it, conditions of a job, logs that are followed to a container's end.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, urlparse

from graftline.components.trainer.workers import free_ports

NAMESPACE = "default"
_JOBS = f"/apis/kubeflow.org/v1/namespaces/{NAMESPACE}/tfjobs"
_LOG = re.compile(rf"/api/v1/namespaces/{NAMESPACE}/pods/(.+)/log")


class Pod(Protocol):
    """A container that has been started."""

    def code(self) -> int | None:
        """Its exit code; None while it runs."""

    def output(self) -> str:
        """What it printed so far."""

    def end(self) -> None:
        """Ends it."""


# Starts a pod, given its name, its container and its environment.
Start = Callable[[str, Mapping[str, Any], Mapping[str, str]], Pod]


class TrainingOperator:
    """The server.

    Args:
        start: starts a pod.
        token: that callers must have; empty: none.
        installed: whether the cluster knows TFJobs.
    """

    def __init__(self, start: Start, *, token: str = "", installed: bool = True):
        self._start, self.token, self.installed = start, token, installed
        self.jobs: dict[str, Any] = {}
        self.pods: dict[str, Pod] = {}
        self.created: list[Any] = []
        self.deleted: list[str] = []
        # So many logs break off, and so many questions for a job get 503.
        self.broken_logs = self.unanswered = 0
        operator = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                operator.answer(self)

            do_POST = do_DELETE = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Ends it and all pods."""
        self._server.shutdown()
        self._server.server_close()
        for pod in self.pods.values():
            pod.end()

    def answer(self, asked: BaseHTTPRequestHandler) -> None:
        """Answers one request."""
        url = urlparse(asked.path)
        if self.token and asked.headers["Authorization"] != f"Bearer {self.token}":
            self._reply(asked, 401, {"kind": "Status", "message": "Unauthorized"})
        elif found := _LOG.fullmatch(url.path):
            self._log(asked, found[1], parse_qs(url.query))
        elif self.unanswered and asked.command == "GET":
            self.unanswered -= 1
            self._reply(asked, 503, {"kind": "Status", "message": "etcdserver: leader changed"})
        elif not self.installed or not url.path.startswith(_JOBS):
            self._reply(asked, 404, {"kind": "Status", "message": "page not found"})
        elif asked.command == "POST":
            manifest = json.loads(asked.rfile.read(int(asked.headers["Content-Length"])))
            self._create(asked, manifest)
        else:
            self._existing(asked, url.path.removeprefix(f"{_JOBS}/"))

    def _create(self, asked: BaseHTTPRequestHandler, manifest: Any) -> None:
        name = manifest["metadata"]["name"]
        if (manifest["apiVersion"], manifest["kind"]) != ("kubeflow.org/v1", "TFJob"):
            self._reply(asked, 400, {"message": "no TFJob"})
        elif name in self.jobs:
            self._reply(asked, 409, {"message": f'tfjobs.kubeflow.org "{name}" already exists'})
        else:
            self.jobs[name] = manifest
            self.created.append(manifest)
            self._start_pods(name, manifest["spec"]["tfReplicaSpecs"])
            self._reply(asked, 201, manifest)

    def _start_pods(self, job: str, replicas: Any) -> None:
        members = [
            (kind.lower(), index)
            for kind, spec in replicas.items()
            for index in range(spec["replicas"])
        ]
        addresses = dict(zip(members, free_ports(len(members)), strict=True))
        cluster: dict[str, list[str]] = {}
        for (kind, _), port in addresses.items():
            # The operator writes JOB-KIND-INDEX.NAMESPACE.svc:2222.
            cluster.setdefault(kind, []).append(f"127.0.0.1:{port}")
        for kind, index in members:
            task = {"type": kind, "index": index}
            config = {"cluster": cluster, "task": task, "environment": "cloud"}
            [container] = replicas[kind.capitalize()]["template"]["spec"]["containers"]
            assert container["name"] == "tensorflow", "the operator would not find it"
            name = f"{job}-{kind}-{index}"
            self.pods[name] = self._start(name, container, {"TF_CONFIG": json.dumps(config)})

    def _existing(self, asked: BaseHTTPRequestHandler, name: str) -> None:
        if name not in self.jobs:
            self._reply(asked, 404, {"message": f'tfjobs.kubeflow.org "{name}" not found'})
        elif asked.command == "DELETE":
            for pod in list(self.pods):
                if pod.startswith(f"{name}-"):
                    self.pods.pop(pod).end()
            self.deleted.append(name)
            self._reply(asked, 200, self.jobs.pop(name))
        else:
            self._reply(asked, 200, {**self.jobs[name], "status": self._status(name)})

    def _status(self, job: str) -> Any:
        codes = {name: pod.code() for name, pod in self.pods.items() if name.startswith(f"{job}-")}
        failed = [name for name, code in codes.items() if code]
        conditions = [{"type": "Created", "status": "True"}, {"type": "Running", "status": "True"}]
        if failed:
            said = f"TFJob {NAMESPACE}/{job} has failed because 1 {failed[0]} replica(s) failed."
            conditions.append({"type": "Failed", "status": "True", "message": said})
        elif codes[f"{job}-chief-0"] == 0:
            conditions.append({"type": "Succeeded", "status": "True", "message": "completed"})
        return {"conditions": conditions}

    def _log(self, asked: BaseHTTPRequestHandler, pod: str, query: Mapping[str, Any]) -> None:
        if pod not in self.pods:
            self._reply(asked, 404, {"message": f'pods "{pod}" not found'})
            return
        assert query == {"container": ["tensorflow"], "follow": ["true"]}
        asked.send_response(200)
        asked.send_header("Content-Type", "text/plain")
        if self.broken_logs:
            self.broken_logs -= 1
            asked.send_header("Content-Length", "1000000")
            asked.end_headers()
            asked.wfile.write(next(self._follow(self.pods[pod])).encode())
            return
        asked.end_headers()
        with contextlib.suppress(OSError):
            for text in self._follow(self.pods[pod]):
                asked.wfile.write(text.encode())
                asked.wfile.flush()

    @staticmethod
    def _follow(pod: Pod) -> Iterator[str]:
        told = 0
        while True:
            ended = pod.code() is not None
            text = pod.output()
            yield text[told:]
            told = len(text)
            if ended:
                return
            time.sleep(0.1)

    @staticmethod
    def _reply(asked: BaseHTTPRequestHandler, code: int, document: Any) -> None:
        content = json.dumps(document).encode()
        asked.send_response(code)
        asked.send_header("Content-Type", "application/json")
        asked.send_header("Content-Length", str(len(content)))
        asked.end_headers()
        asked.wfile.write(content)


@contextlib.contextmanager
def training_operator(start: Start, **options: Any) -> Iterator[TrainingOperator]:
    """A server under way."""
    operator = TrainingOperator(start, **options)
    try:
        yield operator
    finally:
        operator.stop()
