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

from graftline.serving.gateway.config import GatewayConfig
from graftline.serving.gateway.metrics import Metrics
from graftline.serving.gateway.refusals import Refusal, busy

_UNITS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}


class Rate:
    """A bucket of requests for each caller, which fills again evenly.

    The generic cell rate algorithm (ITU-T I.371, appendix A): all that is kept of a caller is when
    their bucket will be full, and nothing of one whose bucket is.
    """

    def __init__(self, text: str) -> None:
        """Takes the size of the bucket and the time in which it fills, such as `300/minute`."""
        count, _, unit = text.partition("/")
        self._fill = _UNITS[unit]
        self._each = self._fill / int(count)
        # In the order of their last requests.
        self._full_at: dict[str, float] = {}

    def take(self, caller: str, now: float) -> float:
        """Takes a request out of a caller's bucket.

        Args:
            caller: their name.
            now: seconds of a clock that is never put back.

        Returns:
            0, or the seconds until there is one to take.
        """
        full = max(self._full_at.pop(caller, now), now)
        missing = full + self._each - now - self._fill
        # A millionth: sums of fractions are not exact.
        taken = missing <= 1e-6 * self._each
        self._full_at[caller] = full + self._each if taken else full
        # Two for each that is added: callers who do not come back are forgotten.
        for _ in range(2):
            first = next(iter(self._full_at))
            if self._full_at[first] > now:
                break
            del self._full_at[first]
        return 0.0 if taken else missing

    @property
    def remembered(self) -> int:
        """How many callers are remembered."""
        return len(self._full_at)


class Admission:
    """Lets requests in, or refuses them. Used from one event loop."""

    def __init__(self, config: GatewayConfig, metrics: Metrics) -> None:
        self._rate = Rate(config.rate_limit) if config.rate_limit else None
        self._said = f"More than {config.rate_limit}."
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
        if self._rate is None:
            return
        wait = self._rate.take(caller, time.monotonic())
        if wait > 0:
            seconds = str(max(1, math.ceil(wait)))
            raise Refusal(429, "rate-limit", self._said, {"Retry-After": seconds})

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
