"""What the gateway counts; the names are listed in docs/gateway.md."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)


class Metrics:
    """The counters of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "graftline_gateway_requests_total",
            "Answers of /v1/classify.",
            ["code", "label"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "graftline_gateway_request_seconds",
            "From the head of a request to its answer; requests answered with 200.",
            ["label"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.refusals = Counter(
            "graftline_gateway_refusals_total",
            "Requests that were not answered.",
            ["reason"],
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "graftline_gateway_in_flight", "Requests at work.", registry=self.registry
        )
        self.samples = Counter(
            "graftline_gateway_samples_total",
            "Requests chosen to be kept: written, dropped (no room), failed (disk).",
            ["outcome"],
            registry=self.registry,
        )
        self.audit_failures = Counter(
            "graftline_gateway_audit_failures_total",
            "Refusals that could not be written to the audit log.",
            registry=self.registry,
        )

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
