"""What the server counts, under the names and on the path of the real one.

Names are TensorFlow's with every character that Prometheus does not allow turned into a colon:
`/tensorflow/serving/request_count` is `:tensorflow:serving:request_count`
(tensorflow_serving/util/prometheus_exporter.cc). Times are in microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.samples import Sample

from graftline.serving.server.status import Code

DEFAULT_PATH = "/monitoring/prometheus/metrics"
_PREFIX = ":tensorflow:serving:"
_NOT_ALLOWED = re.compile(r"[^a-zA-Z0-9_]")
_LOAD_ATTEMPTS = ":tensorflow:cc:saved_model:load_attempt_count"
# Ten microseconds to some twenty minutes.
_TIMES = [10 * 1.8**i for i in range(33)]
_COUNTS = [2.0**i for i in range(15)]
# prometheus_client ends every counter's name with this; only one of the real names does.
_TOTAL = "_total"
_NAMED_TOTAL = f"{_PREFIX}request_example_count"


class Metrics:
    """The counters and histograms of one server; safe to use from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("request_count", "model_name", "status")
        self._latency = self._histogram("request_latency", "model_name", "API", "entrypoint")
        self._runtime = self._histogram("runtime_latency", "model_name", "API", "runtime")
        self._examples = Histogram(
            f"{_PREFIX}request_example_counts",
            "",
            ["model"],
            registry=self._registry,
            buckets=_COUNTS,
        )
        self._example_total = self._counter("request_example_count", "model")
        self._warmup = self._histogram("model_warmup_latency", "model_path", "status")
        self._queueing = self._histogram("batching_session:queuing_latency", "thread_pool_name")
        self._loads = Counter(_LOAD_ATTEMPTS, "", ["model_path", "status"], registry=self._registry)

    def request(self, model: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        """Counts a request that has ended.

        Args:
            model: the name that it asked for.
            api: `Predict`, `Classify`, `Regress` or `MultiInference`.
            entrypoint: `GRPC` or `REST`.
            code: how it ended.
            seconds: how long it took.
        """
        self._requests.labels(model, code.name).inc()
        self._latency.labels(model, api, entrypoint).observe(seconds * 1e6)

    def computed(self, model: str, api: str, seconds: float) -> None:
        """Records how long TensorFlow took, waiting for a batch included."""
        self._runtime.labels(model, api, "TF1").observe(seconds * 1e6)

    def examples(self, model: str, count: int) -> None:
        """Counts the tf.Examples of a request."""
        self._examples.labels(model).observe(count)
        self._example_total.labels(model).inc(count)

    def load_attempt(self, path: str, succeeded: bool) -> None:
        """Counts that a version's folder was read (tensorflow/cc/saved_model/loader.cc)."""
        self._loads.labels(path, "success" if succeeded else "fail").inc()

    def warmed_up(self, path: str, code: Code, seconds: float) -> None:
        """Records how long a version's warm-up took."""
        self._warmup.labels(path, code.name).observe(seconds * 1e6)

    def queueing(self, pool: str) -> Callable[[float], None]:
        """Makes the function that is told how many seconds a request waited for its batch."""
        histogram = self._queueing.labels(pool)
        return lambda seconds: histogram.observe(seconds * 1e6)

    def first(self, name: str) -> int:
        """A counter's value for the first of its sets of labels, which is what a reload call tells.

        Args:
            name: as TensorFlow writes it, `/tensorflow/serving/request_count`.

        Returns:
            0 where nothing was counted, or no counter has the name.
        """
        wanted = _NOT_ALLOWED.sub(":", name)
        for metric in self._registry.collect():
            if _real_name(metric) == wanted and metric.type == "counter":
                counted = [s for s in metric.samples if _counts(s)]
                first = min(counted, key=lambda s: sorted(s.labels.items()), default=None)
                return int(first.value) if first else 0
        return 0

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        lines: list[str] = []
        for metric in self._registry.collect():
            name = _real_name(metric)
            lines.append(f"# TYPE {name} {metric.type}")
            lines += [_line(metric, sample) for sample in metric.samples if _counts(sample)]
        return ("\n".join(lines) + "\n").encode()

    def _counter(self, name: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, "", labels, registry=self._registry)

    def _histogram(self, name: str, *labels: str) -> Histogram:
        return Histogram(_PREFIX + name, "", labels, registry=self._registry, buckets=_TIMES)


def _real_name(metric: Metric) -> str:
    return f"{metric.name}{_TOTAL}" if metric.name == _NAMED_TOTAL else metric.name


def _counts(sample: Sample) -> bool:
    return not sample.name.endswith("_created")


def _line(metric: Metric, sample: Sample) -> str:
    name = sample.name
    if metric.type == "counter" and metric.name != _NAMED_TOTAL:
        name = name.removesuffix(_TOTAL)
    labels = ",".join(f'{key}="{_escaped(key, value)}"' for key, value in sample.labels.items())
    return f"{name}{{{labels}}} {sample.value:.15g}"


def _escaped(label: str, value: str) -> str:
    if label == "le" and value != "+Inf":
        return f"{float(value):g}"
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
