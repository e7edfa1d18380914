"""A real Prometheus as it is deployed, beside real servers: targets, rules, the dashboard."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from PIL import Image

from deployment import DEPLOY, alerts, kustomized, queries, server_flags, tool
from model_servers import ModelServer, free_port, until

pytestmark = pytest.mark.end_to_end


def classifier(folder: Path) -> None:
    """A SavedModel that calls every image a rose; signature and names are those of an export."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.string, [None], "images")
        count = tf.shape(images)[0]
        outputs = {
            "classes": tf.tile(tf.constant([["rose", "daisy"]]), [count, 1]),
            "scores": tf.tile(tf.constant([[0.75, 0.25]]), [count, 1]),
        }
        v1.saved_model.simple_save(session, str(folder), {"image_bytes": images}, outputs)


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(stream, "PNG")
    return stream.getvalue()


class Stack:
    """What compose.yaml starts, but Grafana, on this machine; `flowers` in `<folder>/base`."""

    def __init__(self, folder: Path):
        self.base = folder / "base"
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        classifier(self.base / "flowers" / "1")
        config = (DEPLOY / "tensorflow_serving" / "models.config").read_text()
        (self.base / "models.config").write_text(config.replace("/models/", f"{self.base}/"))
        settings = str(DEPLOY / "tensorflow_serving")
        flags = [
            flag.replace("/models/", f"{self.base}/").replace("/etc/tensorflow_serving", settings)
            for flag in server_flags(kustomized("base"))
            if not flag.startswith(("--port", "--rest_api_port"))
        ]
        self.server = ModelServer(folder, *flags, "--load_retry_interval_micros=100000")

    def start(self) -> None:
        """Starts the rest, and waits for a first answer."""
        self.gateway = self._start_gateway()
        self.probe = free_port()
        self._start(
            tool("prometheus-blackbox-exporter", "Debian's package of that name"),
            f"--config.file={DEPLOY / 'prometheus' / 'blackbox.yml'}",
            f"--web.listen-address=127.0.0.1:{self.probe}",
        )
        self.prometheus = self._start_prometheus()
        self.server.wait_ready()
        until(lambda: self.classify(png()) == 200, "an answer")

    def _start(self, *command: str) -> None:
        with (self._folder / f"{Path(command[0]).name}.log").open("wb") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def _start_gateway(self) -> int:
        port = free_port()
        keys = self._folder / "api_keys"
        keys.write_text(f"shop {hashlib.sha256(b'key').hexdigest()}\n")
        self._start(
            sys.executable,
            "-m",
            "graftline.serving.gateway",
            "--model_name=flowers",
            f"--model_base_path={self.base / 'flowers'}",
            f"--config={DEPLOY / 'gateway' / 'gateway.yaml'}",
            "host=127.0.0.1",
            f"port={port}",
            f"server=127.0.0.1:{self.server.grpc_port}",
            f"api_keys={keys}",
            'rate_limit=""',
        )
        return port

    def _start_prometheus(self) -> int:
        text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
        for name, here in (
            ("tensorflow-serving:8501", f"127.0.0.1:{self.server.rest_port}"),
            ("gateway:8080", f"127.0.0.1:{self.gateway}"),
            ("blackbox-exporter:9115", f"127.0.0.1:{self.probe}"),
            ("interval: 15s", "interval: 1s"),
        ):
            assert name in text
            text = text.replace(name, here)
        (self._folder / "prometheus.yml").write_text(text)
        (self._folder / "alerts.yml").symlink_to(DEPLOY / "prometheus" / "alerts.yml")
        port = free_port()
        self._start(
            tool("prometheus", "Debian's package of that name"),
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        )
        return port

    def stop(self) -> None:
        """Ends all of it."""
        self.server.process.kill()
        self.server.process.join()
        for process in self._processes:
            process.kill()
            process.wait()

    def classify(self, image: bytes, key: str = "key") -> int:
        """Sends an image through the gateway; returns the status, 0 where nobody listens."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.gateway}/v1/classify",
            image,
            {"X-API-Key": key, "Content-Type": "image/png"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except urllib.error.URLError:
            return 0

    def api(self, path: str, **query: str) -> Any:
        """Asks Prometheus."""
        address = f"http://127.0.0.1:{self.prometheus}/api/v1/{path}"
        if query:
            address += "?" + urllib.parse.urlencode(query)
        with contextlib.suppress(ConnectionError, urllib.error.URLError):
            return json.loads(urllib.request.urlopen(address, timeout=30).read())["data"]
        return {}

    def firing(self, name: str) -> list[dict[str, str]]:
        """The labels with which an alert fires, or will when it has lasted long enough."""
        found = self.api("alerts").get("alerts", [])
        return [alert["labels"] for alert in found if alert["labels"]["alertname"] == name]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("stack"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_everything_is_scraped(stack):
    def up() -> dict[str, str]:
        found = stack.api("targets").get("activeTargets", [])
        return {target["labels"]["job"]: target["health"] for target in found}

    jobs = ("tensorflow-serving", "gateway", "model-served")
    until(lambda: up() == dict.fromkeys(jobs, "up"), "health")
    [served] = stack.api("query", query='probe_success{job="model-served"}')["result"]
    assert served["metric"]["model"] == "flowers"
    assert served["value"][1] == "1"


def test_every_query_of_the_dashboard_has_an_answer(stack):
    def answer(query: str) -> bool:
        assert stack.classify(png()) == 200
        assert stack.classify(b"no image") == 415
        found = stack.api("query", query=query).get("result", [])
        return any(series["value"][1] != "NaN" for series in found)  # NaN draws nothing

    for title, query in queries():
        until(lambda query=query: answer(query), f"an answer to {title}: {query}")


def test_every_selector_of_the_alerts_finds_something(stack):
    """What no test run brings about is left out: failures, and refusals for lack of room."""
    rare = {"status", "code", "reason"}
    for rule in alerts():
        for name, matchers in _selectors(rule["expr"]):
            kept = [m for m in matchers if m.partition("=")[0].rstrip("~!") not in rare]
            query = f"{name}{{{','.join(kept)}}}"
            until(
                lambda query=query: stack.api("query", query=query).get("result"),
                f"{query} of {rule['alert']}",
            )


def _selectors(expression: str) -> Iterator[tuple[str, list[str]]]:
    """Names of metrics and their matchers."""
    pattern = r'((?<![\w"])(?::tensorflow[\w:]+|graftline_\w+|probe_success|up))(?:\{([^}]*)\})?'
    for found in re.finditer(pattern, expression):
        yield found[1], re.findall(r'\w+\s*[=!]~?\s*"[^"]*"', found[2] or "")


def test_all_rules_are_evaluated_and_nothing_fires(stack):
    def rules() -> list[dict[str, Any]]:
        groups = stack.api("rules").get("groups", [])
        return [rule for group in groups for rule in group["rules"]]

    until(lambda: rules() and all(rule["health"] != "unknown" for rule in rules()), "rules")
    assert len(rules()) == len(alerts())
    for rule in rules():
        assert (rule["health"], rule["state"]) == ("ok", "inactive"), rule


def test_a_version_that_cannot_be_loaded_is_reported_while_the_one_before_serves(stack):
    broken = stack.base / "flowers" / "2.tmp"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"damaged")
    broken.rename(stack.base / "flowers" / "2")
    until(lambda: stack.firing("GraftlineVersionNotLoaded"), "the alert")
    [labels] = stack.firing("GraftlineVersionNotLoaded")
    assert labels["model_path"] == str(stack.base / "flowers" / "2")
    assert stack.classify(png()) == 200


def test_a_server_that_is_gone_is_reported(stack):
    stack.server.process.kill()
    for name in ("GraftlineServerDown", "GraftlineModelNotServed"):
        until(lambda name=name: stack.firing(name), name)


def test_requests_that_fail_are_reported(stack):
    stack.server.process.kill()

    def reported() -> list[dict[str, str]]:
        assert stack.classify(png()) == 503
        return stack.firing("GraftlineGatewayErrors")

    assert until(reported, "the alert")[0]["label"] == "latest"
