"""How much at once: a rate and a number of requests for each caller, a number for all.

What is too much is refused at once, before its body is read: a queue without end only makes every
answer late.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterator

import limits
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from graftline.serving.gateway.config import GatewayConfig
from graftline.serving.gateway.metrics import Metrics
from graftline.serving.gateway.refusals import Refusal, busy


class Admission:
    """Lets requests in, or refuses them. Used from one event loop."""

    def __init__(self, config: GatewayConfig, metrics: Metrics) -> None:
        self._rate = limits.parse(config.rate_limit) if config.rate_limit else None
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._most = config.max_in_flight
        self._most_of_one = config.max_in_flight_per_caller
        self._metrics = metrics
        self._by_caller: Counter[str] = Counter()
        self.in_flight = 0

    def count(self, caller: str) -> None:
        """Counts a request against the caller's rate.

        Raises:
            Refusal: it is one too many.
        """
        if self._rate is None or self._limiter.hit(self._rate, caller):
            return
        reset = self._limiter.get_window_stats(self._rate, caller).reset_time
        wait = max(1, math.ceil(reset - time.time()))
        raise Refusal(429, "rate-limit", f"More than {self._rate}.", {"Retry-After": str(wait)})

    @contextlib.contextmanager
    def slot(self, caller: str) -> Iterator[None]:
        """Holds a place for a request.

        Raises:
            Refusal: there is none.
        """
        if self.in_flight >= self._most:
            raise busy("Too many requests are at work.")
        if self._by_caller[caller] >= self._most_of_one:
            raise Refusal(
                429,
                "too-many-at-once",
                f"More than {self._most_of_one} requests of one caller at once.",
                {"Retry-After": "1"},
            )
        self.in_flight += 1
        self._by_caller[caller] += 1
        self._metrics.in_flight.set(self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1
            self._by_caller[caller] -= 1
            if not self._by_caller[caller]:
                del self._by_caller[caller]
            self._metrics.in_flight.set(self.in_flight)
